package upgrade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// Carry runs what needs the node at rest: from the stop to the migrated version. It continues where the journal says
// and may be called again after any failure or crash. The caller guarantees that no node runs.
//
// At most eight fsyncs lie on this way besides the snapshot's own. A phase whose loss costs nothing is written with
// atomicfile.Content: what follows it is done again, with the same result.
func (e *Engine) Carry(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, e.settled()) }()
	effects := map[Phase]func(context.Context) error{
		Staged:      e.stopped,
		Stopped:     e.snapshot,
		Snapshotted: e.switchOver,
		Switched:    e.migrate,
	}
	for e.j.Upgrade.Phase != Migrated {
		effect, ok := effects[e.j.Upgrade.Phase]
		if !ok {
			return fmt.Errorf("the journal %w: nothing follows the phase %s while the node is at rest", state.ErrUntrusted, e.j.Upgrade.Phase)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := effect(ctx); err != nil {
			return err
		}
	}
	return nil
}

// StoppedAt says when the old node ended, for the downtime.
func (e *Engine) StoppedAt(t time.Time) { e.j.Upgrade.Down = t.UTC() }

// stopped: the node is gone. What it wrote last is read again before anything is changed, and made durable: x/upgrade
// doesn't sync its file, and a new version's store loader can't open the data without it.
func (e *Engine) stopped(context.Context) error {
	u := e.j.Upgrade
	if u.Down.IsZero() {
		u.Down = now()
	}
	if err := e.reread(); err != nil {
		return err
	}
	if err := e.keepPlanFile(); err != nil {
		return err
	}
	return e.advanceBeside(Stopped, atomicfile.Content) // the snapshot is copied meanwhile, and not sealed before
}

// ErrPlanChanged means that the node announced something else between the trigger and the stop.
var ErrPlanChanged = errors.New("the plan changed")

// keepPlanFile makes the node's file durable, where there is one that isn't yet: as a rule it was done before the stop.
func (e *Engine) keepPlanFile() error {
	info, err := os.Stat(e.Layout.Plan)
	if err != nil {
		return nil //nolint:nilerr // what must be there was read
	}
	if k := e.kept; k != nil && os.SameFile(k, info) && k.ModTime().Equal(info.ModTime()) && k.Size() == info.Size() {
		return nil
	}
	if err := atomicfile.Sync(e.Layout.Plan); err != nil {
		return fmt.Errorf("cannot sync %s: %w", e.Layout.Plan, err)
	}
	e.kept = info
	return nil
}

// reread compares the node's file with the plan that the upgrade began for. Only another name or height, or another
// non-empty info that changes what was staged, is a changed plan.
func (e *Engine) reread() error {
	u := e.j.Upgrade
	if !u.Announced {
		return nil
	}
	p, _, err := plan.ReadFile(e.Layout.Plan, e.Config.Recase)
	if err == nil && p.Key() == u.Plan.Key() {
		infoChanged := p.Info != "" && u.Plan.Info != "" && p.Info != u.Plan.Info
		if !infoChanged || !u.Downloaded {
			return nil
		}
	}
	what := fmt.Sprintf("it was %s at %s, now it can't be read", u.Plan.Name, u.Plan.When())
	if err == nil {
		what = fmt.Sprintf("it was %s at %s, now it is %s at %s", u.Plan.Name, u.Plan.When(), p.Name, p.When())
	}
	return &hint.Error{
		Op: "go on with the upgrade", Path: u.Plan.Name, Err: fmt.Errorf("%w while the node stopped: %s", ErrPlanChanged, what),
		Hint: "look at " + hint.Quote(e.Layout.Plan) + " and mend it, then: supervisor resume; or give the upgrade up: supervisor upgrade cancel " + hint.Argument(u.Plan.Name) + ", then: supervisor resume",
	}
}

