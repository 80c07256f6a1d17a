// Package child is the node's process: started, told signals, stopped, and waited for with everything that it started.
//
// A node is more than its main process: its group, and what left the group and was adopted. It has ended only when all of
// them are gone, for what is left may still write to the data. One goroutine for each node waits and carries out stop
// orders; the process must be a subreaper (proc.BecomeSubreaper). What the node writes goes to the supervisor's own files
// as it is, or through a tee that reads its lines along and never slows it.
package child

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
)

// DefaultLinger is Spec.Linger where it is 0.
const DefaultLinger = 10 * time.Second

// Spec says how the node is started.
type Spec struct {
	Path string   // the binary; also argv[0]
	Args []string // without argv[0]
	Env  []string // nil: the supervisor's own. What speaks to systemd is stripped in any case
	Dir  string   // "" = the supervisor's own

	// NotifySocket is what the node is given as NOTIFY_SOCKET; "" = none.
	NotifySocket string

	// Lock is inherited by the node as descriptor 3, so that the home stays locked while the node lives, whatever
	// becomes of the supervisor. nil in tests only.
	Lock *os.File

	// nil is /dev/null.
	Stdin, Stdout, Stderr *os.File

	// Lines gets the node's lines, of both streams, without their newline, one at a time, cut to 64 KiB. nil: the
	// node inherits Stdout and Stderr themselves. Else a tee passes every byte on to them, and if they are one file
	// the order of the writes is kept. A slow Lines loses the oldest lines and never slows the node.
	Lines func(line []byte)

	// Linger is how long processes that the node leaves behind get between SIGTERM and SIGKILL.
	Linger time.Duration
}

// Process is the node's process with everything that it started: its process group, and its descendants that this
// process adopted. Its methods may be used by several goroutines.
type Process struct {
	cmd       *exec.Cmd
	pid       int
	shares    bool // the node is in our own process group
	born      uint64
	startedAt time.Time
	linger    time.Duration
	tee       *tee // nil: no tee
	exited    chan Exit
	over      chan struct{}
	poke      chan struct{} // order has changed

	// Of the goroutine that supervises alone: who has got the stop signal.
	groupTold bool
	told      map[int]bool

	mu     sync.Mutex // held while signalling and while reaping: a pid that may be another's is never signalled
	reaped bool       // the main process was waited for
	gone   bool       // and its group is empty
	order  stopOrder
}

// stopOrder is what Terminate asked for.
type stopOrder struct {
	asked    bool
	signal   syscall.Signal // 0: the node knows already
	deadline time.Time      // of the SIGKILL
}

// Start starts the node. proc.BecomeSubreaper should have been called: else processes that leave the node's group
// escape. The error is a *hint.Error.
func Start(spec Spec) (*Process, error) {
	cmd := exec.Command(spec.Path, spec.Args...)
	if spec.Env == nil {
		spec.Env = os.Environ()
	}
	cmd.Env, cmd.Dir = proc.Environ(spec.Env), spec.Dir
	if spec.NotifySocket != "" {
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+spec.NotifySocket)
	}
	if spec.Lock != nil {
		cmd.ExtraFiles = []*os.File{spec.Lock}
	}
	c := &Process{
		cmd: cmd, linger: spec.Linger,
		exited: make(chan Exit, 1), over: make(chan struct{}), poke: make(chan struct{}, 1), told: map[int]bool{},
	}
	if c.linger <= 0 {
		c.linger = DefaultLinger
	}
	where := placeOf(spec.Stdin)
	c.shares = where == foreground
	// A reader in the background, in a group of its own, would be stopped by SIGTTIN, and stay so: it gets /dev/null.
	// So it does for nil, which as a typed nil would hide from os/exec that there is no file.
	if spec.Stdin != nil && where != background {
		cmd.Stdin = spec.Stdin
	}
	// No Pdeathsig: a node must outlive a supervisor that was killed, it is found again by the lock.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: !c.shares}
	if err := c.start(spec); err != nil {
		return nil, startError(spec.Path, err)
	}
	go c.supervise()
	return c, nil
}

