package upgrade

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strconv"
	"syscall"
)

// program is one short-lived program that an upgrade runs: a probe, a script, the new binary's pre-upgrade.
type program struct {
	path string
	args []string
	env  []string
	dir  string
}

type result struct {
	Stdout, Stderr []byte
	Code           int
	Signal         syscall.Signal
}

func runProgram(ctx context.Context, p program) (result, error) {
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, p.path, p.args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = p.env, p.dir, &out, &errOut
	err := cmd.Run()
	res := result{Stdout: out.Bytes(), Stderr: errOut.Bytes()}
	if ee := new(exec.ExitError); errors.As(err, &ee) {
		if ws := ee.Sys().(syscall.WaitStatus); ws.Signaled() {
			res.Signal = ws.Signal()
		}
		res.Code = ee.ExitCode()
		return res, nil
	}
	return res, err
}

func (r result) failed() bool { return r.Code != 0 || r.Signal != 0 }

// how renders the program's end: "exit status 3", "signal: killed".
func (r result) how() string {
	if r.Signal != 0 {
		return "signal: " + r.Signal.String()
	}
	return "exit status " + strconv.Itoa(r.Code)
}
