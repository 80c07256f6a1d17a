package supervisor

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
	"nodevisor/upgrade"
	"nodevisor/upgrade/source"
)

// Run supervises the node until it ends for good, an operator stops it, or a hold. It returns the process's exit code.
func (s *Supervisor) Run(ctx context.Context) int {
	// The node is stopped gracefully when ctx ends; what the loop itself does must not end with it.
	s.asked = ctx.Done()
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer s.cancel()
	defer s.stopOnPanic()
	signal.Notify(s.signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	signal.Ignore(syscall.SIGPIPE)
	defer signal.Stop(s.signals)
	s.stopOnAbort()
	proc.ReapOn(s.ctx)

	last, known := s.o.Recorder.Last()
	s.tracker = upgrade.NewTracker(upgrade.Unknown, time.Time{})
	if known {
		s.tracker = upgrade.NewTracker(last.Height, last.At)
	}
	s.tracker.SetSkipHeights(unsafeSkips(s.o.Command))
	server, err := s.listen()
	if err != nil {
		s.log.Warn("the control socket can't be used", "error", err)
	} else {
		defer server.Close()
	}
	s.boot()
	for !s.done || s.job != nil {
		s.publish()
		s.wait()
	}
	s.publish()
	close(s.over)
	return s.code
}

// wait takes one event. Every case is one short method, and none blocks.
func (s *Supervisor) wait() {
	select {
	case sig := <-s.signals:
		s.signalled(sig.(syscall.Signal))
	case exit := <-s.exited:
		s.ended(exit)
	case f := <-s.posts:
		f()
	case r := <-s.requests:
		s.handle(r)
	case <-s.planSeen:
		s.look()
	case <-s.heightTimer.C:
		s.readHeight()
	case <-s.restartTimer.C:
		s.start()
	case <-s.chainTimer.C:
		s.askChain()
	case <-s.readTimer.C:
		s.checkReadiness()
	case <-s.clockTimer.C:
	case <-s.asked:
		s.asked = nil
		s.requestStop()
	}
	s.decide()
}

// boot loads what earlier lives left and begins accordingly: a hold stays, an interrupted upgrade goes on, and only
// then the node is started.
func (s *Supervisor) boot() {
	watcher := source.NewWatcher(s.ctx, s.o.Upgrade.Poll, s.log)
	s.do("load", func(context.Context) error {
		if err := s.o.Engine.Load(); err != nil {
			return err
		}
		return s.firstLink()
	}, func(err error) {
		switch {
		case errors.Is(err, errNoGenesis):
			s.log.Error(err.Error(), "hint", hint.Of(err))
			s.finish(ExitConfig)
		case err != nil:
			s.holdFor(err)
		case s.journal.Hold != nil:
			s.held()
		default:
			if s.o.Layout.Plan != "" {
				s.planSeen = watcher.Watch(s.o.Layout.Plan).C()
			}
			s.firstLook()
		}
	})
}

var errNoGenesis = errors.New("there is no binary to run")

// firstLink makes `current` on a home that never saw an upgrade. Anywhere else a missing link is damage.
func (s *Supervisor) firstLink() error {
	l := s.o.Layout
	_, err := l.Current()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, upgrade.ErrNoLink) && !l.SeenUpgrade():
		if _, err := os.Stat(l.Binary(upgrade.Genesis)); err != nil {
			return &hint.Error{Op: "start", Path: l.Binary(upgrade.Genesis), Err: errNoGenesis, Hint: "supervisor init BINARY"}
		}
		s.log.Info("linking the first version", "current", upgrade.Genesis)
		return l.SwitchTo(upgrade.Genesis)
	}
	return &hint.Error{
		Op: "tell which version is to run", Path: l.Link(), Err: err,
		Hint: "supervisor doctor --fix-link (shows what it would link), or: supervisor upgrade use VERSION",
	}
}

// firstLook reads the plan file and the signer's state before the node runs, then goes on with what is in flight.
func (s *Supervisor) firstLook() {
	s.ask(func(context.Context) func() {
		file := upgrade.LookAtPlanFile(s.o.Layout.Plan, s.o.Upgrade.Recase)
		signer := s.signer()
		current, installed, ok := s.readCurrent()
		last := s.readHistory()
		return func() {
			s.last = last
			s.tracker.SetCurrent(current, installed, ok)
			s.version = current
			s.tracker.SawFile(file, false)
			s.begin(signer)
		}
	})
}

// begin decides what the first thing is that this life does.
func (s *Supervisor) begin(signer int64) {
	s.checkReadiness()
	s.summarize()
	if s.journal.Upgrade != nil {
		s.recoverUpgrade()
		return
	}
	if s.schedule.HaltDue(s.tracker.Known(), time.Now()) {
		s.halt(nil)
		return
	}
	if p, ev, verdict := s.tracker.Ended(time.Now(), signer, false); verdict == upgrade.Due {
		s.log.Info("the height of a plan has come while no node ran", "plan", p.Name, "height", p.Height, "evidence", ev)
		s.trigger(p, ev)
		return
	}
	s.logPending()
	s.start()
}

