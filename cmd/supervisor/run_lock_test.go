package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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