// start wires the output up and forks.
func (c *Process) start(spec Spec) error {
	var err error
	if spec.Lines == nil {
		if spec.Stdout != nil {
			c.cmd.Stdout = spec.Stdout
		}
		if spec.Stderr != nil {
			c.cmd.Stderr = spec.Stderr
		}
	} else if c.tee, err = newTee(spec.Stdout, spec.Stderr, spec.Lines); err != nil {
		return err
	} else {
		c.cmd.Stdout, c.cmd.Stderr = c.tee.nodeEnds()
	}
	c.startedAt = time.Now()
	if err := proc.Start(c.cmd); err != nil {
		c.tee.abandon()
		return err
	}
	c.tee.run()
	c.pid = c.cmd.Process.Pid
	// It isn't waited for yet, so it is there, if only as a zombie.
	if st, err := proc.ReadStat(c.pid); err == nil {
		c.born = st.StartTime
	}
	return nil
}

// Pid is the main process's; it may have ended.
func (c *Process) Pid() int { return c.pid }

// StartedAt is the moment before the fork.
func (c *Process) StartedAt() time.Time { return c.startedAt }

// SharesTerminal tells that the node is in the supervisor's own process group, the foreground group of a terminal:
// Ctrl-C has reached it already, and mustn't be passed on (see Terminate with signal 0).
func (c *Process) SharesTerminal() bool { return c.shares }

// Exited delivers one value, once the main process, its group and all that this process adopted of it are gone, and
// the last line was handed to Lines. Only then is the node stopped. The channel is never closed.
func (c *Process) Exited() <-chan Exit { return c.exited }

// Gone is closed when Exited has its value: for those who don't take it.
func (c *Process) Gone() <-chan struct{} { return c.over }

// Has tells whether a living process is the node's: its main process, or of its group. In a terminal the group is ours,
// too, and only the main process counts.
func (c *Process) Has(pid int) bool {
	if pid == c.pid || c.shares {
		return pid == c.pid
	}
	group, err := syscall.Getpgid(pid)
	return err == nil && group == c.pid
}

// Signal sends sig to the node's group, or to its main process alone where the node shares our group. The error is
// os.ErrProcessDone when there is nobody left to hear it.
func (c *Process) Signal(sig syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.signal(sig)
}

// signal needs mu.
func (c *Process) signal(sig syscall.Signal) error {
	target := -c.pid
	if c.shares {
		target = c.pid
	}
	if c.gone || (c.shares && c.reaped) {
		return os.ErrProcessDone
	}
	err := syscall.Kill(target, sig)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	if err != nil {
		return fmt.Errorf("cannot send %s to process %d: %w", unix.SignalName(sig), c.pid, err)
	}
	return nil
}

// Terminate begins the graceful stop, without blocking: sig to the node's group and to its adopted orphans, SIGKILL to
// what is left of them after timeout. sig 0 sends nothing: the node has been told (by Ctrl-C), only the time runs.
//
// A node is told once: a second call sends no signal, for many programs take a second SIGTERM as an order to drop
// everything. It can only bring the SIGKILL forward; with timeout 0, to now.
func (c *Process) Terminate(sig syscall.Signal, timeout time.Duration) {
	deadline := time.Now().Add(timeout)
	c.mu.Lock()
	if !c.order.asked {
		c.order = stopOrder{asked: true, signal: sig, deadline: deadline}
	} else if deadline.Before(c.order.deadline) {
		c.order.deadline = deadline
	}
	c.mu.Unlock()
	select {
	case c.poke <- struct{}{}:
	default: // it will read the order anyway
	}
}

// place is where a process group stands towards a terminal.
type place int

const (
	elsewhere  place = iota // no terminal, or not the one that controls us
	foreground              // its signals and its input are for our group
	background              // reading it stops the reader
)

func placeOf(f *os.File) place {
	if f == nil {
		return elsewhere
	}
	var group int
	var err error
	// Control keeps the descriptor as it is; Fd would make it blocking.
	conn, cerr := f.SyscallConn()
	if cerr != nil {
		return elsewhere
	}
	if cerr = conn.Control(func(fd uintptr) { group, err = unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) }); cerr != nil || err != nil {
		return elsewhere
	}
	if group == syscall.Getpgrp() {
		return foreground
	}
	return background
}

// startError says what to do about a binary that can't be executed.
func startError(path string, err error) error {
	next := "supervisor doctor"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, serr := os.Stat(path); serr == nil {
			next = "the binary is there, its loader or interpreter is not: file " + path
		} else {
			next = "put the binary there, or: supervisor init BINARY"
		}
	case errors.Is(err, fs.ErrPermission):
		next = "chmod +x " + hint.Quote(path) + ", and look for a noexec mount"
	case errors.Is(err, syscall.ENOEXEC):
		next = "the binary is for another machine: file " + path
	}
	return &hint.Error{Op: "start node", Path: path, Err: err, Hint: next}
}
