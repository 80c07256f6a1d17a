package upgrade

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// golden is what a whole upgrade goes through.
var golden = []Phase{Staged, Stopped, Snapshotted, Switched, Migrated, OnProbation, Committed}

func TestTheWholeWay(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	h.write(filepath.Join(h.l.Root, "before.sh"), "#!/bin/sh\necho \"$1 $2 $PWD $SUPERVISOR_ATTEMPT $VERSION\" >> \"$HOME_DIR/custom\"\n")
	h.cfg.CustomPreUpgrade = "before.sh"
	e := h.engine()
	var told []Phase
	e.Observe = func(u Upgrade) {
		told = append(told, u.Phase)
		switch u.Phase {
		case Planned, Migrated, Committed: // recorded with what follows at once
		case Stopped: // recorded while the snapshot is copied
		default:
			assert.Equal(t, u.Phase, h.onDisk().Upgrade.Phase, "told of a phase that isn't on disk")
		}
	}
	h.begin(e)
	plan := h.read(h.l.Plan)
	assert.Equal(t, Staged, h.onDisk().Upgrade.Phase)
	assert.True(t, e.InFlight().Announced)
	down := time.Now()
	e.StoppedAt(down)
	require.NoError(t, e.Carry(t.Context()))
	assert.Equal(t, Migrated, e.InFlight().Phase)
	assert.Equal(t, Switched, h.onDisk().Upgrade.Phase, "recorded with the attempt that follows at once")

	assert.Equal(t, staged, h.current())
	assert.Equal(t, []string{"create v2-100 v2 100"}, h.snaps.calls)
	assert.Equal(t, "v1", h.read(h.snaps.path("v2-100")), "the snapshot is of the data before the migration")
	assert.Equal(t, "v2", h.read(h.app()))
	assert.Equal(t, "V2 100 "+h.l.Home+" 1 genesis\n", h.read(filepath.Join(h.l.Home, "custom")), "the name in its own case; in the home")
	assert.JSONEq(t, `{"name":"v2","time":"0001-01-01T00:00:00Z","height":100,"info":"{}"}`, h.read(h.l.InfoPath(staged)))
	assert.Equal(t, plan, h.read(h.l.Plan), "the node's file is never changed")

	require.NoError(t, e.Attempt())
	on := h.onDisk().Upgrade
	assert.Equal(t, OnProbation, on.Phase)
	assert.Equal(t, 1, on.Attempts, "counted before the start")
	e.Started(down.Add(41 * time.Millisecond))
	require.NoError(t, e.Commit(101))
	assert.Nil(t, e.InFlight())
	assert.Nil(t, h.onDisk().Upgrade)
	all := h.history()
	require.Len(t, all, 1)
	assert.Equal(t, ResultCommitted, all[0].Result)
	assert.Equal(t, golden, phaseNames(all[0].Upgrade))
	assert.Equal(t, int64(101), all[0].Upgrade.Reached)
	assert.Equal(t, 41*time.Millisecond, all[0].Upgrade.Downtime())
	assert.Equal(t, append([]Phase{Planned}, golden...), told)
	assert.Equal(t, plan, h.read(h.l.Plan))
}

func TestAnnounceWaitsForItsBinary(t *testing.T) {
	h := newHome(t)
	h.announce("v2", 100)
	e := h.engine()
	p, _, err := plan.ReadFile(h.l.Plan, true)
	require.NoError(t, err)
	require.NoError(t, e.Announce(p, plan.ByFile, 99))
	assert.Equal(t, Planned, h.onDisk().Upgrade.Phase)
	info, err := os.Stat(h.l.JournalPath())
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, e.Announce(p, plan.ByFile, 99), "asked again and again while the binary is awaited")
	}
	again, err := os.Stat(h.l.JournalPath())
	require.NoError(t, err)
	assert.True(t, os.SameFile(info, again), "without writing each time")

	require.ErrorContains(t, e.Announce(plan.Plan{Name: "v3", Height: 200}, plan.ByHeight, 200), "v2 is still in flight")
	e = h.engine() // another process goes on
	h.stage(staged, v2)
	h.beginFile(e)
	assert.Equal(t, Staged, h.onDisk().Upgrade.Phase)
	require.NoError(t, e.Carry(t.Context()))
}

