package supervisor

import (
	"os/exec"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"nodevisor/internal/proc"
	"nodevisor/supervisor/home"
)

// run is a running `run`.
type run struct {
	h     *testHome
	cmd   *exec.Cmd
	ended chan struct{}
}

// start starts `run`. At the test's end it is stopped, and killed with its node where it doesn't stop.
func (h *testHome) start() *run {
	h.Helper()
	return h.startCommand(h.command())
}

func (h *testHome) startCommand(cmd *exec.Cmd) *run {
	h.Helper()
	require.NoError(h, proc.Start(cmd))
	r := &run{h: h, cmd: cmd, ended: make(chan struct{})}
	go func() {
		_ = proc.Wait(cmd)
		close(r.ended)
	}()
	h.Cleanup(r.cleanUp)
	return r
}

func (r *run) cleanUp() {
	select {
	case <-r.ended: // its pid may be another's by now
	default:
		_ = syscall.Kill(r.cmd.Process.Pid, syscall.SIGTERM)
	}
	select {
	case <-r.ended:
	case <-time.After(patience):
		r.h.Errorf("run doesn't end; its log ends:\n%s", tailOf([]byte(r.h.lines()), 3000))
		_ = syscall.Kill(r.cmd.Process.Pid, syscall.SIGKILL)
		<-r.ended
	}
	if info, err := home.ReadLock(r.h.layout().LockPath()); err == nil && info.Node != nil && info.Node.Alive() {
		r.h.Errorf("node %d was left behind", info.Node.Pid)
		_ = syscall.Kill(info.Node.Pid, syscall.SIGKILL)
	}
}

func (r *run) signal(sig syscall.Signal) {
	r.h.Helper()
	require.NoError(r.h, syscall.Kill(r.cmd.Process.Pid, sig))
}

// exit waits for the end and returns the exit code; -1 for a signal.
func (r *run) exit() int {
	r.h.Helper()
	select {
	case <-r.ended:
		return r.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		require.Fail(r.h, "run doesn't end", "its log ends:\n%s", tailOf([]byte(r.h.lines()), 3000))
		return 0
	}
}

// stop asks for the end and checks that it is an orderly one.
func (r *run) stop() {
	r.h.Helper()
	r.signal(syscall.SIGTERM)
	require.Equal(r.h, 0, r.exit())
}
