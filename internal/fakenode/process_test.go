package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/fakenode/trace"
)

func TestSignals(t *testing.T) {
	h := newHome(t)
	p := h.start("v1", "TERM_CODE=143")
	h.event(p, trace.FirstBlock)
	for i, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH} {
		p.signal(sig)
		h.eventually(sig.String(), func() bool { return len(h.events(trace.Signal)) == i+1 })
		assert.Equal(t, sig.String(), h.events(trace.Signal)[i].Signal)
	}
	assert.True(t, p.alive())
	p.signal(syscall.SIGTERM)
	assert.Equal(t, 143, p.code())
	assert.Equal(t, 143, h.event(p, trace.Exit).Code)
}

func TestQuitDumpsTheGoroutines(t *testing.T) {
	h := newHome(t)
	p := h.start("v1")
	h.event(p, trace.FirstBlock)
	p.signal(syscall.SIGQUIT)
	assert.Equal(t, 2, p.code())
	assert.Contains(t, p.output(), "goroutine 1")
}

func TestIgnoreTerm(t *testing.T) {
	h := newHome(t)
	p := h.start("v1", "IGNORE_TERM=1", rpcAnywhere)
	addr := h.event(p, trace.RPC).Addr
	p.signal(syscall.SIGTERM)
	p.signal(syscall.SIGINT)
	h.eventually("both signals", func() bool { return len(h.events(trace.Signal)) == 2 })
	before := httpStatus(t, addr)
	h.eventually("blocks go on", func() bool { return httpStatus(t, addr) != before })
	p.signal(syscall.SIGKILL)
	assert.Equal(t, -1, p.code())
	assert.Empty(t, h.events(trace.Exit))
}

func TestStopDelayKeepsTheLock(t *testing.T) {
	h := newHome(t)
	p := h.start("v1", "STOP_DELAY=4s")
	h.event(p, trace.FirstBlock)
	p.signal(syscall.SIGTERM)
	asked := h.event(p, trace.Signal)
	assert.Equal(t, 1, h.start("v1").code(), "the store is still locked")
	assert.Zero(t, p.code())
	assert.GreaterOrEqual(t, h.event(p, trace.Exit).Time-asked.Time, int64(4e9))
}

func TestStopWithinTheStartDelay(t *testing.T) {
	h := newHome(t)
	p := h.start("v1", "START_DELAY=10m", rpcAnywhere)
	h.eventually("the store is open", func() bool { _, err := os.Stat(h.file("data", "fake.db", "CURRENT")); return err == nil })
	p.signal(syscall.SIGTERM)
	assert.Zero(t, p.code())
	assert.Empty(t, h.events(trace.RPC))
}

func TestEndsByItself(t *testing.T) {
	h := newHome(t)
	p := h.start("v1", "EXIT_AFTER=20ms", "EXIT_CODE=42")
	assert.Equal(t, 42, p.code())
	p = h.start("v1", "EXIT_AFTER=20ms", "EXIT_CODE=0")
	assert.Equal(t, 0, p.code())
	p = h.start("v1", "PANIC_AT="+strconv.FormatInt(h.state().Applied+3, 10))
	assert.Equal(t, 2, p.code())
	assert.Contains(t, p.output(), "panic: panic-at: height")
	fresh := newHome(t)
	assert.Equal(t, 3, fresh.start("v1", "CRASH_AT_START=3").code())
	assert.NoDirExists(t, fresh.file("data"), "a crash at the start touches nothing")
	assert.Equal(t, 0, fresh.start("v1", "CRASH_AT_START=0").code())
}

func TestDaemonOutlivesTheNode(t *testing.T) {
	h := newHome(t)
	p := h.start("v1", "DAEMON=1", "IGNORE_TERM=")
	pid := h.eventOf(trace.Daemon).PID
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	session, err := unix.Getsid(pid)
	require.NoError(t, err)
	assert.Equal(t, pid, session, "it leads a session of its own")
	assert.NotEqual(t, p.Process.Pid, parentOf(t, pid))
	h.stopAfter(p, trace.FirstBlock)
	require.NoError(t, syscall.Kill(pid, 0), "it lives on")
	h.event(h.start("v1"), trace.FirstBlock) // and holds no lock
	require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
	h.eventually("it ends", func() bool { return parentOf(t, pid) == 0 })
}

