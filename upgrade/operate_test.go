package upgrade

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// onSchedule reads the schedule that a new process would find.
func (h *home) onSchedule() plan.Schedule {
	h.t.Helper()
	s, err := plan.LoadSchedule(h.l.SchedulePath())
	require.NoError(h.t, err)
	return s
}

func at(name string, height int64) plan.Plan {
	return plan.Plan{Name: name, Height: height, Source: plan.FromOperator}
}

func TestAddPlan(t *testing.T) {
	h := newHome(t)
	e := h.engine()
	ctx := t.Context()
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	require.NoError(t, e.AddPlan(ctx, at("v3", 300), 250, false))
	require.NoError(t, e.AddPlan(ctx, at("v2", 200), 199, false))
	require.NoError(t, e.AddPlan(ctx, plan.Plan{Name: "v4", Time: noon, Source: plan.FromOperator}, 199, false))
	assert.Equal(t, []plan.Plan{at("v2", 200), at("v3", 300), {Name: "v4", Time: noon, Source: plan.FromOperator}}, h.onSchedule().Plans)
	require.NoError(t, e.AddPlan(ctx, at("v2", 200), 199, false), "the same again")
	require.Len(t, h.onSchedule().Plans, 3)

	for _, known := range []int64{200, 5000} {
		err := e.AddPlan(ctx, at("v5", 200), known, true)
		require.ErrorContains(t, err, "height 200 is past")
		assert.Contains(t, hint.Of(err), "supervisor upgrade apply v5")
	}
	require.NoError(t, e.AddPlan(ctx, at("v5", 200), plan.UnknownHeight, false), "unknown is not zero, and not past")
	err := e.AddPlan(ctx, at("v3", 301), 250, false)
	require.ErrorContains(t, err, "scheduled at 300 already")
	require.NoError(t, e.AddPlan(ctx, at("v3", 301), 250, true))
	require.ErrorIs(t, e.AddPlan(ctx, at("../../evil", 301), 250, true), version.ErrInvalidName)

	require.NoError(t, e.SkipPlan(ctx, "v6", 600, plan.UnknownHeight))
	err = e.AddPlan(ctx, at("v6", 600), 250, false)
	require.ErrorContains(t, err, "skip list")
	require.NoError(t, e.AddPlan(ctx, at("v6", 601), 250, false), "at another height it is another plan")
	require.NoError(t, e.AddPlan(ctx, at("v6", 600), 250, true))
	assert.Empty(t, h.onSchedule().Skip)

	require.NoError(t, e.AddPlan(ctx, plan.Plan{Name: "v7", Source: plan.FromOperator}, 250, false), "staged alone")
	assert.False(t, h.onSchedule().Has("v7"))
}

func TestAllow(t *testing.T) {
	h := newHome(t)
	e := h.engine()
	require.NoError(t, e.Allow("v2", false))
	require.NoError(t, e.SkipPlan(t.Context(), "v2", 200, plan.UnknownHeight))
	require.ErrorContains(t, e.Allow("v2", false), "skip list")
	require.NoError(t, e.Allow("v2", true))
	require.NoError(t, h.engine().Allow("v2", false), "durably")
}

// What can't be written hasn't happened, in memory neither.
func TestAScheduleThatCantBeWritten(t *testing.T) {
	h := newHome(t)
	e := h.engine()
	require.NoError(t, e.AddPlan(t.Context(), at("v2", 200), 100, false))
	require.NoError(t, os.Rename(h.l.SchedulePath(), h.l.SchedulePath()+".aside"))
	require.NoError(t, os.Mkdir(h.l.SchedulePath(), 0o755))
	before := e.Schedule()
	require.Error(t, e.AddPlan(t.Context(), at("v3", 300), 100, false))
	require.Error(t, e.CancelPlan("v2"))
	require.Error(t, e.SkipPlan(t.Context(), "v2", 200, plan.UnknownHeight))
	require.Error(t, e.SetHalt(&plan.Halt{Height: 150}, 100))
	assert.Equal(t, before, e.Schedule())
}