// decide looks at what has become due. It is called after every event and does nothing while a job runs.
func (s *Supervisor) decide() {
	if s.done || s.job != nil {
		return
	}
	if len(s.waiting) > 0 {
		next := s.waiting[0]
		s.waiting = s.waiting[1:]
		next()
		return
	}
	if s.stopping && s.child == nil {
		s.finish(0)
		return
	}
	if s.stopping || s.onExit != nil || s.state == Held {
		return
	}
	if s.due != nil {
		return // the readiness timer tries again
	}
	if s.child == nil || (s.state != Running && s.state != Starting) {
		return
	}
	if s.journal.Upgrade != nil {
		s.probation()
		return
	}
	clock := time.Now()
	switch p, ev, due := s.tracker.Due(clock); {
	case s.schedule.HaltDue(s.tracker.Height(), clock):
		s.halt(nil)
	case due:
		s.trigger(p, ev)
	default:
		s.armClock(clock)
	}
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
	if s.state == Starting && s.child != nil {
		consider(s.child.StartedAt().Add(okayAfter))
	}
	if u := s.journal.Upgrade; u != nil && s.child != nil {
		consider(s.child.StartedAt().Add(s.o.Upgrade.Probation.Up))
	}
	if !next.IsZero() {
		s.clockTimer.Reset(min(next.Sub(clock), time.Minute)) // a clock may be set: look again at least once a minute
	}
}

// signalled handles one signal. Those that only the node understands are passed on, always.
func (s *Supervisor) signalled(sig syscall.Signal) {
	switch sig {
	case syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT:
		s.log.Info("stop requested", "signal", sig.String())
		s.stopNode(sig)
	default:
		if s.child != nil {
			if err := s.child.Signal(sig); err != nil {
				s.log.Warn("cannot pass a signal on", "signal", sig.String(), "error", err)
			}
		}
	}
}

// requestStop begins the end of `run`.
func (s *Supervisor) requestStop() { s.stopNode(s.stopSignal()) }

// stopNode stops the node for good. The first request is graceful, the second one kills.
func (s *Supervisor) stopNode(sig syscall.Signal) {
	again := s.stopping
	s.stopping = true
	if s.o.Notify != nil {
		s.o.Notify.Stopping()
	}
	if s.job != nil {
		s.job.cancel() // it ends between two effects; the journal says where
	}
	if s.child == nil {
		return // the end comes when the job has ended
	}
	s.state = Stopping
	s.restartTimer.Stop()
	s.onExit = s.stoppedByRequest
	switch {
	case again:
		s.log.Warn("stop requested again: killing the node")
		s.child.Terminate(syscall.SIGKILL, 0)
	case sig == syscall.SIGINT && s.child.SharesTerminal():
		s.child.Terminate(0, s.o.Config.StopTimeout) // Ctrl-C has reached it already
	default:
		s.child.Terminate(s.stopSignal(), s.o.Config.StopTimeout)
	}
}

// stoppedByRequest ends `run`: with 0 where the node ended in time, whatever its code.
func (s *Supervisor) stoppedByRequest(exit Exit) {
	code := 0
	if exit.Forced {
		code = 1
		s.log.Error("the node did not stop in time and was killed", "timeout", s.o.Config.StopTimeout)
	}
	s.whenIdle(func() {
		s.do("stop", func(ctx context.Context) error {
			err := s.o.Engine.GiveBack()
			return errors.Join(err, s.o.Recorder.Flush(), s.o.Lock.ClearNode(), s.snapshotAt(context.WithoutCancel(ctx), "stop"))
		}, func(err error) {
			if err != nil {
				s.log.Error("cannot record the stop", "error", err)
			}
			s.finish(code)
		})
	})
}

// whenIdle runs f once no job runs. A job that was cancelled ends soon: it looks at its context between effects.
func (s *Supervisor) whenIdle(f func()) {
	if s.job == nil {
		f()
		return
	}
	s.waiting = append(s.waiting, f)
}

// finish ends the loop with code, once no job runs.
func (s *Supervisor) finish(code int) {
	if s.done {
		return
	}
	s.done, s.code = true, code
	if s.state != Held {
		s.state = Stopped
	}
	if s.tidying != nil {
		s.tidying()
	}
}

// stopOnAbort handles the watchdog's SIGABRT on a goroutine of its own, because the loop may be what hangs: the node is
// stopped gracefully first, then the stacks are printed. Under KillMode=mixed it would be killed hard with us.
func (s *Supervisor) stopOnAbort() {
	abort := make(chan os.Signal, 1)
	signal.Notify(abort, syscall.SIGABRT)
	go func() {
		<-abort
		s.lastWords("SIGABRT")
	}()
}

func (s *Supervisor) stopOnPanic() {
	if p := recover(); p != nil {
		s.log.Error("internal error: the run loop panicked", "panic", p)
		s.lastWords(string(debug.Stack()))
	}
}

// lastWords stops the node as well as can be done without the loop, dumps all stacks and ends the process with 134
// (128 + SIGABRT).
func (s *Supervisor) lastWords(why string) {
	if c := s.live.Load(); c != nil {
		c.Terminate(s.stopSignal(), s.o.Config.StopTimeout)
		deadline := time.Now().Add(s.o.Config.StopTimeout + time.Second)
		for proc.Owns(c.Pid()) && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
	}
	os.Stderr.WriteString(why + "\n" + allStacks())
	os.Exit(128 + int(syscall.SIGABRT))
}
