package supervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/control"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

const (
	// busyPatience is how long an operation waits for a job before it is refused: most are over in a moment.
	busyPatience = 2 * time.Second
	busyPause    = 50 * time.Millisecond
)

// request is one operation that a command asks for through the control socket. It is answered exactly once.
type request struct {
	op     string
	body   client.Request
	answer func(client.Reply, error)
}

// trustless are the operations that write nothing over a journal and a schedule that can't be trusted.
var trustless = []string{client.OpResume, client.OpReload, client.OpSnapshots}

// errBusy means that another long operation is under way.
var errBusy = errors.New("busy")

// operate has the loop do one operation, and waits for its answer. It returns also where the loop ends before that.
func (s *Supervisor) operate(op string, body client.Request) (client.Reply, error) {
	type outcome struct {
		reply client.Reply
		err   error
	}
	for deadline := time.Now().Add(busyPatience); ; time.Sleep(busyPause) {
		done := make(chan outcome, 1)
		req := request{op: op, body: body, answer: func(reply client.Reply, err error) { done <- outcome{reply, err} }}
		select {
		case s.requests <- req:
		case <-s.over:
			return client.Reply{}, control.ErrOver
		}
		select {
		case o := <-done:
			if !errors.Is(o.err, errBusy) || time.Now().After(deadline) {
				return o.reply, o.err
			}
		case <-s.over:
			select {
			case o := <-done: // the answer came with the end
				return o.reply, o.err
			default:
				return client.Reply{}, control.ErrOver
			}
		}
	}
}

// handle takes one request. What needs the engine waits for no job: the operator is told what is going on instead.
func (s *Supervisor) handle(r request) {
	if r.op == client.OpStop {
		s.opStop(r)
		return
	}
	if s.takenUp(r) {
		finishRequest(r, nil, "%s is staged, and its upgrade is under way", r.body.Plan.Name)
		return
	}
	if what := s.busy(); what != "" {
		r.answer(client.Reply{}, &hint.Error{
			Op: r.op, Err: fmt.Errorf("%w: %s is under way", errBusy, what), Hint: "supervisor status, then try again",
		})
		return
	}
	if s.untrusted != nil && !slices.Contains(trustless, r.op) {
		r.answer(client.Reply{}, s.untrusted)
		return
	}
	handlers := map[string]func(request){
		client.OpResume: s.opResume, client.OpApply: s.opApply, client.OpHalt: s.opHalt, client.OpSnapshots: s.opSnapshots,
		client.OpAdd: s.opAdd, client.OpCancel: s.opCancel, client.OpSkip: s.opSkip, client.OpRollback: s.opRollback,
		client.OpReload: s.opReload,
	}
	if h, ok := handlers[r.op]; ok {
		h(r)
		return
	}
	r.answer(client.Reply{}, hint.New("do", r.op, "no such operation", "supervisor --help"))
}

// busy names what is under way that an operation must not come between; "" = nothing.
func (s *Supervisor) busy() string {
	switch {
	case s.job != nil:
		return s.job.name
	case s.stopping || s.done:
		return "the end of run"
	case s.onExit != nil:
		return "the stop of the node"
	case s.ending != nil:
		return "a look at why the node ended"
	}
	return ""
}

// takenUp tells whether r adds the binary of the upgrade in flight while that is carried out: the binary was waited for, and
// seen before anybody told of it. One that replaces another (force) isn't: which of the two was verified is the engine's to say.
func (s *Supervisor) takenUp(r request) bool {
	u := s.journal.Upgrade
	if r.op != client.OpAdd || r.body.Force || s.stopping || u == nil || u.To != version.Of(r.body.Plan.Name) {
		return false
	}
	if s.job != nil {
		return s.job.name == "prepare" || s.job.name == "upgrade"
	}
	return s.onExit != nil && u.Phase == upgrade.Staged // the old node is being stopped
}

// finishRequest answers r: with err, or with a message.
func finishRequest(r request, err error, format string, args ...any) {
	if err != nil {
		r.answer(client.Reply{}, err)
		return
	}
	r.answer(client.Reply{Message: fmt.Sprintf(format, args...)}, nil)
}

func (s *Supervisor) opStop(r request) {
	finishRequest(r, nil, "stopping the node; run ends")
	s.requestStop()
}

