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
	"nodevisor/supervisor/client"
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
	h.Upgrade.Delay = 0
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
	h.wait("the second one", func() bool { return strings.Contains(h.lines(), "the same stop request") })
	assert.NotContains(t, h.lines(), "killing the node")
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
			if first == "node" {
				require.NoError(t, syscall.Kill(node, syscall.SIGTERM))
				proctest.WaitFor(t, patience, "the node ends", func() bool { return !proctest.Alive(node) })
			}
			r.signal(syscall.SIGTERM)
			_ = syscall.Kill(node, syscall.SIGTERM)
			require.Equal(t, 0, r.exit())
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
	r := h.start()
	node := h.await(trace.FirstBlock, "v1").PID
	require.NoError(t, syscall.Kill(node, syscall.SIGKILL))
	h.awaitState(status.Backoff)
	r.stop()
	assert.Equal(t, 1, h.count(trace.Start, ""))
}

// A stop in any long phase of an upgrade ends `run` with 0 between two effects, and the next `run` goes on.
func TestStopInEachPhase(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		change func(*testHome)
		at     func(*testHome) bool
		phase  upgrade.Phase
	}{
		"while the node stops": {
			func(h *testHome) { h.set("STOP_DELAY", "500ms") },
			func(h *testHome) bool { return len(h.signals()) > 0 }, upgrade.Staged,
		},
		"in the delay": {
			func(h *testHome) { h.Upgrade.Delay = 2 * time.Second },
			func(h *testHome) bool { return strings.Contains(h.lines(), "phase=stopped") }, upgrade.Stopped,
		},
		"in the script": {
			func(h *testHome) {
				h.Upgrade.CustomPreUpgrade = "pre.sh"
				h.write("cosmovisor/pre.sh", "#!/bin/sh\n[ -e "+h.dir+"/once ] || { touch "+h.dir+"/once; exec sleep 20; }\n")
			},
			func(h *testHome) bool { _, err := os.Stat(filepath.Join(h.dir, "once")); return err == nil }, upgrade.Snapshotted,
		},
		"in pre-upgrade": {
			func(h *testHome) { h.set("PRE_UPGRADE_DELAY", "2s") },
			func(h *testHome) bool { return h.count(trace.PreUpgrade, "v2") > 0 }, upgrade.Switched,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHome(t, "v2")
			h.set("UPGRADE", "v2@3")
			c.change(h)
			r := h.start()
			h.wait(name, func() bool { return c.at(h) })
			r.stop()
			j := h.journal()
			require.NotNil(t, j.Upgrade)
			assert.Equal(t, c.phase, j.Upgrade.Phase)
			assert.Nil(t, j.Hold)
			assert.Zero(t, h.count(trace.Start, "v2"))
			r = h.start()
			h.awaitResult(upgrade.ResultCommitted)
			r.stop()
			h.singleNode()
			h.noOldNodeOnNewData()
		})
	}
}

// Under KillMode=control-group what an upgrade runs gets systemd's SIGTERM as the supervisor does, and may end before the
// supervisor has heard of it: a stop, and no reason to hold.
func TestStopThatHitsTheHookFirst(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		change func(*testHome)
		pid    func(*testHome) int // of the hook; 0 = it doesn't run yet
		phase  upgrade.Phase
	}{
		"script": {
			func(h *testHome) {
				h.Upgrade.CustomPreUpgrade = "pre.sh"
				h.write("cosmovisor/pre.sh", "#!/bin/sh\n[ -e "+h.dir+"/once ] || { echo $$ > "+h.dir+"/once; exec sleep 20; }\n")
			},
			func(h *testHome) int {
				text, _ := os.ReadFile(filepath.Join(h.dir, "once"))
				pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
				return pid
			}, upgrade.Snapshotted,
		},
		"pre-upgrade": {
			func(h *testHome) { h.set("PRE_UPGRADE_DELAY", "3s") },
			func(h *testHome) int {
				for _, e := range h.events() {
					if e.Kind == trace.PreUpgrade {
						return e.PID
					}
				}
				return 0
			}, upgrade.Switched,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHome(t, "v2")
			h.set("UPGRADE", "v2@3")
			c.change(h)
			r := h.start()
			pid := 0
			h.wait(name, func() bool { pid = c.pid(h); return pid > 0 })
			require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
			h.wait("its end", func() bool { return syscall.Kill(pid, 0) != nil })
			r.stop()
			j := h.journal()
			require.NotNil(t, j.Upgrade)
			assert.Equal(t, c.phase, j.Upgrade.Phase)
			assert.Nil(t, j.Hold)
			r = h.start()
			h.awaitResult(upgrade.ResultCommitted)
			r.stop()
			h.singleNode()
		})
	}
}

// A stop while an upgrade waits for its binary leaves it announced: the next `run` still waits for it, and goes on.
func TestStopWhileWaitingForBinary(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.set("UPGRADE", "v2@3")
	r := h.start()
	h.awaitState(status.WaitingForBinary)
	r.stop()
	assert.Equal(t, upgrade.Planned, h.journal().Upgrade.Phase)
	r = h.start()
	h.awaitState(status.WaitingForBinary)
	assert.Equal(t, 1, h.count(trace.Start, "v1"), "its height has come: the old version has no more to do")
	h.stage("upgrades/v2", "v2")
	h.awaitResult(upgrade.ResultCommitted)
	r.stop()
}

// A hold with hold = "wait" keeps `run` up; a stop ends it with 0 all the same.
func TestStopWhileHeld(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.Node.Hold = HoldWait
	r := h.start()
	h.await(trace.FirstBlock, "v1")
	_, err := h.do(client.OpHalt, client.Request{Now: true})
	require.NoError(t, err)
	h.awaitState(status.Held)
	r.signal(syscall.SIGHUP) // nobody is there to hear it
	r.stop()
	assert.NotNil(t, h.journal().Hold)
	r = h.start()
	h.awaitState(status.Held)
	_, err = h.do(client.OpResume, client.Request{})
	require.NoError(t, err)
	h.awaitCount(2, trace.FirstBlock, "v1")
	_, err = h.do(client.OpStop, client.Request{})
	require.NoError(t, err)
	require.Equal(t, 0, r.exit())
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
