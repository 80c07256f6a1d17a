package source

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"

	"nodevisor/internal/proc"
)

const (
	// statusEvery spares the machine: the command is a whole process, of 227 ms of one core for simd.
	statusEvery = 10 * time.Second
	// statusTimeout is longer than askTimeout, because a large binary on a busy machine needs seconds to start.
	statusTimeout = 5 * time.Second
)

// statusSource asks the current binary: `<binary> status --home HOME`, as Cosmovisor does.
type statusSource struct{ opt Options }

func (s statusSource) read(ctx context.Context) (Reading, error) {
	binary := s.opt.Binary()
	if binary == "" {
		return Reading{}, fmt.Errorf("%w: no binary", errOff)
	}
	cmd := exec.Command(binary, "status", "--home", s.opt.Home) //nolint:noctx // proc.Output ends it with ctx
	cmd.Env, cmd.SysProcAttr = s.opt.Env, &syscall.SysProcAttr{Credential: s.opt.RunAs}
	proc.EndWithUs(cmd)
	out, err := proc.Output(ctx, cmd, maxAnswer)
	if err != nil {
		return Reading{}, err
	}
	r, err := parseStatusOutput(out.Stdout)
	if err == nil || errors.Is(err, errNoBlock) {
		return r, err
	}
	// Older SDKs print the answer on stderr.
	if old, oldErr := parseStatusOutput(out.Stderr); oldErr == nil || errors.Is(oldErr, errNoBlock) {
		return old, oldErr
	}
	return Reading{}, err
}

func (statusSource) close() {}
