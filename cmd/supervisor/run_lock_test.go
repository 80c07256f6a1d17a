package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/proc"
	"nodevisor/internal/proctest"
	"nodevisor/supervisor/home"
)

// A command that has the home's lock for a moment doesn't keep `run` from its start; another `run` does, at once.
func TestRunWaitsForACommandsLock(t *testing.T) {
	t.Parallel()
	dir := newHome(t)
	socket := filepath.Join(dir, "c.sock")
	s := runSession(t, dir, "SUPERVISOR_CONTROL_SOCKET="+socket)
	require.NoError(t, os.MkdirAll(s.Layout.State(), 0o750))

	command, err := home.AcquireLock(s.Layout.LockPath())
	require.NoError(t, err)
	time.AfterFunc(200*time.Millisecond, func() { assert.NoError(t, command.Close()) })
	run, err := takeLock(t.Context(), s)
	require.NoError(t, err)
	t.Cleanup(func() { run.Close() })

	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	begun := time.Now()
	_, err = takeLock(t.Context(), s)
	require.ErrorIs(t, err, home.ErrLocked)
	assert.Less(t, time.Since(begun), lockPatience, "nothing is waited for")
}

// A run that waits for a program of an upgrade goes on waiting where a command has the lock for a moment meanwhile.
func TestRunWaitsForAProgramBesideCommands(t *testing.T) {
	t.Parallel()
	s := runSession(t, newHome(t))
	var said safeBuffer
	s.Log = slog.New(slog.NewTextHandler(&said, nil))
	require.NoError(t, os.MkdirAll(s.Layout.State(), 0o750))
	earlier, err := home.AcquireLock(s.Layout.LockPath())
	require.NoError(t, err)
	file, release, err := earlier.BeginProgram()
	require.NoError(t, err)
	program := exec.Command("/bin/sleep", "60")
	program.ExtraFiles = []*os.File{file}
	require.NoError(t, proc.Start(program))
	t.Cleanup(func() { _ = program.Process.Kill(); _ = proc.Wait(program) })
	release(false)
	require.NoError(t, earlier.Close())

	taken := make(chan error, 1)
	go func() {
		lock, err := takeLock(context.WithoutCancel(t.Context()), s)
		if err == nil {
			err = lock.Close()
		}
		taken <- err
	}()
	proctest.WaitFor(t, patience, "it waits", func() bool { return strings.Contains(said.String(), "waiting for the end of a program") })
	command, err := os.OpenFile(s.Layout.LockPath(), os.O_RDWR, 0)
	require.NoError(t, err)
	defer command.Close()
	require.NoError(t, unix.Flock(int(command.Fd()), unix.LOCK_EX))
	select {
	case err := <-taken:
		require.Fail(t, "it gave up", "%v", err)
	case <-time.After(3 * programPause): // it has looked meanwhile
	}
	require.NoError(t, command.Close())
	require.NoError(t, program.Process.Kill())
	require.NoError(t, <-taken)
}
