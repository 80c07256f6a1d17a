package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"nodevisor/internal/fakenode/trace"
)

// printVersion prints the version as an SDK application does: a bare line, or with --long --output json an object.
func printVersion(s *settings) error {
	if !s.long && s.output != "json" {
		fmt.Println(version)
		return nil
	}
	info := map[string]any{
		"name": "fakechain", "server_name": "fakenode", "version": version, "commit": strings.Repeat("f", 40),
		"build_tags": "", "go": fmt.Sprintf("go version %s %s/%s", runtime.Version(), runtime.GOOS, runtime.GOARCH),
	}
	if s.output == "json" {
		return printJSON(os.Stdout, info)
	}
	for _, key := range []string{"name", "server_name", "version", "commit", "build_tags", "go"} {
		fmt.Printf("%s: %v\n", key, info[key])
	}
	return nil
}

// printStatus prints the result of /status in the SDK's form of 0.50 and later, or in that of before, which named its
// parts as Go does and wrote to stderr.
func printStatus(s *settings) error {
	result, err := s.askStatus()
	if err != nil {
		return err
	}
	switch s.statusStyle {
	case "old":
		return printJSON(os.Stderr, map[string]any{
			"NodeInfo": result["node_info"], "SyncInfo": result["sync_info"], "ValidatorInfo": result["validator_info"],
		})
	case "noisy":
		fmt.Fprintln(os.Stderr, "WARNING: client.toml is deprecated")
	}
	return printJSON(os.Stdout, result)
}

// preUpgradeCalls counts the runs of pre-upgrade in a home; it is also the mark of `once`.
const preUpgradeCalls = "fakenode-pre-upgrade-calls"

// preUpgrade ends with the code that was asked for. It is given no home on its command line, as Cosmovisor calls it, and
// finds it in DAEMON_HOME.
func preUpgrade(s *settings) error {
	call, err := s.countCall()
	if err != nil {
		return &exitError{code: 2, text: err.Error()}
	}
	code := 0
	if n := len(s.preUpgradeExit); n > 0 {
		code = s.preUpgradeExit[min(call, n)-1]
	}
	dir, _ := os.Getwd()
	// Recorded before the delay and the kill: the record says that the call was made, whatever becomes of it.
	e := trace.Event{Kind: trace.PreUpgrade, Argv: os.Args, Dir: dir, Code: code, Attempt: os.Getenv("SUPERVISOR_ATTEMPT")}
	s.record(e)
	s.recordTo(s.preUpgradeTrace, e)
	time.Sleep(s.preUpgradeDelay)
	if s.preUpgradeKillParent == "always" || (s.preUpgradeKillParent == "once" && call == 1) {
		// An orphan's parent is not the one that called: it is left alone.
		if parent := os.Getppid(); parent > 1 {
			if err := syscall.Kill(parent, syscall.SIGKILL); err != nil {
				return &exitError{code: 2, text: err.Error()}
			}
		}
	}
	fmt.Printf("pre-upgrade of %s, call %d\n", version, call)
	return &exitError{code: code}
}

// countCall returns the number of this call, from 1 on. The count is written before anything can go wrong.
func (s *settings) countCall() (int, error) {
	if s.home == "" {
		return 1, nil
	}
	path := filepath.Join(s.home, preUpgradeCalls)
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	before, _ := strconv.Atoi(string(data))
	return before + 1, replaceFile(path, []byte(strconv.Itoa(before+1)), 0o644)
}

// export prints a genesis document of the store at rest. Like an SDK application's it can't while the node runs.
func export(s *settings) error {
	store, err := openStore(filepath.Join(s.home, "data", "fake.db"), s.tableEvery, s.sync)
	if err != nil {
		return fail("%v", err)
	}
	defer store.close() //nolint:errcheck // nothing was written
	noise := os.Stderr
	if s.exportNoise {
		noise = os.Stdout
	}
	fmt.Fprintf(noise, "%s INF exporting state height=%d\n", time.Now().Format("3:04PM"), store.state.Applied)
	return printJSON(os.Stdout, map[string]any{
		"genesis_time": "2026-01-01T00:00:00Z", "chain_id": s.network, "app_name": "fakenode", "app_version": version,
		"initial_height": store.state.Applied + 1, "app_hash": strings.ToUpper(store.state.Hash),
		"consensus": map[string]any{"validators": []any{}, "params": map[string]any{"block": map[string]any{"max_bytes": "22020096"}}},
		"app_state": map[string]any{
			"upgrade": map[string]any{"applied": append([]string{}, store.state.Upgrades...)},
			"bank":    map[string]any{"supply": []any{map[string]any{"denom": "fake", "amount": strconv.FormatInt(store.state.Applied, 10)}}},
		},
	})
}

// initHome makes what a node needs before its first start, and leaves alone what is there.
func initHome(s *settings) error {
	if s.home == "" {
		return fail("no home: set DAEMON_HOME or --home")
	}
	laddr := s.rpc
	if network, address := s.rpcAddress(); network != "" {
		laddr = network + "://" + address
	}
	config := fmt.Sprintf("proxy_app = \"tcp://127.0.0.1:26658\"\nmoniker = \"fakenode\"\n"+
		"priv_validator_state_file = \"data/priv_validator_state.json\"\n\n[rpc]\nladdr = %q\n\n[p2p]\nladdr = \"tcp://127.0.0.1:26656\"\n", laddr)
	genesis := fmt.Sprintf("{\"genesis_time\":\"2026-01-01T00:00:00Z\",\"chain_id\":%q,\"initial_height\":\"1\",\"app_state\":{}}\n", s.network)
	for _, dir := range []string{"config", "data"} {
		if err := os.MkdirAll(filepath.Join(s.home, dir), 0o755); err != nil {
			return fail("%v", err)
		}
	}
	// What a test wrote beforehand stays.
	for name, content := range map[string]string{"config.toml": config, "genesis.json": genesis} {
		path := filepath.Join(s.home, "config", name)
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		if err := replaceFile(path, []byte(content), 0o644); err != nil {
			return fail("%v", err)
		}
	}
	_, err := openSigner(s.signerPath(), s.sync)
	return err
}

// printJSON prints one document on a line of its own.
func printJSON(w io.Writer, v any) error {
	return json.NewEncoder(w).Encode(v)
}
