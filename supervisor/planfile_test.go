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
	"nodevisor/upgrade/plan"
)

// schedule reads what operators want.
func (h *testHome) schedule() plan.Schedule {
	h.Helper()
	s, err := plan.LoadSchedule(h.layout().SchedulePath())
	require.NoError(h, err)
	return s
}

// scheduled waits until exactly that plan is to come, and is known to be no word of the node's.
func (h *testHome) scheduled(name string, height int64) {
	h.Helper()
	h.awaitStatus("it is scheduled", func(st *status.Document) bool {
		return st.Plan != nil && !st.Plan.Exact && st.Plan.Name == name && *st.Plan.Height == height
	})
}

// A plan that another tool wrote ahead of its height follows the file: put off, it comes later; replaced, it never does; and
// it is gone with the file. An operator's own plan stays beside all that.
func TestPlanFollowsTheFile(t *testing.T) {
	t.Parallel()
	t.Run("put off", func(t *testing.T) {
		t.Parallel()
		h := newHome(t, "v2")
		h.set("BLOCK_TIME", "20ms")
		r := h.start()
		h.awaitStatus("a height", func(st *status.Document) bool { return st.Height != nil })
		h.plan("v2", 300)
		h.scheduled("v2", 300)
		h.plan("v2", 400)
		h.scheduled("v2", 400)
		assert.Len(t, h.schedule().Plans, 1)
		assert.GreaterOrEqual(t, h.awaitResult(upgrade.ResultCommitted).Upgrade.Stood, int64(400))
		r.stop()
		assert.Empty(t, h.schedule().FromFile)
	})
	t.Run("replaced while no supervisor runs", func(t *testing.T) {
		t.Parallel()
		h := newHome(t, "v2", "v3")
		r := h.start()
		h.awaitStatus("a height", func(st *status.Document) bool { return st.Height != nil })
		_, err := h.do(client.OpAdd, client.Request{Plan: plan.Plan{Name: "v9", Height: 900000, Source: plan.FromOperator}})
		require.NoError(t, err)
		h.plan("v2", 100000)
		h.scheduled("v2", 100000)
		r.stop()
		h.plan("v3", 200000)
		r = h.start()
		h.scheduled("v3", 200000)
		r.stop()
		s := h.schedule()
		require.Len(t, s.Plans, 2)
		assert.Equal(t, []string{"v3", "v9"}, []string{s.Plans[0].Name, s.Plans[1].Name})
	})
	t.Run("removed", func(t *testing.T) {
		t.Parallel()
		h := newHome(t, "v2")
		r := h.start()
		h.awaitStatus("a height", func(st *status.Document) bool { return st.Height != nil })
		h.plan("v2", 100000)
		h.scheduled("v2", 100000)
		require.NoError(t, os.Remove(h.layout().Plan))
		h.awaitStatus("it is gone", func(st *status.Document) bool { return st.Plan == nil })
		h.wait("the schedule", func() bool { return len(h.schedule().Plans) == 0 })
		h.plan("v2", 100000)
		h.scheduled("v2", 100000)
		r.stop()
		assert.Equal(t, 1, strings.Count(h.lines(), "the plan file was removed"))
	})
	t.Run("against an operator's", func(t *testing.T) {
		t.Parallel()
		h := newHome(t, "v2")
		r := h.start()
		h.awaitStatus("a height", func(st *status.Document) bool { return st.Height != nil })
		_, err := h.do(client.OpAdd, client.Request{Plan: plan.Plan{Name: "v2", Height: 100000, Source: plan.FromOperator}})
		require.NoError(t, err)
		h.plan("v2", 200000)
		h.wait("it is said", func() bool { return strings.Contains(h.lines(), "cannot take the plan over") })
		require.NoError(t, os.Remove(h.layout().Plan))
		h.awaitStatus("the file is gone", func(st *status.Document) bool { return st.Plan != nil && *st.Plan.Height == 100000 })
		r.stop()
		assert.Len(t, h.schedule().Plans, 1)
	})
}

