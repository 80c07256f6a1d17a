package upgrade

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// Every phase has its own way out, and each command that is named is one that this phase allows.
func TestCanReplaceData(t *testing.T) {
	require.NoError(t, CanReplaceData(nil))
	done := func(phases ...Phase) []PhaseTime {
		var all []PhaseTime
		for _, p := range phases {
			all = append(all, PhaseTime{Phase: p})
		}
		return all
	}
	for name, c := range map[string]struct {
		u    Upgrade
		want string
	}{
		"planned":                   {Upgrade{Phase: Planned}, "supervisor upgrade skip v2"},
		"stopped":                   {Upgrade{Phase: Stopped, Phases: done(Stopped)}, "supervisor upgrade skip v2"},
		"switched":                  {Upgrade{Phase: Switched, Snapshot: "s", Phases: done(Snapshotted, Switched)}, "supervisor rollback, or: "},
		"on probation, no snapshot": {Upgrade{Phase: OnProbation, Skipped: true, Phases: done(Snapshotted, Switched)}, "supervisor upgrade use v2 --force"},
		"a block above": {
			Upgrade{Phase: OnProbation, Snapshot: "s", Reached: 101, Phases: done(Snapshotted, Switched)}, "supervisor upgrade use v2 --force",
		},
	} {
		c.u.Plan, c.u.To = plan.Plan{Name: "v2", Height: 100}, version.Of("v2")
		err := CanReplaceData(&c.u)
		require.ErrorContains(t, err, "the upgrade v2 is in flight, at "+string(c.u.Phase), name)
		assert.True(t, strings.HasPrefix(hint.Of(err), c.want), "%s: %s", name, hint.Of(err))
	}
}