// snapshot waits the configured delay, seals a snapshot of all sources, and then makes the template that belongs to it.
// The snapshot's id stands in the journal since the upgrade began, so that both are found, not made twice, when this is
// done again.
func (e *Engine) snapshot(ctx context.Context) error {
	u := e.j.Upgrade
	if err := sleep(ctx, e.Config.Delay); err != nil {
		return err
	}
	if u.Snapshot == "" || e.Snapshots == nil {
		if e.Templates != nil {
			e.Log.Warn("no genesis template is made: it belongs to a snapshot, and none is taken", "plan", u.Plan.Name)
		}
		u.Snapshot, u.Skipped = "", true
		return e.advance(Snapshotted, atomicfile.Content)
	}
	e.Log.Info("starting to take backup of data directory", "snapshot", u.Snapshot)
	begun := time.Now()
	if err := e.Snapshots.Create(ctx, u.Snapshot, u.Plan.Name, u.Floor(), e.settled); err != nil {
		return fmt.Errorf("cannot take the snapshot before the upgrade %s: %w", u.Plan.Name, err)
	}
	e.Log.Info("backup completed", "snapshot", u.Snapshot, "took", time.Since(begun))
	if err := e.template(ctx); err != nil {
		return err
	}
	return e.advance(Snapshotted, atomicfile.Content)
}

// template makes the genesis template of the state that the old version left. Nobody chose to go on without it, so one
// that can't be made is a hold.
func (e *Engine) template(ctx context.Context) error {
	u := e.j.Upgrade
	if e.Templates == nil {
		return nil
	}
	begun := time.Now()
	if err := e.Templates.Export(ctx, u.Snapshot, u.Floor()); err != nil {
		next := "supervisor upgrade resume (tries again), or take \"upgrade\" out of [genesis] on and then: supervisor upgrade resume"
		if own := hint.Of(err); own != "" {
			next = own + "; then: " + next
		}
		return &hint.Error{Op: "make the genesis template before the upgrade", Path: u.Plan.Name, Err: err, Hint: next}
	}
	e.Log.Info("genesis template completed", "snapshot", u.Snapshot, "took", time.Since(begun))
	return nil
}

// switchOver makes current name the new version: custom script, digest, link, and the plan where node and Cosmovisor
// look for it.
func (e *Engine) switchOver(ctx context.Context) error {
	u := e.j.Upgrade
	if err := e.customPreUpgrade(ctx); err != nil {
		return err
	}
	ready := e.Checker.Check(ctx, u.To)
	if err := ctx.Err(); err != nil {
		return err
	}
	if !ready.Ready() {
		return hint.New("switch to", string(u.To), ready.Problems[0], "supervisor upgrade add "+u.To.Name()+" BINARY --force")
	}
	if u.SHA256 != "" && ready.SHA256 != u.SHA256 {
		return hint.New("switch to", string(u.To), fmt.Sprintf(
			"its binary was replaced after it was verified (sha256 was %s, is %s)", u.SHA256, ready.SHA256),
			"supervisor upgrade add "+u.To.Name()+" BINARY --force, then: supervisor upgrade resume")
	}
	if err := e.Layout.SwitchTo(u.To); err != nil {
		return err
	}
	if err := e.leaveTraces(); err != nil {
		return err
	}
	return e.advance(Switched, atomicfile.Full)
}

// leaveTraces writes the plan beside the version, as Cosmovisor does, and where a new binary's store loader reads it.
// Losing either costs nothing: until `switched` is recorded both are written again.
func (e *Engine) leaveTraces() error {
	u := e.j.Upgrade
	write := func(path string, perm fs.FileMode, name string) error {
		doc, err := u.Plan.Document(name)
		if err != nil {
			return err
		}
		return atomicfile.Write(path, perm, atomicfile.Content, func(w io.Writer) error { _, err := w.Write(doc); return err })
	}
	if u.To != version.Genesis && !u.Plan.Immediate {
		if err := write(e.Layout.InfoPath(u.To), 0o644, u.Plan.Name); err != nil {
			return err
		}
	}
	if u.Plan.Source != plan.FromOperator || u.Plan.Immediate || u.Plan.Height == 0 || e.Layout.Plan == "" {
		return nil
	}
	there, _, err := plan.ReadFile(e.Layout.Plan, e.Config.Recase)
	if err == nil && there.Height >= u.Plan.Height {
		return nil
	}
	if err != nil && !errors.Is(err, plan.ErrMissing) {
		return nil // it is the node's, and not ours to mend
	}
	if err == nil || dirExists(e.Layout.Plan) {
		return write(e.Layout.Plan, 0o600, u.Plan.Title()) // the node's store loader knows the name as it was announced
	}
	return nil
}

