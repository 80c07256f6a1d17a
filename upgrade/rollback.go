package upgrade

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
)

// Unknown stands for a height that nobody could read. It is not zero.
const Unknown int64 = -1

// CanRollBack tells whether the upgrade may be undone: the chain can't be rolled back, so once the new version has
// committed a block above the plan's height, going back forks the node off. height is the highest that was read from
// the new version, or known of the data before it started; Unknown forbids an automatic rollback, not a requested one.
func CanRollBack(u *Upgrade, height int64, automatic bool) error {
	switch {
	case u == nil:
		return errors.New("no upgrade is in flight")
	case max(u.Reached, height) > u.Plan.Height && u.Plan.Height > 0:
		return fmt.Errorf("block %d committed", max(u.Reached, height))
	case automatic && height == Unknown && u.Reached == 0:
		return errors.New("the height is unknown")
	case u.Phase == Planned || u.Phase == Staged:
		return errors.New("nothing was changed yet")
	case u.touched() && (u.Skipped || u.Snapshot == ""):
		return errors.New("no snapshot was taken")
	}
	return nil
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
	if u.Phase != RollingBack {
		u.BinaryOnly = binaryOnly
		if err := e.advanceFull(RollingBack); err != nil {
			return err
		}
	}
	restore := !u.BinaryOnly && !u.Skipped && u.Snapshot != "" && e.Snapshots != nil && u.sealed()
	if restore {
		if err := e.Snapshots.Restore(ctx, u.Snapshot); err != nil {
			return fmt.Errorf("cannot restore the snapshot %s: %w", u.Snapshot, err)
		}
	}
	if err := e.Layout.SwitchTo(u.From); err != nil {
		return err
	}
	return e.advanceFull(RolledBack)
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

// Restart puts the upgrade's own snapshot back and lets the upgrade go on after it, with fresh attempts.
func (e *Engine) Restart(ctx context.Context) error {
	u := e.j.Upgrade
	if err := CanRollBack(u, Unknown, false); err != nil {
		return &hint.Error{Op: "restore the upgrade's snapshot", Err: err, Hint: "supervisor status"}
	}
	if err := e.Snapshots.Restore(ctx, u.Snapshot); err != nil {
		return fmt.Errorf("cannot restore the snapshot %s: %w", u.Snapshot, err)
	}
	if err := e.Layout.SwitchTo(u.From); err != nil {
		return err
	}
	u.Attempts, u.Error = 0, ""
	u.Phase, u.Tries, u.Crashes = Snapshotted, u.Tries+1, 0
	return e.save(atomicfile.Full)
}

// Resume gives an upgrade fresh attempts and takes the hold away.
func (e *Engine) Resume() error {
	if u := e.j.Upgrade; u != nil {
		u.Attempts, u.Crashes = 0, 0
		u.Tries++
	}
	if e.j.Hold == nil && e.j.Upgrade == nil {
		return nil
	}
	e.j.Hold = nil
	return e.save(atomicfile.Full)
}
