package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/client"
	"nodevisor/upgrade"
)

// request is one operation that a command asks for through the control socket. It is answered exactly once.
type request struct {
	op     string
	body   client.Request
	answer func(client.Reply, error)
}

// ErrBusy means that another long operation is under way.
var ErrBusy = errors.New("busy")

// handle takes one request. It waits for a short job, never for a long one: then the operator is told what is going on.
func (s *Supervisor) handle(r request) {
	switch {
	case r.op == client.OpStop:
		s.opStop(r)
		return
	case s.onExit != nil || s.stopping || (s.job != nil && s.job.long):
		what := "the node is being stopped"
		if s.job != nil {
			what = s.job.name + " is under way"
		}
		r.answer(client.Reply{}, &hint.Error{
			Op: r.op, Err: fmt.Errorf("%w: %s", ErrBusy, what), Hint: "supervisor status, then try again",
		})
		return
	case s.job != nil: // a matter of moments
		s.whenIdle(func() { s.handle(r) })
		return
	}
	handlers := map[string]func(request){
		client.OpResume: s.opResume, client.OpApply: s.opApply, client.OpHalt: s.opHalt, client.OpStop: s.opStop,
		client.OpSnapshots: s.opSnapshots, client.OpAdd: s.opAdd, client.OpCancel: s.opCancel, client.OpSkip: s.opSkip,
		client.OpRollback: s.opRollback, client.OpReload: s.opReload,
	}
	if h, ok := handlers[r.op]; ok {
		h(r)
		return
	}
	r.answer(client.Reply{}, hint.New("do", r.op, "no such operation", "supervisor --help"))
}

// finishRequest answers r: with err, or with a message.
func finishRequest(r request, err error, format string, args ...any) {
	if err != nil {
		r.answer(client.Reply{}, err)
		return
	}
	r.answer(client.Reply{Message: fmt.Sprintf(format, args...)}, nil)
}

// atRest runs next with the node gone: at once, or after a graceful stop. begun is the old node's end.
func (s *Supervisor) atRest(next func(begun time.Time)) {
	s.state = Upgrading
	s.restartTimer.Stop()
	s.verdicts++
	if s.child == nil {
		next(time.Now())
		return
	}
	s.stopThen(func(exit Exit) { next(exit.At) })
}

func (s *Supervisor) opStop(r request) {
	finishRequest(r, nil, "stopping the node; run ends")
	s.requestStop()
}

func (s *Supervisor) opAdd(r request) {
	known := s.tracker.Known()
	p := r.body.Plan
	s.do("add", func(ctx context.Context) error {
		return s.o.Engine.AddPlan(ctx, p, known, r.body.Force)
	}, func(err error) {
		finishRequest(r, err, "%s", Scheduled(p))
		s.checkReadiness()
		s.heightTimer.Reset(fastHeight)
	})
}

// Scheduled says what `upgrade add` has done.
func Scheduled(p upgrade.Plan) string {
	if p.Height == 0 && p.Time.IsZero() {
		return p.Name + " is staged: it is switched to when the chain's plan of that name comes"
	}
	return p.Name + " is scheduled at " + p.When()
}

func (s *Supervisor) opCancel(r request) {
	s.do("cancel", func(context.Context) error { return s.o.Engine.CancelPlan(r.body.Name) }, func(err error) {
		finishRequest(r, err, "%s is cancelled", r.body.Name)
		if err == nil {
			s.dropDue(r.body.Name)
		}
	})
}

// dropDue gives up waiting for a binary, and starts the node again where it isn't running.
func (s *Supervisor) dropDue(name string) {
	if s.due == nil || s.due.plan.Name != name {
		return
	}
	s.due = nil
	if s.child == nil {
		s.start()
		return
	}
	s.state = Running
}

func (s *Supervisor) opSkip(r request) {
	name := r.body.Name
	height := s.heightOf(name)
	skip := func(time.Time) {
		known := s.tracker.Known()
		s.do("skip", func(ctx context.Context) error {
			return s.o.Engine.SkipPlan(ctx, name, height, known)
		}, func(err error) {
			finishRequest(r, err, "%s is passed over", name)
			s.afterOperation(err, name)
		})
	}
	if u := s.journal.Upgrade; u != nil && u.Plan.Name == name && u.Phase != upgrade.Planned {
		s.atRest(skip)
		return
	}
	skip(time.Time{})
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
	case s.stopping:
	case s.journal.Hold != nil:
		s.held()
	case err != nil && s.child == nil:
		s.holdFor(err)
	case s.child == nil:
		if s.due != nil && s.due.plan.Name == name {
			s.due = nil
		}
		if s.due == nil {
			s.state = Stopped
			s.firstLook()
		}
	default:
		s.dropDue(name)
	}
}

func (s *Supervisor) opResume(r request) {
	u := s.journal.Upgrade
	switch {
	case r.body.Confirm && u != nil && u.Phase == upgrade.OnProbation && s.child != nil && !r.body.Restore:
		if lived := time.Since(s.child.StartedAt()); lived < s.o.Upgrade.Probation.Up {
			finishRequest(r, hint.New("confirm", u.Plan.Name, "it has been up for "+lived.Round(time.Second).String()+" only", "wait, then try again"), "")
			return
		}
		s.commit()
		finishRequest(r, nil, "%s is committed", u.Plan.Name)
	case r.body.Restore:
		s.atRest(func(time.Time) { s.resume(r, s.o.Engine.Restart) })
	case s.state == Held:
		s.resume(r, func(context.Context) error { return nil })
	case s.due != nil:
		s.prepare()
		finishRequest(r, nil, "looking for the binary of %s again", s.due.plan.Name)
	default:
		finishRequest(r, hint.New("resume", "", "nothing is held", "supervisor status"), "")
	}
}

