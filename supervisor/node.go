package supervisor

import (
	"context"
	"errors"
	"syscall"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/child"
	"nodevisor/supervisor/home"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/source"
	"nodevisor/upgrade/version"
)

const (
	// okayAfter is how long a node lives before it counts as running (pebble's figure).
	okayAfter = time.Second
	// foreignPatience is how long a foreign process of this tree may take to go away before it counts as a node: an
	// operator's query with the same binary lives for a moment.
	foreignPatience = 3 * time.Second
	// recordPause is the wait before the journal is written again where it could not be.
	recordPause = 2 * time.Second
)

// errUnrecorded means that an attempt could not be written down: the new version isn't started without.
var errUnrecorded = errors.New("the attempt can't be recorded")

// start starts the version that current names. During an upgrade it counts the attempt first.
func (s *Supervisor) start() {
	if s.stopping || s.done || s.child != nil || s.state == status.Held {
		return
	}
	if s.job != nil {
		s.whenIdle(s.start)
		return
	}
	s.restartTimer.Stop()
	s.state = status.Starting
	var started *child.Process
	version := s.version
	own, restores := s.ownHalt, false
	tee := s.wantsLines()
	if s.o.Lines != nil {
		s.o.Lines.Reset()
	}
	units := s.actWithin(BeforeStart)
	s.units.stopped = false
	s.do("start", func(ctx context.Context) error {
		units(ctx)
		var err error
		if restores, err = s.beginRestore(ctx); err != nil {
			return err
		}
		if started, version, err = s.startNode(ctx, tee); err == nil {
			own = s.readOwnHalt(version) // the node reads the same now
		}
		return err
	}, func(err error) {
		s.version, s.ownHalt = version, own
		if started != nil && restores {
			s.restoreBegan(started)
		}
		switch {
		case started != nil:
			s.started(started)
		case s.stopping:
		default:
			s.startFailed(err)
		}
	})
}

// startNode runs in the job. The look for foreign nodes and the journal's fsync go side by side.
func (s *Supervisor) startNode(ctx context.Context, tee bool) (*child.Process, version.Version, error) {
	l, e := s.o.Layout, s.o.Engine
	version, err := l.Current()
	if err != nil {
		return nil, version, &hint.Error{Op: "start the node", Err: err, Hint: "supervisor doctor --fix-link"}
	}
	foreign := make(chan error, 1)
	s.spawn(func() { foreign <- home.WaitNoForeign(ctx, l.Root, l.DataDir(), foreignPatience) })
	if u := e.InFlight(); u != nil && u.Phase != upgrade.Planned {
		if err := e.Attempt(); err != nil {
			<-foreign //nolint:errcheck // the attempt's error comes first
			if !errors.Is(err, upgrade.ErrAttempts) {
				err = errors.Join(errUnrecorded, err, e.GiveBack())
			}
			return nil, version, err
		}
	}
	if err := errors.Join(<-foreign, ctx.Err()); err != nil {
		return nil, version, errors.Join(err, e.GiveBack())
	}
	spec := s.spec(version, tee)
	s.log.Info("running app", "path", spec.Path, "args", spec.Args)
	c, err := s.fork(spec)
	if err != nil {
		return nil, version, err
	}
	e.Started(c.StartedAt())
	if err := s.o.Lock.SetNode(c.Pid()); err != nil {
		s.log.Warn("cannot note the node's pid in the lock", "error", err)
	}
	return c, version, nil
}

// fork starts the node's process, and makes it known before the loop hears of it: a SIGABRT may come in between.
func (s *Supervisor) fork(spec child.Spec) (*child.Process, error) {
	s.starting.Lock()
	defer s.starting.Unlock()
	c, err := child.Start(spec)
	if err == nil {
		s.live.Store(c)
	}
	return c, err
}

// forked tells whether there is a node's process, whether or not the loop has heard of its start or its end.
func (s *Supervisor) forked() bool {
	s.starting.Lock()
	defer s.starting.Unlock()
	return s.live.Load() != nil
}

