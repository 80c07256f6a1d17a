package upgrade

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"nodevisor/internal/proc"
)

// maxOutput caps what is kept of a short-lived program's stdout, in bytes.
const maxOutput = 256 << 10

// program is one short-lived program that an upgrade runs: a script, the new binary's pre-upgrade. It works on the data, and
// goes on where its supervisor is killed: so it inherits a lock, and as long as it or what it started lives nobody begins it a
// second time, or touches the data beside it.
type program struct {
	path  string
	args  []string
	env   []string
	dir   string
	begin ProgramLock
	as    *syscall.Credential // nil = this user
}

// result is how it ended.
type result struct {
	Stdout, Stderr []byte
	Code           int
	Signal         syscall.Signal
}

// runProgram runs p to its end. An error means that it could not be run, or that ctx ended it; a code or a signal is no
// error here, because each caller has a meaning of its own for them.
func runProgram(ctx context.Context, p program) (result, error) {
	cmd := exec.Command(p.path, p.args...)
	cmd.Env, cmd.Dir, cmd.SysProcAttr = p.env, p.dir, &syscall.SysProcAttr{Credential: p.as}
	if p.begin != nil {
		lock, release, err := p.begin()
		if err != nil {
			return result{}, err
		}
		defer func() { release(ctx.Err() == nil) }() // of one that was killed something may be left, and at work
		cmd.ExtraFiles = []*os.File{lock}
	}
	res, err := proc.Output(ctx, cmd, maxOutput)
	if ended := new(proc.ExitError); errors.As(err, &ended) {
		err = nil
	}
	return result{Stdout: res.Stdout, Stderr: res.Stderr, Code: res.Code, Signal: res.Signal}, err
}

// tail renders the last line that a program wrote to stderr, for an error message.
func tail(stderr []byte) string {
	if line := proc.LastLine(stderr); line != "" {
		return ": " + line
	}
	return ""
}

func (r result) failed() bool { return r.Code != 0 || r.Signal != 0 }

// how renders the program's end: "exit status 3", "signal: killed".
func (r result) how() string {
	if r.Signal != 0 {
		return "signal: " + r.Signal.String()
	}
	return "exit status " + strconv.Itoa(r.Code)
}
