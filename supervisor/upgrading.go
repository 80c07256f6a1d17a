package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/upgrade"
)

// recheck is how often a missing binary is looked for, where no event tells of it.
const recheck = 300 * time.Millisecond

// trigger begins an upgrade whose height has come.
func (s *Supervisor) trigger(p upgrade.Plan, ev upgrade.Evidence) {
	s.due = &trigger{plan: p, evidence: ev, stood: s.tracker.Known()}
	s.restartTimer.Stop()
	s.prepare()
}

// prepare makes sure that the upgrade can be carried out, and only then touches the node. A missing or bad binary, or
// too little room, leaves the node as it is: the version's directory is watched, and the upgrade goes on by itself.
func (s *Supervisor) prepare() {
	if s.job != nil || s.due == nil || s.stopping {
		return
	}
	due := *s.due
	to := upgrade.VersionOf(due.plan.Name)
	if u := s.journal.Upgrade; u != nil {
		to = u.To
	}
	var ready upgrade.Readiness
	s.do("prepare", func(ctx context.Context) error {
		ready = s.makeReady(ctx, due.plan, to)
		if !ready.Ready() {
			return s.o.Engine.Announce(due.plan, due.evidence, due.stood)
		}
		return s.o.Engine.Begin(due.plan, due.evidence, ready, due.stood)
	}, func(err error) {
		s.ready[to] = ready
		switch {
		case s.stopping:
		case err != nil:
			s.log.Error("cannot begin the upgrade; trying again", "plan", due.plan.Name, "error", err, "hint", hint.Of(err))
			s.awaitBinary(due.plan, err.Error())
		case !ready.Ready():
			s.awaitBinary(due.plan, ready.Problems[0])
		default:
			s.due = nil
			s.stopForUpgrade()
		}
	})
}

// makeReady runs in the job: it verifies the binary, fetches a missing one where that is allowed, and asks for room.
func (s *Supervisor) makeReady(ctx context.Context, p upgrade.Plan, to upgrade.Version) upgrade.Readiness {
	ready := s.o.Checker.Check(ctx, to)
	if !ready.Ready() && !s.o.Layout.HasBinary(to) && s.o.Fetch != nil && p.Info != "" {
		s.log.Info("no upgrade binary found, beginning to download it", "plan", p.Name)
		if err := s.o.Fetch(ctx, p, to); err != nil {
			ready.Problems = []string{err.Error()}
			return ready
		}
		s.log.Info("downloading binary complete", "plan", p.Name)
		ready = s.o.Checker.Check(ctx, to)
	}
	if ready.Ready() && s.o.Room != nil {
		if err := s.o.Room(ctx); err != nil {
			ready.Problems = append(ready.Problems, err.Error())
		}
	}
	return ready
}

func (s *Supervisor) awaitBinary(p upgrade.Plan, problem string) {
	if s.state != WaitingForBinary || s.notReady != problem {
		if !s.o.Layout.HasBinary(upgrade.VersionOf(p.Name)) && s.o.Fetch == nil {
			s.log.Error("binary not present, downloading disabled", "plan", p.Name, "binary", s.o.Layout.Binary(upgrade.VersionOf(p.Name)))
		}
		s.log.Error("the height of a plan has come and it is not ready; waiting", "plan", p.Name, "height", p.Height,
			"problem", problem, "hint", "supervisor upgrade add "+p.Name+" BINARY")
		s.o.Event("not ready", p.Name+": "+problem)
	}
	s.settleApply(hint.New("apply", p.Name, problem, "supervisor upgrade add "+p.Name+" BINARY"))
	s.notReady = problem
	s.state = WaitingForBinary
	s.readTimer.Reset(recheck)
}

// stopForUpgrade stops the node; what follows is carried out when it is gone.
func (s *Supervisor) stopForUpgrade() {
	s.state = Upgrading
	if s.child == nil {
		s.carry()
		return
	}
	s.log.Info("daemon shutting down in an attempt to restart", "plan", s.journal.Upgrade.Plan.Name)
	s.stopThen(func(exit Exit) {
		if exit.Forced {
			s.log.Warn("the node did not stop in time and was killed", "timeout", s.o.Config.StopTimeout)
		}
		s.o.Engine.StoppedAt(exit.At)
		s.carry()
	})
}

// stopThen stops the node for a reason of our own and goes on when it is gone.
func (s *Supervisor) stopThen(next func(Exit)) {
	s.onExit = next
	s.child.Terminate(s.stopSignal(), s.o.Config.StopTimeout)
}

