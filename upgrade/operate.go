package upgrade

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

// What operators do to schedule, link and journal. Each works the same whether a running supervisor does it for a
// command, or the command does it itself under the home lock.

// AddPlan schedules p. known is the best lower bound of the node's height, or UnknownHeight. Where p's version is that of the
// upgrade in flight, its (fixed) binary is accepted in the place of the one that was verified before.
func (e *Engine) AddPlan(ctx context.Context, p plan.Plan, known int64, force bool) error {
	if u := e.j.Upgrade; u != nil && u.To == version.Of(p.Name) {
		return e.accept(ctx)
	}
	if err := e.CheckPlan(p, known, force); err != nil {
		return err
	}
	if p.Height == 0 && p.Time.IsZero() {
		if force {
			return e.unskip(p.Name)
		}
		return nil
	}
	return e.reschedule(func(s *plan.Schedule) {
		if force {
			s.Unskip(p.Name)
		}
		s.Add(p)
	})
}

// CheckPlan tells what AddPlan would refuse, and changes nothing: it is asked before a binary is put into its place.
func (e *Engine) CheckPlan(p plan.Plan, known int64, force bool) error {
	if u := e.j.Upgrade; (u != nil && u.To == version.Of(p.Name)) || (p.Height == 0 && p.Time.IsZero()) {
		return nil // of the upgrade in flight only the binary counts any more
	}
	if _, err := version.NormaliseName(p.Name, false); err != nil {
		return err
	}
	name := hint.Argument(p.Name)
	if p.Height > 0 && known != plan.UnknownHeight && p.Height <= known {
		return hint.New("schedule", p.Name, fmt.Sprintf("height %d is past: the node is at %d", p.Height, known),
			"supervisor upgrade add "+name+" BINARY, then: supervisor upgrade apply "+name)
	}
	if why := conflict(e.s, p); why != "" && !force {
		return hint.New("schedule", p.Name, why, "supervisor upgrade cancel "+name+", or add --force")
	}
	return nil
}

// FollowFile takes a plan to come of the node's plan file over into the schedule, in the place of the one that was taken over
// from there before; nil = the file is gone. An operator's plan of the same name, and the skip list, count more than the file.
func (e *Engine) FollowFile(p *plan.Plan) error {
	rest := e.Schedule()
	rest.Follow(nil)
	var refused error
	if p != nil {
		if why := conflict(rest, *p); why != "" {
			refused = hint.New("follow the plan file", p.Name, why, "supervisor upgrade cancel "+p.Name+" (then the file's counts)")
			p = nil
		}
	}
	return errors.Join(e.reschedule(func(s *plan.Schedule) { s.Follow(p) }), refused)
}

// conflict says what in the schedule speaks against p; "" = nothing.
func conflict(s plan.Schedule, p plan.Plan) string {
	for _, have := range s.Plans {
		if have.Name == p.Name && have.Key() != p.Key() {
			return "it is scheduled at " + have.When() + " already"
		}
	}
	if s.Skips(p) {
		return "it is on the skip list"
	}
	return ""
}

func (e *Engine) unskip(name string) error {
	return e.reschedule(func(s *plan.Schedule) { s.Unskip(name) })
}

// accept takes the binary that lies in the in-flight version's place now as the verified one.
func (e *Engine) accept(ctx context.Context) error {
	u := e.j.Upgrade
	ready := e.Checker.Check(ctx, u.To)
	if !ready.Ready() {
		return hint.New("use the binary of", u.To.Name(), ready.Problems[0], "supervisor upgrade add "+u.To.Name()+" BINARY --force")
	}
	return e.change(atomicfile.Full, func() { u.SHA256 = ready.SHA256 })
}

// CancelPlan takes a plan off the schedule. One in flight can be cancelled only before it acted.
func (e *Engine) CancelPlan(name string) error {
	if u := e.j.Upgrade; u != nil && u.Plan.Name == name {
		next := "supervisor rollback, or: supervisor upgrade skip " + hint.Argument(name)
		if u.Phase == OnProbation {
			next = "supervisor rollback --yes (refused once it has made a block; then it is committed by itself)"
		}
		if u.Phase != Planned && u.Phase != Staged {
			return hint.New("cancel", name, "it is in flight, at "+string(u.Phase), next)
		}
		return e.Close(ResultCancelled)
	}
	if !e.s.Has(name) && e.Announced(name) {
		return hint.New("cancel", name, "it is in the node's own plan file, not on the schedule", "to pass it over: supervisor upgrade skip "+hint.Argument(name))
	}
	if !e.s.Has(name) {
		return hint.New("cancel", name, "no such plan is scheduled", "supervisor upgrade list")
	}
	return e.reschedule(func(s *plan.Schedule) { s.Cancel(name) })
}

// Announced tells whether the node's own file holds a plan of that name.
func (e *Engine) Announced(name string) bool {
	p, _, err := plan.ReadFile(e.Layout.Plan, e.Config.Recase)
	return err == nil && p.Name == name
}

// CancelSkip takes a plan off the skip list, so that it counts again, as long as the list has only been waited with. What
// was undone for it isn't begun again by that: an operator says so with force.
func (e *Engine) CancelSkip(name string) error {
	i := slices.IndexFunc(e.s.Skip, func(k plan.Skip) bool { return k.Name == name })
	if i < 0 {
		return hint.New("cancel", name, "it is neither scheduled nor passed over", "supervisor upgrade list")
	}
	all, err := LoadHistory(e.Layout.HistoryDir())
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(f Finished) bool {
		undone := f.Result == ResultSkipped || f.Result == ResultRolledBack
		return undone && f.Upgrade.Plan.Name == name && !f.At.Before(e.s.Skip[i].Since)
	}) {
		return hint.New("cancel", name, "it is passed over since it was undone", "supervisor upgrade apply "+name+" --force")
	}
	return e.unskip(name)
}