func TestCanRollBack(t *testing.T) {
	at := func(p Phase, change func(u *Upgrade)) *Upgrade {
		u := &Upgrade{Plan: plan.Plan{Name: "v2", Height: 100, Source: plan.FromFile}, Phase: p, Snapshot: "s"}
		for _, done := range []Phase{Staged, Stopped, Snapshotted, Switched, Migrated, OnProbation} {
			u.Phases = append(u.Phases, PhaseTime{Phase: done})
			if done == p {
				break
			}
		}
		if change != nil {
			change(u)
		}
		return u
	}
	none := func(u *Upgrade) { u.Snapshot, u.Skipped = "", true }
	for name, c := range map[string]struct {
		u         *Upgrade
		height    int64
		automatic bool
		want      string // "" = possible
	}{
		"none in flight":                 {nil, 100, false, "no upgrade is in flight"},
		"planned":                        {at(Planned, nil), 100, false, "nothing was changed"},
		"staged":                         {at(Staged, nil), 100, false, "nothing was changed"},
		"stopped, no snapshot":           {at(Stopped, none), 100, false, ""},
		"snapshotted":                    {at(Snapshotted, nil), 100, true, ""},
		"on probation, below":            {at(OnProbation, nil), 99, true, ""},
		"on probation, at the height":    {at(OnProbation, nil), 100, true, ""},
		"a block above":                  {at(OnProbation, nil), 101, false, "block 101 committed"},
		"a block above, seen before":     {at(OnProbation, func(u *Upgrade) { u.Reached = 102 }), 100, false, "block 102 committed"},
		"unknown, by policy":             {at(OnProbation, nil), plan.UnknownHeight, true, "the height is unknown"},
		"unknown, by request":            {at(OnProbation, nil), plan.UnknownHeight, false, ""},
		"switched, no snapshot":          {at(Switched, none), 100, false, "no snapshot was taken"},
		"on probation, no snapshot":      {at(OnProbation, none), 100, true, "no snapshot was taken"},
		"the old one overshot":           {at(OnProbation, func(u *Upgrade) { u.Stood = 105 }), 105, true, ""},
		"a block above what it overshot": {at(OnProbation, func(u *Upgrade) { u.Stood = 105 }), 106, true, "block 106 committed"},
		"applied, unknown floor, policy": {at(OnProbation, func(u *Upgrade) { u.Plan.Height = 0 }), 7, true, "the height is unknown"},
		"applied, unknown floor, asked":  {at(OnProbation, func(u *Upgrade) { u.Plan.Height = 0 }), 7, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := CanRollBack(c.u, c.height, c.automatic)
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestRollBackWithTheSnapshot(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	h.toProbation(e)
	require.Equal(t, "v2", h.read(h.app()))
	require.NoError(t, e.RollBack(t.Context(), false))
	assert.Equal(t, "v1", h.read(h.app()))
	assert.Equal(t, version.Genesis, h.current())
	assert.Equal(t, RolledBack, h.onDisk().Upgrade.Phase)
	require.NoError(t, e.RollBack(t.Context(), false), "done twice it is done once")
	assert.Len(t, h.snaps.calls, 2, "created and restored, each once")
	require.NoError(t, e.Close(ResultRolledBack))
	require.Len(t, h.history(), 1)
	assert.Equal(t, ResultRolledBack, h.history()[0].Result)
	require.NoError(t, e.Close(ResultRolledBack), "closing nothing is no error")

	err := e.RollBack(t.Context(), false)
	require.ErrorContains(t, err, "no upgrade is in flight")
	assert.NotEmpty(t, hint.Of(err))
}

// A way back that failed and was resumed is still whose it was: the policy's is known by the attempts that are used up.
func TestResumeOnTheWayBackKeepsTheAttempts(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	h.toProbation(e)
	used := e.InFlight().Attempts
	require.Positive(t, used)
	h.snaps.fail = errDisk
	require.ErrorIs(t, e.RollBack(t.Context(), false), errDisk)
	require.NoError(t, e.Hold("the disk", "supervisor resume"))
	require.NoError(t, e.Resume())
	assert.Nil(t, h.onDisk().Hold)
	assert.Equal(t, used, h.onDisk().Upgrade.Attempts)
	h.snaps.fail = nil
	require.NoError(t, e.RollBack(t.Context(), false))
	require.NoError(t, e.Hold("the disk again", "supervisor resume"))
	require.NoError(t, e.Resume())
	assert.Equal(t, used, h.onDisk().Upgrade.Attempts)
}

func TestRollBackOfTheBinaryOnly(t *testing.T) {
	h := newHome(t)
	h.snaps = nil
	h.stage(staged, v2)
	e := h.engine()
	h.toProbation(e)
	require.ErrorContains(t, e.RollBack(t.Context(), false), "no snapshot to put back", "an old binary never runs on migrated data")
	assert.Equal(t, staged, h.current())
	assert.Equal(t, OnProbation, h.onDisk().Upgrade.Phase)
	require.NoError(t, e.RollBack(t.Context(), true), "unless a person says that it wasn't migrated")
	assert.Equal(t, version.Genesis, h.current())
	assert.True(t, h.onDisk().Upgrade.BinaryOnly)
}

// A configuration that takes no snapshots any more doesn't turn a rollback into one of the binary alone.
func TestRollBackWithoutTheStoreThatHasTheSnapshot(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	h.toProbation(h.engine())
	h.snaps = nil
	e := h.engine()
	require.Error(t, e.RollBack(t.Context(), false))
	assert.Equal(t, staged, h.current())
	assert.Equal(t, "v2", h.read(h.app()))
}

func TestRollBackAfterACrashAndAFailure(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	h.toProbation(e)
	h.snaps.fail = errDisk
	require.ErrorIs(t, e.RollBack(t.Context(), false), errDisk)
	assert.Equal(t, RollingBack, h.onDisk().Upgrade.Phase)
	assert.Equal(t, staged, h.current(), "the link follows the data, never the reverse")

	h.snaps.fail = nil
	e = h.engine() // another process
	require.NoError(t, e.Recover())
	require.ErrorIs(t, e.Attempt(), state.ErrUntrusted, "nothing is started on the way back")
	require.NoError(t, e.RollBack(t.Context(), e.InFlight().BinaryOnly))
	assert.Equal(t, "v1", h.read(h.app()))

	// A snapshot that turns out to be lost: a person may say that the data was not migrated.
	h = newHome(t)
	h.stage(staged, v2)
	e = h.engine()
	h.toProbation(e)
	require.NoError(t, os.Remove(h.snaps.path("v2-100")))
	require.Error(t, e.RollBack(t.Context(), false))
	e = h.engine()
	require.NoError(t, e.RollBack(t.Context(), true))
	assert.Equal(t, version.Genesis, h.current())
	assert.True(t, h.onDisk().Upgrade.BinaryOnly)
}

func TestRollBackFromEveryPhase(t *testing.T) {
	for _, c := range []struct {
		phase    Phase
		restores bool
	}{{Stopped, false}, {Snapshotted, true}, {Switched, true}, {Migrated, true}, {OnProbation, true}} {
		t.Run(string(c.phase), func(t *testing.T) {
			h := newHome(t)
			h.stage(staged, v2)
			h.cfg.RestartAfter = false
			e := h.engine()
			h.begin(e)
			steps := []func() error{
				func() error { return errors.Join(e.stopped(t.Context()), e.settled()) }, func() error { return e.snapshot(t.Context()) },
				func() error { return e.switchOver(t.Context()) }, func() error { return e.migrate(t.Context()) }, e.Attempt,
			}
			for _, step := range steps {
				require.NoError(t, step())
				if e.InFlight().Phase == c.phase {
					break
				}
			}
			require.Equal(t, c.phase, h.onDisk().Upgrade.Phase)
			require.NoError(t, e.RollBack(t.Context(), false))
			assert.Equal(t, "v1", h.read(h.app()))
			assert.Equal(t, version.Genesis, h.current())
			assert.Equal(t, c.restores, len(h.snaps.calls) > 1)
		})
	}
	for _, phase := range []Phase{Planned, Staged} {
		h := newHome(t)
		h.stage(staged, v2)
		e := h.engine()
		h.begin(e)
		e.InFlight().Phase = phase
		require.ErrorIs(t, e.RollBack(t.Context(), false), state.ErrUntrusted, "%s has changed nothing", phase)
	}
}

// upgrade resume --restore: the snapshot goes back, and the upgrade goes on after it.
func TestRestart(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	h.toProbation(e)
	require.NoError(t, e.Ended("exit status 1", 0))
	require.NoError(t, e.Hold("no attempt is left", ""))
	h.stage(staged, v2+"\n# fixed")
	require.NoError(t, e.AddPlan(t.Context(), plan.Plan{Name: "v2"}, plan.UnknownHeight, true))

	require.NoError(t, e.Restart(t.Context()))
	on := h.onDisk()
	assert.Equal(t, Snapshotted, on.Upgrade.Phase)
	assert.Zero(t, on.Upgrade.Attempts)
	assert.NotNil(t, on.Hold, "released by Resume")
	assert.Equal(t, "v1", h.read(h.app()))
	assert.Equal(t, version.Genesis, h.current())

	e = h.engine()
	require.NoError(t, e.Resume())
	require.NoError(t, e.Carry(t.Context()))
	require.NoError(t, e.Attempt())
	require.NoError(t, e.Commit(101))
	assert.Equal(t, golden, phaseNames(h.history()[0].Upgrade))
	assert.Equal(t, "v2", h.read(h.app()), "migrated again, from the restored data")
	assert.Equal(t, "1\n1\n", h.read(filepath.Join(h.l.Home, "migrations")), "for this data it is the first try")
}

// Interrupted, it is a way back under way: never a new binary on restored data without its migration.
func TestRestartInterrupted(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	h.toProbation(e)
	h.snaps.fail = errDisk
	require.ErrorIs(t, e.Restart(t.Context()), errDisk)
	assert.Equal(t, RollingBack, h.onDisk().Upgrade.Phase)

	h.snaps.fail = nil
	e = h.engine()
	require.NoError(t, e.Restart(t.Context()), "asked for again")
	assert.Equal(t, Snapshotted, h.onDisk().Upgrade.Phase)
	require.NoError(t, e.Carry(t.Context()))
}

func TestRestartRefuses(t *testing.T) {
	h := newHome(t)
	e := h.engine()
	require.ErrorContains(t, e.Restart(t.Context()), "no upgrade is in flight")
	h.stage(staged, v2)
	h.begin(e)
	require.ErrorContains(t, e.Restart(t.Context()), "nothing was changed")
	require.NoError(t, e.stopped(t.Context()))
	require.ErrorContains(t, e.Restart(t.Context()), "no snapshot was taken", "its id is chosen, but it isn't sealed")

	h = newHome(t)
	h.snaps = nil
	h.stage(staged, v2)
	e = h.engine()
	h.begin(e)
	require.NoError(t, e.stopped(t.Context()))
	require.ErrorContains(t, e.Restart(t.Context()), "no snapshot was taken", "nor is there a store")
	require.NoError(t, e.Carry(t.Context()), "refused is unchanged")
}

func TestReopen(t *testing.T) {
	committed := func(t *testing.T) (*home, *Engine) {
		h := newHome(t)
		h.stage(staged, v2)
		e := h.engine()
		h.toProbation(e)
		require.NoError(t, e.Commit(100))
		return h, h.engine()
	}
	t.Run("the last upgrade, nothing built on it", func(t *testing.T) {
		h, e := committed(t)
		require.NoError(t, e.Reopen(100, false))
		require.NoError(t, e.RollBack(t.Context(), false))
		require.NoError(t, e.Close(ResultRolledBack))
		assert.Equal(t, "v1", h.read(h.app()))
		require.Len(t, h.history(), 2)
		assert.Equal(t, ResultRolledBack, h.history()[0].Result)
	})
	t.Run("a block above", func(t *testing.T) {
		_, e := committed(t)
		require.ErrorContains(t, e.Reopen(101, false), "block 101 committed")
		assert.Nil(t, e.InFlight())
		require.NoError(t, e.Reopen(101, true), "the binary alone, on a person's word")
	})
	t.Run("current is another version", func(t *testing.T) {
		h, e := committed(t)
		h.stage("upgrades/v3", "")
		require.NoError(t, h.l.SwitchTo("upgrades/v3"))
		require.ErrorContains(t, e.Reopen(100, false), "not what current names")
	})
	t.Run("nothing was ever upgraded", func(t *testing.T) {
		require.Error(t, newHome(t).engine().Reopen(plan.UnknownHeight, false))
	})
	t.Run("rolled back already", func(t *testing.T) {
		_, e := committed(t)
		require.NoError(t, e.Reopen(100, false))
		require.NoError(t, e.RollBack(t.Context(), false))
		require.NoError(t, e.Close(ResultRolledBack))
		require.Error(t, e.Reopen(100, false))
	})
	t.Run("one in flight is meant", func(t *testing.T) {
		h := newHome(t)
		h.stage(staged, v2)
		e := h.engine()
		h.begin(e)
		require.ErrorContains(t, e.Reopen(99, false), "nothing was changed")
		require.ErrorContains(t, e.Reopen(99, true), "nothing was changed", "also of the binary alone")
		require.NoError(t, e.Carry(t.Context()))
		require.NoError(t, e.Reopen(99, false))
		assert.Equal(t, Migrated, e.InFlight().Phase)
	})
}