func TestWhereTheOldVersionStood(t *testing.T) {
	operator := plan.Plan{Name: "v2", Height: 100, Source: plan.FromOperator}
	for name, c := range map[string]struct {
		plan            plan.Plan
		evidence        plan.Evidence
		stood           int64
		floor, overshot int64
	}{
		"the node's plan":             {plan.Plan{Name: "v2", Height: 100, Source: plan.FromFile}, plan.ByFile, 99, 100, 0},
		"a record of older data":      {plan.Plan{Name: "v2", Height: 100, Source: plan.FromFile}, plan.ByFile, 5000, 100, 0},
		"the signer, the same":        {plan.Plan{Name: "v2", Height: 100, Source: plan.FromFile}, plan.BySigner, 5000, 100, 0},
		"an operator's, in time":      {operator, plan.ByHeight, 99, 100, 0},
		"an operator's, at its block": {operator, plan.ByHeight, 100, 100, 1},
		"an operator's, late":         {operator, plan.ByHeight, 103, 103, 4},
		"applied by hand":             {plan.Plan{Name: "v2", Source: plan.FromOperator, Immediate: true}, plan.ByOperator, 777, 777, 0},
		"applied by hand, unknown":    {plan.Plan{Name: "v2", Source: plan.FromOperator, Immediate: true}, plan.ByOperator, plan.UnknownHeight, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			e := h.engine()
			require.NoError(t, e.Announce(c.plan, c.evidence, c.stood))
			u := h.onDisk().Upgrade
			assert.Equal(t, c.floor, u.Floor(), "one above it is the new version's own block")
			assert.Equal(t, c.overshot, u.Overshot)
		})
	}
}

func TestAPlanCalledGenesisIsNoWayBack(t *testing.T) {
	h := newHome(t)
	e := h.engine()
	require.NoError(t, e.Announce(plan.Plan{Name: "genesis", Height: 100, Source: plan.FromChain}, plan.ByFile, 99))
	assert.Equal(t, version.Version("upgrades/genesis"), e.InFlight().To)
	require.NoError(t, e.Close(ResultCancelled))
	require.NoError(t, e.Announce(plan.Plan{Name: "genesis", Source: plan.FromOperator, Immediate: true}, plan.ByOperator, 99))
	assert.Equal(t, version.Genesis, e.InFlight().To)
}

// The plan changes between the trigger and the stop.
func TestThePlanIsReadAgainAfterTheStop(t *testing.T) {
	for name, c := range map[string]struct {
		change func(h *home)
		fetch  bool
		ok     bool
	}{
		"nothing changed":                 {func(*home) {}, false, true},
		"written again":                   {func(h *home) { h.announce("V2", 100) }, false, true},
		"another height":                  {func(h *home) { h.announce("V2", 200) }, false, false},
		"another name":                    {func(h *home) { h.announce("v3", 100) }, false, false},
		"another info":                    {func(h *home) { h.write(h.l.Plan, `{"name":"v2","height":100,"info":"other"}`) }, false, true},
		"another info, the binary's":      {func(h *home) { h.write(h.l.Plan, `{"name":"v2","height":100,"info":"other"}`) }, true, false},
		"no info any more":                {func(h *home) { h.write(h.l.Plan, `{"name":"v2","height":100}`) }, true, true},
		"half-written":                    {func(h *home) { h.write(h.l.Plan, `{"name":"v2","hei`) }, false, false},
		"removed":                         {func(h *home) { require.NoError(h.t, os.Remove(h.l.Plan)) }, false, false},
		"another case of the same name":   {func(h *home) { h.announce("v2", 100) }, false, true},
		"a string in place of the number": {func(h *home) { h.write(h.l.Plan, `{"name":"v2","height":"100"}`) }, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.stage(staged, v2)
			h.announce("V2", 100)
			e := h.engine()
			p, _, err := plan.ReadFile(h.l.Plan, true)
			require.NoError(t, err)
			ready := e.Checker.Check(t.Context(), staged)
			ready.Downloaded = c.fetch
			require.NoError(t, e.Begin(p, plan.ByFile, ready, 99))
			c.change(h)
			err = e.Carry(t.Context())
			if c.ok {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrPlanChanged)
			assert.Contains(t, hint.Of(err), "supervisor upgrade cancel v2")
			assert.Equal(t, version.Genesis, h.current())
			assert.Equal(t, Staged, h.onDisk().Upgrade.Phase, "nothing was changed yet")
			assert.Empty(t, h.snaps.calls)
			require.NoError(t, e.CancelPlan("v2"), "so it can be cancelled")
		})
	}
}