func (s *Supervisor) opAdd(r request) {
	known := s.tracker.Known()
	p := r.body.Plan
	if r.body.Check {
		finishRequest(r, s.o.Engine.CheckPlan(p, known, r.body.Force), "%s would be taken", p.Name)
		return
	}
	s.do("add", func(ctx context.Context) error {
		return s.o.Engine.AddPlan(ctx, p, known, r.body.Force)
	}, func(err error) {
		finishRequest(r, err, "%s", Scheduled(p))
		s.checkReadiness()
		s.readHeight()
	})
}

// Scheduled says what `upgrade add` has done.
func Scheduled(p plan.Plan) string {
	if p.Height == 0 && p.Time.IsZero() {
		return p.Name + " is staged: it is switched to when the chain's plan of that name comes"
	}
	return p.Name + " is scheduled at " + p.When()
}

func (s *Supervisor) opCancel(r request) {
	var message string
	s.do("cancel", func(context.Context) (err error) {
		message, err = Cancel(s.o.Engine, r.body.Name)
		return err
	}, func(err error) {
		finishRequest(r, err, "%s", message)
		if err == nil {
			s.dropDue(r.body.Name)
		}
	})
}

// Cancel takes a plan off the schedule, or, where none of that name is there, off the skip list, and says which.
func Cancel(e *upgrade.Engine, name string) (message string, err error) {
	u, s := e.InFlight(), e.Schedule()
	skipped := slices.ContainsFunc(s.Skip, func(k plan.Skip) bool { return k.Name == name })
	if skipped && !s.Has(name) && (u == nil || u.Plan.Name != name) {
		return name + " isn't passed over any more", e.CancelSkip(name)
	}
	message = name + " is cancelled"
	if e.Announced(name) {
		message += "; but the node's plan file names it, so it comes again. To pass it over: supervisor upgrade skip " + hint.Argument(name)
	}
	return message, e.CancelPlan(name)
}

// dropDue gives up waiting for a binary, and starts the node again where it isn't running.
func (s *Supervisor) dropDue(name string) {
	switch {
	case s.due == nil || s.due.plan.Name != name:
		return
	case s.child != nil:
		s.state = status.Running
	case s.ending == nil:
		s.start()
	}
	s.due = nil
}

func (s *Supervisor) opSkip(r request) {
	name, known := r.body.Name, s.tracker.Known()
	height := s.heightOf(name)
	skip := func(work func(context.Context) error) {
		s.do("skip", work, func(err error) {
			finishRequest(r, err, "%s is passed over", name)
			s.afterOperation(err, name)
		})
	}
	work := s.afterTidying(func(ctx context.Context) error { return s.o.Engine.SkipPlan(ctx, name, height, known) })
	u := s.journal.Upgrade
	if u == nil || u.Plan.Name != name || u.Phase == upgrade.Planned {
		skip(work)
		return
	}
	// What can't be undone is refused while the node still runs.
	if err := upgrade.CanRollBack(u, known, false); err != nil && s.child != nil {
		finishRequest(r, &hint.Error{
			Op: "skip", Path: name, Err: fmt.Errorf("it can't be undone: %w", err),
			Hint: "supervisor upgrade resume, or: supervisor rollback --binary-only (only where the data was not migrated)",
		}, "")
		return
	}
	s.atRest(func(time.Time) { skip(s.unitsDown(work)) })
}

// heightOf finds the height of a pending plan by its name; 0 skips it at any height.
func (s *Supervisor) heightOf(name string) int64 {
	for _, p := range s.tracker.Pending() {
		if p.Name == name {
			return p.Height
		}
	}
	return 0
}

// afterOperation goes on after an operation that may have changed version, hold or plan.
func (s *Supervisor) afterOperation(err error, name string) {
	switch {
	case s.stopping, s.ending != nil: // what follows from those comes next
	case s.child != nil:
		s.dropDue(name)
	case s.journal.Hold != nil:
		s.held()
	case err != nil:
		s.holdFor(err)
	default:
		if s.due != nil && s.due.plan.Name == name {
			s.due = nil
		}
		s.firstLook()
	}
}

