// Package hint holds the error that a person can mend: what was tried, on what, why it failed, and the next command.
//
// Code below the commands wraps causes with fmt.Errorf("cannot <verb> <object>: %w"); it returns an *Error where an
// operator can do something about it. The commands print the message, then "Hint: <next command>" on a line of its own.
package hint

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"
)

// Error says what failed and what a person can do about it.
type Error struct {
	Op   string // the verb and its object, without "cannot": "read plan", "start node"
	Path string // the file, directory or address concerned; may be empty
	Err  error  // the cause
	Hint string // the next command, or what to change; may be empty
}

// Error renders "cannot <op> <path>: <cause>", lower case and without the hint.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("cannot ")
	b.WriteString(e.Op)
	if e.Path != "" {
		b.WriteString(" " + e.Path)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap gives the cause to errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Err }

// Of returns the hint nearest to the surface of err's chain, or "". Joined errors are searched in their order.
func Of(err error) string {
	if err == nil {
		return ""
	}
	if e, ok := err.(*Error); ok && e.Hint != "" { //nolint:errorlint // the chain is walked by hand, nearest first
		return e.Hint
	}
	switch u := err.(type) { //nolint:errorlint // likewise
	case interface{ Unwrap() error }:
		return Of(u.Unwrap())
	case interface{ Unwrap() []error }:
		for _, inner := range u.Unwrap() {
			if h := Of(inner); h != "" {
				return h
			}
		}
	}
	return ""
}

// OfSystem is the hint for an error that has none of its own, by what the system answered; "" where that says nothing. It is
// asked where the error is still the system's: what came over the control socket is a text.
func OfSystem(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "make room, for example: supervisor snapshot prune"
	case errors.Is(err, syscall.EROFS):
		return "mount it writable"
	}
	return ""
}

// Split lists the errors that errors.Join joined, each of which has a hint of its own.
func Split(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error }) //nolint:errorlint // the join itself is meant, not its chain
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, Split(e)...)
	}
	return all
}

// New is short for an *Error whose cause is a plain text.
func New(op, path, cause, next string) *Error {
	return &Error{Op: op, Path: path, Err: errors.New(cause), Hint: next}
}

// Argument is Quote for a command's first argument: one that begins like a flag isn't taken for one.
func Argument(text string) string {
	if strings.HasPrefix(text, "-") {
		return "-- " + Quote(text)
	}
	return Quote(text)
}

// Quote makes text one word of a shell: what a hint names is copied from there.
func Quote(text string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:,@%="
	if text != "" && strings.Trim(text, plain) == "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// Cause returns what lies under a path error in err's chain, else err: for a message that names the path itself.
func Cause(err error) error {
	if pe := new(fs.PathError); errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