func TestTheScheduleThatIsHandedOutIsACopy(t *testing.T) {
	h := newHome(t)
	e := h.engine()
	require.NoError(t, e.AddPlan(t.Context(), at("v2", 200), 100, false))
	s := e.Schedule()
	s.Plans[0].Height = 1
	s.AddSkip(plan.Skip{Name: "v2"})
	assert.Equal(t, int64(200), e.Schedule().Plans[0].Height)
	assert.Empty(t, e.Schedule().Skip)
	h.stage(staged, v2)
	h.begin(e)
	j := e.Journal()
	j.Upgrade.Phase = Committed
	assert.Equal(t, Staged, e.InFlight().Phase)
	phases := e.Journal().Upgrade.Phases
	require.NoError(t, e.Carry(t.Context()))
	assert.Equal(t, Staged, phases[0].Phase, "what was handed out doesn't change under the reader's eyes")
}

func TestCancelPlan(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	require.NoError(t, e.AddPlan(t.Context(), at("v3", 300), 100, false))
	require.NoError(t, e.CancelPlan("v3"))
	assert.Empty(t, h.onSchedule().Plans)
	require.ErrorContains(t, e.CancelPlan("v3"), "no such plan")
	h.announce("v3", 300)
	err := e.CancelPlan("v3")
	require.ErrorContains(t, err, "it is in the node's own plan file")
	assert.Contains(t, hint.Of(err), "supervisor upgrade skip v3")
	require.NoError(t, os.Remove(h.l.Plan))

	h.begin(e)
	require.NoError(t, e.CancelPlan("v2"), "in flight, nothing changed yet")
	assert.Nil(t, h.onDisk().Upgrade)
	assert.Equal(t, ResultCancelled, h.history()[0].Result)

	h.toProbation(e)
	err = e.CancelPlan("v2")
	require.ErrorContains(t, err, "it is in flight, at probation")
	assert.Contains(t, hint.Of(err), "supervisor rollback")
}

// A plan comes off the skip list again as long as nothing was undone for it.
func TestCancelSkip(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	require.ErrorContains(t, e.CancelSkip("v2"), "neither scheduled nor passed over")
	require.NoError(t, e.SkipPlan(t.Context(), "v2", 0, plan.UnknownHeight))
	require.NoError(t, h.engine().CancelSkip("v2"))
	assert.Empty(t, h.onSchedule().Skip)

	e = h.engine()
	h.toProbation(e)
	require.NoError(t, e.SkipPlan(t.Context(), "v2", 0, plan.UnknownHeight))
	err := e.CancelSkip("v2")
	require.ErrorContains(t, err, "it is passed over since it was undone")
	assert.Equal(t, "supervisor upgrade apply v2 --force", hint.Of(err))
	assert.Len(t, h.onSchedule().Skip, 1)
	// Skipped once more after that, it was undone before: this time nothing was done for it.
	require.NoError(t, e.Allow("v2", true))
	require.NoError(t, e.SkipPlan(t.Context(), "v2", 0, plan.UnknownHeight))
	require.NoError(t, e.CancelSkip("v2"))
}

// The committed plan leaves the schedule: nothing of it comes back after a restart, and nothing else is lost.
func TestABatchLosesNothing(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	for i, name := range []string{"v2", "v3", "v4"} {
		require.NoError(t, e.AddPlan(t.Context(), at(name, int64(100+100*i)), 50, false))
	}
	e = h.engine()
	require.NoError(t, e.Begin(e.Schedule().Plans[0], plan.ByHeight, e.Checker.Check(t.Context(), staged), 99))
	e = h.engine()
	require.NoError(t, e.Carry(t.Context()))
	require.Len(t, h.onSchedule().Plans, 3, "it leaves the schedule when it is committed")
	require.NoError(t, e.Attempt())
	require.NoError(t, e.Commit(101))
	assert.Equal(t, []plan.Plan{at("v3", 200), at("v4", 300)}, h.onSchedule().Plans)
}