func (s *Supervisor) resume(r request, restore func(context.Context) error) {
	s.do("resume", func(ctx context.Context) error {
		if err := s.o.Engine.Load(); err != nil {
			return err
		}
		if err := restore(ctx); err != nil {
			return err
		}
		return s.o.Engine.Resume()
	}, func(err error) {
		finishRequest(r, err, "resumed")
		if err == nil {
			s.state = Stopped
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
	to := upgrade.VersionOf(p.Name)
	var ready upgrade.Readiness
	s.do("apply", func(ctx context.Context) error {
		ready = s.makeReady(ctx, p, to)
		if !ready.Ready() {
			return hint.New("apply", p.Name, ready.Problems[0], "supervisor upgrade add "+p.Name+" BINARY")
		}
		return errors.Join(s.o.Engine.Allow(p.Name, r.body.Force), s.o.Engine.Release())
	}, func(err error) {
		if err != nil {
			finishRequest(r, err, "")
			return
		}
		s.applied = func(err error) {
			finishRequest(r, err, "%s was started and is on probation", p.Name)
		}
		s.due = nil
		s.trigger(p, upgrade.ByOperator)
	})
}

// ApplyPlan is the plan that `upgrade apply NAME` carries out: the node's own where it announced one of that name, so that
// its store loader finds it; else one without a height.
func ApplyPlan(name string, pending []upgrade.Plan) upgrade.Plan {
	for _, p := range pending {
		if p.Name == name && p.Source == upgrade.FromFile {
			return p
		}
	}
	return upgrade.Plan{Name: name, Source: upgrade.FromOperator, Immediate: true}
}

// settleApply answers a waiting `upgrade apply`.
func (s *Supervisor) settleApply(err error) {
	if s.applied != nil {
		s.applied(err)
		s.applied = nil
	}
}

func (s *Supervisor) opHalt(r request) {
	var h *upgrade.Halt
	switch b := r.body; {
	case b.Cancel:
	case b.Now:
		h = &upgrade.Halt{Time: time.Now().UTC()}
	default:
		h = &upgrade.Halt{Height: b.Height, Time: b.Time}
	}
	known := s.tracker.Known()
	s.do("halt", func(context.Context) error { return s.o.Engine.SetHalt(h, known) }, func(err error) {
		switch {
		case err != nil:
			finishRequest(r, err, "")
		case h == nil:
			finishRequest(r, nil, "no halt is scheduled any more")
		case r.body.Now && s.state != Held:
			s.halt(func(err error) { finishRequest(r, err, "halted") })
		default:
			s.heightTimer.Reset(fastHeight)
			finishRequest(r, nil, "halting at %s", h.When())
		}
	})
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
			})
		})
	})
}

// opSnapshots hands a request to the store of snapshots. With Stop the node is stopped for it and started again; after a
// restore it stays stopped, held: which version the data belongs to is the operator's to say.
func (s *Supervisor) opSnapshots(r request) {
	if s.o.Snapshots == nil {
		finishRequest(r, hint.New("use snapshots", "", "no snapshot source is configured, and there is no data directory",
			"add [[snapshot.source]] to the configuration"), "")
		return
	}
	var what struct{ Op string }
	if err := json.Unmarshal(r.body.Snapshots, &what); err != nil {
		finishRequest(r, fmt.Errorf("cannot read the request: %w", err), "")
		return
	}
	work := func(atRest bool, begun time.Time, held bool) {
		var result json.RawMessage
		wasHeld := s.journal.Hold != nil
		s.do("snapshot", func(ctx context.Context) error {
			out, err := s.o.Snapshots.Do(ctx, r.body.Snapshots, atRest)
			if err != nil {
				return err
			}
			if result, err = json.Marshal(out); err != nil || !held {
				return err
			}
			return s.o.Engine.Hold("a snapshot was restored", "supervisor resume, or supervisor upgrade use VERSION and then supervisor resume")
		}, func(err error) {
			s.summarize()
			downtime := time.Since(begun).Milliseconds()
			if err != nil {
				r.answer(client.Reply{}, err)
			} else {
				r.answer(client.Reply{DowntimeMS: downtime, Result: result}, nil)
			}
			if atRest && s.child == nil && !wasHeld {
				s.afterOperation(nil, "")
			}
		})
	}
	if !r.body.Stop || s.child == nil {
		work(s.child == nil, time.Now(), what.Op == "restore" && s.child == nil)
		return
	}
	s.atRest(func(begun time.Time) { work(true, begun, what.Op == "restore") })
}

func (s *Supervisor) opReload(r request) {
	if s.o.Reload == nil {
		finishRequest(r, errors.New("cannot reload: there is no configuration file"), "")
		return
	}
	var fresh Reloaded
	s.do("reload", func(context.Context) (err error) {
		if fresh, err = s.o.Reload(); err == nil {
			s.o.Engine.Config = fresh.Upgrade
		}
		return err
	}, func(err error) {
		if err == nil {
			s.o.Upgrade, s.o.SnapshotOn = fresh.Upgrade, fresh.SnapshotOn
			s.log.Info("configuration reloaded")
		}
		finishRequest(r, err, "reloaded; [node] is read at the next start of run")
	})
}
