package supervisor

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
)

// allUnits is one unit at each moment, of which the first one of each fails.
func allUnits() (units []unitSpec) {
	for _, at := range []Moment{BeforeStop, AfterStop, BeforeStart, AfterHealthy} {
		units = append(units, unitSpec{At: at, Name: "a", Fails: true}, unitSpec{At: at, Name: "b"})
	}
	return units
}

// Every start and every stop of ours has its moments, in order; what fails stops nothing.
func TestUnitsInOrder(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.Systemd.Units = allUnits()
	r := h.start()
	up := []string{"before-start a", "before-start b", "after-healthy a", "after-healthy b"}
	down := []string{"before-stop a", "before-stop b", "after-stop a", "after-stop b"}
	h.wait("the start's", func() bool { return len(h.unitsActed()) == 4 })
	require.Equal(t, up, h.unitsActed())

	_, err := h.do(client.OpSnapshots, client.Request{Stop: true, Snapshots: raw(map[string]any{"op": "create", "label": "x"})})
	require.NoError(t, err)
	want := append(append(append([]string{}, up...), down...), up...)
	h.wait("those of a stop in between", func() bool { return len(h.unitsActed()) == len(want) })
	require.Equal(t, want, h.unitsActed())

	r.stop()
	assert.Equal(t, append(want, down...), h.unitsActed(), "the last ones before run ends")
	assert.Contains(t, h.lines(), "another unit was not acted upon")
}

// A node that ends by itself wasn't stopped by us; its next start is one like any other.
func TestUnitsAtACrash(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.Systemd.Units = []unitSpec{{At: BeforeStop, Name: "x"}, {At: AfterStop, Name: "x"}, {At: BeforeStart, Name: "x"}}
	r := h.start()
	require.NoError(t, syscall.Kill(h.await(trace.FirstBlock, "v1").PID, syscall.SIGSEGV))
	h.awaitCount(2, trace.FirstBlock, "v1")
	assert.Equal(t, []string{"before-start x", "before-start x"}, h.unitsActed())
	r.stop()
	assert.Equal(t, []string{"before-start x", "before-start x", "before-stop x", "after-stop x"}, h.unitsActed())
}

// The node hears of a stop only after the units before it, and the loop serves meanwhile. Who asks again doesn't wait.
func TestUnitsBeforeTheStopSignal(t *testing.T) {
	t.Parallel()
	for _, again := range []bool{false, true} {
		h := newHome(t)
		block := filepath.Join(h.dir, "block")
		h.write("block", "")
		h.Systemd.Units = []unitSpec{{At: BeforeStop, Name: "slow", Blocking: block}}
		r := h.start()
		h.awaitState(status.Running)
		r.signal(syscall.SIGTERM)
		h.wait("the unit", func() bool { return h.unitsActed()[0] == "before-stop slow" })
		h.awaitState(status.Stopping)
		require.Empty(t, h.signals())
		if again {
			r.signal(syscall.SIGINT) // another one: the same within a second would be the first press
			require.Equal(t, 1, r.exit(), "killed")
			continue
		}
		require.NoError(t, os.Remove(block))
		require.Equal(t, 0, r.exit())
		assert.Equal(t, []string{"terminated"}, h.signals())
	}
}

// A stop during the units before a start: the node isn't started at all.
func TestStopWhileUnitsAreActedOn(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.write("block", "")
	h.Systemd.Units = []unitSpec{{At: BeforeStart, Name: "slow", Blocking: filepath.Join(h.dir, "block")}, {At: BeforeStart, Name: "next"}}
	r := h.start()
	h.wait("the unit", func() bool { return h.unitsActed()[0] == "before-start slow" })
	r.stop()
	assert.Equal(t, []string{"before-start slow"}, h.unitsActed())
	assert.Zero(t, h.count(trace.Start, ""))
}

