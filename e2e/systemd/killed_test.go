//go:build e2e

package systemd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
)

// watchdog is how soon a hang is noticed here. A busy machine may keep a supervisor that doesn't hang from its sign of life
// for a second or two.
const watchdog = "WatchdogSec=5"

// signal sends a signal to the supervisor alone.
func (n *node) signal(name string) {
	n.Helper()
	n.run(n.T, "kill", "-"+name, n.property("MainPID"))
}

// A supervisor that is stopped (SIGSTOP) feeds no watchdog. systemd's SIGABRT wakes it: it stops the node gracefully, shows
// its stacks, and is started again.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab)
	n.install(watchdog, "RestartSec=200ms")
	n.systemctl("start")
	hung := n.property("MainPID")
	n.signal("STOP")
	n.awaitNth(2, trace.FirstBlock, "v1")
	assert.NotEqual(t, hung, n.property("MainPID"))
	assert.Equal(t, 2, n.count(trace.Start, ""))
	assert.Equal(t, "terminated", n.await(trace.Signal, "v1").Signal, "gracefully")
	assert.Equal(t, 1, n.count(trace.Exit, "v1"))
	text := n.journal()
	assert.Contains(t, text, "Watchdog timeout (limit 5s)!")
	assert.Contains(t, text, "goroutine 1 [")
	n.oneNode()
	n.systemctl("stop")
}

// A supervisor that doesn't even hear SIGABRT, because all of its control group is frozen, is killed with its node.
func TestWatchdogOfAFrozenGroup(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab)
	n.install(watchdog, "TimeoutAbortSec=2", "TimeoutStopSec=2", "RestartSec=200ms")
	n.systemctl("start")
	hung := n.property("MainPID")
	freezer := n.freezer()
	require.NoError(t, os.WriteFile(freezer, []byte("1"), 0))
	t.Cleanup(func() { _ = os.WriteFile(freezer, []byte("0"), 0) }) // it may be gone
	n.awaitNth(2, trace.FirstBlock, "v1")
	assert.NotEqual(t, hung, n.property("MainPID"))
	assert.Zero(t, n.count(trace.Signal, "v1"), "it was frozen, too")
	n.oneNode()
	n.systemctl("stop")
}

// freezer is the file by which the unit's control group is frozen.
func (n *node) freezer() string {
	n.Helper()
	for _, at := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		path := n.file(filepath.Join(at, n.property("ControlGroup"), "cgroup.freeze"))
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	require.Fail(n, "this kernel has no freezer of control groups (Linux 5.2)")
	return ""
}

// In a long phase the supervisor asks for more time for a stop. The watchdog's deadline isn't moved by that: WATCHDOG=1 in the
// same message sets it. A hang is noticed as soon as at any other time, and the upgrade begins its phase anew.
func TestWatchdogInALongPhase(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab)
	n.Env["UPGRADE"], n.Env["PRE_UPGRADE_DELAY"] = "v2@60", "60s"
	n.Stop = "5s" // 30 s are asked for then
	n.install(watchdog, "RestartSec=200ms")
	n.systemctl("start", "--no-block")
	wait(t, "the migration", func() bool { return n.count(trace.PreUpgrade, "v2") > 0 })
	time.Sleep(6 * time.Second) // each sign of life asks for the time
	n.signal("STOP")
	hung := time.Now()
	wait(t, "the watchdog", func() bool { return strings.Contains(n.journal(), "Watchdog timeout") })
	t.Logf("noticed after %s", time.Since(hung).Round(100*time.Millisecond))
	assert.Less(t, time.Since(hung), 25*time.Second, "not only when the 30 s are over")
	n.awaitNth(2, trace.PreUpgrade, "v2")
	n.oneNode()
}

// SIGKILL to the supervisor. Under KillMode=mixed systemd takes the node with it, and starts both again.
func TestKilledSupervisor(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab)
	n.install("RestartSec=200ms")
	n.systemctl("start")
	n.signal("KILL")
	n.awaitNth(2, trace.FirstBlock, "v1")
	assert.Equal(t, 2, n.count(trace.Start, ""))
	n.oneNode()
	n.systemctl("stop")
}