// The staged binary is replaced after it was verified.
func TestABinaryReplacedAfterItsVerificationIsNotRun(t *testing.T) {
	for name, replace := range map[string]func(h *home){
		"another file": func(h *home) { h.stage(staged, v2+"\n# evil") },
		"a link": func(h *home) {
			require.NoError(h.t, os.Remove(h.l.Binary(staged)))
			h.link(h.l.Binary(staged), "/bin/sh")
		},
		"removed":           func(h *home) { require.NoError(h.t, os.Remove(h.l.Binary(staged))) },
		"by the script":     func(h *home) { h.customScript(`echo "# evil" >> "$HOME_DIR/cosmovisor/upgrades/v2/bin/simd"`) },
		"directory swapped": func(h *home) { require.NoError(h.t, os.RemoveAll(h.l.Dir(staged))); h.link(h.l.Dir(staged), "/etc") },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.stage(staged, v2)
			e := h.engine()
			h.begin(e)
			replace(h)
			e.Config = h.cfg
			err := e.Carry(t.Context())
			require.Error(t, err)
			assert.Contains(t, hint.Of(err), "supervisor upgrade add v2 BINARY --force")
			assert.Equal(t, version.Genesis, h.current())
			assert.Equal(t, "v1", h.read(h.app()), "nothing of it ran")
			assert.Equal(t, Snapshotted, h.onDisk().Upgrade.Phase)
		})
	}
}

func TestAFixedBinaryIsAcceptedByAdding(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	h.begin(e)
	h.stage(staged, v2+"\n# fixed")
	require.Error(t, e.Carry(t.Context()))
	require.NoError(t, e.AddPlan(t.Context(), plan.Plan{Name: "v2"}, plan.UnknownHeight, true))
	require.NoError(t, e.Carry(t.Context()))
	assert.Equal(t, staged, h.current())
}

// Every failure leaves the phase from before: what failed is done again, what was done isn't.
func TestAFailureKeepsThePhase(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	h.begin(e)
	h.snaps.fail = errDisk
	require.ErrorIs(t, e.Carry(t.Context()), errDisk)
	assert.Equal(t, Stopped, h.onDisk().Upgrade.Phase)
	require.NoError(t, e.HoldFor(errDisk))
	require.NotNil(t, h.onDisk().Hold)
	assert.Equal(t, errDisk.Error(), h.onDisk().Upgrade.Error)

	h.snaps.fail = nil
	e = h.engine()
	require.NoError(t, e.Recover(), "a held upgrade counts no crash")
	assert.Zero(t, e.InFlight().Crashes)
	require.NoError(t, e.Resume())
	assert.Nil(t, h.onDisk().Hold)
	require.NoError(t, e.Carry(t.Context()))
	assert.Equal(t, []string{"create v2-100 v2 100", "create v2-100 v2 100"}, h.snaps.calls, "one id, made again")
}

func TestCarryEndsBetweenTwoEffects(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	h.cfg.Delay = time.Hour
	e := h.engine()
	h.begin(e)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for !strings.Contains(readable(h.l.JournalPath()), `"stopped"`) && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	require.ErrorIs(t, e.Carry(ctx), context.Canceled, "a stop is not waited out")
	assert.Equal(t, Stopped, h.onDisk().Upgrade.Phase)
	require.ErrorIs(t, e.Carry(ctx), context.Canceled)
	h.cfg.Delay = 0
	e = h.engine()
	require.NoError(t, e.Recover())
	assert.Equal(t, 2, e.InFlight().Tries)
	require.NoError(t, e.Carry(t.Context()))
}

