package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/internal/proctest"
	"nodevisor/supervisor/restart"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// signals are the signals that the nodes recorded, in their order.
func (h *testHome) signals() []string {
	var all []string
	for _, e := range h.events() {
		if e.Kind == trace.Signal {
			all = append(all, e.Signal)
		}
	}
	return all
}

// Each stop signal ends `run` with 0, whatever the node's code, and the node gets one SIGTERM.
func TestStopSignals(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			h := newHome(t)
			h.set("TERM_CODE", "3")
			r := h.start()
			h.await(trace.FirstBlock, "v1")
			r.signal(sig)
			require.Equal(t, 0, r.exit())
			assert.Equal(t, []string{"terminated"}, h.signals())
			assert.Equal(t, sig == syscall.SIGQUIT, strings.Contains(h.lines(), "goroutine 1 ["), "SIGQUIT shows the goroutines")
			assert.NoFileExists(t, filepath.Join(h.layout().State(), "control.sock"))
		})
	}
}

// The other stop signal that is configured is the node's.
func TestConfiguredStopSignal(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.Node.StopSignal = "SIGINT"
	r := h.start()
	h.await(trace.FirstBlock, "v1")
	r.stop()
	assert.Equal(t, []string{"interrupt"}, h.signals())
}

// A node that ignores SIGTERM is killed after stop_timeout, and `run` ends with 1: the stop was not clean.
func TestStopTimeout(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.Node.StopTimeout = 300 * time.Millisecond
	h.set("IGNORE_TERM", "true")
	r := h.start()
	h.await(trace.FirstBlock, "v1")
	begun := time.Now()
	r.signal(syscall.SIGTERM)
	require.Equal(t, 1, r.exit())
	assert.GreaterOrEqual(t, time.Since(begun), h.Node.StopTimeout)
	assert.Contains(t, h.lines(), "the node did not stop in time and was killed")
}

// Nothing of an upgrade is done beside what the old node left: a grandchild in a session of its own, deaf to SIGTERM, is
// gone before the phase stopped is recorded, and with it before the snapshot.
func TestStoppedMeansNothingIsLeft(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.setOf("genesis", "DAEMON", "true")
	h.setOf("genesis", "IGNORE_TERM", "true")
	h.Node.StopTimeout = 300 * time.Millisecond
	h.Upgrade.Delay = time.Hour
	r := h.start()
	grandchild := h.await(trace.Daemon, "v1").PID
	h.wait("it is stopped", func() bool { u := h.journal().Upgrade; return u != nil && u.Phase == upgrade.Stopped })
	assert.False(t, proctest.Alive(grandchild))
	assert.Contains(t, h.lines(), "the node did not stop in time and was killed")
	r.stop()
	h.Upgrade.Delay, h.Node.StopTimeout = 0, 20*time.Second
	r = h.start()
	h.awaitResult(upgrade.ResultCommitted)
	h.wait("the snapshot", h.verified)
	r.stop()
}

// A second stop request doesn't wait.
func TestSecondStopKills(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.Node.StopTimeout = time.Hour
	h.set("IGNORE_TERM", "true")
	r := h.start()
	h.await(trace.FirstBlock, "v1")
	r.signal(syscall.SIGTERM)
	h.await(trace.Signal, "v1")
	begun := time.Now()
	assert.Equal(t, status.Stopping, h.awaitState(status.Stopping).State)
	h.wait("the end of the first press", func() bool { return time.Since(begun) > onePress })
	r.signal(syscall.SIGTERM)
	require.Equal(t, 1, r.exit())
}

// The same signal twice within a moment is one request, another one is a second request: timeout(1) signals its child and
// the child's group, a person presses again.
func TestOnePressIsOneRequest(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.Node.StopTimeout = time.Hour
	h.set("IGNORE_TERM", "true")
	r := h.start()
	h.await(trace.FirstBlock, "v1")
	r.signal(syscall.SIGTERM)
	h.wait("the first one", func() bool { return strings.Contains(h.lines(), "stop requested") })
	r.signal(syscall.SIGTERM)
	first, _ := h.saidAt("stop requested")
	again := func() (time.Time, bool) { return h.saidAt("stop requested again") }
	h.wait("the second one", func() bool { _, late := again(); return late || strings.Contains(h.lines(), "the same stop request") })
	if second, late := again(); late {
		require.GreaterOrEqual(t, second.Sub(first), onePress, "on this machine it came later than a moment")
		require.Equal(t, 1, r.exit())
		return
	}
	r.signal(syscall.SIGINT)
	require.Equal(t, 1, r.exit())
}

// What only the node understands reaches it, and nothing else happens; a broken pipe is no news for either.
func TestSignalsArePassedOn(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	r := h.start()
	h.await(trace.FirstBlock, "v1")
	h.awaitState(status.Running)
	for i, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH} {
		r.signal(syscall.SIGPIPE)
		r.signal(sig)
		h.awaitCount(i+1, trace.Signal, "v1")
	}
	assert.Equal(t, []string{"hangup", "user defined signal 1", "user defined signal 2", "window changed"}, h.signals())
	assert.Equal(t, 1, h.count(trace.Start, ""))
	r.stop()
}