func TestSkipPlan(t *testing.T) {
	t.Run("pending", func(t *testing.T) {
		h := newHome(t)
		e := h.engine()
		require.NoError(t, e.AddPlan(t.Context(), at("v2", 200), 100, false))
		require.NoError(t, e.SkipPlan(t.Context(), "v2", 200, 100))
		assert.Empty(t, h.onSchedule().Plans)
		assert.True(t, h.onSchedule().Skips(at("v2", 200)))
		assert.Nil(t, e.InFlight())
	})
	for _, phase := range []Phase{Staged, OnProbation} {
		t.Run("in flight, "+string(phase), func(t *testing.T) {
			h := newHome(t)
			h.stage(staged, v2)
			e := h.engine()
			h.begin(e)
			if phase == OnProbation {
				require.NoError(t, e.Carry(t.Context()))
				require.NoError(t, e.Attempt())
			}
			require.NoError(t, e.Hold("no attempt is left", ""))
			require.NoError(t, e.SkipPlan(t.Context(), "v2", 0, 100))
			assert.True(t, h.onSchedule().Skips(at("v2", 100)))
			assert.False(t, h.onSchedule().Skips(at("v2", 101)), "at its height")
			assert.Nil(t, h.onDisk().Upgrade)
			assert.Nil(t, h.onDisk().Hold)
			assert.Equal(t, ResultSkipped, h.history()[0].Result)
			assert.Equal(t, version.Genesis, h.current())
			assert.Equal(t, "v1", h.read(h.app()), "an old binary never runs on migrated data")
		})
	}
	t.Run("in flight, and it can't be undone", func(t *testing.T) {
		h := newHome(t)
		h.stage(staged, v2)
		e := h.engine()
		h.toProbation(e)
		err := e.SkipPlan(t.Context(), "v2", 0, 101)
		require.ErrorContains(t, err, "block 101 committed")
		assert.NotEmpty(t, hint.Of(err))
		assert.Equal(t, OnProbation, h.onDisk().Upgrade.Phase)
		assert.Empty(t, h.onSchedule().Skip)
	})
	t.Run("by policy", func(t *testing.T) {
		h := newHome(t)
		h.stage(staged, v2)
		e := h.engine()
		h.toProbation(e)
		require.NoError(t, e.RollBack(t.Context(), false))
		require.NoError(t, e.CloseSkipped("v2", 100, "no attempt is left"))
		assert.Equal(t, ResultRolledBack, h.history()[0].Result)
		assert.True(t, h.onSchedule().Skips(at("v2", 100)))
	})
}

func TestUse(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	require.NoError(t, e.Hold("look", ""))
	require.NoError(t, e.Use(t.Context(), staged, false))
	assert.Equal(t, staged, h.current())
	assert.Nil(t, h.onDisk().Hold)
	all := h.history()
	require.Len(t, all, 1)
	assert.Equal(t, ResultUsed, all[0].Result)
	assert.Equal(t, version.Genesis, all[0].Upgrade.From)
	assert.NotEmpty(t, all[0].Upgrade.SHA256)

	err := e.Use(t.Context(), "upgrades/v9", true)
	require.Error(t, err)
	assert.Contains(t, hint.Of(err), "supervisor upgrade add v9")
	assert.Equal(t, staged, h.current())
}

func TestUseGivesAnUpgradeUpOnlyWithForce(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	h.stage("upgrades/v2.1", "exit 0")
	e := h.engine()
	h.toProbation(e)
	err := e.Use(t.Context(), "upgrades/v2.1", false)
	require.ErrorContains(t, err, "v2 is in flight, at probation")
	assert.Equal(t, staged, h.current())
	require.NoError(t, e.Use(t.Context(), "upgrades/v2.1", true))
	assert.Nil(t, h.onDisk().Upgrade)
	require.Len(t, h.history(), 2)
	assert.Equal(t, ResultHeld, h.history()[1].Result)
	require.NoError(t, h.engine().Load())
}

