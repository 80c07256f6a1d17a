package upgrade

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/plan"
)

// CanRollBack tells whether the upgrade may be undone: the chain can't be rolled back, so once the new version has
// committed a block above the plan's height, going back forks the node off. height is the highest that was read from
// the new version, or known of the data before it started; UnknownHeight forbids an automatic rollback, not a requested one.
func CanRollBack(u *Upgrade, height int64, automatic bool) error {
	switch {
	case u == nil:
		return errors.New("no upgrade is in flight")
	case max(u.Reached, height) > u.Floor() && u.Floor() > 0:
		return fmt.Errorf("block %d committed", max(u.Reached, height))
	case automatic && (height == plan.UnknownHeight && u.Reached == 0 || u.Floor() == 0):
		return errors.New("the height is unknown")
	case u.Phase == Planned || u.Phase == Staged:
		return errors.New("nothing was changed yet")
	case u.touched() && (u.Skipped || u.Snapshot == ""):
		return errors.New("no snapshot was taken")
	}
	return nil
}

// CanReplaceData refuses other data beneath an upgrade in flight: its journal says what was done to the data that is there,
// and would go on with it, or put its own snapshot over what an operator restored.
func CanReplaceData(u *Upgrade) error {
	if u == nil {
		return nil
	}
	next := fmt.Sprintf("supervisor upgrade skip %s (gives it up), then restore", u.Plan.Name)
	switch err := CanRollBack(u, plan.UnknownHeight, false); {
	case err == nil && u.sealed():
		next = "supervisor rollback, or: supervisor upgrade resume --restore (each puts the upgrade's own snapshot back), or: " + next
	case err != nil && u.touched():
		next = fmt.Sprintf("supervisor upgrade use %s --force (gives the upgrade up where it stands), then restore", u.To.Name())
	}
	return hint.New("replace the data", "", "the upgrade "+u.Plan.Name+" is in flight, at "+string(u.Phase), next)
}

// RollBack undoes the upgrade in flight: the snapshot goes back in the place of the data, the link back to the old
// version. binaryOnly leaves the data alone. It may be called again after a crash; the caller guarantees that no node
// runs. The upgrade stays in the journal as rolled-back until Close.
func (e *Engine) RollBack(ctx context.Context, binaryOnly bool) error {
	u := e.j.Upgrade
	if u == nil {
		return hint.New("roll back", "", "no upgrade is in flight", "supervisor upgrade history")
	}
	if u.Phase == RolledBack {
		return nil
	}
	// A way back with the data may still become one without it, where the snapshot turns out to be lost; never the reverse.
	only := binaryOnly || (u.Phase == RollingBack && u.BinaryOnly)
	if !only && u.touched() && !e.restorable(u) {
		return hint.New("roll back", u.Plan.Name, "the data may be migrated, and there is no snapshot to put back",
			"supervisor rollback --binary-only (only where the data was not migrated)")
	}
	if u.Phase != RollingBack || u.BinaryOnly != only {
		u.BinaryOnly, u.WayBack = only, rand.Text()
		if err := e.advanceFull(RollingBack); err != nil {
			return err
		}
	}
	if err := e.goBack(ctx, !only && e.restorable(u)); err != nil {
		return err
	}
	return e.advanceFull(RolledBack)
}

// goBack puts the snapshot in the place of the data, then the link back to the old version: an old binary never runs on
// migrated data. It is done again after a crash.
func (e *Engine) goBack(ctx context.Context, restore bool) error {
	u := e.j.Upgrade
	if restore {
		if err := e.Snapshots.Restore(ctx, u.Snapshot, u.WayBack); err != nil {
			return fmt.Errorf("cannot restore the snapshot %s: %w", u.Snapshot, err)
		}
	}
	return e.Layout.SwitchTo(u.From)
}

// restorable tells whether the upgrade's snapshot can be put back.
func (e *Engine) restorable(u *Upgrade) bool {
	return e.Snapshots != nil && !u.Skipped && u.Snapshot != "" && u.sealed()
}

// touched tells whether the data may have changed since the snapshot: the new binary's pre-upgrade or the node ran. (The
// custom script runs before the switch; what it did is covered by the snapshot where there is one.)
func (u *Upgrade) touched() bool {
	return slices.ContainsFunc(u.Phases, func(t PhaseTime) bool { return t.Phase == Switched })
}