// eventOf waits for an event of any process.
func (h *home) eventOf(kind trace.Kind) (e trace.Event) {
	h.t.Helper()
	h.eventually(string(kind), func() bool {
		all := h.events(kind)
		if len(all) > 0 {
			e = all[0]
		}
		return len(all) > 0
	})
	return e
}

// parentOf is 0 for a process that is gone or a zombie.
func parentOf(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if fields[0] == "Z" {
		return 0
	}
	parent, err := strconv.Atoi(fields[1])
	require.NoError(t, err)
	return parent
}

func TestOrphans(t *testing.T) {
	h := newHome(t)
	p := h.start("v1", "CHILDREN=3", "RELATIVE_LIFE=300ms")
	h.eventually("three", func() bool { return len(h.events(trace.Child)) == 3 })
	h.event(p, trace.FirstBlock)
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.Process.Pid, p.Process.Pid))
	require.NoError(t, err)
	assert.Empty(t, string(children), "none is the node's own child")
	for _, e := range h.events(trace.Child) {
		h.eventually("it ends by itself", func() bool { return parentOf(t, e.PID) == 0 })
	}
	assert.True(t, p.alive())
}

func TestStdinLongLineAndPIDFile(t *testing.T) {
	h := newHome(t)
	pidFile := filepath.Join(t.TempDir(), "pid")
	cmd := h.cmd("v1", []string{"STDIN_ECHO=1", "LONG_LINE=200000", "PID_FILE=" + pidFile}, "start")
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	p := h.launch(cmd)
	_, err = io.WriteString(stdin, "hello\n")
	require.NoError(t, err)
	h.eventually("the echo", func() bool { return strings.Contains(p.output(), "stdin: hello\n") })
	require.NoError(t, stdin.Close())
	h.eventually("the end", func() bool { return strings.Contains(p.output(), "stdin: EOF\n") })
	data, err := os.ReadFile(pidFile)
	require.NoError(t, err)
	assert.Equal(t, strconv.Itoa(p.Process.Pid)+"\n", string(data))
	longest := 0
	lines := bufio.NewScanner(strings.NewReader(p.output()))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		longest = max(longest, len(lines.Text()))
	}
	assert.Equal(t, 200000, longest)
}

func TestTraceHoldsArguments(t *testing.T) {
	h := newHome(t)
	cmd := h.cmd("v1", nil, "start", "two words", "--log_level", "info", "")
	cmd.Dir = t.TempDir()
	p := h.launch(cmd)
	e := h.event(p, trace.Start)
	assert.Equal(t, []string{"start", "two words", "--log_level", "info", ""}, e.Argv[1:])
	assert.Equal(t, cmd.Dir, e.Dir)
	assert.Equal(t, os.Getpid(), e.PPID)
	assert.Equal(t, "v1", e.Version)
}

func TestVersion(t *testing.T) {
	h := newHome(t)
	stdout, _, code := runToEnd(t, h.cmd("v2", nil, "version"))
	assert.Zero(t, code)
	assert.Equal(t, "v2\n", stdout)
	stdout, _, _ = runToEnd(t, h.cmd("v2", nil, "version", "--long"))
	assert.Contains(t, stdout, "\nversion: v2\n")
	for _, args := range [][]string{{"--long", "--output", "json"}, {"-o", "json"}} {
		stdout, _, _ = runToEnd(t, h.cmd("v2", nil, append([]string{"version"}, args...)...))
		var got map[string]string
		require.NoError(t, json.Unmarshal([]byte(stdout), &got))
		assert.Equal(t, "v2", got["version"])
		for _, key := range []string{"name", "server_name", "commit"} {
			assert.NotEmpty(t, got[key], key)
		}
	}
}

func TestStatusCommand(t *testing.T) {
	h := newHome(t)
	addr := freeAddress(t)
	_, stderr, code := runToEnd(t, h.cmd("v1", []string{"RPC=" + addr}, "status"))
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "connection refused")

	_, stderr, code = runToEnd(t, h.cmd("v1", []string{"RPC=tcp://" + addr}, "init"))
	require.Zero(t, code, stderr)
	p := h.start("v1", "HALT_HEIGHT=3", "CATCHING_UP=1") // the address is in config.toml now
	h.event(p, trace.Halted)
	type syncInfo struct {
		Height     string `json:"latest_block_height"`
		CatchingUp bool   `json:"catching_up"`
	}
	var got struct {
		New syncInfo `json:"sync_info"`
		Old syncInfo `json:"SyncInfo"`
	}
	stdout, stderr, code := runToEnd(t, h.cmd("v1", nil, "status", "--home", h.dir))
	require.Zero(t, code, stderr)
	require.NoError(t, json.Unmarshal([]byte(stdout), &got))
	assert.Equal(t, syncInfo{Height: "3", CatchingUp: true}, got.New)

	stdout, stderr, _ = runToEnd(t, h.cmd("v1", []string{"STATUS_STYLE=old"}, "status"))
	assert.Empty(t, stdout)
	require.NoError(t, json.Unmarshal([]byte(stderr), &got))
	assert.Equal(t, "3", got.Old.Height)

	stdout, stderr, _ = runToEnd(t, h.cmd("v1", []string{"STATUS_STYLE=noisy"}, "status"))
	assert.True(t, json.Valid([]byte(stdout)))
	assert.Contains(t, stderr, "WARNING")
}

