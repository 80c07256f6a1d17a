package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/internal/fakenode/build"
	"nodevisor/upgrade"
	"nodevisor/upgrade/version"
)

// downloads is a home with the real programs, supervisor and fetch side by side, and a server on the loopback address.
type downloads struct {
	t          *testing.T
	supervisor string
	home       string
	url        string // of v2's binary, without a checksum
	sum        string
	asked      atomic.Int64
}

func newDownloads(t *testing.T) *downloads {
	t.Helper()
	bin := t.TempDir()
	for name, pkg := range map[string]string{"supervisor": ".", "fetch": "../fetch"} {
		out, err := exec.Command("go", "build", "-o", filepath.Join(bin, name), pkg).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	v2, err := os.ReadFile(build.Binary(t, "v2"))
	require.NoError(t, err)
	digest := sha256.Sum256(v2)
	d := &downloads{t: t, supervisor: filepath.Join(bin, "supervisor"), home: t.TempDir(), sum: hex.EncodeToString(digest[:])}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		d.asked.Add(1)
		_, _ = w.Write(v2)
	}))
	t.Cleanup(server.Close)
	d.url = server.URL + "/simd-v2"
	require.NoError(t, os.MkdirAll(filepath.Join(d.home, "data"), 0o755))
	_, code := d.run("init", build.Binary(t, "v1"))
	require.Zero(t, code)
	return d
}

func (d *downloads) command(env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(d.supervisor, args...)
	cmd.Env = append([]string{"DAEMON_HOME=" + d.home, "DAEMON_NAME=simd", "PATH=" + os.Getenv("PATH")}, env...)
	return cmd
}

func (d *downloads) run(args ...string) (output string, code int) {
	cmd := d.command(nil, args...)
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}

func (d *downloads) binary() string { return filepath.Join(d.home, "cosmovisor/upgrades/v2/bin/simd") }

// requireNothingLeft: no binary, and nothing that could be taken for one.
func (d *downloads) requireNothingLeft() {
	d.t.Helper()
	left, err := filepath.Glob(filepath.Join(d.home, "cosmovisor/upgrades/*/bin/*"))
	require.NoError(d.t, err)
	hidden, err := filepath.Glob(filepath.Join(d.home, "cosmovisor/upgrades/.*"))
	require.NoError(d.t, err)
	assert.Empty(d.t, append(left, hidden...))
}

// Naming an address is permission to download it, never to do without its digest.
func TestAddFromAnAddress(t *testing.T) {
	d := newDownloads(t)
	out, code := d.run("upgrade", "add", "v2", d.url)
	assert.Equal(t, cli.ExitFailed, code)
	assert.Contains(t, out, "checksum")
	assert.Zero(t, d.asked.Load(), "the server wasn't even asked")

	out, code = d.run("upgrade", "add", "v2", d.url+"?checksum=sha256:"+strings.Repeat("0", 64))
	assert.Equal(t, cli.ExitFailed, code)
	assert.Contains(t, out, "checksum mismatch")
	d.requireNothingLeft()

	out, code = d.run("upgrade", "add", "v2", d.url+"?checksum=sha256:"+d.sum)
	require.Zero(t, code, out)
	have, err := version.HashFile(t.Context(), d.binary())
	require.NoError(t, err)
	assert.Equal(t, d.sum, have)

	// One that is there is replaced with --force alone, and kept aside.
	require.NoError(t, os.WriteFile(d.binary(), []byte("#!/bin/sh\n# mine\n"), 0o755))
	out, code = d.run("upgrade", "add", "v2", d.url+"?checksum=sha256:"+d.sum)
	assert.Equal(t, cli.ExitFailed, code)
	assert.Contains(t, out, "version exists with different content")
	out, code = d.run("upgrade", "add", "v2", d.url+"?checksum=sha256:"+d.sum, "--force")
	require.Zero(t, code, out)
	kept, err := filepath.Glob(d.binary() + ".before-*")
	require.NoError(t, err)
	require.Len(t, kept, 1)
	have, err = version.HashFile(t.Context(), d.binary())
	require.NoError(t, err)
	assert.Equal(t, d.sum, have)
}

// A download is never written through a link that leaves the tree: neither one that is asked for, nor one for a plan.
func TestDownloadStaysInTheTree(t *testing.T) {
	d := newDownloads(t)
	outside := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(d.home, "cosmovisor/upgrades"), 0o755))
	require.NoError(t, os.Symlink(outside, filepath.Join(d.home, "cosmovisor/upgrades/v2")))
	from := d.url + "?checksum=sha256:" + d.sum
	out, code := d.run("upgrade", "add", "v2", from)
	assert.Equal(t, cli.ExitFailed, code)
	assert.Contains(t, out, "path escapes")
	assert.Contains(t, out, "Hint: remove the link "+filepath.Join(d.home, "cosmovisor/upgrades/v2"))

	run := d.command([]string{"DAEMON_ALLOW_DOWNLOAD_BINARIES=true", fmt.Sprintf(`FAKENODE_UPGRADE=v2@5:{"binaries":{"any":"%s"}}`, from)}, "run", "start")
	var log safeBuffer
	run.Stdout, run.Stderr = &log, &log
	require.NoError(t, run.Start())
	t.Cleanup(func() {
		_ = run.Process.Signal(syscall.SIGTERM)
		_ = run.Wait()
	})
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "it is not ready; waiting") }, 3*patience, 100*time.Millisecond)
	assert.Contains(t, log.String(), "path escapes")
	left, err := os.ReadDir(outside)
	require.NoError(t, err)
	assert.Empty(t, left)
	assert.Zero(t, d.asked.Load(), "the server wasn't even asked")
}