// Under KillMode=process the node lives on, and no second one is started: the supervisor refuses until somebody takes over.
func TestKilledSupervisorLeavesItsNode(t *testing.T) {
	t.Parallel()
	n := newNode(t, bootFor(t, programs())) // of its own: a daemon-reload begins the count of starts anew
	n.install("KillMode=process", "RestartSec=200ms")
	n.systemctl("start")
	left := n.await(trace.FirstBlock, "v1").PID
	n.signal("KILL")
	wait(t, "the start limit", func() bool { return n.property("ActiveState") == "failed" })
	assert.Equal(t, "75", n.property("ExecMainStatus"), "locked by the node that was left")
	assert.Contains(t, n.journal(), itoa(left))
	assert.Equal(t, []int{left}, n.processes())
	assert.Equal(t, 1, n.count(trace.Start, ""))

	n.write(t, "/etc/systemd/system/"+n.name+".service.d/takeover.conf",
		fmt.Sprintf("[Service]\nKillMode=mixed\nExecStart=\nExecStart=/usr/bin/supervisor --home %s --takeover run\n", n.home), 0o644)
	n.run(t, "systemctl", "daemon-reload")
	n.systemctl("reset-failed")
	n.systemctl("start")
	n.awaitNth(2, trace.FirstBlock, "v1")
	assert.Equal(t, "terminated", n.await(trace.Signal, "v1").Signal)
	n.oneNode()
	n.systemctl("stop")
}

// The kernel kills for want of memory: the node is started again, whoever was picked, and never twice. Once there is room
// it runs.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab)
	n.EnvOf["genesis"] = map[string]string{"LONG_LINE": "500000000"}
	n.install("MemoryMax=150M", "RestartSec=200ms")
	n.systemctl("start", "--no-block")
	n.awaitNth(3, trace.Start, "v1")
	assert.Zero(t, n.count(trace.FirstBlock, ""), "the limit bites")
	n.systemctl("stop")
	n.EnvOf["genesis"] = nil
	n.configure()
	n.try("systemctl", "reset-failed", n.name+".service") // where the supervisor was picked; not loaded any more where not
	n.systemctl("start")
	n.await(trace.FirstBlock, "v1")
	n.oneNode()
	n.systemctl("stop")
}

// What a start can't mend isn't started again: a mistake in the configuration (78), a hold (79). Else systemd gives up after
// five starts.
func TestWhatIsNotRestarted(t *testing.T) {
	t.Parallel()
	for code, prepare := range map[string]func(*node){
		"78": func(n *node) { n.Tables["upgrade"] = `on_failre = "hold"` },
		"79": func(n *node) {
			n.Env["UPGRADE"] = "v2@10"
			n.EnvOf["v2"] = map[string]string{"CRASH_AT_START": "9"}
		},
	} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, lab)
			n.install("RestartSec=200ms")
			prepare(n)
			n.configure()
			n.systemctl("start", "--no-block")
			wait(t, "the end", func() bool { return n.property("ActiveState") == "failed" })
			assert.Equal(t, code, n.property("ExecMainStatus"))
			assert.Equal(t, "0", n.property("NRestarts"))
			assert.Equal(t, "exit-code", n.property("Result"))
			n.oneNode()
		})
	}
	t.Run("start limit", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, bootFor(t, programs())) // of its own: a daemon-reload begins the count of starts anew
		n.Tables["node"] = `restart = "never"`
		n.Env["CRASH_AT_START"] = "9"
		n.install("RestartSec=200ms")
		n.systemctl("start", "--no-block")
		wait(t, "the end", func() bool { return n.property("ActiveState") == "failed" })
		assert.Equal(t, "9", n.property("ExecMainStatus"), "the node's own")
		assert.Equal(t, 5, n.count(trace.Start, "v1"))
		assert.Contains(t, n.journal(), "Start request repeated too quickly")
	})
}