func TestCarryRefusesAPhaseThatIsNotItsOwn(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	h.announce("v2", 100)
	require.NoError(t, e.Announce(plan.Plan{Name: "v2", Height: 100, Source: plan.FromFile}, plan.ByFile, 99))
	require.ErrorIs(t, e.Carry(t.Context()), state.ErrUntrusted, "nothing was verified yet")
	require.ErrorIs(t, e.Attempt(), state.ErrUntrusted, "nor is it the new version that would be started")
	require.ErrorIs(t, e.Commit(101), state.ErrUntrusted)
	assert.Equal(t, Planned, h.onDisk().Upgrade.Phase)
}

func TestNoSnapshot(t *testing.T) {
	h := newHome(t)
	h.snaps = nil
	h.stage(staged, v2)
	e := h.engine()
	h.toProbation(e)
	assert.True(t, h.onDisk().Upgrade.Skipped)
	assert.Empty(t, h.onDisk().Upgrade.Snapshot)
}

func TestRestartAfterOff(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	h.cfg.RestartAfter = false
	e := h.engine()
	h.begin(e)
	require.NoError(t, e.Carry(t.Context()))
	assert.Equal(t, Migrated, h.onDisk().Upgrade.Phase, "run ends here, and the next one goes on")
	e = h.engine()
	require.NoError(t, e.Recover())
	require.NoError(t, e.Carry(t.Context()), "nothing is left to do")
	require.NoError(t, e.Attempt())
	assert.Equal(t, "1\n", h.read(filepath.Join(h.l.Home, "migrations")), "migrated once")
}

func TestAttempts(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	h.toProbation(e)
	require.NoError(t, e.GiveBack(), "a stop that was asked for gives the attempt back")
	assert.Zero(t, h.onDisk().Upgrade.Attempts)
	require.NoError(t, e.GiveBack())
	assert.Zero(t, h.onDisk().Upgrade.Attempts)
	for i := range h.cfg.Probation.Attempts {
		e = h.engine() // also over restarts of the supervisor
		require.NoError(t, e.Recover())
		require.NoError(t, e.Attempt())
		assert.Equal(t, i+1, h.onDisk().Upgrade.Attempts)
		require.NoError(t, e.Ended("exit status 1", 90))
	}
	err := e.Attempt()
	require.ErrorIs(t, err, ErrAttempts)
	require.ErrorContains(t, err, "exit status 1", "why the last one ended")
	assert.Contains(t, hint.Of(err), "resume --restore")
	require.NoError(t, e.HoldFor(err))

	require.NoError(t, e.Resume())
	assert.Nil(t, h.onDisk().Hold)
	require.NoError(t, e.Attempt(), "resumed: fresh attempts")

	e.Config.OnFailure = OnFailureRetry
	for range 10 {
		require.NoError(t, e.Attempt())
	}
	require.NoError(t, e.Ended("x", 99))
	require.NoError(t, e.Ended("x", 80))
	assert.Equal(t, int64(99), h.onDisk().Upgrade.Reached, "the highest block counts")
}

func TestCrashesAreCapped(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	h.begin(h.engine())
	for i := range maxCrashes {
		e := h.engine()
		require.NoError(t, e.Recover())
		assert.Equal(t, i+2, h.onDisk().Upgrade.Tries, "SUPERVISOR_ATTEMPT")
	}
	e := h.engine()
	err := e.Recover()
	require.ErrorContains(t, err, "interrupted 5 times in a row after the phase staged")
	require.NoError(t, e.HoldFor(err))
	require.NoError(t, e.Resume())
	require.NoError(t, h.engine().Recover())
}

func TestTheFirstHoldStays(t *testing.T) {
	h := newHome(t)
	e := h.engine()
	require.NoError(t, e.Release(), "nothing to release is no error")
	require.NoError(t, e.Hold("first", "do this"))
	require.NoError(t, e.Hold("what follows", "noise"))
	assert.Equal(t, "first", h.onDisk().Hold.Reason)
	require.NoError(t, e.Release())
	require.NoError(t, e.HoldFor(errors.New("plain")))
	assert.Contains(t, h.onDisk().Hold.Hint, "supervisor resume", "every hold says what to do")
	require.NoError(t, e.Release())
	require.NoError(t, e.HoldFor(hint.New("a", "b", "c", "its own")))
	assert.Equal(t, "its own", h.onDisk().Hold.Hint)
}