func (s *Supervisor) opResume(r request) {
	u := s.journal.Upgrade
	switch {
	case r.body.Restore:
		// What can't be restored is refused while the node still runs.
		if err := upgrade.CanRollBack(u, plan.UnknownHeight, false); err != nil {
			finishRequest(r, &hint.Error{Op: "restore the upgrade's snapshot", Err: err, Hint: "supervisor status"}, "")
			return
		}
		s.atRest(func(time.Time) { s.resume(r, s.o.Engine.Restart) })
	case r.body.Confirm && u != nil && u.Phase == upgrade.OnProbation && s.child != nil:
		if lived := time.Since(s.child.StartedAt()); lived < s.o.Upgrade.Probation.Up {
			finishRequest(r, hint.New("confirm", u.Plan.Name, "it has been up for "+lived.Round(time.Second).String()+" only", "wait, then try again"), "")
			return
		}
		s.commit(0, func(err error) { finishRequest(r, err, "%s is committed", u.Plan.Name) })
	case s.state == status.Held:
		s.resume(r, func(context.Context) error { return nil })
	case s.due != nil:
		finishRequest(r, nil, "looking for the binary of %s again", s.due.plan.Name)
		s.prepare()
	default:
		finishRequest(r, hint.New("resume", "", "nothing is held", "supervisor status"), "")
	}
}

func (s *Supervisor) resume(r request, restore func(context.Context) error) {
	work := s.afterTidying(func(ctx context.Context) error {
		if err := s.o.Engine.Load(); err != nil {
			return err
		}
		if err := restore(ctx); err != nil {
			return err
		}
		return s.o.Engine.Resume()
	})
	if r.body.Restore {
		work = s.unitsDown(work)
	}
	s.untrusted = nil // they are loaded again
	s.do("resume", work, func(err error) {
		finishRequest(r, err, "resumed")
		switch {
		case err == nil:
			s.policy.Reset()
		case errors.Is(err, state.ErrUntrusted):
			s.holdFor(err)
			return
		}
		s.afterOperation(err, "")
	})
}

// opApply carries an upgrade out now. It answers when the new version was started, or why not.
func (s *Supervisor) opApply(r request) {
	if u := s.journal.Upgrade; u != nil {
		finishRequest(r, hint.New("apply", r.body.Name, "the upgrade "+u.Plan.Name+" is in flight, at "+string(u.Phase),
			"supervisor upgrade resume, or: supervisor upgrade skip "+u.Plan.Name), "")
		return
	}
	p := ApplyPlan(r.body.Name, s.tracker.Pending())
	to := p.To()
	var ready version.Readiness
	s.do("apply", s.afterTidying(func(ctx context.Context) error {
		ready = s.makeReady(ctx, p, to, true).ready
		if !ready.Ready() {
			return hint.New("apply", p.Name, ready.Problems[0], ready.Next())
		}
		if err := s.o.Engine.Allow(p.Name, r.body.Force); err != nil {
			return err // refused: a hold stays
		}
		return s.o.Engine.Release()
	}), func(err error) {
		if err != nil {
			finishRequest(r, err, "")
			return
		}
		s.applied = func(err error) {
			finishRequest(r, err, "%s was started and is on probation", p.Name)
		}
		s.due = nil
		s.trigger(p, plan.ByOperator)
	})
}

// ApplyPlan is the plan that `upgrade apply NAME` carries out: the node's own where it announced one of that name, so that
// its store loader finds it; else one without a height.
func ApplyPlan(name string, pending []plan.Plan) plan.Plan {
	for _, p := range pending {
		if p.Name == name && p.Source == plan.FromFile {
			return p
		}
	}
	return plan.Plan{Name: name, Source: plan.FromOperator, Immediate: true}
}

// settleApply answers a waiting `upgrade apply`.
func (s *Supervisor) settleApply(err error) {
	if s.applied != nil {
		s.applied(err)
		s.applied = nil
	}
}

// opRollback undoes the upgrade in flight, or the last one where nothing was built on it. Afterwards: held.
func (s *Supervisor) opRollback(r request) {
	known := s.tracker.Known()
	s.do("rollback", func(context.Context) error {
		return s.o.Engine.Reopen(known, r.body.BinaryOnly)
	}, func(err error) {
		if err != nil {
			finishRequest(r, err, "")
			return
		}
		s.due = nil
		s.atRest(func(time.Time) {
			s.rollBack(r.body.BinaryOnly, func() {
				name := s.journal.Upgrade.Plan.Name
				finishRequest(r, nil, "%s was rolled back; held, the node is stopped. Next: %s", name, HintAfterRollback(name))
				s.rolledBackByHand()
			}, func(err error) { finishRequest(r, err, "") })
		})
	})
}

// HintAfterRestore says what an operator can do after a restore by hand.
const HintAfterRestore = "supervisor resume, or: supervisor upgrade use VERSION (where the data is another version's)"