func (s *Supervisor) spec(v version.Version, tee bool) child.Spec {
	args, env := s.o.Command(v)
	spec := child.Spec{
		Path: s.o.Layout.Binary(v), Args: args, Env: env, Dir: s.o.Layout.Root,
		Stdin: s.o.Stdin, Stdout: s.o.Stdout, Stderr: s.o.Stderr, Lock: s.o.Lock.File(),
		NotifySocket: s.o.NodeSocket,
	}
	if tee {
		spec.Lines = s.o.Lines.Line
	}
	return spec
}

// wantsLines tells whether the node's output must be read: for a height, or because a plan is pending whose height may
// have come without any other evidence. Not while an upgrade is in flight: a node whose output is read doesn't outlive a
// supervisor that is killed, and what is current is only being learnt then.
func (s *Supervisor) wantsLines() bool {
	if s.o.Lines == nil {
		return false
	}
	_, pending := s.tracker.FilePlan()
	return s.o.LinesFor || (pending && s.journal.Upgrade == nil)
}

func (s *Supervisor) started(c *child.Process) {
	s.child, s.exited = c, c.Exited()
	s.life, s.endLife = context.WithCancel(s.ctx)
	s.began, s.ending, s.completing = true, nil, false
	s.trial = s.journal.Upgrade != nil
	s.tale.nodeText, s.tale.nodeTells = "", s.o.NodeSocket != ""
	s.tracker.NodeStarted()
	s.height.at, s.height.from = time.Time{}, ""
	s.o.Heights.Reset()
	s.height.pace = pace{}
	s.height.timer.Reset(firstHeight)
	s.chainTimer.Reset(chainEvery)
	s.clockTimer.Reset(okayAfter)
	if s.stopping { // a stop was requested while it was being started
		s.stopping = false
		s.requestStop()
		return
	}
	s.settleApply(nil)
	if u := s.journal.Upgrade; u != nil {
		s.log.Info("the new version was started and is on probation", "plan", u.Plan.Name, "attempt", u.Attempts, "pid", c.Pid())
	}
	s.look() // what changed between the last look and the start
}

// startFailed decides what a start that didn't happen means.
func (s *Supervisor) startFailed(err error) {
	u := s.journal.Upgrade
	switch {
	case errors.Is(err, home.ErrForeign) && !s.began:
		s.log.Error(err.Error(), "hint", hint.Of(err))
		s.finish(ExitLocked)
	case errors.Is(err, home.ErrForeign):
		s.log.Error(err.Error(), "hint", hint.Of(err))
		s.restartIn(s.o.Config.BackoffMax, "a foreign node runs")
	case errors.Is(err, errUnrecorded):
		s.log.Error("the new version is not started before its attempt is recorded; trying again", "error", err, "hint", hint.Of(err))
		s.restartIn(recordPause, "the journal can't be written")
	case u != nil && errors.Is(err, upgrade.ErrAttempts):
		s.attemptsUsedUp(err)
	case passing(err):
		s.log.Error(err.Error())
		s.restartIn(s.o.Config.BackoffMax, "the system had no room for a process")
	case u != nil && u.Phase == upgrade.OnProbation:
		s.attemptEnded("it could not be started: "+err.Error(), 0, nil)
	default:
		s.holdFor(err)
	}
}

// passing tells whether a start failed for want of something that comes back: no fault of the version, and no reason to
// wait for a person (fork(2), execve(2)).
func passing(err error) bool {
	for _, e := range []error{syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE, syscall.ETXTBSY} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *Supervisor) restartIn(d time.Duration, why string) {
	s.state = status.Backoff
	s.log.Warn("restarting the node after a pause", "reason", why, "pause", d.Round(time.Millisecond))
	s.restartTimer.Reset(d)
}

// signer reads the height in the signer's state. It does file I/O: not for the loop.
func (s *Supervisor) signer() int64 {
	h, ok, err := source.SignerHeight(s.o.Layout.Home)
	if err != nil {
		s.log.Warn("cannot read the signer's state", "error", err)
	}
	if err != nil || !ok {
		return plan.UnknownHeight
	}
	return h
}

// takeLines hands the tracker what the node's own lines said.
func (s *Supervisor) takeLines() {
	if s.o.Lines == nil {
		return
	}
	if n, ok := s.o.Lines.Needed(); ok {
		if name, err := version.NormaliseName(n.Name, s.o.Upgrade.Recase); err == nil {
			s.tracker.SawLine(name, n.Height)
		}
	}
}
