package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/restart"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
)

// No new block is never a failure: the network may need hours. An operator can confirm the version.
func TestWaitingForTheNetwork(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.setOf("v2", "STALL_AT", "5")
	r := h.start()
	h.await(trace.FirstBlock, "v2")
	st := h.awaitStatus("probation", func(st *status.Document) bool {
		return st.State == status.Running && st.Upgrade != nil && st.Height != nil && time.Since(*st.StartedAt) > time.Second
	})
	assert.Equal(t, upgrade.OnProbation, st.Upgrade.Phase)
	assert.Contains(t, st.Message, "waiting for the network")
	assert.Equal(t, int64(4), *st.Height, "the plan's own height isn't above it")
	reply, err := h.do(client.OpResume, client.Request{Confirm: true})
	require.NoError(t, err)
	assert.Equal(t, "v2 is committed", reply.Message)
	assert.Len(t, h.history(), 1, "it is recorded before the answer")
	r.stop()
	assert.Equal(t, 1, h.count(trace.Start, "v2"))
}

// Without a height nothing is committed, unless the configuration says that being up is enough.
func TestCommitNeedsAHeight(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.set("RPC", "off")
	r := h.start()
	h.await(trace.FirstBlock, "v2")
	h.awaitStatus("up for long", func(st *status.Document) bool { return st.StartedAt != nil && time.Since(*st.StartedAt) > time.Second })
	assert.Equal(t, upgrade.OnProbation, h.journal().Upgrade.Phase)
	r.stop()
	h.Upgrade.Probation.HeightAbovePlan = false
	r = h.start()
	h.awaitResult(upgrade.ResultCommitted)
	r.stop()
}

// Each end by itself uses an attempt up; then it holds, and a hold lasts until it is resumed. A fixed binary goes on.
func TestAttemptsAreUsedUp(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.setOf("v2", "CRASH_AT_START", "1")
	r := h.start()
	require.Equal(t, ExitHeld, r.exit())
	assert.Equal(t, 3, h.count(trace.Start, "v2"))
	assert.Equal(t, 1, h.count(trace.Start, "v1"))
	hold := h.journal().Hold
	require.NotNil(t, hold)
	assert.Contains(t, hold.Reason, "3 starts of it ended by themselves")
	assert.Contains(t, hold.Hint, "supervisor upgrade resume --restore")
	require.Equal(t, ExitHeld, h.start().exit())
	assert.Equal(t, 3, h.count(trace.Start, "v2"))

	h.Node.Hold = HoldWait
	h.EnvOf = nil // the fixed version
	r = h.start()
	h.awaitState(status.Held)
	_, err := h.do(client.OpResume, client.Request{Restore: true})
	require.NoError(t, err)
	h.awaitResult(upgrade.ResultCommitted)
	r.stop()
	h.singleNode()
}

// However often the operator stops and starts a version on probation, that is no failure of it.
func TestStopsUseNoAttemptUp(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.Upgrade.Probation.Up = time.Hour
	for i := range 4 {
		r := h.start()
		h.awaitCount(i+1, trace.FirstBlock, "v2")
		r.stop()
		assert.Zero(t, h.journal().Upgrade.Attempts)
	}
	h.Upgrade.Probation.Up = 10 * time.Millisecond
	r := h.start()
	done := h.awaitResult(upgrade.ResultCommitted)
	assert.Equal(t, 1, done.Upgrade.Attempts)
	r.stop()
}