// An upgrade stops and starts the node, too; a node that ends while units are acted on for its stop is no crash.
func TestUnitsAtAnUpgrade(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	block := filepath.Join(h.dir, "block")
	h.write("block", "")
	h.Systemd.Units = []unitSpec{{At: BeforeStop, Name: "slow", Blocking: block}, {At: AfterStop, Name: "x"}}
	r := h.start()
	node := h.await(trace.FirstBlock, "v1").PID
	asked := make(chan error, 1)
	go func() {
		_, err := h.do(client.OpApply, client.Request{Name: "v2"})
		asked <- err
	}()
	h.wait("the unit", func() bool { return h.unitsActed()[0] == "before-stop slow" })
	require.NoError(t, syscall.Kill(node, syscall.SIGKILL))
	h.wait("the end", func() bool { return len(h.unitsActed()) == 1 && h.status().PID == nil })
	require.NoError(t, os.Remove(block))
	require.NoError(t, <-asked)
	h.await(trace.FirstBlock, "v2")
	assert.Equal(t, []string{"before-stop slow", "after-stop x"}, h.unitsActed())
	r.stop()
}

// A node that ends by itself and isn't just started again: the units of a stop are acted upon before its data is touched,
// both and once, whoever brought it to rest.
func TestUnitsBeforeTheDataIsTouched(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*testHome){
		"it exits at the upgrade":  func(h *testHome) { h.set("UPGRADE", "v2@5"); h.set("AT_UPGRADE", "exit") },
		"it panics at the upgrade": func(h *testHome) { h.set("UPGRADE", "v2@5"); h.set("AT_UPGRADE", "panic") },
		"it stays at the upgrade":  func(h *testHome) { h.set("UPGRADE", "v2@5") },
		"snapshot at its end":      func(h *testHome) { h.SnapshotOn = []string{"exit"}; h.set("EXIT_AFTER", "200ms") },
		"halt":                     func(h *testHome) { h.Args = []string{"start", "--halt-height=6"}; h.set("AT_HALT", "exit0") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHome(t, "v2")
			h.write("block", "")
			block := filepath.Join(h.dir, "block")
			h.Systemd.Units = []unitSpec{{At: BeforeStop, Name: "x"}, {At: AfterStop, Name: "y", Blocking: block}}
			prepare(h)
			open := h.gate()
			r := h.start()
			h.runs()
			if name == "halt" {
				_, err := h.do(client.OpHalt, client.Request{Height: 6})
				require.NoError(t, err)
			}
			open()
			h.wait("the units", func() bool { return len(h.unitsActed()) == 2 })
			require.Equal(t, []string{"before-stop x", "after-stop y"}, h.unitsActed())
			h.awaitStatus("the node's end", func(st *status.Document) bool { return st.PID == nil })
			require.Empty(t, h.taken(), "nothing is touched before they are down")
			require.NoError(t, os.Remove(block))
			h.wait("a snapshot", func() bool { return len(h.taken()) > 0 })
			require.Equal(t, []string{"before-stop x", "after-stop y"}, h.unitsActed()[:2])
			if name == "halt" {
				require.Equal(t, ExitHeld, r.exit())
				return
			}
			h.awaitCount(2, trace.Start, "")
			r.stop()
		})
	}
}

// A stop that comes while the units are acted on before an upgrade is heeded: the next start goes on.
func TestStopWhileUnitsAreActedOnBeforeAnUpgrade(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.write("block", "")
	h.Systemd.Units = []unitSpec{{At: BeforeStop, Name: "slow", Blocking: filepath.Join(h.dir, "block")}}
	h.set("UPGRADE", "v2@5")
	h.set("AT_UPGRADE", "exit")
	r := h.start()
	h.wait("the unit", func() bool { return h.unitsActed()[0] == "before-stop slow" })
	r.stop()
	require.Empty(t, h.taken())
	require.NoError(t, os.Remove(filepath.Join(h.dir, "block")))
	r = h.start()
	h.await(trace.FirstBlock, "v2")
	assert.Equal(t, []string{"before-stop slow", "before-stop slow"}, h.unitsActed(), "again, before the data is touched")
	r.stop()
}