// A plan whose info names the binary: downloaded when the plan comes, verified, switched to.
func TestUpgradeByDownload(t *testing.T) {
	d := newDownloads(t)
	info, err := json.Marshal(map[string]any{"binaries": map[string]string{
		runtime.GOOS + "/" + runtime.GOARCH: d.url + "?checksum=sha256:" + d.sum,
	}})
	require.NoError(t, err)
	run := d.command([]string{
		"DAEMON_ALLOW_DOWNLOAD_BINARIES=true", "SUPERVISOR_UPGRADE_PROBATION_UP=100ms",
		"SUPERVISOR_UPGRADE_PROBATION_HEIGHT_ABOVE_PLAN=false", "FAKENODE_UPGRADE=v2@5:" + string(info),
	}, "run", "start")
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	run.Stderr = log
	require.NoError(t, run.Start())
	t.Cleanup(func() {
		_ = run.Process.Signal(syscall.SIGTERM)
		_ = run.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s", text)
		}
	})
	require.Eventually(t, func() bool {
		out, _ := d.run("upgrade", "history", "--json")
		return strings.Contains(out, fmt.Sprintf("%q", upgrade.ResultCommitted))
	}, 3*patience, 200*time.Millisecond)
	have, err := version.HashFile(t.Context(), d.binary())
	require.NoError(t, err)
	assert.Equal(t, d.sum, have)
	assert.Equal(t, int64(1), d.asked.Load(), "downloaded once")
	target, err := os.Readlink(filepath.Join(d.home, "cosmovisor/current"))
	require.NoError(t, err)
	assert.Equal(t, "upgrades/v2", target)
}

// A plan whose binary isn't what it promises: nothing of it stays, the old version is neither stopped nor touched, the
// server is not asked again at once, and a binary that is put there by hand goes on.
func TestUpgradeByADownloadOfSomethingElse(t *testing.T) {
	d := newDownloads(t)
	old, err := version.HashFile(t.Context(), filepath.Join(d.home, "cosmovisor/genesis/bin/simd"))
	require.NoError(t, err)
	info := fmt.Sprintf(`{"binaries":{"any":"%s?checksum=sha256:%s"}}`, d.url, strings.Repeat("0", 64))
	run := d.command([]string{"DAEMON_ALLOW_DOWNLOAD_BINARIES=true", "FAKENODE_UPGRADE=v2@5:" + info}, "run", "start")
	var log safeBuffer
	run.Stdout, run.Stderr = &log, &log
	require.NoError(t, run.Start())
	t.Cleanup(func() {
		_ = run.Process.Signal(syscall.SIGTERM)
		_ = run.Wait()
	})
	type shown struct {
		State   string
		PID     *int
		Version string
		Plan    struct{ Problems []string }
	}
	state := func() (st shown) {
		out, _ := d.run("status", "--json")
		_ = json.Unmarshal([]byte(out), &st) // not yet up: not yet so
		return st
	}
	require.Eventually(t, func() bool {
		st := state()
		return st.State == "waiting-for-binary" && strings.Contains(strings.Join(st.Plan.Problems, ""), "checksum mismatch")
	}, 3*patience, 100*time.Millisecond)
	st := state()
	assert.NotNil(t, st.PID, "the node lives")
	assert.Equal(t, "genesis", st.Version)
	d.requireNothingLeft()
	now, err := version.HashFile(t.Context(), filepath.Join(d.home, "cosmovisor/genesis/bin/simd"))
	require.NoError(t, err)
	assert.Equal(t, old, now)
	notAskedAgainAtOnce(t, log.String(), d.asked.Load())

	out, code := d.run("upgrade", "add", "v2", build.Binary(t, "v2"))
	require.Zero(t, code, out)
	require.Eventually(t, func() bool { return state().Version == "v2" }, 3*patience, 100*time.Millisecond)
}

// notAskedAgainAtOnce checks by the log that the server was asked as often as it says, and that half a minute lies between two
// downloads: on a busy machine there may be time for a second one, or the first one may have met trouble of the network.
func notAskedAgainAtOnce(t *testing.T, log string, asked int64) {
	t.Helper()
	var begun []time.Time
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "beginning to download it") {
			continue
		}
		stamp, _, _ := strings.Cut(line, " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		require.NoError(t, err, line)
		if n := len(begun); n > 0 {
			assert.GreaterOrEqual(t, at.Sub(begun[n-1]), 30*time.Second, log)
		}
		begun = append(begun, at)
	}
	assert.NotEmpty(t, begun, log)
	assert.LessOrEqual(t, asked, int64(strings.Count(log, "INF downloading ")), log)
}