// on_failure = "rollback": data and link go back, the plan is skipped, the old version is started. It halts at the height
// again, as it must, and that begins no upgrade any more. The signer isn't taken back.
func TestRollbackByPolicy(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@200")
	h.set("BLOCK_TIME", "15ms") // late enough for a height to be read
	h.set("TRACE_BLOCKS", "true")
	h.setOf("v2", "PANIC_AT", "201")
	h.Upgrade.OnFailure = upgrade.OnFailureRollback
	h.Upgrade.Probation.Up = time.Hour
	r := h.start()
	h.await(trace.Start, "v2")
	before := h.signerHeight()
	h.awaitResult(upgrade.ResultRolledBack)
	h.awaitStatus("a crash loop", func(st *status.Document) bool { return st.CrashLoop })
	assert.GreaterOrEqual(t, h.count(trace.Start, "v1"), 4)
	assert.Equal(t, "genesis", h.current())
	assert.GreaterOrEqual(t, h.signerHeight(), before)
	schedule, err := plan.LoadSchedule(h.layout().SchedulePath())
	require.NoError(t, err)
	assert.True(t, schedule.Skips(plan.Plan{Name: "v2", Height: 200}))
	assert.Equal(t, 3, h.count(trace.Start, "v2"))
	r.stop()
	h.singleNode()
}

// No automatic rollback while the height is unknown: what the new version made of the data can't be told.
func TestNoBlindRollback(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.set("RPC", "off")
	h.setOf("v2", "CRASH_AT_START", "1")
	h.Upgrade.OnFailure = upgrade.OnFailureRollback
	r := h.start()
	require.Equal(t, ExitHeld, r.exit())
	assert.Contains(t, h.journal().Hold.Reason, "the height is unknown")
	assert.Contains(t, h.journal().Hold.Hint, "supervisor rollback,", "a person may know what the supervisor doesn't")
	assert.Equal(t, "v2", h.current())
}

// No automatic rollback once the new version has made a block of its own, even where it can't be asked any more.
func TestNoRollbackPastABlock(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@150")
	h.set("BLOCK_TIME", "20ms") // late enough for a height to be read
	h.setOf("v2", "PANIC_AT", "160")
	h.Upgrade.OnFailure = upgrade.OnFailureRollback
	h.Upgrade.Probation.Up = time.Hour
	r := h.start()
	require.Equal(t, ExitHeld, r.exit())
	assert.Contains(t, h.journal().Hold.Reason, "committed")
	assert.Equal(t, "v2", h.current())
	assert.Equal(t, 1, h.count(trace.Start, "v1"))
}

// on_failure = "retry" never gives up.
func TestRetry(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.setOf("v2", "CRASH_AT_START", "1")
	h.Upgrade.OnFailure = upgrade.OnFailureRetry
	h.Node.BackoffMax = h.Node.Backoff
	r := h.start()
	h.awaitCount(5, trace.Start, "v2")
	r.stop()
	assert.Nil(t, h.journal().Hold)
}

// On probation, too, the restart policy says whether an end is followed by a start; the attempt is counted all the same, and
// the next run goes on with the next one.
func TestProbationKeepsTheRestartPolicy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		restart restart.Policy
		code    string
		want    int
	}{
		"on-failure, 0": {restart.OnFailure, "0", 0},
		"never, 3":      {restart.Never, "3", 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHome(t, "v2")
			h.set("UPGRADE", "v2@4")
			h.setOf("v2", "EXIT_AFTER", "300ms")
			h.setOf("v2", "EXIT_CODE", c.code)
			h.Node.Restart = c.restart
			h.Upgrade.Probation.Up = time.Hour
			for attempt := 1; attempt <= 2; attempt++ {
				require.Equal(t, c.want, h.start().exit())
				assert.Equal(t, attempt, h.count(trace.Start, "v2"))
				assert.Equal(t, attempt, h.journal().Upgrade.Attempts)
				assert.Nil(t, h.journal().Hold)
			}
		})
	}
}

// restart_after = false: `run` ends with 0 after the migration, and the next one starts the new version.
func TestRestartAfterOff(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.Upgrade.RestartAfter = false
	r := h.start()
	require.Equal(t, 0, r.exit())
	assert.Zero(t, h.count(trace.Start, "v2"))
	assert.Equal(t, upgrade.Migrated, h.journal().Upgrade.Phase)
	r = h.start()
	h.awaitResult(upgrade.ResultCommitted)
	r.stop()
}

