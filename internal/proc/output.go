package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// stderrTail is how much of a program's last error output is kept, in bytes.
	stderrTail = 8 << 10
	// pipeDelay bounds the wait for a program's output after its end, where a process that it left behind, outside of
	// its group, holds the pipe open (https://go.dev/issue/23019).
	pipeDelay = time.Second
)

// Result is what a short-lived program left.
type Result struct {
	Stdout    []byte         // from the beginning, at most as much as the caller asked for
	Truncated bool           // there was more
	Stderr    []byte         // the end of it, at most 8 KiB
	Code      int            // the exit code; -1 where a signal ended it, or where it didn't start
	Signal    syscall.Signal // the signal that ended it, or 0
	Took      time.Duration
}

// ExitError says that a program ended with another code than 0, or by a signal.
type ExitError struct {
	Program string // the file name
	Result  Result
}

// Error gives the code or the signal, and the last line of the error output, cut to 200 bytes.
func (e *ExitError) Error() string {
	how := fmt.Sprintf("exit code %d", e.Result.Code)
	if e.Result.Signal != 0 {
		how = "ended by signal: " + e.Result.Signal.String()
	}
	if line := LastLine(e.Result.Stderr); line != "" {
		how += ": " + line
	}
	return e.Program + ": " + how
}

// Output runs a short-lived program (a probe, a script, a query) to its end in a process group of its own, and captures
// its output: limit bytes of stdout, the tail of stderr. Where cmd.Stdout or cmd.Stderr is set it is not captured, and a
// writer in cmd.Stdout gets all that the program wrote, however slow it is, until ctx ends. Nothing of the group outlives
// the call: at ctx's end all of it is killed at once, and what the program left in it when it ended is killed too.
//
// cmd must not be made by exec.CommandContext. The result is filled as far as it is known whatever the error: nil for
// exit code 0; *ExitError for another code or a signal; ctx's cause, wrapped, where ctx ended it; the writer's error,
// wrapped; else it couldn't start.
func Output(ctx context.Context, cmd *exec.Cmd, limit int) (Result, error) {
	name := filepath.Base(cmd.Path)
	if err := context.Cause(ctx); err != nil {
		return Result{Code: -1}, fmt.Errorf("cannot run %s: %w", name, err)
	}
	head, tail := &Head{Limit: limit}, &tailWriter{}
	if cmd.Stdout == nil {
		cmd.Stdout = head
	}
	out, err := takeStdout(cmd)
	if err != nil {
		return Result{Code: -1}, fmt.Errorf("cannot run %s: %w", name, err)
	}
	if cmd.Stderr == nil {
		cmd.Stderr = tail
	}
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = pipeDelay
	}
	ownGroup(cmd)
	began := time.Now()
	err = Start(cmd)
	out.started()
	if err != nil {
		return Result{Code: -1}, fmt.Errorf("cannot run %s: %w", name, err)
	}
	killed := waitGroup(ctx, cmd)
	lost := out.finish(ctx)
	err = Wait(cmd)

	res := Result{Stdout: head.Kept, Truncated: head.More, Stderr: tail.bytes(), Code: -1, Took: time.Since(began)}
	if cmd.ProcessState == nil {
		return res, fmt.Errorf("cannot wait for %s: %w", name, err)
	}
	res.Code = cmd.ProcessState.ExitCode()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		res.Signal = ws.Signal()
	}
	switch {
	case killed && res.Signal == syscall.SIGKILL:
		return res, fmt.Errorf("%s: killed after %s: %w", name, res.Took.Round(time.Millisecond), context.Cause(ctx))
	case lost != nil:
		return res, fmt.Errorf("%s: cannot take its output: %w", name, lost)
	case res.Code == 0:
		return res, nil // also with exec.ErrWaitDelay, which is about stdin and stderr: the program itself did well
	}
	return res, &ExitError{Program: name, Result: res}
}

// takeStdout puts a drain between the program and the writer that its output is for; nil where that is a file, which the
// program gets itself.
func takeStdout(cmd *exec.Cmd) (*drain, error) {
	if _, file := cmd.Stdout.(*os.File); file {
		return nil, nil
	}
	out, err := newDrain(cmd.Stdout)
	if err == nil {
		cmd.Stdout = out.w
	}
	return out, err
}

func ownGroup(cmd *exec.Cmd) {
	var attr syscall.SysProcAttr
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	attr.Setpgid, attr.Pgid = true, 0
	cmd.SysProcAttr = &attr
}

// waitGroup blocks until cmd's process has ended, kills its group at ctx's end (and says so), and what is left of the
// group in any case. All of that happens before the leader is reaped, so the group can't be another's.
func waitGroup(ctx context.Context, cmd *exec.Cmd) (killed bool) {
	pid := cmd.Process.Pid
	kill := func() {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have left its group
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		kill()
	})
	err := AwaitEnd(pid)
	if !stop() {
		<-done
		killed = true
	}
	if err == nil {
		kill()
	}
	return killed
}

// Head keeps the first Limit bytes of a program's output and swallows the rest, so that the program never blocks on it.
type Head struct {
	Limit int
	Kept  []byte
	More  bool // there was more
}

// Write never fails.
func (w *Head) Write(p []byte) (int, error) {
	n := min(len(p), max(0, w.Limit-len(w.Kept)))
	w.Kept = append(w.Kept, p[:n]...)
	w.More = w.More || n < len(p)
	return len(p), nil
}

// tailWriter keeps the last stderrTail bytes.
type tailWriter struct{ kept []byte }

func (w *tailWriter) Write(p []byte) (int, error) {
	w.kept = append(w.kept, p...)
	if len(w.kept) > 2*stderrTail { // not at each write: this keeps the copying linear
		w.kept = append(w.kept[:0], w.kept[len(w.kept)-stderrTail:]...)
	}
	return len(p), nil
}

func (w *tailWriter) bytes() []byte { return w.kept[max(0, len(w.kept)-stderrTail):] }

// LastLine is the last line of a program's error output, cut to 200 bytes, or "".
func LastLine(b []byte) string {
	const longest = 200
	b = bytes.TrimSpace(b)
	b = b[bytes.LastIndexByte(b, '\n')+1:]
	if len(b) > longest {
		b = append(bytes.Clone(b[:longest]), "..."...)
	}
	return string(b)
}

// Tail is the end of a program's error output inside err's chain, or "": for those who print more than a line of it.
func Tail(err error) string {
	var exit *ExitError
	if errors.As(err, &exit) {
		return string(bytes.TrimSpace(exit.Result.Stderr))
	}
	return ""
}
