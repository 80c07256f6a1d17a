package supervisor

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/upgrade"
	"nodevisor/upgrade/source"
)

const (
	// okayAfter is how long a node lives before it counts as running (pebble's figure).
	okayAfter = time.Second
	// settle is how long the end of a node by a signal that we didn't send waits for a stop request: under
	// KillMode=control-group the node gets systemd's SIGTERM at the same moment as the supervisor.
	settle = time.Second
	// foreignPatience is how long a foreign process of this tree may take to go away before it counts as a node: an
	// operator's query with the same binary lives for a moment.
	foreignPatience = 3 * time.Second
)

// start starts the version that current names. During an upgrade it counts the attempt first.
func (s *Supervisor) start() {
	if s.stopping || s.done || s.child != nil || s.state == Held || s.due != nil {
		return
	}
	if s.job != nil {
		s.whenIdle(s.start)
		return
	}
	s.restartTimer.Stop()
	s.state = Starting
	var started *Child
	var version upgrade.Version
	tee := s.wantsLines()
	if s.o.Lines != nil {
		s.o.Lines.Reset()
	}
	s.do("start", func(ctx context.Context) error {
		var err error
		started, version, err = s.startNode(ctx, tee)
		return err
	}, func(err error) {
		s.version = version
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
func (s *Supervisor) startNode(ctx context.Context, tee bool) (*Child, upgrade.Version, error) {
	l, e := s.o.Layout, s.o.Engine
	version, err := l.Current()
	if err != nil {
		return nil, version, &hint.Error{Op: "start the node", Err: err, Hint: "supervisor doctor --fix-link"}
	}
	foreign := make(chan error, 1)
	go func() { foreign <- WaitNoForeign(ctx, l.Root, l.DataDir(), foreignPatience) }()
	if u := e.InFlight(); u != nil && u.Phase != upgrade.Planned {
		if err := e.Attempt(); err != nil {
			<-foreign
			return nil, version, err
		}
	}
	if err := <-foreign; err != nil {
		return nil, version, errors.Join(err, e.GiveBack())
	}
	if err := ctx.Err(); err != nil {
		return nil, version, errors.Join(err, e.GiveBack())
	}
	spec := s.spec(version, tee)
	s.log.Info("running app", "path", spec.Path, "args", spec.Args)
	child, err := StartChild(spec)
	if err != nil {
		return nil, version, err
	}
	e.Started(child.StartedAt())
	if err := s.o.Lock.SetNode(child.Pid()); err != nil {
		s.log.Warn("cannot note the node's pid in the lock", "error", err)
	}
	return child, version, nil
}

func (s *Supervisor) spec(v upgrade.Version, tee bool) ChildSpec {
	args, env := s.o.Command(v)
	spec := ChildSpec{
		Path: s.o.Layout.Binary(v), Args: args, Env: env, Dir: s.o.Layout.Root,
		Stdin: s.o.Stdin, Stdout: s.o.Stdout, Stderr: s.o.Stderr, Lock: s.o.Lock.File(),
	}
	if tee {
		spec.Lines = s.o.Lines.Line
	}
	return spec
}

// wantsLines tells whether the node's output must be read: for a height, or because a plan is pending whose height may
// have come without any other evidence.
func (s *Supervisor) wantsLines() bool {
	if s.o.Lines == nil {
		return false
	}
	_, pending := s.tracker.FilePlan()
	return s.o.LinesFor || (pending && s.journal.Upgrade == nil)
}

func (s *Supervisor) started(c *Child) {
	s.child, s.exited = c, c.Exited()
	s.live.Store(c)
	s.began = true
	s.tracker.NodeStarted()
	s.heightAt, s.heightFrom = time.Time{}, ""
	s.o.Heights.Reset()
	s.pace = pace{}
	s.heightTimer.Reset(firstHeight)
	s.chainTimer.Reset(chainEvery)
	s.clockTimer.Reset(okayAfter)
	if s.stopping { // a stop was requested while it was being started
		s.onExit = s.stoppedByRequest
		s.state = Stopping
		c.Terminate(s.stopSignal(), s.o.Config.StopTimeout)
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
	case errors.Is(err, ErrForeign) && !s.began:
		s.log.Error(err.Error(), "hint", hint.Of(err))
		s.finish(ExitLocked)
	case errors.Is(err, ErrForeign):
		s.log.Error(err.Error(), "hint", hint.Of(err))
		s.restartIn(s.o.Config.BackoffMax, "a foreign node runs")
	case u != nil && errors.Is(err, upgrade.ErrAttempts):
		s.attemptsUsedUp(err)
	case u != nil && u.Phase == upgrade.OnProbation:
		s.attemptEnded("it could not be started: "+err.Error(), 0)
	default:
		s.holdFor(err)
	}
}

// ended takes the end of the node: of the process, its group, and what it left behind.
func (s *Supervisor) ended(exit Exit) {
	lived := exit.At.Sub(s.child.StartedAt())
	s.child, s.exited = nil, nil
	s.live.Store(nil)
	s.heightTimer.Stop()
	s.clockTimer.Stop()
	s.chainTimer.Stop()
	if s.tidying != nil {
		s.tidying()
	}
	s.lastExit = describeExit(exit, s.version)
	s.log.Info("the node ended", "how", exit.String(), "lived", lived.Round(time.Millisecond), "forced", exit.Forced)
	if next := s.onExit; next != nil {
		s.onExit = nil
		next(exit)
		return
	}
	s.judge(exit, lived)
}

func describeExit(exit Exit, v upgrade.Version) *ExitStatus {
	e := &ExitStatus{At: exit.At.UTC(), Version: v.Name(), Forced: exit.Forced}
	if exit.Signal != 0 {
		e.Signal = new(exit.Signal.String())
	} else {
		e.Code = &exit.Code
	}
	return e
}

// judge finds out what an end that nobody asked for means. What the node wrote last is read first.
func (s *Supervisor) judge(exit Exit, lived time.Duration) {
	s.state = Backoff
	s.verdicts++
	id := s.verdicts
	s.ask(func(context.Context) func() {
		file := upgrade.LookAtPlanFile(s.o.Layout.Plan, s.o.Upgrade.Recase)
		signer := s.signer()
		if err := s.o.Recorder.Flush(); err != nil {
			s.log.Warn("cannot record the height", "error", err)
		}
		return func() {
			s.whenIdle(func() {
				if s.current(id) {
					s.verdict(exit, lived, file, signer)
				}
			})
		}
	})
}

// current tells whether the end of the node that verdict id is about still asks for one: an upgrade, an operation or a
// stop that came in between has made it its own.
func (s *Supervisor) current(id int) bool {
	return id == s.verdicts && s.child == nil && !s.stopping && !s.done && s.state != Held
}

func (s *Supervisor) verdict(exit Exit, lived time.Duration, file upgrade.PlanFile, signer int64) {
	s.tracker.SawFile(file, true)
	s.takeLines()
	if u := s.journal.Upgrade; u != nil && u.Phase == upgrade.OnProbation {
		s.unlessStopped(exit, func() { s.attemptEnded("the new node ended: "+exit.String(), s.reached(signer)) })
		return
	}
	if s.due != nil { // it was waited for its binary; now the node is gone, too
		s.prepare()
		return
	}
	p, ev, verdict := s.tracker.Ended(time.Now(), signer, true)
	switch verdict {
	case upgrade.Due:
		s.log.Info("the node ended at the height of a plan", "plan", p.Name, "height", p.Height, "evidence", ev)
		s.trigger(p, ev)
	case upgrade.Unclear:
		s.unlessStopped(exit, func() { s.unclear(p) })
	default:
		s.unlessStopped(exit, func() { s.crashed(exit, lived) })
	}
}

// unlessStopped does what the end of the node asks for, but gives a stop request that is on its way the time to arrive
// where the node may have been stopped by the same hand.
func (s *Supervisor) unlessStopped(exit Exit, then func()) {
	if !byHand(exit) {
		then()
		return
	}
	id := s.verdicts
	time.AfterFunc(settle, func() {
		s.post(func() {
			s.whenIdle(func() {
				if s.current(id) {
					then()
				}
			})
		})
	})
}

// byHand tells whether an exit looks like an answer to a signal.
func byHand(exit Exit) bool {
	signals := []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGKILL, syscall.SIGHUP, syscall.SIGQUIT}
	codes := []int{0, 128 + int(syscall.SIGTERM), 128 + int(syscall.SIGINT)}
	if exit.Signal != 0 {
		return slices.Contains(signals, exit.Signal)
	}
	return slices.Contains(codes, exit.Code)
}

// unclear holds: a plan is pending, and whether its height has come can't be told. Never switch on a guess.
func (s *Supervisor) unclear(p upgrade.Plan) {
	next := "look at " + s.o.Layout.Plan + ", then: supervisor resume"
	if p.Name != "" {
		next = "supervisor upgrade apply " + p.Name + " (its height has come), or supervisor upgrade skip " + p.Name +
			", or supervisor resume (start the current version again)"
	}
	s.holdWith(s.tracker.Describe(), next)
}

// crashed applies the restart policy.
func (s *Supervisor) crashed(exit Exit, lived time.Duration) {
	d := s.policy.Next(exit, lived)
	if s.o.SnapshotOn != nil && s.o.SnapshotOn("exit") && s.o.Snapshots != nil {
		s.do("snapshot", func(ctx context.Context) error { return s.snapshotAt(ctx, "exit") }, func(err error) {
			if err != nil {
				s.log.Warn("cannot take a snapshot after the node's end", "error", err)
			}
			s.afterCrash(exit, d)
		})
		return
	}
	s.afterCrash(exit, d)
}

func (s *Supervisor) afterCrash(exit Exit, d Decision) {
	switch {
	case !d.Restart:
		s.log.Info("the node is not restarted", "reason", d.Reason)
		s.code = exit.ExitCode()
		s.finish(exit.ExitCode())
	default:
		if s.policy.CrashLoop() {
			s.o.Event("crash loop", d.Reason)
		}
		s.restarts++
		s.restartIn(d.Delay, d.Reason)
	}
}

func (s *Supervisor) restartIn(d time.Duration, why string) {
	s.state = Backoff
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
		return upgrade.Unknown
	}
	return h
}

// takeLines hands the tracker what the node's own lines said.
func (s *Supervisor) takeLines() {
	if s.o.Lines == nil {
		return
	}
	if n, ok := s.o.Lines.Needed(); ok {
		if name, err := upgrade.NormaliseName(n.Name, s.o.Upgrade.Recase); err == nil {
			s.tracker.SawLine(name, n.Height)
		}
	}
}

// unsafeSkips reads --unsafe-skip-upgrades out of the node's arguments, in both of its forms.
func unsafeSkips(command func(upgrade.Version) (args, env []string)) map[int64]bool {
	args, _ := command(upgrade.Genesis)
	skips := map[int64]bool{}
	add := func(s string) bool {
		h, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
		if err == nil {
			skips[h] = true
		}
		return err == nil
	}
	const flag = "--unsafe-skip-upgrades"
	for i, a := range args {
		if value, ok := strings.CutPrefix(a, flag+"="); ok {
			for _, h := range strings.Split(value, ",") {
				add(h)
			}
		}
		if a != flag {
			continue
		}
		for _, next := range args[i+1:] {
			if strings.HasPrefix(next, "-") {
				break
			}
			for _, h := range strings.Split(next, ",") {
				add(h)
			}
		}
	}
	return skips
}

func allStacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}