// It is also the way out where the link is damaged.
func TestUseMendsTheLink(t *testing.T) {
	for name, damage := range map[string]func(h *home){
		"missing":  func(h *home) { require.NoError(h.t, os.Remove(h.l.Link())) },
		"dangling": func(h *home) { require.NoError(h.t, os.Remove(h.l.Link())); h.link(h.l.Link(), "upgrades/v9") },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.stage(staged, v2)
			damage(h)
			require.NoError(t, h.engine().Use(t.Context(), staged, false))
			assert.Equal(t, staged, h.current())
		})
	}
}

func TestSetHalt(t *testing.T) {
	h := newHome(t)
	e := h.engine()
	require.ErrorContains(t, e.SetHalt(&plan.Halt{Height: 100}, 100), "height 100 is past")
	require.NoError(t, e.SetHalt(&plan.Halt{Height: 101}, 100))
	assert.Equal(t, int64(101), h.onSchedule().Halt.Height)
	require.NoError(t, e.SetHalt(&plan.Halt{Time: time.Now()}, plan.UnknownHeight))
	require.NoError(t, e.SetHalt(nil, 100))
	assert.Nil(t, h.onSchedule().Halt)
}

func TestSetAsideAndSettle(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	h.begin(e)
	require.NoError(t, e.Carry(t.Context()))
	require.NoError(t, e.Settle())
	assert.Equal(t, Migrated, h.onDisk().Upgrade.Phase)

	require.NoError(t, e.SetAside())
	assert.FileExists(t, h.l.JournalPath(), "what can be trusted stays")
	h.write(h.l.JournalPath(), "torn")
	h.write(h.l.SchedulePath(), "torn")
	e = h.unloaded()
	require.ErrorIs(t, e.Load(), state.ErrUntrusted)
	require.NoError(t, e.SetAside())
	assert.NoFileExists(t, h.l.JournalPath())
	kept, err := filepath.Glob(filepath.Join(h.l.State(), "*.before-*"))
	require.NoError(t, err)
	require.Len(t, kept, 2, "nothing is deleted")
	assert.Equal(t, "torn", h.read(kept[0]))
	require.NoError(t, h.unloaded().Load())
}

// FuzzOperations: whatever an operator's request holds, what it leaves on the disk can be read by the next process.
func FuzzOperations(f *testing.F) {
	f.Add([]byte(`{"plan":{"name":"v2","height":200,"source":"operator"},"halt":{"height":300},"name":"v3","height":7,"force":true}`))
	f.Add([]byte(`{"plan":{"name":"v2","height":-5},"halt":{"height":-1},"name":"../x"}`))
	f.Add([]byte(`{"plan":{"name":"V2","raw_name":"v3","time":"2100-01-01T00:00:00Z","immediate":true},"halt":{},"name":"\u0000","height":-7}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		var r struct {
			Plan   plan.Plan  `json:"plan"`
			Halt   *plan.Halt `json:"halt"`
			Name   string     `json:"name"`
			Height int64      `json:"height"`
			Force  bool       `json:"force"`
		}
		if json.Unmarshal(data, &r) != nil {
			return
		}
		h := homeIn(dir)
		h.t = t
		require.NoError(t, os.RemoveAll(h.l.State()))
		e := h.unloaded()
		ctx := t.Context()
		for _, operation := range []func() error{
			func() error { return e.AddPlan(ctx, r.Plan, plan.UnknownHeight, r.Force) },
			func() error { return e.SetHalt(r.Halt, plan.UnknownHeight) },
			func() error { return e.SkipPlan(ctx, r.Name, r.Height, plan.UnknownHeight) },
			func() error { return e.CancelPlan(r.Name) },
		} {
			err := operation()
			s, errRead := plan.LoadSchedule(h.l.SchedulePath())
			require.NoError(t, errRead, "after %v", err)
			for _, p := range s.Plans {
				require.True(t, version.Of(p.Name).InTree(), "%q", p.Name)
				require.True(t, p.Height > 0 || !p.Time.IsZero(), "%+v", p)
			}
		}
	})
}