// ErrAttempts means that the attempts of the probation are used up.
var ErrAttempts = errors.New("no attempt is left")

// Attempt counts a start of the new version before it happens: a crash in between must never give an attempt for free.
func (e *Engine) Attempt() error {
	u := e.j.Upgrade
	if !u.Phase.canFollow(OnProbation) { // the link still names the old version, or the way back has begun
		return fmt.Errorf("the journal %w: no way from %s to %s", state.ErrUntrusted, u.Phase, OnProbation)
	}
	if u.Attempts >= e.Config.Probation.Attempts && e.Config.OnFailure != OnFailureRetry {
		return &hint.Error{
			Op: "start", Path: string(u.To),
			Err:  fmt.Errorf("%w: %d starts of it ended by themselves%s", ErrAttempts, u.Attempts, because(u.Error)),
			Hint: "supervisor upgrade add " + u.To.Name() + " BINARY --force, then: supervisor upgrade resume --restore; or: supervisor upgrade skip " + u.To.Name(),
		}
	}
	moved := u.Phase != OnProbation
	err := e.change(atomicfile.Full, func() {
		u.Attempts++
		if last := u.Error; moved {
			e.enter(OnProbation)
			u.Error = last
		}
	})
	if err == nil && moved {
		e.tell()
	}
	return err
}

func because(cause string) string {
	if cause == "" {
		return ""
	}
	return " (" + cause + ")"
}

// GiveBack returns the attempt of a start that was ended by request, not by itself.
func (e *Engine) GiveBack() error {
	if u := e.j.Upgrade; u != nil && u.Phase == OnProbation && u.Attempts > 0 {
		return e.change(atomicfile.Full, func() { u.Attempts-- })
	}
	return nil
}

// Started notes the start of the new version: the last one ends the downtime.
func (e *Engine) Started(t time.Time) {
	if u := e.j.Upgrade; u != nil {
		u.Up = t.UTC()
	}
}

// Ended notes why an attempt ended, and how far it had come.
func (e *Engine) Ended(why string, reached int64) error {
	u := e.j.Upgrade
	u.Error = why
	u.Reached = max(u.Reached, reached)
	return e.save(atomicfile.Full)
}

// Commit ends the upgrade: the new version is trusted.
func (e *Engine) Commit(reached int64) error {
	u := e.j.Upgrade
	if !u.Phase.canFollow(Committed) {
		return fmt.Errorf("the journal %w: no way from %s to %s", state.ErrUntrusted, u.Phase, Committed)
	}
	before, mark := e.Journal(), e.mark
	u.Reached = max(u.Reached, reached)
	e.step(Committed)
	if err := e.finish(ResultCommitted); err != nil {
		e.j, e.mark = before, mark // still on probation: it is tried again
		return err
	}
	return nil
}

// finish moves the upgrade from the journal to the history. The journal forgets it last: after a crash in between it is
// done again, and the history has the same document.
func (e *Engine) finish(r Result) error {
	u := *e.j.Upgrade
	if err := saveHistory(e.Layout.HistoryDir(), Finished{Result: r, At: now(), Upgrade: u}); err != nil {
		return err
	}
	if e.s.Has(u.Plan.Name) {
		if err := e.reschedule(func(s *plan.Schedule) { s.Cancel(u.Plan.Name) }); err != nil {
			return err
		}
	}
	return e.change(atomicfile.Full, func() { e.j.Upgrade = nil })
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