// The node starts with the signal dispositions of a fresh process: an ignored SIGPIPE would stay ignored in it.
func TestNodeIgnoresNoSignal(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	script := filepath.Join(h.dir, "cosmovisor/genesis/bin/simd")
	require.NoError(t, os.Remove(script))
	h.write("cosmovisor/genesis/bin/simd", "#!/bin/sh\nexec grep SigIgn /proc/self/status > "+h.dir+"/ignored\n")
	require.NoError(t, os.Chmod(script, 0o755))
	r := h.start()
	require.Equal(t, 0, r.exit())
	mask, err := strconv.ParseUint(strings.TrimPrefix(proctest.FileWith(t, filepath.Join(h.dir, "ignored")), "SigIgn:\t"), 16, 64)
	require.NoError(t, err)
	const standard = 1<<31 - 1 // signals 1 to 31; those of the threads library are inherited from whoever runs the tests
	assert.Zero(t, mask&standard, "ignored: %#x", mask)
}

// systemctl stop under KillMode=control-group: node and supervisor get SIGTERM at the same moment. That is a requested
// stop, not a crash: no restart, no hold, no failed attempt, code 0.
func TestGroupStop(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"node", "supervisor"} {
		t.Run(first+" first", func(t *testing.T) {
			t.Parallel()
			h := newHome(t, "v2")
			h.set("UPGRADE", "v2@3")
			h.Upgrade.Probation.Up = time.Hour
			r := h.start()
			node := h.await(trace.FirstBlock, "v2").PID
			begun := time.Now()
			if first == "node" {
				require.NoError(t, syscall.Kill(node, syscall.SIGTERM))
				proctest.WaitFor(t, patience, "the node ends", func() bool { return !proctest.Alive(node) })
			}
			r.signal(syscall.SIGTERM)
			_ = syscall.Kill(node, syscall.SIGTERM)
			require.Equal(t, 0, r.exit())
			if failed, ok := h.saidAt("the new version ended on probation"); ok {
				assert.Greater(t, failed.Sub(begun), settle, "a stop has so long to come; on this machine it came later")
				return
			}
			assert.Equal(t, 1, h.count(trace.Start, "v2"))
			j := h.journal()
			assert.Nil(t, j.Hold)
			assert.Equal(t, upgrade.OnProbation, j.Upgrade.Phase)
			assert.Zero(t, j.Upgrade.Attempts, "a stop that was asked for gives the attempt back")
		})
	}
}

// A stop while the node waits for its restart ends `run` at once, with 0.
func TestStopInBackoff(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.Node.Backoff, h.Node.BackoffMax = time.Hour, time.Hour
	h.set("CRASH_AT_START", "7")
	r := h.start()
	st := h.awaitState(status.Backoff)
	assert.Equal(t, 7, *st.LastExit.Code)
	r.stop()
	assert.Equal(t, 1, h.count(trace.Start, ""))
}

// A stop right after the end of a node that looks like an answer to a signal is heard, too.
func TestStopWhileTheEndIsJudged(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.Node.Backoff, h.Node.BackoffMax = time.Hour, time.Hour // a stop that comes late finds it waiting
	r := h.start()
	node := h.await(trace.FirstBlock, "v1").PID
	require.NoError(t, syscall.Kill(node, syscall.SIGKILL))
	h.awaitState(status.Backoff)
	r.stop()
	assert.Equal(t, 1, h.count(trace.Start, ""))
}

// The node's own end is handed on where nothing restarts it: its code, and 128+n for a signal.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	for code, end := range map[int]func(h *testHome){
		0:   func(h *testHome) { h.set("EXIT_AFTER", "50ms"); h.set("EXIT_CODE", "0") },
		3:   func(h *testHome) { h.set("EXIT_AFTER", "50ms"); h.set("EXIT_CODE", "3") },
		2:   func(h *testHome) { h.set("PANIC_AT", "3") },
		137: func(h *testHome) { _ = syscall.Kill(h.await(trace.FirstBlock, "v1").PID, syscall.SIGKILL) },
		139: func(h *testHome) { _ = syscall.Kill(h.await(trace.FirstBlock, "v1").PID, syscall.SIGSEGV) },
	} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			h := newHome(t)
			h.Node.Restart = restart.Never
			var r *run
			if code > 128 {
				r = h.start()
				end(h)
			} else {
				end(h)
				r = h.start()
			}
			want := code
			if code == 139 {
				want = 2 // Go turns SIGSEGV from outside into a panic
			}
			require.Equal(t, want, r.exit())
		})
	}
}

// SIGABRT, the watchdog's signal, stops the node gracefully before the supervisor ends, even if the loop hangs.
func TestAbort(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	r := h.start()
	h.await(trace.FirstBlock, "v1")
	r.signal(syscall.SIGABRT)
	require.Equal(t, 134, r.exit())
	assert.Equal(t, []string{"terminated"}, h.signals())
	assert.Equal(t, 1, h.count(trace.Exit, "v1"))
	assert.Contains(t, h.lines(), "goroutine ")
}
