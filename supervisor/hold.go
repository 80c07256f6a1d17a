package supervisor

import (
	"context"
	"errors"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/alert"
	"nodevisor/supervisor/child"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/state"
)

// atRest runs next with the node gone: at once, or after a graceful stop. begun is the old node's end. No job runs when it
// is called, and none when next is. Where the end of `run` was asked for, next is never run.
func (s *Supervisor) atRest(next func(begun time.Time)) {
	if s.stopping {
		return
	}
	s.state = status.Upgrading
	s.restartTimer.Stop()
	if s.child == nil {
		begun := time.Now()
		if e := s.ending; e != nil {
			s.ending, begun = nil, e.exit.At
		}
		next(begun)
		return
	}
	s.onExit = func(exit child.Exit) {
		if exit.Forced {
			s.log.Warn("the node did not stop in time and was killed", "timeout", s.o.Config.StopTimeout)
		}
		next(exit.At)
	}
	s.hangUp()
	s.terminate()
}

// holdFor records a hold for an error, and holds.
func (s *Supervisor) holdFor(err error) {
	if u := s.journal.Upgrade; u != nil && u.Phase != upgrade.OnProbation { // there each attempt was counted
		s.countFailure()
	}
	if errors.Is(err, state.ErrUntrusted) {
		// What can't be trusted isn't written over: the hold is found again at every start, until it is mended.
		s.untrusted = err
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

// held stops acting. The node is at rest here, always. Where the end of `run` was asked for, that decides the code: the
// hold is found again by the next start. What is only sealed is completed meanwhile; after a halt before `run` ends, too.
func (s *Supervisor) held() {
	s.state = status.Held
	s.due = nil // found again in the journal or by its evidence
	h := s.journal.Hold
	s.settleApply(&hint.Error{Op: "apply the upgrade", Err: errors.New(h.Reason), Hint: h.Hint})
	s.log.Error("held: the node is not started", "reason", h.Reason, "hint", h.Hint)
	s.o.Event(alert.Held, h.Reason+"; next: "+h.Hint)
	switch {
	case s.stopping:
	case s.o.Config.Hold == HoldWait || s.completing:
		s.refreshCurrent() // a run that begins held has not looked yet which version would run
		s.tidy()
	default:
		s.finish(ExitHeld)
	}
}
