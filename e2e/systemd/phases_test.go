//go:build e2e

package systemd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
)

// stage is a part of an upgrade that the tests interrupt.
type stage struct {
	name    string
	prepare func(*node)      // makes it last
	at      func(*node) bool // tells that it is under way
}

// stages are all parts of an upgrade, in their order: each lasts seconds, or until it is interrupted.
var stages = []stage{
	{"running", func(*node) {}, func(n *node) bool { return n.count(trace.FirstBlock, "v1") > 0 }},
	{
		"stopping", func(n *node) { n.EnvOf["genesis"] = map[string]string{"STOP_DELAY": "4s"} },
		func(n *node) bool { return n.count(trace.Signal, "v1") > 0 },
	},
	{"stopped", func(n *node) { n.Tables["upgrade"] = `delay = "3s"` }, func(n *node) bool { return n.inFlight() == "stopped" }},
	{"snapshot", fill, func(n *node) bool {
		partial, _ := filepath.Glob(n.dir + "/supervisor/snapshots/*/data/big-*")
		return len(partial) > 0 && n.inFlight() == "stopped"
	}},
	{"snapshotted", func(n *node) {
		n.Tables["upgrade"] = `custom_pre_upgrade = "pre.sh"`
		n.put("cosmovisor/pre.sh", "#!/bin/sh\ntouch "+n.home+"/scripted\nsleep 2\n")
	}, func(n *node) bool { _, err := os.Stat(n.dir + "/scripted"); return err == nil }},
	{
		"switched", func(n *node) { n.Env["PRE_UPGRADE_DELAY"] = "2s" },
		func(n *node) bool { return n.count(trace.PreUpgrade, "v2") > 0 && n.inFlight() == "switched" },
	},
	{
		"probation", func(n *node) { n.Tables["upgrade.probation"] = `up = "3s"` },
		func(n *node) bool { return n.inFlight() == "probation" && n.count(trace.FirstBlock, "v2") > 0 },
	},
	{"committed", func(*node) {}, func(n *node) bool { return n.committed() }},
}

// fill makes a snapshot last: many files, each of which is copied.
func fill(n *node) {
	n.Tables["snapshot"] = `method = "copy"`
	for i := range 2000 {
		n.put(fmt.Sprintf("data/big-%04d", i), strings.Repeat("x", 8192))
	}
}

// upgradeAt gives a new node its plan, and its user's unit.
func upgradeAt(t *testing.T, h *host, s stage) *node {
	t.Helper()
	n := newNode(t, h)
	n.Env["UPGRADE"] = "v2@60"
	s.prepare(n)
	return n
}

// reach waits until the stage is under way. It ends too soon for a machine that is too slow to look: then what follows
// comes between two stages, which must do no harm either.
func (n *node) reach(s stage) {
	n.Helper()
	deadline := time.Now().Add(patience)
	for !s.at(n) && !n.committed() {
		require.True(n, time.Now().Before(deadline), "waited in vain for the stage "+s.name)
		time.Sleep(2 * time.Millisecond)
	}
	if s.name != "committed" && n.committed() {
		n.Logf("the stage %s was over before it was seen", s.name)
	}
}

// A stop in each stage of an upgrade ends well, and the next start brings the upgrade to its end.
func TestStopInEachStage(t *testing.T) {
	t.Parallel()
	for _, s := range stages {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			n := upgradeAt(t, lab, s)
			n.install()
			n.systemctl("start", "--no-block")
			n.reach(s)
			n.systemctl("stop")
			require.Equal(t, "success", n.property("Result"), "not killed half-way")
			require.Equal(t, "inactive", n.property("ActiveState"))
			require.Empty(t, n.processes())
			n.systemctl("start", "--no-block")
			n.converged()
			n.systemctl("stop")
		})
	}
}

// A stop that lasts longer than TimeoutStopSec= asks for the time that it needs, and isn't killed half-way.
func TestStopThatOutlastsItsTimeout(t *testing.T) {
	t.Parallel()
	for _, s := range []stage{stages[1], stages[3]} { // a slow node; a slow snapshot
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			n := upgradeAt(t, bootFor(t, programs()), s) // of its own: a daemon-reload forgets the time that was asked for
			delete(n.Env, "UPGRADE")                     // the stop is a person's, and begins when that says so
			n.Tables["snapshot"] += "\non = [\"upgrade\", \"stop\"]"
			n.EnvOf["genesis"] = map[string]string{"STOP_DELAY": "7s"}
			n.install("TimeoutStopSec=3s")
			n.systemctl("start")
			begun := time.Now()
			n.systemctl("stop")
			require.Equal(t, "success", n.property("Result"))
			require.Greater(t, time.Since(begun), 6*time.Second)
			require.Equal(t, 1, n.count(trace.Exit, "v1"))
		})
	}
}

// The same at once: a restart in each stage.
func TestRestartInEachStage(t *testing.T) {
	t.Parallel()
	for _, s := range stages[1:] {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			n := upgradeAt(t, lab, s)
			n.install()
			n.systemctl("start", "--no-block")
			n.reach(s)
			n.systemctl("restart", "--no-block")
			wait(t, "another supervisor", func() bool { return strings.Count(n.journal(), "Starting "+n.name) > 1 })
			n.converged()
			n.systemctl("stop")
		})
	}
}

// journal is what the unit wrote, and what systemd wrote about it.
func (n *node) journal() string {
	out, _, _ := n.try("journalctl", "--no-pager", "-o", "short", "-u", n.name+".service")
	return out
}

// The plug is pulled in each stage: the next boot brings the upgrade to its end, through the same phases.
func TestPowerCutInEachStage(t *testing.T) {
	t.Parallel()
	for _, s := range stages {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			h := bootFor(t, programs())
			n := upgradeAt(t, h, s)
			n.install()
			unit, err := os.ReadFile(h.file("/etc/systemd/system/" + n.name + ".service"))
			require.NoError(t, err)
			n.systemctl("start", "--no-block")
			n.reach(s)
			require.NoError(t, h.cut())
			require.NoError(t, h.up())
			n.installed(string(unit)) // the root of the booted host is a fresh one
			n.systemctl("start", "--no-block")
			n.converged()
		})
	}
}