// The height of the next plan may come before a version is trusted: a chain that catches up runs through both in seconds.
// Then the version has done its part, whether its node stays there or ends, and however often: none of it is a failed attempt.
func TestNextPlanOnProbation(t *testing.T) {
	t.Parallel()
	for _, blind := range []bool{false, true} {
		for _, ending := range []string{"stay", "exit0", "panic"} {
			t.Run(fmt.Sprintf("%s blind %v", ending, blind), func(t *testing.T) {
				t.Parallel()
				h := newHome(t, "v2", "v3")
				h.set("UPGRADE", "v2@4;v3@9")
				h.set("AT_UPGRADE", ending)
				if blind {
					h.blind()
				}
				h.Upgrade.Probation.Up = time.Hour
				r := h.start()
				h.await(trace.FirstBlock, "v3")
				r.stop()
				require.Len(t, h.history(), 1)
				first := h.history()[0]
				assert.Equal(t, upgrade.ResultCommitted, first.Result)
				assert.Equal(t, "v2", first.Upgrade.Plan.Name)
				assert.GreaterOrEqual(t, first.Upgrade.Reached, int64(9), "nothing takes it back any more")
				assert.Equal(t, "v3", h.current())
				for _, v := range []string{"v1", "v2", "v3"} {
					assert.Equal(t, 1, h.count(trace.Start, v), v)
				}
				h.singleNode()
				h.noOldNodeOnNewData()
			})
		}
	}
}

// No node halts for a plan that an operator scheduled: a probation that lasts must not let it run past the height.
func TestScheduledPlanOnProbation(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2", "v3")
	h.set("UPGRADE", "v2@4")
	h.setOf("v3", "HANDLES", "v2,v3")
	h.Upgrade.Probation.Up = time.Hour
	open := h.gate()
	r := h.start()
	h.runs()
	_, err := h.do(client.OpAdd, client.Request{Plan: plan.Plan{Name: "v3", Height: 60, Source: plan.FromOperator}})
	require.NoError(t, err)
	open()
	h.await(trace.FirstBlock, "v3")
	r.stop()
	assert.Equal(t, "v3", h.current())
	assert.Equal(t, 1, h.count(trace.Start, "v2"))
}

// A binary that is missing at H leaves `run` up, and commands that mend it are served; it is found when it is there.
func TestLateBinary(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.set("UPGRADE", "v2@4")
	r := h.start()
	st := h.awaitState(status.WaitingForBinary)
	assert.NotNil(t, st.PID, "the node isn't stopped for a version that isn't there")
	assert.Equal(t, upgrade.Planned, h.journal().Upgrade.Phase)
	info, err := os.Stat(h.layout().JournalPath())
	require.NoError(t, err)
	for range 20 { // an operator's command finds the engine free, each time
		_, err := h.do(client.OpHalt, client.Request{Height: 100000})
		require.NoError(t, err)
		time.Sleep(recheck / 10)
	}
	again, err := os.Stat(h.layout().JournalPath())
	require.NoError(t, err)
	assert.True(t, os.SameFile(info, again), "the journal isn't written anew while nothing changes")
	h.stage("upgrades/v2", "v2")
	h.awaitResult(upgrade.ResultCommitted)
	r.stop()
	assert.NoFileExists(t, filepath.Join(h.layout().Root, "upgrades", "v2", "bin", ".probe"))
}

// A halt ends the new version by request: its attempt is given back, as at a stop.
func TestHaltOnProbation(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.setOf("v2", "STALL_AT", "5")
	r := h.start()
	h.await(trace.FirstBlock, "v2")
	h.awaitState(status.Running)
	_, err := h.do(client.OpHalt, client.Request{Now: true})
	require.NoError(t, err)
	require.Equal(t, ExitHeld, r.exit())
	u := h.journal().Upgrade
	assert.Equal(t, upgrade.OnProbation, u.Phase)
	assert.Zero(t, u.Attempts)
}
