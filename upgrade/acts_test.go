package upgrade

import (
	"context"

	"nodevisor/internal/atomicfile"
	"nodevisor/upgrade/plan"
)

// acts are what a re-executed test process can do.
var acts = map[string]func(dir string) error{
	"upgrade": upgradeAct, "carry": carryAct, "roll-back": rollBackAct, "restart": restartAct,
}

// upgradeAct does what a supervisor does that starts on a home with a plan whose height has come: begin it, or go on with
// it, until it is committed.
func upgradeAct(dir string) error {
	e, err := loadAct(dir)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if e.InFlight() == nil {
		if v, err := e.Layout.Current(); err != nil || v == staged {
			return err // it was committed
		}
		p, _, err := plan.ReadFile(e.Layout.Plan, true)
		if err != nil {
			return err
		}
		if err := e.Begin(p, plan.ByFile, e.Checker.Check(ctx, staged), 99); err != nil {
			return err
		}
	}
	if e.InFlight().Phase != OnProbation {
		if err := e.Carry(ctx); err != nil {
			return err
		}
	}
	if err := e.Attempt(); err != nil {
		return err
	}
	return e.Commit(101)
}

// loadAct is how each of them begins.
func loadAct(dir string) (*Engine, error) {
	h := homeIn(dir)
	h.cfg.CustomPreUpgrade = "before.sh"
	if err := atomicfile.RemoveTemps(h.snaps.dir); err != nil { // the store tidies up for itself
		return nil, err
	}
	e := h.unloaded()
	if err := e.Load(); err != nil {
		return nil, err
	}
	return e, e.Recover()
}

// carryAct goes from the stop to the start.
func carryAct(dir string) error {
	e := homeIn(dir).unloaded()
	if err := e.Load(); err != nil {
		return err
	}
	if err := e.Carry(context.Background()); err != nil {
		return err
	}
	return e.Attempt()
}

// rollBackAct is an operator's rollback, from the first command to the hold.
func rollBackAct(dir string) error {
	e, err := loadAct(dir)
	if err != nil || e.InFlight() == nil {
		return err
	}
	if err := e.Hold("rolled back", "supervisor resume"); err != nil {
		return err
	}
	if err := e.RollBack(context.Background(), false); err != nil {
		return err
	}
	return e.Close(ResultRolledBack)
}

// restartAct is an operator's `upgrade resume --restore`, and what follows. Interrupted, it is asked for again.
func restartAct(dir string) error {
	e, err := loadAct(dir)
	if err != nil || e.InFlight() == nil {
		return err
	}
	if e.Journal().Hold != nil {
		if err := e.Restart(context.Background()); err != nil {
			return err
		}
		if err := e.Resume(); err != nil {
			return err
		}
	}
	return upgradeAct(dir)
}
