package child

import (
	"errors"
	"io/fs"
	"syscall"
	"time"

	"nodevisor/internal/proc"
)

// The waits for left-behind processes: short at first, for most end at once, and never long.
const (
	firstLook = time.Millisecond
	lastLook  = 50 * time.Millisecond
)

// supervise is the one goroutine that waits for the node. The node isn't stopped when its main process has ended: what
// it left may still write to the data.
func (c *Process) supervise() {
	exit := c.untilEnd()
	c.untilGone(&exit)
	c.tee.finish()
	exit.Gone = time.Now()
	c.exited <- exit
	close(c.over)
}

// untilEnd carries out stop orders until the main process has ended, and reaps it.
func (c *Process) untilEnd() Exit {
	ended := make(chan struct{})
	go func() {
		_ = proc.AwaitEnd(c.pid) // fails only if there is nothing to wait for
		close(ended)
	}()
	var told, killed bool
	var kill <-chan time.Time
	for {
		select {
		case <-ended:
			at := time.Now()
			exit := c.reap()
			exit.At = at
			exit.Forced = killed && exit.Signal == syscall.SIGKILL
			return exit
		case <-c.poke:
			order := c.ordered()
			if left := time.Until(order.deadline); left > 0 && !told {
				c.tell(order.signal)
			}
			told = true
			kill = time.After(time.Until(order.deadline))
		case <-kill:
			killed = true
			c.kill()
		}
	}
}

func (c *Process) ordered() stopOrder {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.order
}

// tell sends the stop signal to everyone who belongs to the node now.
func (c *Process) tell(sig syscall.Signal) {
	if sig == 0 {
		return
	}
	c.tellGroup(sig)
	c.eachOrphan(func(st proc.Stat) { c.tellOrphan(st, sig) })
}

// tellGroup and tellOrphan tell each only once. A stopped process (SIGSTOP, SIGTTIN) would hear of it only when it
// continues, hence SIGCONT.
func (c *Process) tellGroup(sig syscall.Signal) {
	if !c.groupTold {
		c.groupTold = true
		_ = c.Signal(sig) // gone is fine
		_ = c.Signal(syscall.SIGCONT)
	}
}

// tellOrphan leaves those alone that are in the group: they were told with it.
func (c *Process) tellOrphan(st proc.Stat, sig syscall.Signal) {
	if !c.told[st.Pid] && (c.shares || st.Group != c.pid) {
		c.told[st.Pid] = true
		_ = syscall.Kill(st.Pid, sig)
		_ = syscall.Kill(st.Pid, syscall.SIGCONT)
	}
}

// kill sends SIGKILL to everyone who belongs to the node now.
func (c *Process) kill() {
	c.mu.Lock()
	_ = c.signal(syscall.SIGKILL)
	if !c.reaped {
		_ = syscall.Kill(c.pid, syscall.SIGKILL) // it may have joined another group
	}
	c.mu.Unlock()
	c.eachOrphan(func(st proc.Stat) { _ = syscall.Kill(st.Pid, syscall.SIGKILL) })
}

// reap waits for the main process, which has ended, and looks whether its group is empty, in one step towards those
// who signal: once both are given back to the kernel, the number may be another's.
func (c *Process) reap() Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = proc.Wait(c.cmd) // the code is in ProcessState
	c.reaped = true
	c.lookAtGroup()
	return exitOf(c.cmd.ProcessState)
}

// lookAtGroup needs mu. The group's number stays taken while it has a member, zombies included.
func (c *Process) lookAtGroup() {
	if !c.gone {
		c.gone = c.shares || errors.Is(syscall.Kill(-c.pid, 0), syscall.ESRCH)
	}
}

// untilGone ends what the main process left behind: SIGTERM, then SIGKILL after Linger, or at the stop order's
// deadline if that is earlier. Where nothing is left it takes no time.
func (c *Process) untilGone(exit *Exit) {
	deadline := exit.At.Add(c.linger)
	for wait := firstLook; c.left(); wait = min(2*wait, lastLook) {
		if order := c.ordered(); order.asked && order.deadline.Before(deadline) {
			deadline = order.deadline
		}
		remaining := time.Until(deadline)
		if remaining <= 0 {
			exit.Swept = true
			c.kill() // again at each look: there may be newcomers
			remaining = lastLook
		} else {
			c.tellGroup(syscall.SIGTERM)
			c.eachOrphan(func(st proc.Stat) { c.tellOrphan(st, syscall.SIGTERM) })
		}
		select {
		case <-c.poke:
		case <-time.After(min(wait, remaining)):
		}
	}
}

// left tells whether anything of the node lives. Orphans first: looking at them reaps those that ended, and only a
// reaped one has left the group.
func (c *Process) left() bool {
	orphans := 0
	c.eachOrphan(func(proc.Stat) { orphans++ })
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lookAtGroup()
	return orphans > 0 || !c.gone
}

// eachOrphan calls f for the adopted processes that began after the node did. Older ones can't be its own: a container's
// PID 1 also adopts what was started from outside.
//
// Where /proc can't be read there is no list; the group is all that can be known then.
func (c *Process) eachOrphan(f func(proc.Stat)) {
	_ = proc.EachOrphan(func(pid int) {
		st, err := proc.ReadStat(pid)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			f(proc.Stat{Pid: pid}) // hidden from us, but there
		case st.StartTime >= c.born:
			f(st)
		}
	})
}
