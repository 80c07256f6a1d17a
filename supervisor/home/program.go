package home

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/capped"
	"nodevisor/internal/proc"
)

// ProgramLock is the path of the second lock of a home, by that of the first: see BeginProgram.
func ProgramLock(path string) string { return path + ".program" }

// BeginProgram makes a lock for one program that works on the node's data: who inherits file holds it. A supervisor that is
// killed leaves the program at work, and as long as it or what it started lives AcquireLock refuses the home (RoleProgram).
//
// It is a new file for each program, and not the home's own lock: what a program that has ended left behind on purpose (a
// server that its script started) keeps nobody out. release closes the file; with ended, the program's own end was seen.
func (l *Lock) BeginProgram() (file *os.File, release func(ended bool), err error) {
	path := ProgramLock(l.file.Name())
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("cannot remove lock: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make lock: %w", err)
	}
	if err := errors.Join(atomicfile.Adopt(path), unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("cannot lock %s: %w", path, err), f.Close())
	}
	return f, func(ended bool) {
		f.Close()
		if ended {
			os.Remove(path) //nolint:errcheck // one that is free is in nobody's way, and removed by who takes the home next
		}
	}, nil
}

// programAtWork says who has the lock of a program whose supervisor is gone, nil: nobody. Whoever asks has the home's lock.
func programAtWork(path string) (*LockedError, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return nil, os.Remove(path)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	for _, pid := range fileHolders(info) {
		if id, err := proc.Identify(pid); err == nil && pid != os.Getpid() {
			return &LockedError{Role: RoleProgram, Holder: foreignOf(id, "works for the upgrade")}, nil
		}
	}
	return &LockedError{Role: RoleUnknown}, nil
}

// FlockedBy looks a file up in the kernel's list of locks (proc_locks(5)) without touching it. The pid is the taker's, who
// may have ended; a file on btrfs or an overlay may show another device there, so the inode alone is compared.
func FlockedBy(path string) (pid int, held bool) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	inode := ":" + strconv.FormatUint(st.Ino, 10)
	for _, line := range capped.Lines("/proc/locks") {
		f := strings.Fields(line) // "1: FLOCK  ADVISORY  WRITE 123 08:01:4711 0 EOF"
		if len(f) >= 6 && f[1] == "FLOCK" && strings.HasSuffix(f[5], inode) {
			pid, _ = strconv.Atoi(f[4])
			return pid, true
		}
	}
	return 0, false
}
