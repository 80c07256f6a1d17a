package upgrade_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/source"
)

// handedOver is the batch that Cosmovisor would read: strictly, by its rules (name, height, a zero time).
func (h *borrowed) handedOver() string {
	h.t.Helper()
	data, err := os.ReadFile(h.l.BatchPath())
	require.NoError(h.t, err)
	var entries []struct {
		Name   string
		Height int64
		Time   time.Time
		Info   string
	}
	require.NoError(h.t, json.Unmarshal(data, &entries), "%s", data)
	var all []string
	for _, e := range entries {
		assert.True(h.t, e.Time.IsZero())
		all = append(all, fmt.Sprintf("%s@%d", e.Name, e.Height))
	}
	return strings.Join(all, " ")
}

func (h *borrowed) leave() upgrade.Leaving {
	h.t.Helper()
	e := h.engine()
	l, err := e.Leave()
	require.NoError(h.t, err)
	require.NoError(h.t, e.Left(l))
	return l
}

func TestPendingPlansBecomeABatch(t *testing.T) {
	h := newBorrowed(t)
	h.add(plan.Plan{Name: "v3", Height: 200, Info: `{"binaries":{}}`}, plan.Plan{Name: "v2", Height: 100, RawName: "V2"})
	l := h.leave()
	assert.Equal(t, "v2@100 v3@200", keys(l.Plans))
	assert.Equal(t, "v2@100 v3@200", h.handedOver())
	data, err := os.ReadFile(h.l.BatchPath())
	require.NoError(t, err)
	assert.Contains(t, string(data), `"time": "0001-01-01T00:00:00Z"`)
	assert.Contains(t, string(data), `"info": "{\"binaries\":{}}"`)
	info, err := os.Stat(h.l.BatchPath())
	require.NoError(t, err)
	assert.EqualValues(t, 0o600, info.Mode().Perm())
	assert.Empty(t, h.schedule(), "two tools with one schedule would do it twice")

	plans, err := h.engine().ImportBatch()
	require.NoError(t, err)
	assert.Equal(t, "v2@100 v3@200", keys(plans), "and back again")
}

func TestABatchThatIsThereIsMerged(t *testing.T) {
	h := newBorrowed(t)
	own := `{"name":"v2","height":100,"custom":"kept"}`
	h.batch(arrayOf(own, entryOf("v5", 500), `{"name":"unusable"}`))
	h.add(plan.Plan{Name: "v2", Height: 100}, plan.Plan{Name: "v3", Height: 200})
	l := h.leave()
	assert.Empty(t, l.Dropped)
	assert.Equal(t, "unusable@0 v2@100 v3@200 v5@500", h.handedOver(), "nothing that was there is lost")
	data, err := os.ReadFile(h.l.BatchPath())
	require.NoError(t, err)
	assert.Contains(t, string(data), `"custom": "kept"`)
}

// Of a batch that we imported, our schedule is the newer state.
func TestWhatWasCancelledDoesNotComeBack(t *testing.T) {
	h := newBorrowed(t)
	h.batch(arrayOf(entryOf("v2", 100), entryOf("v3", 200), entryOf("v4", 300)))
	_, err := h.engine().ImportBatch()
	require.NoError(t, err)
	require.NoError(t, h.engine().CancelPlan("v2"))
	require.NoError(t, h.engine().SkipPlan(t.Context(), "v4", 300, plan.UnknownHeight))
	h.add(plan.Plan{Name: "v5", Height: 500})
	l := h.leave()
	assert.Equal(t, "v3@200 v5@500", h.handedOver())
	assert.Equal(t, "v2@100 v4@300", keys(l.Dropped))
	s, err := plan.LoadSchedule(h.l.SchedulePath())
	require.NoError(t, err)
	require.Len(t, s.Skip, 1, "the skip list stays")
	assert.Equal(t, "v4", s.Skip[0].Name)
}

func TestNothingToHandOverLeavesTheBatchAlone(t *testing.T) {
	h := newBorrowed(t)
	h.leave()
	assert.NoFileExists(t, h.l.BatchPath())

	text := arrayOf(entryOf("v2", 100)) + "   "
	h.batch(text)
	h.leave()
	data, err := os.ReadFile(h.l.BatchPath())
	require.NoError(t, err)
	assert.Equal(t, text, string(data), "byte for byte")
}

func TestLeavingForgetsWhatWouldActLater(t *testing.T) {
	h := newBorrowed(t)
	h.add(plan.Plan{Name: "v2", Height: 100}, plan.Plan{Name: "timed", Time: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)})
	e := h.engine()
	require.NoError(t, e.SetHalt(&plan.Halt{Height: 700}, plan.UnknownHeight))
	require.NoError(t, e.Hold("some reason", "supervisor resume"))
	heights, err := source.OpenRecorder(h.l.HeightPath())
	require.NoError(t, err)
	require.NoError(t, heights.Note(50))

	l := h.leave()
	assert.Equal(t, []string{"the plan timed at 2030-01-02T03:04:05Z", "the halt at 700"}, l.Homeless)
	assert.Equal(t, "v2@100", h.handedOver())
	for _, path := range []string{h.l.SchedulePath(), h.l.JournalPath(), h.l.HeightPath()} {
		assert.NoFileExists(t, path)
	}
	later := h.engine()
	assert.Nil(t, later.Journal().Hold)
	assert.Nil(t, later.Schedule().Halt)
	assert.False(t, upgrade.Seen(h.l), "a later init finds the home as it was")
}

func TestLeavingIsRefusedInFlight(t *testing.T) {
	h := newBorrowed(t)
	e := h.engine()
	h.write(h.l.Binary("upgrades/v2"), "#!/bin/sh\n")
	require.NoError(t, e.Announce(plan.Plan{Name: "v2", Height: 100, Source: plan.FromFile}, plan.ByFile, 100))
	_, err := h.engine().Leave()
	require.ErrorContains(t, err, "the upgrade v2 is in flight, at planned")
	assert.Contains(t, hint.Of(err), "supervisor upgrade skip v2")
	require.Error(t, h.engine().Left(upgrade.Leaving{}))
	j, err := upgrade.LoadJournal(h.l.JournalPath())
	require.NoError(t, err)
	assert.NotNil(t, j.Upgrade)
}

func TestLeavingWithoutAPlaceForTheBatch(t *testing.T) {
	h := newBorrowed(t)
	h.add(plan.Plan{Name: "v2", Height: 100})
	h.batch("torn [")
	_, err := h.engine().Leave()
	require.ErrorContains(t, err, "batch")
	h.l.Plan = ""
	_, err = h.engine().Leave()
	require.ErrorContains(t, err, "plan_file")
	assert.Equal(t, "v2@100", h.schedule(), "still ours")
}

// Interrupted between the batch and the schedule, and done again: nothing is lost, and nothing is there twice.
func TestLeavingIsDoneAgain(t *testing.T) {
	h := newBorrowed(t)
	h.batch(arrayOf(entryOf("v2", 100), entryOf("v3", 200)))
	_, err := h.engine().ImportBatch()
	require.NoError(t, err)
	require.NoError(t, h.engine().CancelPlan("v2"))
	h.add(plan.Plan{Name: "v4", Height: 300})
	before, err := os.ReadFile(h.l.SchedulePath())
	require.NoError(t, err)
	h.leave()
	require.NoError(t, os.WriteFile(h.l.SchedulePath(), before, 0o600)) // as if the crash had come before it was written
	h.leave()
	assert.Equal(t, "v3@200 v4@300", h.handedOver())
	assert.Empty(t, h.schedule())
}
