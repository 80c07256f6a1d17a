package supervisor

import (
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
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// A stop in any long phase of an upgrade ends `run` with 0 between two effects, and the next `run` goes on.
func TestStopInEachPhase(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		change func(*testHome)
		at     func(*testHome) bool
		phase  upgrade.Phase
	}{
		"while the node stops": {
			func(h *testHome) { h.setOf("genesis", "STOP_DELAY", "4s") },
			func(h *testHome) bool { return len(h.signals()) > 0 }, upgrade.Staged,
		},
		"in the delay": {
			func(h *testHome) { h.Upgrade.Delay = time.Hour },
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
			func(h *testHome) { h.set("PRE_UPGRADE_DELAY", "1h") },
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
			h.Upgrade.Delay = 0
			h.set("PRE_UPGRADE_DELAY", "0")
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
			func(h *testHome) { h.set("PRE_UPGRADE_DELAY", "1h") },
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
			ended := time.Now()
			require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
			h.wait("its end", func() bool { return syscall.Kill(pid, 0) != nil })
			_ = syscall.Kill(r.cmd.Process.Pid, syscall.SIGTERM) // gone, where this comes too late
			code := r.exit()
			j := h.journal()
			require.NotNil(t, j.Upgrade)
			assert.Equal(t, c.phase, j.Upgrade.Phase)
			if held, ok := h.saidAt("held: the node is not started"); ok {
				assert.Greater(t, held.Sub(ended), settle, "a stop has so long to come; on this machine it came later")
				return
			}
			assert.Zero(t, code)
			assert.Nil(t, j.Hold)
			h.set("PRE_UPGRADE_DELAY", "0")
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
	h.awaitStatus("held, and which version would run", func(st *status.Document) bool { return st.State == status.Held && st.Version != nil })
	_, err = h.do(client.OpResume, client.Request{})
	require.NoError(t, err)
	h.awaitCount(2, trace.FirstBlock, "v1")
	_, err = h.do(client.OpStop, client.Request{})
	require.NoError(t, err)
	require.Equal(t, 0, r.exit())
}
