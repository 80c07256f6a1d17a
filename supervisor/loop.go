package supervisor

import (
	"context"
	"os/signal"
	"syscall"
	"time"

	"nodevisor/internal/proc"
	"nodevisor/internal/resident"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/source"
	"nodevisor/upgrade/version"
)

// Run supervises the node until it ends for good, an operator stops it, or a hold. It returns the process's exit code.
// It is called once.
func (s *Supervisor) Run(ctx context.Context) int {
	// The node is stopped gracefully when ctx ends; what the loop itself does must not end with it.
	s.asked = ctx.Done()
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer s.cancel()
	s.life, s.endLife = s.ctx, func() {}
	s.units.ctx, s.units.cancel = context.WithCancel(s.ctx)
	defer s.units.cancel()
	defer s.stopOnPanic()
	defer s.takeSignals()()
	proc.ReapOn(s.ctx)

	last, known := s.o.Recorder.Last()
	s.tracker = plan.NewTracker(plan.UnknownHeight, time.Time{})
	if known {
		s.tracker = plan.NewTracker(last.Height, last.At)
	}
	args, _ := s.o.Command(version.Genesis)
	s.tracker.SetSkipHeights(source.SkipHeights(args))
	s.publish() // whoever connects finds a status
	server, err := s.listen(s.o.Reloadable)
	if err != nil {
		s.log.Warn("the control socket can't be used", "error", err)
	} else {
		s.server = server
	}
	defer func() {
		if s.server != nil {
			s.server.Close()
		}
	}()
	s.observeAt(s.o.Metrics)
	if s.o.Notify != nil {
		s.alive()
	}
	s.boot()
	for !s.done || s.job != nil || s.units.acting > 0 || s.store.tidying != nil {
		s.settleState()
		s.publish()
		s.wait()
	}
	s.publish()
	s.endLife()
	close(s.over)
	s.awaitDumps()
	return s.code
}

// settleState turns starting into running, and begins what waits for a running node.
func (s *Supervisor) settleState() {
	switch {
	case s.state == status.Held && s.store.again && s.job == nil:
		s.tidy()
	case s.child == nil:
	case s.state == status.Starting && time.Since(s.child.StartedAt()) >= okayAfter:
		s.state = status.Running
		s.spawn(resident.DropProgram) // the start is over
		if s.store.pause == 0 {       // else its timer does it: a node that is started again is no reason to try sooner
			s.tidy()
		}
	case s.state == status.Running && s.store.again && s.job == nil && s.onExit == nil:
		s.tidy()
	}
}

// takeSignals begins to take signals, and returns what ends it.
func (s *Supervisor) takeSignals() (stop func()) {
	signal.Notify(s.stops, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	// SIGPIPE is taken and dropped, not ignored: what is ignored stays so in the node, which may rely on it.
	signal.Notify(s.passed, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGPIPE)
	abort := s.stopOnAbort()
	return func() {
		signal.Stop(s.stops)
		signal.Stop(s.passed)
		signal.Stop(abort)
	}
}

// wait takes one event. Every case is one short method, and none blocks.
func (s *Supervisor) wait() {
	select {
	case sig := <-s.stops:
		s.stopSignalled(sig.(syscall.Signal))
	case sig := <-s.passed:
		s.passOn(sig.(syscall.Signal))
	case exit := <-s.exited:
		s.ended(exit)
	case f := <-s.posts:
		f()
	case r := <-s.requests:
		s.handle(r)
	case <-s.file.seen:
		s.look()
	case <-s.height.timer.C:
		s.readHeight()
	case <-s.restartTimer.C:
		s.start()
	case <-s.settleTimer.C:
		s.settled()
	case <-s.chainTimer.C:
		s.askChain()
	case <-s.readiness.timer.C:
		s.checkReadiness()
	case <-s.clockTimer.C:
		s.sayUnusable()
	case <-s.tale.timer.C:
		s.alive()
	case <-s.store.roomTimer.C:
		s.summarize()
	case <-s.store.tidyTimer.C:
		s.store.again = true
	case <-s.asked:
		s.asked = nil
		s.requestStop()
	}
	s.decide()
}

// decide looks at what has become due. It is called after every event and does nothing while a job runs.
func (s *Supervisor) decide() {
	for s.job == nil && !s.done && len(s.waiting) > 0 {
		next := s.waiting[0]
		s.waiting = s.waiting[1:]
		next()
	}
	switch {
	case s.done, s.job != nil:
	case s.stopping:
		if s.child == nil {
			s.endRun()
		}
	case s.onExit != nil, s.child == nil, s.due != nil: // a waiting plan has a timer of its own
	case s.state != status.Running && s.state != status.Starting:
	case s.journal.Upgrade != nil:
		s.probation()
	default:
		s.decideRunning(time.Now())
	}
}

// decideRunning looks whether a halt or a plan has come due for the running node.
func (s *Supervisor) decideRunning(clock time.Time) {
	if s.schedule.HaltDue(s.tracker.Height(), clock) {
		s.halt(nil)
		return
	}
	if p, ev, due := s.tracker.Due(clock); due {
		s.trigger(p, ev)
		return
	}
	s.armClock(clock)
}

// armClock wakes the loop at the next point in time that matters.
func (s *Supervisor) armClock(clock time.Time) {
	next := time.Time{}
	consider := func(t time.Time) {
		if t.After(clock) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, p := range s.tracker.Pending() {
		consider(p.Time)
	}
	if s.schedule.Halt != nil {
		consider(s.schedule.Halt.Time)
	}
	if s.state == status.Starting {
		consider(s.child.StartedAt().Add(okayAfter))
	}
	if s.journal.Upgrade != nil {
		consider(s.child.StartedAt().Add(s.o.Upgrade.Probation.Up))
		consider(s.recordAfter)
	}
	if !s.file.unusable.IsZero() {
		consider(s.file.unusable.Add(unusableSoon))
		consider(later(s.file.tellAt, clock)) // overdue where its time came during a job
	}
	if !next.IsZero() {
		s.clockTimer.Reset(min(next.Sub(clock), time.Minute)) // a clock may be set: look again at least once a minute
	}
}

// later is t, or a moment after clock where t is past.
func later(t, clock time.Time) time.Time {
	if t.After(clock) {
		return t
	}
	return clock.Add(recheck)
}

// whenIdle runs f once no job runs. A job that was cancelled ends soon: it looks at its context between effects.
func (s *Supervisor) whenIdle(f func()) {
	if s.job == nil && len(s.waiting) == 0 {
		f()
		return
	}
	s.waiting = append(s.waiting, f)
}

// whenStill runs f once no job runs, where what is asked for holds now and then.
func (s *Supervisor) whenStill(holds func() bool, f func()) {
	if !holds() {
		return
	}
	s.whenIdle(func() {
		if holds() {
			f()
		}
	})
}

// finish ends the loop with code, once no job runs.
func (s *Supervisor) finish(code int) {
	if s.done {
		return
	}
	s.done, s.code = true, code
	if s.state != status.Held {
		s.state = status.Stopped
	}
	s.breakTidying()
}