func TestRPCOverAUnixSocket(t *testing.T) {
	h := newHome(t)
	socket := filepath.Join(shortDir(t), "rpc")
	require.NoError(t, os.WriteFile(socket, nil, 0o600)) // what a killed node left
	p := h.start("v1", "RPC=unix://"+socket, "HALT_HEIGHT=2")
	h.event(p, trace.Halted)
	stdout, stderr, code := runToEnd(t, h.cmd("v1", []string{"RPC=unix://" + socket}, "status"))
	require.Zero(t, code, stderr)
	assert.Contains(t, stdout, `"latest_block_height":"2"`)
}

// shortDir is a temporary directory whose name leaves room for a socket's: 108 bytes are all it may have.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fn")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestJSONRPC(t *testing.T) {
	h := newHome(t)
	p := h.start("v1", rpcAnywhere, "HALT_HEIGHT=2")
	h.event(p, trace.Halted)
	url := "http://" + h.event(p, trace.RPC).Addr
	call := func(body string) (int, string) {
		response, err := http.Post(url, "application/json", strings.NewReader(body))
		require.NoError(t, err)
		defer response.Body.Close() //nolint:errcheck // read only
		data, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, string(data)
	}
	code, body := call(`{"jsonrpc":"2.0","id":7,"method":"block"}`)
	assert.Equal(t, 200, code)
	assert.JSONEq(t, `{"jsonrpc":"2.0","id":7,"result":{"block":{"header":{"chain_id":"fakechain-1","height":"2"}}}}`, body)
	code, _ = call(`{"id":7,"method":"dance"}`)
	assert.Equal(t, 404, code)
	code, _ = call(`{`)
	assert.Equal(t, 400, code)

	second := newHome(t)
	clash := second.start("v1", "RPC="+strings.TrimPrefix(url, "http://"))
	assert.Equal(t, 1, clash.code())
	assert.Contains(t, clash.output(), "address already in use")
}

func TestPreUpgrade(t *testing.T) {
	h := newHome(t)
	own := filepath.Join(t.TempDir(), "own")
	vars := []string{"PRE_UPGRADE_EXIT=31,31,0", "PRE_UPGRADE_TRACE=" + own}
	for call, want := range []int{31, 31, 0, 0} {
		cmd := h.cmd("v2", vars, "pre-upgrade")
		cmd.Env = append(cmd.Env, "SUPERVISOR_ATTEMPT="+strconv.Itoa(call+1))
		_, _, code := runToEnd(t, cmd)
		assert.Equal(t, want, code, "call %d", call+1)
	}
	events, err := trace.Read(own)
	require.NoError(t, err)
	require.Len(t, events, 4)
	assert.Equal(t, "2", events[1].Attempt)
	assert.Equal(t, 31, events[1].Code)
	assert.Len(t, h.events(trace.PreUpgrade), 4)
}

func TestPreUpgradeKillsItsParent(t *testing.T) {
	for mode, want := range map[string][]string{"once": {"", "survived\n"}, "always": {"", ""}} {
		h := newHome(t)
		for call, survived := range want {
			cmd := h.cmd("v2", []string{"PRE_UPGRADE_KILL_PARENT=" + mode}, "pre-upgrade")
			shell := exec.Command("sh", "-c", `"$0" pre-upgrade >/dev/null; echo survived`, os.Args[0])
			shell.Env = cmd.Env
			out, err := shell.Output()
			assert.Equal(t, survived, string(out), "%s, call %d", mode, call+1)
			assert.Equal(t, survived == "", err != nil, "%s, call %d", mode, call+1)
		}
	}
}