// SkipPlan puts a plan on the durable skip list. One in flight is undone first: an old binary never runs on data that a
// newer one may have migrated. The caller guarantees that no node runs when an upgrade of that name is in flight.
func (e *Engine) SkipPlan(ctx context.Context, name string, height int64, known int64) error {
	u := e.j.Upgrade
	mine := u != nil && u.Plan.Name == name
	if mine {
		height = u.Plan.Height
		if err := e.undo(ctx, known); err != nil {
			return err
		}
	}
	// The list is written before the journal forgets the upgrade: a crash in between must not begin it again.
	if err := e.passOver(plan.Skip{Name: name, Height: height, Since: now(), Why: "operator"}); err != nil || !mine {
		return err
	}
	hold := e.j.Hold
	e.j.Hold = nil
	if err := e.Close(ResultSkipped); err != nil {
		e.j.Hold = hold
		return err
	}
	return nil
}

func (e *Engine) passOver(k plan.Skip) error {
	return e.reschedule(func(s *plan.Schedule) {
		s.AddSkip(k)
		s.Cancel(k.Name)
	})
}

// CloseSkipped ends an upgrade that was rolled back by policy: it isn't tried again by itself.
func (e *Engine) CloseSkipped(name string, height int64, why string) error {
	if len(why) > 64 { // a column of a list, not the whole story
		why = why[:64] + "…"
	}
	if err := e.passOver(plan.Skip{Name: name, Height: height, Since: now(), Why: why}); err != nil {
		return err
	}
	return e.Close(ResultRolledBack)
}

// undo takes back what an upgrade in flight has changed, if it has.
func (e *Engine) undo(ctx context.Context, known int64) error {
	u := e.j.Upgrade
	if u.Phase == Planned || u.Phase == Staged || u.Phase == Stopped {
		return nil
	}
	if err := CanRollBack(u, known, false); err != nil && u.Phase != RolledBack {
		return &hint.Error{
			Op: "skip", Path: u.Plan.Name, Err: fmt.Errorf("it can't be undone: %w", err),
			Hint: "supervisor upgrade resume, or: supervisor rollback --binary-only (only where the data was not migrated)",
		}
	}
	return e.RollBack(ctx, false)
}

// Use makes current name v by hand and records it. An upgrade in flight is given up only with force.
func (e *Engine) Use(ctx context.Context, v version.Version, force bool) error {
	if u := e.j.Upgrade; u != nil && !force {
		return hint.New("use", v.Name(), "the upgrade "+u.Plan.Name+" is in flight, at "+string(u.Phase),
			"supervisor upgrade skip "+u.Plan.Name+", supervisor rollback, or add --force to give it up where it stands")
	}
	ready := e.Checker.Check(ctx, v)
	if !ready.Ready() {
		return hint.New("use", v.Name(), ready.Problems[0], ready.Next())
	}
	from, err := e.Layout.Current()
	if err != nil && !errors.Is(err, version.ErrNoLink) && !errors.Is(err, version.ErrBadLink) {
		return err
	}
	if err := e.Layout.SwitchTo(v); err != nil {
		return err
	}
	if err := e.Close(ResultHeld); err != nil {
		return err
	}
	e.j.Hold = nil
	if err := e.saveFull(); err != nil {
		return err
	}
	u := Upgrade{
		Plan: plan.Plan{Name: v.Name(), Source: plan.FromOperator, Immediate: true}, From: from, To: v, Phase: Committed,
		Evidence: plan.ByOperator, SHA256: ready.SHA256, Begun: now(),
	}
	return saveHistory(e.Layout.HistoryDir(), Finished{Result: ResultUsed, At: now(), Upgrade: u})
}

// SetHalt schedules a halt, or takes it off with nil.
func (e *Engine) SetHalt(h *plan.Halt, known int64) error {
	if h != nil && h.Height > 0 && known != plan.UnknownHeight && h.Height <= known {
		return hint.New("schedule the halt", "", fmt.Sprintf("height %d is past: the node is at %d", h.Height, known), "supervisor halt --now")
	}
	return e.reschedule(func(s *plan.Schedule) { s.Halt = h })
}

// HaltSnapshot gives the scheduled halt the id of its snapshot, durably, and returns it; one that has an id keeps it.
func (e *Engine) HaltSnapshot(id string) (string, error) {
	h := e.s.Halt
	if h == nil {
		return id, nil
	}
	if h.Snapshot != "" {
		return h.Snapshot, nil
	}
	named := *h
	named.Snapshot = id
	return id, e.reschedule(func(s *plan.Schedule) { s.Halt = &named })
}

// Settle makes what was stepped through in memory durable, where nobody starts the node at once.
func (e *Engine) Settle() error { return e.saveFull() }

// SetAside moves a journal or schedule that can't be trusted out of the way, under a name of its own; nothing is deleted.
func (e *Engine) SetAside() error {
	_, jerr := LoadJournal(e.Layout.JournalPath())
	_, serr := plan.LoadSchedule(e.Layout.SchedulePath())
	var errs []error
	if jerr != nil {
		errs = append(errs, atomicfile.Rename(e.Layout.JournalPath(), atomicfile.Aside(e.Layout.JournalPath())))
	}
	if serr != nil {
		errs = append(errs, atomicfile.Rename(e.Layout.SchedulePath(), atomicfile.Aside(e.Layout.SchedulePath())))
	}
	return errors.Join(errs...)
}