// carry runs the phases that need the node at rest, then starts the new version.
func (s *Supervisor) carry() {
	s.state = Upgrading
	s.verdicts++
	s.do("upgrade", s.o.Engine.Carry, s.carried)
}

func (s *Supervisor) carried(err error) {
	switch {
	case s.stopping:
	case err != nil:
		s.holdFor(err)
	case !s.o.Upgrade.RestartAfter:
		s.log.Info("upgrade detected, DAEMON_RESTART_AFTER_UPGRADE is off. Verify new upgrade and start cosmovisor again.")
		s.finish(0)
	default:
		s.log.Info("upgrade detected, relaunching", "app", s.o.Layout.Node)
		s.refreshCurrent()
		s.start()
	}
}

// recoverUpgrade goes on with what an earlier life of the supervisor left in flight.
func (s *Supervisor) recoverUpgrade() {
	u := s.journal.Upgrade
	s.log.Warn("an upgrade is in flight", "plan", u.Plan.Name, "phase", u.Phase)
	switch u.Phase {
	case upgrade.Planned:
		s.trigger(u.Plan, u.Evidence)
	case upgrade.OnProbation:
		s.start()
	case upgrade.RollingBack, upgrade.RolledBack:
		s.rollBack(u.BinaryOnly, s.rolledBackByHand)
	case upgrade.Committed:
		s.do("commit", func(context.Context) error { return s.o.Engine.Close(upgrade.ResultCommitted) }, s.committed)
	default:
		s.state = Upgrading
		s.do("recover", func(context.Context) error { return s.o.Engine.Recover() }, func(err error) {
			switch {
			case err != nil:
				s.holdFor(err)
			case s.journal.Upgrade.Phase == upgrade.Migrated:
				s.start()
			default:
				s.carry()
			}
		})
	}
}

// probation commits the upgrade when the new version has lived and made a block of its own.
func (s *Supervisor) probation() {
	u := s.journal.Upgrade
	if u.Phase != upgrade.OnProbation {
		return
	}
	if time.Since(s.child.StartedAt()) < s.o.Upgrade.Probation.Up {
		s.armClock(time.Now())
		return
	}
	if s.o.Upgrade.Probation.HeightAbovePlan && s.tracker.Height() <= u.Floor() {
		return // the network may need hours to come back: that is never a failure
	}
	s.commit()
}

func (s *Supervisor) commit() {
	reached := max(0, s.tracker.Height())
	s.do("commit", func(context.Context) error { return s.o.Engine.Commit(reached) }, s.committed)
}

func (s *Supervisor) committed(err error) {
	if err != nil {
		s.log.Error("cannot record that the upgrade is committed; trying again", "error", err)
		s.clockTimer.Reset(time.Second)
		return
	}
	s.log.Info("upgrade committed", "version", s.version, "height", s.tracker.Height())
	s.o.Event("committed", string(s.version))
	s.refreshCurrent()
	s.summarize()
	if s.child == nil && s.state != Held {
		s.start()
	}
}

// attemptEnded counts a start of the new version that ended by itself.
func (s *Supervisor) attemptEnded(why string, reached int64) {
	s.log.Error("the new version ended on probation", "reason", why, "attempt", s.journal.Upgrade.Attempts)
	s.state = Backoff
	s.do("attempt", func(context.Context) error { return s.o.Engine.Ended(why, reached) }, func(err error) {
		if err != nil {
			s.log.Error("cannot record the failed attempt", "error", err)
		}
		u := s.journal.Upgrade
		if u.Attempts < s.o.Upgrade.Probation.Attempts || s.o.Upgrade.OnFailure == upgrade.OnFailureRetry {
			pause := min(s.o.Config.Backoff<<min(max(u.Attempts-1, 0), 16), s.o.Config.BackoffMax)
			s.restarts++
			s.restartIn(pause, why)
			return
		}
		s.start() // the engine refuses the next attempt and says what is left to do
	})
}

// attemptsUsedUp applies on_failure.
func (s *Supervisor) attemptsUsedUp(cause error) {
	u := s.journal.Upgrade
	if s.o.Upgrade.OnFailure != upgrade.OnFailureRollback {
		s.holdFor(cause)
		return
	}
	if err := upgrade.CanRollBack(u, s.tracker.Known(), true); err != nil {
		s.holdFor(&hint.Error{Op: "roll back", Path: u.Plan.Name, Err: fmt.Errorf("%w, after: %w", err, cause), Hint: hint.Of(cause)})
		return
	}
	s.log.Error("rolling back", "plan", u.Plan.Name, "reason", cause)
	s.rollBack(false, func() {
		name, height := u.Plan.Name, u.Plan.Height
		s.do("skip", func(ctx context.Context) error {
			return s.o.Engine.CloseSkipped(name, height, cause.Error())
		}, func(err error) {
			if err != nil {
				s.holdFor(err)
				return
			}
			s.o.Event("rolled back", name)
			s.refreshCurrent()
			s.restartIn(s.o.Config.Backoff, "rolled back")
		})
	})
}

