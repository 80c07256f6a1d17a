package cli

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"nodevisor/internal/hint"
)

// The exit codes of the commands; `run` has its own (package supervisor).
const (
	ExitOK     = 0
	ExitFailed = 1
	ExitUsage  = 2 // usage or configuration
	ExitHeld   = 3 // held, needs an operator
	ExitLocked = 4 // another supervisor, or a node that it left behind
)

// ExitError ends the process with a code of its own, and prints nothing.
type ExitError int

func (e ExitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Interrupted is the end of a command by a signal that it took; its exit code is a shell's, 128 + n.
type Interrupted struct{ Signal syscall.Signal }

func (e *Interrupted) Error() string { return "interrupted (" + unix.SignalName(e.Signal) + ")" }

// UsageError is a mistake on the command line.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }

// Unwrap is the mistake, with the hint that it may have.
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef makes a mistake on the command line out of a text.
func Usagef(format string, args ...any) error { return &UsageError{Err: fmt.Errorf(format, args...)} }

// Advise gives err, whose text stands as it is, the command that shows how it is done right.
func Advise(err error, next string) error { return advised{err, next} }

type advised struct {
	error
	next string
}

// Unwrap carries the hint to hint.Of.
func (e advised) Unwrap() error { return &hint.Error{Op: "go on", Err: e.error, Hint: e.next} }

// AsRightUser is the fix of everything that this user may not see.
const AsRightUser = "run the command as the node's user, or as root"
