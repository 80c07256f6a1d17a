package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pause lies between a SIGCHLD and the look at who ended. It is mostly an own child, whose waiter has work to do at that
// very moment, and an orphan can wait.
const pause = 20 * time.Millisecond

// lookAgain is how long after a look the reaper looks once more: the kernel's list may miss an entry while
// another one leaves it (proc_pid_task(5), "children"), and no further signal would tell.
const lookAgain = 250 * time.Millisecond

// Reap waits for the orphans that have ended, and returns how many there were. It never blocks on a live one.
func Reap() int {
	if _, ended := look(); !ended {
		return 0
	}
	n, _ := sweep(func(int) {})
	return n
}

// EachOrphan calls f for every live adopted process, in ascending order; those that have ended are reaped on the way. While f runs nothing is reaped, so that the pid can't have become
// another process's and may be signalled. f must not call this package's other functions but ReadStat.
func EachOrphan(f func(pid int)) error {
	_, err := sweep(f)
	return err
}

// look asks the kernel about all children at once, those of every thread, and takes none: is there any, and has one ended?
// One that is waited for by its own Wait counts, too. It is one system call, where a walk through /proc is a hundred, and
// after the end of a node that left nothing behind the answer is known by it.
func look() (some, ended bool) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.ECHILD):
			return false, false
		default:
			return true, err != nil || info.Signo != 0 // an error: it isn't known
		}
	}
}

// sweep reaps until a whole walk found nothing more to reap: a process that ends hands its children over before it
// becomes a zombie, so that only a walk without a death has seen everyone. f is then called for those that live.
func sweep(f func(pid int)) (reaped int, err error) {
	if some, _ := look(); !some {
		return 0, nil
	}
	own.Lock()
	defer own.Unlock()
	var live []int
	for again := true; again; {
		again = false
		pids, err := children()
		if err != nil {
			return reaped, fmt.Errorf("cannot list child processes: %w", err)
		}
		live = live[:0]
		for _, pid := range pids {
			if Owns(pid) {
				continue
			}
			switch got, err := wait4(pid); {
			case err != nil: // gone, or not ours to wait for
			case got == pid:
				reaped, again = reaped+1, true
			default:
				live = append(live, pid)
			}
		}
	}
	for _, pid := range live {
		f(pid)
	}
	return reaped, nil
}

func wait4(pid int) (int, error) {
	for {
		got, err := unix.Wait4(pid, nil, unix.WNOHANG|unix.WALL, nil)
		if !errors.Is(err, syscall.EINTR) {
			return got, err
		}
	}
}

// ReapOn reaps orphans whenever a child ends, until ctx is done; the channel is closed when it has stopped. It uses no
// CPU while nothing ends.
func ReapOn(ctx context.Context) <-chan struct{} {
	settlePidfd()
	ended := make(chan os.Signal, 1) // one pending signal is enough: each walk sees all
	signal.Notify(ended, syscall.SIGCHLD)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer signal.Stop(ended)
		var soon <-chan time.Time
		again := time.After(0) // those that ended before the first signal
		for {
			select {
			case <-ctx.Done():
				return
			case <-ended:
				if soon == nil {
					soon = time.After(pause)
				}
			case <-soon:
				Reap()
				soon, again = nil, time.After(lookAgain)
			case <-again:
				Reap()
				again = nil
			}
		}
	}()
	return done
}

// children lists this process's children, own and adopted, ended and alive. It reads until two lists are equal, for
// an entry that leaves the list during a read can hide its neighbour.
func children() ([]int, error) {
	const attempts = 8
	last, err := childrenOf("/proc", os.Getpid())
	for range attempts {
		if err != nil {
			return nil, err
		}
		var next []int
		next, err = childrenOf("/proc", os.Getpid())
		if slices.Equal(last, next) {
			break
		}
		last = next
	}
	return last, err
}

func childrenOf(procfs string, pid int) ([]int, error) {
	pids, err := childrenByTask(procfs, pid)
	if errors.Is(err, fs.ErrNotExist) {
		pids, err = childrenByStat(procfs, pid) // a kernel without CONFIG_PROC_CHILDREN
	}
	slices.Sort(pids)
	return pids, err
}

// childrenByTask reads /proc/PID/task/*/children. The children belong to the thread that made or adopted them, so
// every thread is asked.
func childrenByTask(procfs string, pid int) ([]int, error) {
	dir := filepath.Join(procfs, strconv.Itoa(pid), "task")
	// The main thread's entry stays as long as the process: where it has no list, none has.
	if _, err := os.Stat(filepath.Join(dir, strconv.Itoa(pid), "children")); err != nil {
		return nil, err
	}
	threads, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, t := range threads {
		data, err := readFile(filepath.Join(dir, t.Name(), "children"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // the thread has ended, its children are another thread's
		}
		if err != nil {
			return nil, err
		}
		for field := range bytes.FieldsSeq(data) {
			child, err := strconv.Atoi(string(field))
			if err != nil {
				return nil, err
			}
			pids = append(pids, child)
		}
	}
	return pids, nil
}

// childrenByStat reads the parent of every process there is.
func childrenByStat(procfs string, pid int) ([]int, error) {
	all, err := pidsIn(procfs)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, p := range all {
		if st, err := readStat(procfs, p); err == nil && st.Parent == pid {
			pids = append(pids, p)
		}
	}
	return pids, nil
}