// rollBack undoes the upgrade in flight while the node is at rest.
func (s *Supervisor) rollBack(binaryOnly bool, next func()) {
	s.state = Upgrading
	s.do("rollback", func(ctx context.Context) error { return s.o.Engine.RollBack(ctx, binaryOnly) }, func(err error) {
		switch {
		case s.stopping:
		case err != nil:
			s.holdFor(err)
		default:
			next()
		}
	})
}

// rolledBackByHand ends an operator's rollback: held, the node stopped.
func (s *Supervisor) rolledBackByHand() {
	name := s.journal.Upgrade.Plan.Name
	s.do("rollback", func(context.Context) error {
		if err := s.o.Engine.Close(upgrade.ResultRolledBack); err != nil {
			return err
		}
		return s.o.Engine.Hold("the upgrade "+name+" was rolled back", HintAfterRollback(name))
	}, func(err error) {
		if err != nil {
			s.log.Error("cannot record the rollback", "error", err)
		}
		s.o.Event("rolled back", name)
		s.refreshCurrent()
		s.held()
	})
}

// HintAfterRollback says what an operator can do after a rollback.
func HintAfterRollback(name string) string {
	return fmt.Sprintf("supervisor resume (begins the upgrade again when its height is seen), supervisor upgrade skip %s, "+
		"or supervisor upgrade add %s BINARY --force", name, name)
}

// halt stops the node where an operator wanted it stopped, takes the snapshot and holds. The schedule forgets the halt
// last: a crash in between halts again.
func (s *Supervisor) halt(answer func(error)) {
	if answer == nil {
		answer = func(error) {}
	}
	when := "now"
	if h := s.schedule.Halt; h != nil {
		when = h.When()
	}
	s.log.Info("halting", "at", when)
	s.state = Upgrading
	work := func(Exit) {
		s.state = Upgrading
		s.do("halt", func(ctx context.Context) error {
			if err := errors.Join(s.o.Recorder.Flush(), s.snapshotAt(ctx, "halt")); err != nil {
				return err
			}
			if err := s.o.Engine.Hold("halted at "+when+" as an operator asked for", "supervisor resume"); err != nil {
				return err
			}
			return s.o.Engine.SetHalt(nil, upgrade.Unknown)
		}, func(err error) {
			answer(err)
			switch {
			case s.stopping:
			case err != nil:
				s.holdFor(err)
			default:
				s.o.Event("halted", when)
				s.summarize()
				s.held()
			}
		})
	}
	if s.child == nil {
		work(Exit{})
		return
	}
	s.stopThen(work)
}

// holdFor records a hold for an error, and holds.
func (s *Supervisor) holdFor(err error) {
	if errors.Is(err, upgrade.ErrJournal) {
		// What can't be trusted isn't written over: the hold is found again at every start, until it is mended.
		s.journal.Hold = &upgrade.Hold{Reason: err.Error(), Hint: hint.Of(err), Since: time.Now().UTC()}
		s.held()
		return
	}
	s.do("hold", func(context.Context) error { return s.o.Engine.HoldFor(err) }, s.holdWritten(err.Error(), hint.Of(err)))
}

func (s *Supervisor) holdWith(reason, next string) {
	s.do("hold", func(context.Context) error { return s.o.Engine.Hold(reason, next) }, s.holdWritten(reason, next))
}

// holdWritten holds also where the hold could not be written: then the next start finds the cause again by itself.
func (s *Supervisor) holdWritten(reason, next string) func(error) {
	return func(err error) {
		if err != nil {
			s.log.Error("cannot record the hold", "error", err, "hint", hint.Of(err))
		}
		if s.journal.Hold == nil {
			s.journal.Hold = &upgrade.Hold{Reason: reason, Hint: next, Since: time.Now().UTC()}
		}
		s.held()
	}
}

// held stops acting. The node is at rest here, always.
func (s *Supervisor) held() {
	s.state = Held
	h := s.journal.Hold
	s.settleApply(&hint.Error{Op: "apply the upgrade", Err: errors.New(h.Reason), Hint: h.Hint})
	s.log.Error("held: the node is not started", "reason", h.Reason, "hint", h.Hint)
	s.o.Event("held", h.Reason)
	if s.o.Config.Hold == HoldExit {
		s.finish(ExitHeld)
	}
}
