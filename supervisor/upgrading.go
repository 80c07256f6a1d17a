package supervisor

import (
	"context"
	"fmt"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/alert"
	"nodevisor/supervisor/child"
	"nodevisor/supervisor/restart"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
)

// stopForUpgrade stops the node; what follows is carried out when it is gone.
func (s *Supervisor) stopForUpgrade() {
	if s.child != nil {
		s.log.Info("daemon shutting down in an attempt to restart", "plan", s.journal.Upgrade.Plan.Name)
	}
	s.atRest(s.carry)
}

// carry runs the phases that need the node at rest, then starts the new version. down is the old node's end; zero = not
// known.
func (s *Supervisor) carry(down time.Time) {
	s.state = status.Upgrading
	s.do("upgrade", s.unitsDown(s.afterTidying(unlessCancelled(func(ctx context.Context) error {
		if !down.IsZero() {
			s.o.Engine.StoppedAt(down)
		}
		return s.o.Engine.Carry(ctx)
	}))), s.carried)
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
		if s.byPolicy(u) {
			s.rollBackByPolicy(u.Error)
			return
		}
		s.do("recover", func(context.Context) error { return s.o.Engine.Recover() }, func(err error) {
			if err != nil {
				s.holdFor(err)
				return
			}
			s.rollBack(u.BinaryOnly, s.rolledBackByHand, func(error) {})
		})
	case upgrade.Committed:
		s.do("commit", func(context.Context) error { return s.o.Engine.Close(upgrade.ResultCommitted) }, func(err error) {
			if err != nil {
				s.holdFor(err)
				return
			}
			s.committed()
			s.start()
		})
	default:
		s.state = status.Upgrading
		s.do("recover", func(context.Context) error { return s.o.Engine.Recover() }, func(err error) {
			switch {
			case s.stopping:
			case err != nil:
				s.holdFor(err)
			case s.journal.Upgrade.Phase == upgrade.Migrated:
				s.start()
			default:
				s.carry(time.Time{})
			}
		})
	}
}

// probation commits the upgrade when the new version has lived and made a block of its own. A commit that could not be
// recorded is tried again; the node runs on.
func (s *Supervisor) probation() {
	u, clock := s.journal.Upgrade, time.Now()
	s.armClock(clock)
	switch {
	case clock.Before(s.recordAfter):
	case u.Phase == upgrade.Committed:
		s.commit(0, nil)
	case u.Phase != upgrade.OnProbation:
	case s.nextDue(clock):
	case clock.Sub(s.child.StartedAt()) < s.o.Upgrade.Probation.Up:
	case s.o.Upgrade.Probation.HeightAbovePlan && s.tracker.Height() <= u.Floor():
		// The network may need hours to come back: that is never a failure.
	default:
		s.commit(0, nil)
	}
}

// nextDue commits the upgrade at once where the height of another plan has come: its blocks up to there are the new version's,
// and neither a chain that catches up nor one with two upgrades close together waits for a probation. What the other plan asks
// for follows the commit.
func (s *Supervisor) nextDue(clock time.Time) bool {
	p, _, due := s.tracker.Due(clock)
	if due = due && s.outgrown(p); due {
		s.commit(p.Height, nil)
	}
	return due
}

// outgrown tells whether a plan whose height has come lies above all that the version on probation could have found done.
func (s *Supervisor) outgrown(p plan.Plan) bool { return p.Height > s.journal.Upgrade.Floor() }

// commit records that the version on probation is trusted, and answers who asked for it. reached is a height that it is known
// to have come to, besides the one that was read last; 0 = none.
func (s *Supervisor) commit(reached int64, answer func(error)) {
	reached = max(reached, s.tracker.Height())
	s.do("commit", func(context.Context) error { return s.o.Engine.Commit(reached) }, func(err error) {
		if err != nil {
			s.log.Error("cannot record that the upgrade is committed; trying again", "error", err, "hint", hint.Of(err))
			s.recordAfter = time.Now().Add(recordPause)
		} else {
			s.committed()
		}
		if answer != nil {
			answer(err)
		}
	})
}

// trialEnded judges the end of a version on probation. At the height of another plan it ended as it should: it is trusted, and
// the other plan is carried out. Any other end is a failed attempt.
func (s *Supervisor) trialEnded(e *ending, signer int64) {
	reached := s.reached(signer)
	p, ev, verdict := s.tracker.Ended(time.Now(), signer, true)
	if verdict != plan.Due || !s.outgrown(p) {
		s.unlessStopped(e, func() { s.attemptEnded("the new node ended: "+e.exit.String(), reached, &e.exit) })
		return
	}
	s.ending = nil
	s.log.Info("the node ended at the height of a plan", "plan", p.Name, "height", p.Height, "evidence", ev)
	s.commit(max(reached, p.Height), func(err error) {
		if err != nil {
			s.restartIn(recordPause, "the journal can't be written")
			return
		}
		s.trigger(p, ev)
	})
}

func (s *Supervisor) committed() {
	s.log.Info("upgrade committed", "version", s.version, "height", s.tracker.Height())
	s.o.Event(alert.Committed, s.version.Name()+atHeight(s.tracker.Height()))
	s.policy.Reset()
	s.refreshCurrent()
	s.summarize()
}

