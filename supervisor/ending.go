package supervisor

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/alert"
	"nodevisor/supervisor/child"
	"nodevisor/supervisor/restart"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

// settle is how long the end of a node by a signal that we didn't send waits for a stop request: under
// KillMode=control-group the node gets systemd's SIGTERM at the same moment as the supervisor.
const settle = time.Second

// ending is an end of the node that nobody asked for, until it is known what it means. Whoever acts in its place (an
// upgrade that goes on, a new start, a stop) sets Supervisor.ending to nil: an end is charged to nobody twice.
type ending struct {
	exit  child.Exit
	lived time.Duration
	then  func() // what the end asks for, where a stop request may still come before it; nil = not known yet
}

// ended takes the end of the node: of the process, its group, and what it left behind.
func (s *Supervisor) ended(exit child.Exit) {
	lived := exit.At.Sub(s.child.StartedAt())
	s.child, s.exited = nil, nil
	s.live.Store(nil)
	s.endLife()
	s.height.timer.Stop()
	s.clockTimer.Stop()
	s.chainTimer.Stop()
	s.breakTidying()
	s.lastExit = describeExit(exit, s.version)
	s.half, s.restore = s.restore != nil, nil // where its state wasn't there yet, the marker says so
	s.log.Info("the node ended", "how", exit.String(), "lived", lived.Round(time.Millisecond), "forced", exit.Forced)
	if next := s.onExit; next != nil {
		s.onExit = nil
		s.actOn(AfterStop, func() {})
		next(exit)
		return
	}
	s.ending = &ending{exit: exit, lived: lived}
	s.judge(s.ending)
}

func describeExit(exit child.Exit, v version.Version) *status.Exit {
	e := &status.Exit{At: exit.At.UTC(), Version: v.Name(), Forced: exit.Forced}
	if exit.Signal != 0 {
		e.Signal = new(exit.Signal.String())
	} else {
		e.Code = &exit.Code
	}
	return e
}

// judge finds out what an end that nobody asked for means. What the node wrote last is read first.
func (s *Supervisor) judge(e *ending) {
	s.state = status.Backoff
	s.whenIdle(func() {
		if s.ending != e || s.stopping {
			return
		}
		look := s.lookAtFile()
		var file plan.File
		signer := plan.UnknownHeight
		s.do("judge", func(context.Context) error {
			file, signer = look(), s.signer()
			return s.o.Recorder.Flush()
		}, func(err error) {
			if err != nil {
				s.log.Warn("cannot record the height", "error", err)
			}
			s.verdict(e, file, signer)
		})
	})
}

func (s *Supervisor) verdict(e *ending, file plan.File, signer int64) {
	if s.ending != e || s.stopping || s.done {
		return
	}
	s.sawFile(file, true)
	s.takeLines()
	if u := s.journal.Upgrade; u != nil && u.Phase == upgrade.OnProbation {
		s.trialEnded(e, signer)
		return
	}
	if s.due != nil { // it was waited for its binary; now the node is gone, too
		s.ending = nil
		s.prepare()
		return
	}
	p, ev, verdict := s.tracker.Ended(time.Now(), signer, true)
	switch {
	case verdict == plan.Due:
		s.log.Info("the node ended at the height of a plan", "plan", p.Name, "height", p.Height, "evidence", ev)
		s.ending = nil
		s.trigger(p, ev)
	case s.schedule.HaltDue(s.tracker.Known(), time.Now()) || s.haltedItself(signer):
		s.ending = nil
		s.halt(nil)
	case verdict == plan.Unclear:
		s.unlessStopped(e, func() { s.unclear(p) })
	default:
		s.unlessStopped(e, func() { s.crashed(e.exit, e.lived) })
	}
}

// unlessStopped does what the end of the node asks for, but gives a stop request that is on its way the time to arrive
// where the node may have been stopped by the same hand.
func (s *Supervisor) unlessStopped(e *ending, then func()) {
	if !byHand(e.exit) {
		s.ending = nil
		then()
		return
	}
	e.then = then
	s.settleTimer.Reset(settle)
}

// unlessCancelled makes a job's work give a stop request that is on its way the time to arrive before its failure is judged:
// under KillMode=control-group what a phase runs, a script or pg_dump, gets systemd's SIGTERM at the same moment as the
// supervisor, and its end is no reason to hold. The node is at rest: a second more costs nothing.
func unlessCancelled(work func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		err := work(ctx)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(settle):
			}
		}
		return err
	}
}

// settled ends the wait of unlessStopped: no stop request came.
func (s *Supervisor) settled() {
	e := s.ending
	if e == nil || e.then == nil {
		return
	}
	s.whenIdle(func() {
		if s.ending == e && !s.stopping && !s.done {
			s.ending = nil
			e.then()
		}
	})
}

// byHand tells whether an exit looks like an answer to a signal.
func byHand(exit child.Exit) bool {
	signals := []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGKILL, syscall.SIGHUP, syscall.SIGQUIT}
	codes := []int{0, 128 + int(syscall.SIGTERM), 128 + int(syscall.SIGINT)}
	if exit.Signal != 0 {
		return slices.Contains(signals, exit.Signal)
	}
	return slices.Contains(codes, exit.Code)
}

// unclear holds: a plan is pending, and whether its height has come can't be told. Never switch on a guess.
func (s *Supervisor) unclear(p plan.Plan) {
	next := "look at " + hint.Quote(s.o.PlanFile) + ", then: supervisor resume"
	if p.Name != "" {
		next = "supervisor upgrade apply " + p.Name + " (its height has come), or supervisor upgrade skip " + p.Name +
			", or supervisor resume (start the current version again)"
	}
	s.holdWith(s.tracker.Describe(), next)
}

// crashed applies the restart policy.
func (s *Supervisor) crashed(exit child.Exit, lived time.Duration) {
	was := s.policy.CrashLoop()
	d := s.policy.Next(exit, lived)
	then := func() {
		if !d.Restart {
			s.log.Info("the node is not restarted", "reason", d.Reason)
			if d.GiveUp {
				s.o.Event(alert.CrashLoop, fmt.Sprintf("%s; given up after %d restarts", exit, s.o.Config.BackoffLimit))
			}
			s.finish(exit.ExitCode())
			return
		}
		if s.policy.CrashLoop() && !was {
			s.o.Event(alert.CrashLoop, fmt.Sprintf("it ended %d times in a row, last with %s", restart.CrashLoopAfter, exit))
		}
		s.countRestart(&exit, false)
		s.restartIn(d.Delay, d.Reason)
	}
	s.takeAtExit(was, then)
}

// haltedItself tells whether the node has ended at the scheduled halt, as its own configuration wants it: it signs the block
// of the halt and then ends, before anybody could read its height.
func (s *Supervisor) haltedItself(signer int64) bool {
	h := s.schedule.Halt
	return h != nil && h.Height > 0 && signer == h.Height && s.ownHalt == h.Height
}

// crashLoop tells whether the node ends again and again; a life that is long enough ends that.
func (s *Supervisor) crashLoop() bool {
	if s.child != nil && time.Since(s.child.StartedAt()) >= s.o.Config.BackoffReset {
		return false
	}
	return s.policy.CrashLoop()
}