// sealed tells whether the upgrade's snapshot was taken.
func (u *Upgrade) sealed() bool {
	return slices.ContainsFunc(u.Phases, func(t PhaseTime) bool { return t.Phase == Snapshotted })
}

// Close moves an upgrade that was undone, or never begun, to the history.
func (e *Engine) Close(r Result) error {
	if e.j.Upgrade == nil {
		return nil
	}
	return e.finish(r)
}

// CloseHeld ends an upgrade that an operator undid, and holds. The hold comes first, in the place of any other: a crash in
// between must not begin the upgrade again.
func (e *Engine) CloseHeld(reason, next string) error {
	err := e.change(atomicfile.Full, func() { e.j.Hold = &Hold{Reason: reason, Hint: next, Since: now()} })
	if err != nil {
		return err
	}
	return e.Close(ResultRolledBack)
}

// Restart puts the upgrade's own snapshot back and lets the upgrade go on after it, with fresh attempts. Interrupted, it
// is a rollback under way, which ends as one or is restarted.
func (e *Engine) Restart(ctx context.Context) error {
	u := e.j.Upgrade
	err := CanRollBack(u, plan.UnknownHeight, false)
	if err == nil && !e.restorable(u) {
		err = errors.New("no snapshot was taken")
	}
	if err != nil {
		return &hint.Error{Op: "restore the upgrade's snapshot", Err: err, Hint: "supervisor status"}
	}
	tries := u.Tries // the next is counted when it begins, see Recover
	u.BinaryOnly, u.WayBack = false, rand.Text()
	if err := e.advanceFull(RollingBack); err != nil {
		return err
	}
	if err := e.goBack(ctx, true); err != nil {
		return err
	}
	return e.change(atomicfile.Full, func() {
		u := e.j.Upgrade
		u.Phases = slices.DeleteFunc(slices.Clone(u.Phases), func(t PhaseTime) bool { return t.Phase.OnNew() || t.Phase == RollingBack })
		u.Phase, u.Tries, u.Crashes, u.Attempts, u.Error = Snapshotted, tries, 0, 0, ""
	})
}

// Resume gives an upgrade fresh attempts and takes the hold away. On the way back the attempts stay what they are: used
// up, they say that it was the policy's decision to go back, and what follows it.
func (e *Engine) Resume() error {
	if e.j.Hold == nil && e.j.Upgrade == nil {
		return nil
	}
	return e.change(atomicfile.Full, func() {
		if u := e.j.Upgrade; u != nil {
			if u.Phase != RollingBack && u.Phase != RolledBack {
				u.Attempts = 0
			}
			u.Crashes = 0
		}
		e.j.Hold = nil
	})
}

// Reopen takes the last finished upgrade back into the journal, so that it can be rolled back, unless one is in flight.
// It refuses what can't be undone.
func (e *Engine) Reopen(known int64, binaryOnly bool) error {
	refuse := func(err error) error {
		return &hint.Error{Op: "roll back", Err: err, Hint: "supervisor status; supervisor upgrade apply VERSION switches forward instead"}
	}
	u := e.j.Upgrade
	if u == nil {
		all, err := LoadHistory(e.Layout.HistoryDir())
		if err != nil {
			return err
		}
		current, err := e.Layout.Current()
		if err != nil {
			return err
		}
		if len(all) == 0 || all[0].Result != ResultCommitted || all[0].Upgrade.To != current {
			return refuse(errors.New("no upgrade is in flight, and the last one is not what current names"))
		}
		u = &all[0].Upgrade
		u.Phase = OnProbation
	}
	if err := CanRollBack(u, known, false); err != nil && (!binaryOnly || u.Phase == Planned || u.Phase == Staged) {
		return refuse(err)
	}
	e.j.Upgrade = u
	return nil
}

// Allow takes a plan off the skip list with force; without, a plan on it is refused.
func (e *Engine) Allow(name string, force bool) error {
	if !e.s.Skips(plan.Plan{Name: name}) {
		return nil
	}
	if !force {
		return hint.New("apply", name, "it is on the skip list", "add --force to try it again")
	}
	return e.unskip(name)
}
