package supervisor

import (
	"time"

	"nodevisor/supervisor/child"
	"nodevisor/supervisor/status"
)

// Notifier is told what systemd wants to know. Package systemd satisfies it. The loop calls it: none of it blocks.
type Notifier interface {
	// Ready says, once, that the node lives.
	Ready()
	// Status is one line for people.
	Status(text string)
	// Stopping says that the end of `run` has begun.
	Stopping()
	// Alive is the loop's sign of life. With extend > 0 a start or a stop may take that much longer from now on.
	Alive(extend time.Duration)
}

// ReadyWhen says when the service counts as ready.
type ReadyWhen string

// The values of ReadyWhen.
const (
	ReadyStarted ReadyWhen = "started" // the node was started and lived a second
	ReadyHealthy ReadyWhen = "healthy" // and its height was read
)

const (
	// aliveEvery is how often the loop gives a sign of life where nothing asks for more.
	aliveEvery = 5 * time.Second
	// statusEvery is how often heights and progress are told at most; what changes the state is told at once.
	statusEvery = time.Second
	// minExtension is the least that a stop is extended by at each sign of life; else twice the stop timeout: should the
	// loop hang in the middle of a stop, the node has still got all of its own time.
	minExtension = 30 * time.Second
)

// telling is what the service manager was told, and what is known for it of the node.
type telling struct {
	timer     *time.Timer    // of the next sign of life
	ready     bool           // READY=1 was sent
	what      string         // the part of the status that was told at once
	text      string         // the whole of it
	at        time.Time      // when
	healthy   *child.Process // the node whose height was read, or that said that it is ready
	nodeReady *child.Process // the node that said READY=1 (node_notify)
	nodeTells bool           // the node that was started last was given a socket to say so
	nodeText  string         // what that node says of itself
}

// tell tells the service manager what is new. It is called before the loop waits.
func (s *Supervisor) tell(st *status.Document) {
	if s.o.Notify == nil {
		return
	}
	if !s.tale.ready && !s.stopping && s.isReady() {
		s.tale.ready = true
		s.o.Notify.Ready()
	}
	text := st.Line(s.nodeText())
	if text == s.tale.text {
		return
	}
	if since := time.Since(s.tale.at); st.Message == s.tale.what && since < statusEvery {
		s.tale.timer.Reset(statusEvery - since) // the loop comes by again
		return
	}
	s.tale.what, s.tale.text, s.tale.at = st.Message, text, time.Now()
	s.o.Notify.Status(text)
}

// isReady tells whether systemd's start job may end: the node lives, or it is at rest for good reason and systemd must not
// take the wait for a start that hangs.
func (s *Supervisor) isReady() bool {
	switch s.state {
	case status.Held:
		return s.o.Config.Hold == HoldWait
	case status.Upgrading, status.WaitingForBinary:
		return true
	case status.Running:
		return s.child != nil && (s.o.ReadyWhen != ReadyHealthy || s.height.from != "") &&
			(!s.tale.nodeTells || s.tale.nodeReady == s.child)
	}
	return false
}

// alive feeds the watchdog, and extends what systemd allows a start or a stop. Only the loop calls it, out of its select:
// a loop that hangs neither feeds nor extends.
func (s *Supervisor) alive() {
	s.tale.timer.Reset(s.aliveEvery())
	s.o.Notify.Alive(s.extension())
}

func (s *Supervisor) aliveEvery() time.Duration {
	if s.o.NotifyEvery > 0 {
		return s.o.NotifyEvery
	}
	return aliveEvery
}

// extension is how much time is asked for from now on; 0 = none. A node that ends again and again at the start asks for
// none: then the unit's own TimeoutStartSec= decides.
func (s *Supervisor) extension() time.Duration {
	long := s.job != nil && s.job.long
	starts := !s.tale.ready && s.child != nil
	if s.stopping || s.onExit != nil || s.units.acting > 0 || long || starts {
		return max(2*s.o.Config.StopTimeout, minExtension)
	}
	return 0
}

// becameHealthy is called when a height of the node was read, or it said that it is ready.
func (s *Supervisor) becameHealthy() {
	s.restored()
	if s.child == nil || s.tale.healthy == s.child {
		return
	}
	s.tale.healthy = s.child
	s.summarize() // a new node has only made its data since the start
	s.actOn(AfterHealthy, func() {})
}

// NodeSaid takes what somebody wrote to the node's own notify socket (Options.NodeSocket). Only the node's process group is
// believed. It is called from outside the loop, while the sender may wait for it.
func (s *Supervisor) NodeSaid(pid int, ready bool, status string) {
	// A node may speak before the fork has returned here.
	s.starting.Lock()
	c := s.live.Load()
	s.starting.Unlock()
	if c == nil || !c.Has(pid) {
		s.log.Warn("a message for systemd is not passed on: it doesn't come from the node", "pid", pid)
		return
	}
	s.post(func() {
		if s.child == nil && s.job != nil { // it is told to the loop in a moment that it was started
			s.whenIdle(func() { s.nodeSaid(c, ready, status) })
			return
		}
		s.nodeSaid(c, ready, status)
	})
}

func (s *Supervisor) nodeSaid(c *child.Process, ready bool, status string) {
	if s.child != c {
		return
	}
	if status != "" {
		s.tale.nodeText = status
	}
	if ready && s.tale.nodeReady != c {
		s.tale.nodeReady = c
		s.log.Info("the node says that it is ready", "pid", c.Pid())
		s.becameHealthy()
	}
}

// nodeText is what the node that runs says of itself.
func (s *Supervisor) nodeText() string {
	if s.child == nil {
		return ""
	}
	return s.tale.nodeText
}