// A plan that is waited with for its binary, and that another one takes the place of in the file, isn't waited for any more.
func TestPlanReplacedWhileItsBinaryIsAwaited(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v3")
	h.setOf("genesis", "STALL_AT", "101") // it stands there, as a node does that waits for its upgrade
	r := h.start()
	h.awaitStatus("a height", func(st *status.Document) bool { return st.Height != nil })
	h.plan("v2", 100)
	h.awaitState(status.WaitingForBinary)
	h.plan("v3", 100)
	done := h.awaitResult(upgrade.ResultCommitted)
	assert.Equal(t, "v3", done.Upgrade.Plan.Name)
	r.stop()
	assert.Equal(t, "v3", h.current())
	assert.Equal(t, 1, h.count(trace.Start, "v1"))
	assert.Equal(t, upgrade.ResultCancelled, h.history()[1].Result)
}

// A plan whose height is past is no upgrade, beside the node and at its start, and that is said: once.
func TestPlanThatIsPast(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	r := h.start()
	h.awaitStatus("a height", func(st *status.Document) bool { return st.Height != nil && *st.Height > 30 })
	past := func(times int) {
		t.Helper()
		h.wait("it is said", func() bool {
			return strings.Count(h.lines(), "v2 at 25 is past: the node went on with another version") >= times
		})
	}
	h.plan("v2", 25)
	past(1)
	h.awaitStatus("more heights", func(st *status.Document) bool { return *st.Height > 300 })
	past(1)
	r.stop()
	require.NoError(t, os.Chtimes(h.layout().Plan, time.Time{}, time.Now()))
	r = h.start()
	h.awaitStatus("a height", func(st *status.Document) bool { return st.Height != nil && st.HeightSource != nil })
	past(2)
	r.stop()
	assert.Equal(t, 2, strings.Count(h.lines(), "is past"))
	assert.Zero(t, h.count(trace.Start, "v2"))
}

// A plan that is done is no upgrade either, and is said once a start, whatever is done to its file.
func TestPlanThatIsDone(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	r := h.start()
	h.awaitResult(upgrade.ResultCommitted)
	r.stop()
	said := func() int { return strings.Count(h.lines(), "v2 at 4 is done: current is its version") }
	assert.Zero(t, said(), "it was to be proven")
	r = h.start()
	h.awaitCount(2, trace.FirstBlock, "v2")
	assert.Equal(t, 1, said())
	text, err := os.ReadFile(h.layout().Plan)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(h.layout().Plan, text, 0o600))
	require.NoError(t, syscall.Kill(*h.awaitState(status.Running).PID, syscall.SIGKILL))
	h.awaitCount(3, trace.FirstBlock, "v2")
	h.awaitStatus("a height", func(st *status.Document) bool { return st.State == status.Running && st.HeightSource != nil })
	r.stop()
	assert.Equal(t, 1, said())
	assert.NotContains(t, h.lines(), "v2 at 4 is past")
	assert.Len(t, h.history(), 1)
}

// A plan that is replaced between the trigger and the stop is nobody's: held, with nothing changed.
func TestPlanChangesBeforeTheStop(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2", "v3")
	h.set("UPGRADE", "v2@4")
	h.write("block", "")
	h.Systemd.Units = []unitSpec{{At: BeforeStop, Name: "x", Blocking: filepath.Join(h.dir, "block")}} // the window
	r := h.start()
	h.wait("the window", func() bool { return h.unitsActed()[0] == "before-stop x" })
	h.plan("v3", 4)
	require.NoError(t, os.Remove(filepath.Join(h.dir, "block")))
	require.Equal(t, ExitHeld, r.exit())
	hold := h.journal().Hold
	assert.Contains(t, hold.Reason, "the plan changed while the node stopped: it was v2 at 4, now it is v3 at 4")
	assert.Contains(t, hold.Hint, "supervisor upgrade cancel v2")
	assert.Equal(t, upgrade.Staged, h.journal().Upgrade.Phase)
	assert.Equal(t, "genesis", h.current())
	assert.Empty(t, h.taken())
	assert.Equal(t, 1, h.count(trace.Start, ""))
}

// A node that writes its plan in the first moment of its life has written it all the same: the look that sees it may be
// answered before the loop has heard of the start. Whether it does is a matter of luck, so that many nodes are started.
func TestPlanWrittenAtTheStart(t *testing.T) {
	t.Parallel()
	for i := range 16 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			h := newHome(t, "v2")
			h.blind()
			h.script(`echo '{"name":"v2","time":"0001-01-01T00:00:00Z","height":49}' >` + h.layout().Plan + "\nexec sleep 300\n")
			require.NoError(t, os.MkdirAll(filepath.Dir(h.layout().Plan), 0o755))
			r := h.start()
			h.await(trace.Start, "v2")
			r.stop()
		})
	}
}
