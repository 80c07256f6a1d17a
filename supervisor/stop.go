package supervisor

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"nodevisor/supervisor/child"
	"nodevisor/supervisor/status"
)

// dumpPatience is how long the end of `run` waits for stacks to be written; a node may end faster than they are.
const dumpPatience = time.Second

// onePress is how long the same stop signal again is the same request: what signals a process and its group (timeout(1), a
// shell that forwards, kill of a group) reaches us twice within a moment, and a person takes longer.
const onePress = time.Second

// stopRequest is the request to end `run`, where one came (Supervisor.stopping).
type stopRequest struct {
	at    time.Time
	by    syscall.Signal  // 0 = a command
	did   *stopped        // what it did to the node; nil = nothing yet, or no node ran
	dumps []chan struct{} // each closed when the stacks that a SIGQUIT asked for are written
}

// stopped is what a request to end `run` did to the node.
type stopped struct {
	forced    bool          // it had to be killed
	trial     bool          // it was on probation: its attempt is given back
	restoring bool          // it was restoring its state
	took      time.Duration // from the request to its end
}

// passOn hands a signal that only the node understands to it, always.
func (s *Supervisor) passOn(sig syscall.Signal) {
	if s.child == nil || sig == syscall.SIGPIPE {
		return
	}
	if err := s.child.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.log.Warn("cannot pass a signal on", "signal", sig.String(), "error", err)
	}
}

// stopSignalled handles SIGINT, SIGTERM and SIGQUIT. The latter shows all goroutines, too: an operator sends it to see
// what hangs.
func (s *Supervisor) stopSignalled(sig syscall.Signal) {
	if s.stopping && sig == s.stop.by && time.Since(s.stop.at) < onePress {
		s.log.Info("the same stop request, a moment later: once more kills the node", "signal", sig.String())
		return
	}
	if !s.stopping {
		s.stop.by = sig
	}
	s.log.Info("stop requested", "signal", sig.String())
	if sig == syscall.SIGQUIT {
		s.dump()
	}
	s.stopNode(sig)
}

// dump shows all goroutines beside the loop: a stderr that nobody reads must not keep the node from its signal.
func (s *Supervisor) dump() {
	over := make(chan struct{})
	s.stop.dumps = append(s.stop.dumps, over)
	s.spawn(func() {
		defer close(over)
		os.Stderr.WriteString(allStacks()) //nolint:errcheck // nobody reads it
	})
}

// awaitDumps lets what an operator asked for be written before the process ends; a stderr that is full gets dumpPatience.
func (s *Supervisor) awaitDumps() {
	enough := time.After(dumpPatience)
	for _, over := range s.stop.dumps {
		select {
		case <-over:
		case <-enough:
			return
		}
	}
}

// requestStop begins the end of `run`.
func (s *Supervisor) requestStop() { s.stopNode(s.stopSignal()) }

// stopNode stops the node for good. The first request is graceful, the second one kills, and breaks off what is done
// after the stop. The end itself is endRun's, which decide calls once the node is gone and no job runs.
func (s *Supervisor) stopNode(sig syscall.Signal) {
	again := s.stopping
	s.stopping = true
	if !again {
		s.stop.at = time.Now()
	}
	restoring := s.restore != nil
	s.restartTimer.Stop()
	if s.o.Notify != nil {
		s.o.Notify.Stopping()
		s.alive() // the time that the stop may take is asked for now, not with the next sign of life
	}
	if s.job != nil {
		s.job.cancel() // it ends between two effects; the journal says where
	}
	if s.state != status.Held {
		s.state = status.Stopping
	}
	if e := s.ending; s.child == nil && e != nil && byHand(e.exit) {
		// The node heard of it before us: what looked like an end by itself was this stop.
		s.ending = nil
		s.stop.did = &stopped{trial: s.trial}
	}
	if s.child == nil {
		s.units.cancel() // no node is left that other units are acted upon for
		return
	}
	s.onExit = func(exit child.Exit) {
		if exit.Forced {
			s.log.Error("the node did not stop in time and was killed", "timeout", s.o.Config.StopTimeout)
		}
		s.stop.did = &stopped{forced: exit.Forced, trial: s.trial, restoring: restoring, took: time.Since(s.stop.at)}
	}
	s.hangUp()
	switch {
	case again:
		s.log.Warn("stop requested again: killing the node")
		s.units.cancel()
		s.child.Terminate(syscall.SIGKILL, 0)
	case sig == syscall.SIGINT && s.child.SharesTerminal():
		s.child.Terminate(0, s.stopTimeout()) // Ctrl-C has reached it already
		s.terminate()
	default:
		s.terminate()
	}
}

// hangUp closes the connections to the node: a gRPC server that is told to stop waits a second for each idle client
// (grpc-go, internal/transport/http2_server.go), which would be a second of downtime.
func (s *Supervisor) hangUp() { s.spawn(s.o.Heights.Close) }

// endRun ends `run` as it was asked to: with 0 where the node ended in time, whatever its code. What the stop leaves to be
// recorded is recorded once, and only where a node was stopped.
func (s *Supervisor) endRun() {
	was := s.stop.did
	if was == nil {
		s.finish(0)
		return
	}
	code := 0
	if was.forced {
		code = 1
	}
	last := s.store.snapshots.Last
	s.do("stop", s.unitsDown(s.afterTidying(func(ctx context.Context) error {
		var given error
		if was.trial {
			given = s.o.Engine.GiveBack()
		}
		recorded := errors.Join(given, s.o.Recorder.Flush(), s.o.Lock.ClearNode())
		s.takeAtStop(ctx, was, last)
		return recorded
	})), func(err error) {
		if err != nil {
			s.log.Error("cannot record the stop", "error", err)
		}
		s.finish(code)
	})
}

// stopOnAbort handles the watchdog's SIGABRT on a goroutine of its own, because the loop may be what hangs: the node is
// stopped gracefully first, then the stacks are printed. Under KillMode=mixed it would be killed hard with us.
func (s *Supervisor) stopOnAbort() chan<- os.Signal {
	abort := make(chan os.Signal, 1)
	signal.Notify(abort, syscall.SIGABRT)
	go func() {
		select {
		case <-abort:
			s.lastWords("SIGABRT")
		case <-s.ctx.Done():
		}
	}()
	return abort
}

func (s *Supervisor) stopOnPanic() {
	if p := recover(); p != nil {
		s.log.Error("internal error: the supervisor panicked", "panic", p)
		s.lastWords(string(debug.Stack()))
	}
}

// lastWords stops the node as well as can be done without the loop, dumps all stacks and ends the process with 134
// (128 + SIGABRT). Nobody starts a node after it has begun, and it is done once: a second caller waits for the end.
func (s *Supervisor) lastWords(why string) {
	s.starting.Lock() // for good
	if c := s.live.Load(); c != nil {
		c.Terminate(s.stopSignal(), s.o.Config.StopTimeout)
		select {
		case <-c.Gone():
		case <-time.After(s.o.Config.StopTimeout + time.Second):
		}
	}
	os.Stderr.WriteString(why + "\n" + allStacks()) //nolint:errcheck // nobody reads it
	os.Exit(128 + int(syscall.SIGABRT))
}

func allStacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}
