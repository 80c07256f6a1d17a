package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"nodevisor/internal/fetch"
)

const (
	maxAddresses = 8 << 30   // of address space: the Go runtime reserves far more than it uses
	maxMemory    = 1 << 30   // of writable memory: the widest archive needs some 300 MiB
	softMemory   = 512 << 20 // above it the collector works harder
	maxOpen      = 128       // open at a time
	maxCPU       = 30 * 60   // seconds
	slack        = 1 << 20   // bytes a file may be larger than max-bytes, so that it is we who say what is wrong
)

// confine gives up what the run won't need. It comes before the first byte from outside is read.
func confine(o options) error {
	unix.Umask(0o077)
	limits := []struct {
		what  int
		limit uint64
	}{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_FSIZE, uint64(o.maxBytes) + slack},
		{unix.RLIMIT_AS, maxAddresses},
		{unix.RLIMIT_DATA, maxMemory}, // since Linux 4.7 this counts private writable mappings, that is Go's heap
		{unix.RLIMIT_NOFILE, maxOpen},
		{unix.RLIMIT_CPU, maxCPU},
	}
	for _, l := range limits {
		var have unix.Rlimit
		if err := unix.Getrlimit(l.what, &have); err != nil {
			return fmt.Errorf("cannot read resource limit: %w", err)
		}
		limit := min(l.limit, have.Max) // a lower one of the operator's stays
		if err := unix.Setrlimit(l.what, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("cannot set resource limit: %w", err)
		}
	}
	debug.SetMemoryLimit(softMemory)
	noNewPrivileges()
	if o.lifeline >= 0 {
		go follow(os.NewFile(uintptr(o.lifeline), "lifeline"))
	}
	return nil
}

// noNewPrivileges makes set-user-id programs harmless to start, which this program never does: a second line of defence
// (PR_SET_NO_NEW_PRIVS(2const)). The flag is each thread's own; a binary linked with cgo can set only this one's.
func noNewPrivileges() {
	_, _, errno := syscall.AllThreadsSyscall6(syscall.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if errno != 0 {
		_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
}

// follow ends the program when the other end of the pipe is closed, which a SIGKILL of its holder does too.
func follow(lifeline *os.File) {
	_, _ = io.Copy(io.Discard, lifeline)
	os.Exit(1)
}

// failed is an error that knows its kind.
type failed struct {
	kind fetch.Kind
	err  error
}

func (f *failed) Error() string { return f.err.Error() }
func (f *failed) Unwrap() error { return f.err }

// refusal is a failure that another attempt wouldn't cure.
func refusal(format string, args ...any) error {
	return &failed{fetch.Refused, fmt.Errorf(format, args...)}
}

func temporary(format string, args ...any) error {
	return &failed{fetch.Temporary, fmt.Errorf(format, args...)}
}

func tooLarge(format string, args ...any) error {
	return &failed{fetch.TooLarge, fmt.Errorf(format, args...)}
}

// kindOf sorts an error: those of ours say what they are; of the others, a broken connection may be whole the next time.
func kindOf(err error) fetch.Kind {
	var ours *failed
	var network *net.OpError
	var timeout net.Error // an errno of a file is one too, so being one says nothing
	switch {
	case errors.As(err, &ours):
		return ours.kind
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fetch.NoSpace
	case errors.Is(err, syscall.EFBIG):
		return fetch.TooLarge
	case errors.As(err, &network), errors.As(err, &timeout) && timeout.Timeout(),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, io.ErrShortWrite),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fetch.Temporary
	}
	return fetch.Refused
}