// atHeight says where, for people; nothing where it isn't known.
func atHeight(h int64) string {
	if h == plan.UnknownHeight {
		return ""
	}
	return fmt.Sprintf(" at height %d", h)
}

// attemptEnded counts a start of the new version that ended by itself. Whether it is started again at once is the restart
// policy's to say, as for any other end; where it isn't, the next `run` goes on with the next attempt. exit is nil where it
// could not even be started.
func (s *Supervisor) attemptEnded(why string, reached int64, exit *child.Exit) {
	s.countFailure()
	s.log.Error("the new version ended on probation", "reason", why, "attempt", s.journal.Upgrade.Attempts)
	s.state = status.Backoff
	s.do("attempt", func(context.Context) error { return s.o.Engine.Ended(why, reached) }, func(err error) {
		if err != nil {
			s.log.Error("cannot record the failed attempt", "error", err)
		}
		u := s.journal.Upgrade
		left := u.Attempts < s.o.Upgrade.Probation.Attempts || s.o.Upgrade.OnFailure == upgrade.OnFailureRetry
		switch {
		case left && exit != nil && !s.o.Config.Restart.Restarts(*exit):
			s.log.Info("the node is not restarted", "reason", why, "restart", s.o.Config.Restart)
			s.finish(exit.ExitCode())
			return
		case left:
			pause := min(s.o.Config.Backoff<<min(max(u.Attempts-1, 0), 16), s.o.Config.BackoffMax)
			s.countRestart(exit, true)
			if u.Attempts == max(restart.CrashLoopAfter, s.o.Upgrade.Probation.Attempts) { // on_failure = "retry"
				s.o.Event(alert.CrashLoop, fmt.Sprintf("%s ended %d times on probation: %s", u.Plan.Name, u.Attempts, why))
			}
			s.restartIn(pause, why)
			return
		}
		s.start() // the engine refuses the next attempt and says what is left to do
	})
}

// byPolicy tells whether it was the policy that undid an upgrade: whose rollback it was isn't recorded; the policy's is one
// after the last attempt, and of the data too.
func (s *Supervisor) byPolicy(u *upgrade.Upgrade) bool {
	return s.o.Upgrade.OnFailure == upgrade.OnFailureRollback && !u.BinaryOnly && u.Attempts >= s.o.Upgrade.Probation.Attempts
}

// attemptsUsedUp applies on_failure.
func (s *Supervisor) attemptsUsedUp(cause error) {
	u := s.journal.Upgrade
	if s.o.Upgrade.OnFailure != upgrade.OnFailureRollback {
		s.holdFor(cause)
		return
	}
	if err := upgrade.CanRollBack(u, s.tracker.Known(), true); err != nil {
		next := hint.Of(cause)
		if upgrade.CanRollBack(u, s.tracker.Known(), false) == nil {
			next = "supervisor rollback, where the new version made no block; or: supervisor upgrade resume"
		}
		s.holdFor(&hint.Error{Op: "roll back", Path: u.Plan.Name, Err: fmt.Errorf("%w, after: %w", err, cause), Hint: next})
		return
	}
	s.log.Error("rolling back", "plan", u.Plan.Name, "reason", cause)
	s.rollBackByPolicy(cause.Error())
}

// rollBackByPolicy undoes the upgrade, puts its plan on the skip list, and starts the old version.
func (s *Supervisor) rollBackByPolicy(why string) {
	name, height := s.journal.Upgrade.Plan.Name, s.journal.Upgrade.Plan.Height
	s.rollBack(false, func() {
		s.do("skip", func(context.Context) error { return s.o.Engine.CloseSkipped(name, height, why) }, func(err error) {
			if err != nil {
				s.holdFor(err)
				return
			}
			s.o.Event(alert.RolledBack, name+" by policy: "+why)
			s.policy.Reset()
			s.refreshCurrent()
			s.restartIn(s.o.Config.Backoff, "rolled back")
		})
	}, func(error) {})
}

// rollBack undoes the upgrade in flight while the node is at rest. One of next and failed is called, unless a stop came.
func (s *Supervisor) rollBack(binaryOnly bool, next func(), failed func(error)) {
	s.state = status.Upgrading
	work := func(ctx context.Context) error { return s.o.Engine.RollBack(ctx, binaryOnly) }
	s.do("rollback", s.unitsDown(s.afterTidying(unlessCancelled(work))), func(err error) {
		switch {
		case s.stopping:
		case err != nil:
			failed(err)
			s.holdFor(err)
		default:
			next()
		}
	})
}

// rolledBackByHand ends an operator's rollback: held, the node stopped.
func (s *Supervisor) rolledBackByHand() {
	name := s.journal.Upgrade.Plan.Name
	reason, next := "the upgrade "+name+" was rolled back", HintAfterRollback(name)
	s.do("rollback", func(context.Context) error { return s.o.Engine.CloseHeld(reason, next) }, func(err error) {
		s.o.Event(alert.RolledBack, name+" by an operator; next: "+next)
		s.refreshCurrent()
		s.holdWritten(reason, next)(err)
	})
}

// HintAfterRollback says what an operator can do after a rollback.
func HintAfterRollback(name string) string {
	return fmt.Sprintf("supervisor resume (begins the upgrade again when its height is seen), supervisor upgrade skip %s, "+
		"or supervisor upgrade add %s BINARY --force", name, name)
}
