// Package proc starts programs, and reaps only what it did not start.
//
// A supervisor that is a subreaper (or PID 1) inherits the orphans of its descendants and must wait for them, or they
// stay zombies. The usual loop around wait4(-1) takes the exit codes of the process's own children away from os/exec:
// measured, 87 of 1,000 were lost. Here every own child is registered under a lock that is held over fork and
// registration, and the reaper, under the same lock, waits by pid for those children alone that nobody registered.
//
// The price is one rule: every program that this process starts goes through Start (or Run, Output). A child that was
// started past it looks like an orphan.
package proc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A program that was written a moment ago can't be executed while any forked, not yet exec'd process still holds the
// writing descriptor (https://go.dev/issue/22315); measured, 4 % of the starts beside other forks. It passes by itself.
const (
	busyRetries = 5
	busyPause   = 20 * time.Millisecond
)

// own is the set of children that this process started and has not waited for. The kernel keeps one list of children
// per process, so there is one registry per process: the only state of this package.
//
// Invariant: a pid is in it from before the reaper can see the child until after os/exec has waited for it.
var own = struct {
	sync.RWMutex // write side: the reaper, at work on the list of children
	mu           sync.Mutex
	pids         map[int]struct{}
}{pids: map[int]struct{}{}}

// BecomeSubreaper makes this process the adopter of all orphans among its descendants (prctl(2),
// PR_SET_CHILD_SUBREAPER). It doesn't reap them: see ReapOn.
func BecomeSubreaper() error {
	settlePidfd()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot become a subreaper: %w", err)
	}
	return nil
}

// settlePidfd lets package os make its one test of pidfds now: the test forks a child that no registry knows, and a
// reaper that took it would turn pidfds off for the process.
func settlePidfd() {
	if p, err := os.FindProcess(os.Getpid()); err == nil {
		_ = p.Release()
	}
}

// Start starts cmd as an own child; it must be waited for with Wait. A busy program file (ETXTBSY) is tried again for
// 100 ms, except for commands made by exec.CommandContext, whose context a second try would lose.
func Start(cmd *exec.Cmd) error {
	for try := 0; ; try++ {
		err := startOnce(cmd)
		if !errors.Is(err, syscall.ETXTBSY) || try == busyRetries || cmd.Cancel != nil {
			return err
		}
		time.Sleep(busyPause)
		// A Cmd starts once only, also where that start failed.
		*cmd = exec.Cmd{
			Path: cmd.Path, Args: cmd.Args, Env: cmd.Env, Dir: cmd.Dir,
			Stdin: cmd.Stdin, Stdout: cmd.Stdout, Stderr: cmd.Stderr, ExtraFiles: cmd.ExtraFiles,
			SysProcAttr: cmd.SysProcAttr, WaitDelay: cmd.WaitDelay, Err: cmd.Err,
		}
	}
}

// startOnce forks and registers under the read side, so that the reaper sees either none of it or both. Several starts
// run side by side.
func startOnce(cmd *exec.Cmd) error {
	own.RLock()
	defer own.RUnlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	own.mu.Lock()
	own.pids[cmd.Process.Pid] = struct{}{}
	own.mu.Unlock()
	return nil
}

// Wait waits for a command that Start started, as cmd.Wait does, and gives its pid back. It doesn't wait for a reaper at
// work, which may have this pid on its list: the process is gone by now, and no start, which would be held up, can give
// the number to another own child meanwhile.
func Wait(cmd *exec.Cmd) error {
	if cmd.Process == nil {
		return errors.New("cannot wait: not started")
	}
	err := cmd.Wait()
	own.mu.Lock()
	defer own.mu.Unlock()
	delete(own.pids, cmd.Process.Pid)
	return err
}

// EndWithUs has the kernel kill cmd when this process is killed (prctl(2), PR_SET_PDEATHSIG): for programs whose work is lost
// then anyway, and that would go on with it beside the next supervisor's. The signal comes when the thread ends that forked,
// and Go ends a thread only together with a goroutine that is locked to it, which this program has none of.
func EndWithUs(cmd *exec.Cmd) {
	attr := syscall.SysProcAttr{}
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	attr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr = &attr
}

// Run starts cmd and waits for it.
func Run(cmd *exec.Cmd) error {
	if err := Start(cmd); err != nil {
		return err
	}
	return Wait(cmd)
}

// Environ is environ without the addresses of this process's own service manager: a program that answers there in its name
// would break readiness and watchdog (sd_notify(3), sd_watchdog_enabled(3)).
func Environ(environ []string) (clean []string) {
	for _, entry := range environ {
		switch name, _, _ := strings.Cut(entry, "="); name {
		case "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC":
		default:
			clean = append(clean, entry)
		}
	}
	return clean
}

// Owns tells whether pid is a child that Start started and nobody has waited for yet.
func Owns(pid int) bool {
	own.mu.Lock()
	defer own.mu.Unlock()
	_, ok := own.pids[pid]
	return ok
}

// AwaitEnd blocks until the own child pid has ended, and leaves it a zombie: until Wait is called, neither its pid nor
// the process group that it leads can become another's, so that both can be signalled without a doubt.
func AwaitEnd(pid int) error {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
