// Command supervisor runs one blockchain node and carries its upgrades out as transactions. It is the composition root:
// the only place that knows all packages. One file holds one command; app.go wires them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"nodevisor/cmd/supervisor/config"
	"nodevisor/internal/hint"
	"nodevisor/supervisor"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/home"
	"nodevisor/upgrade"
)

// release is what this program calls itself, set by the build: -ldflags "-X main.release=…".
var release = "dev"

// The exit codes of the commands; `run` has its own (package supervisor).
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2 // usage or configuration
	exitHeld   = 3 // held, needs an operator
	exitLocked = 4 // another supervisor, or a node that it left behind
)

func main() {
	os.Exit(execute(context.Background(), newApp(os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr)))
}

// exitError ends the process with a code of its own, and prints nothing.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// execute runs one command line and returns the process's exit code.
func execute(ctx context.Context, a *app) int {
	cmd, err := newRoot(a).ExecuteContextC(ctx)
	a.meter.Close()
	if err == nil {
		return exitOK
	}
	if isFlagError(err) { // of a flag before the command: cobra hands it on as it is
		err = flagError(cmd, err)
	}
	if own := (exitError{}); errors.As(err, &own) {
		return own.code
	}
	code := exitCode(err)
	if a.running {
		code = runCode(code)
	}
	a.report(err, code, cmd.CommandPath())
	return code
}

// nextStep is the hint of an error that has none of its own: a person is never left without a next command. path is that
// of the command that failed.
func nextStep(err error, path string) string {
	usage, mistakes := (*usageError)(nil), (*config.Error)(nil)
	switch {
	case errors.As(err, &usage):
		return path + " --help"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "make room, for example: supervisor snapshot prune"
	case errors.Is(err, syscall.EROFS):
		return "mount it writable"
	case errors.Is(err, fs.ErrPermission):
		return asRightUser
	case errors.As(err, &mistakes):
		return "correct it, then: supervisor doctor"
	case errors.Is(err, upgrade.ErrHeld), errors.Is(err, home.ErrLocked), strings.HasSuffix(path, " doctor"):
		return "supervisor status"
	}
	return "supervisor doctor"
}

// exitCode maps an error to a command's exit code.
func exitCode(err error) int {
	usage, mistakes, remote := (*usageError)(nil), (*config.Error)(nil), (*client.Failure)(nil)
	switch {
	case errors.As(err, &usage), errors.As(err, &mistakes):
		return exitUsage
	case errors.Is(err, upgrade.ErrHeld):
		return exitHeld
	case errors.Is(err, home.ErrLocked), errors.Is(err, home.ErrForeign):
		return exitLocked
	case errors.As(err, &remote) && remote.Code > 0:
		return remote.Code
	}
	return exitFailed
}

// runCode is the code of `run` for what a command would have ended with.
func runCode(code int) int {
	switch code {
	case exitUsage:
		return supervisor.ExitConfig
	case exitHeld:
		return supervisor.ExitHeld
	case exitLocked:
		return supervisor.ExitLocked
	}
	return code
}

// report prints an error: a JSON document on stdout with --json, else the text and its hint on stderr.
func (a *app) report(err error, code int, path string) {
	next := hint.Of(err)
	if remote := (*client.Failure)(nil); errors.As(err, &remote) {
		next = remote.Hint
	}
	if next == "" {
		next = nextStep(err, path)
	}
	if a.flags.json {
		_ = writeJSON(a.stdout, map[string]any{"error": client.Failure{Message: err.Error(), Hint: next, Code: code}})
		return
	}
	fmt.Fprintf(a.stderr, "Error: %v\n", err)
	if next != "" {
		fmt.Fprintf(a.stderr, "Hint: %s\n", next)
	}
}

// usageError is a mistake on the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// advised is an error whose text stands as it is, with the command that shows how it is done right.
type advised struct {
	error
	next string
}

// Unwrap carries the hint to hint.Of.
func (e advised) Unwrap() error { return &hint.Error{Op: "go on", Err: e.error, Hint: e.next} }

// writeJSON prints one document, indented for people, on one stream.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
