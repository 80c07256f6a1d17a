package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// disk is where the supervisor keeps its state; it can be made unable to take a write.
type disk struct {
	h    *testHome
	full string // what fills it; "" = the directory itself is made read-only
}

// newDisk gives root a small file system of its own for the state, which fills up; other users get a directory that they
// can't write to: the same to whoever writes the journal.
func newDisk(h *testHome) *disk {
	h.Helper()
	state := h.layout().State()
	require.NoError(h, os.MkdirAll(state, 0o750))
	if os.Geteuid() != 0 {
		h.Cleanup(func() { os.Chmod(state, 0o750) })
		return &disk{h: h}
	}
	require.NoError(h, syscall.Mount("tmpfs", state, "tmpfs", 0, "size=256k,mode=0750"))
	h.Cleanup(func() { assert.NoError(h, syscall.Unmount(state, syscall.MNT_DETACH)) })
	return &disk{h: h, full: filepath.Join(state, "filler")}
}

func (d *disk) fill() {
	d.h.Helper()
	if d.full == "" {
		require.NoError(d.h, os.Chmod(d.h.layout().State(), 0o550))
		return
	}
	f, err := os.Create(d.full)
	require.NoError(d.h, err)
	defer f.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	require.ErrorIs(d.h, err, syscall.ENOSPC)
}

func (d *disk) free() {
	d.h.Helper()
	if d.full == "" {
		require.NoError(d.h, os.Chmod(d.h.layout().State(), 0o750))
		return
	}
	require.NoError(d.h, os.Remove(d.full))
}

// upgradingHome is a home without snapshots, whose node reaches its plan with its first blocks.
func upgradingHome(t *testing.T) *testHome {
	h := newHome(t, "v2")
	h.SnapshotOn = nil
	h.set("UPGRADE", "v2@4")
	return h
}

// No room for the journal when the height comes: the upgrade isn't begun, the node is left as it is, that is said once
// and tried again; with room it goes on by itself.
func TestNoRoomToBegin(t *testing.T) {
	t.Parallel()
	h := upgradingHome(t)
	d, open := newDisk(h), h.gate()
	r := h.start()
	h.runs()
	d.fill()
	open()
	st := h.awaitState(status.WaitingForBinary)
	assert.NotNil(t, st.PID)
	assert.Contains(t, st.Message, "the height of v2 has come; waiting: it can't be recorded: ")
	assert.False(t, st.Plan.Ready)
	assert.Contains(t, *st.Plan.Hint, "free some space", "what mends it, not another binary")
	time.Sleep(recordPause + recheck) // time for a second try
	assert.Equal(t, 1, strings.Count(h.lines(), "it is not ready; waiting"), "it is said once")
	assert.Nil(t, h.journal().Upgrade)
	assert.Equal(t, "genesis", h.current())
	assert.Equal(t, 1, h.count(trace.Start, ""))
	d.free()
	h.awaitResult(upgrade.ResultCommitted)
	r.stop()
	assert.Equal(t, 1, h.count(trace.Start, "v1"))
	assert.Equal(t, 1, h.count(trace.Start, "v2"))
	h.noLeftOvers()
}

// No room for the record of the attempt: the new version isn't started without, nor is that an attempt of it.
func TestNoRoomForTheAttempt(t *testing.T) {
	t.Parallel()
	h := upgradingHome(t)
	d := newDisk(h)
	h.set("PRE_UPGRADE_DELAY", "4s") // the window in which the disk fills up
	r := h.start()
	h.await(trace.PreUpgrade, "v2")
	d.fill()
	h.wait("it is said", func() bool { return strings.Contains(h.lines(), "not started before its attempt is recorded") })
	assert.Equal(t, status.Backoff, h.awaitState(status.Backoff).State)
	assert.Zero(t, h.count(trace.Start, "v2"))
	d.free()
	done := h.awaitResult(upgrade.ResultCommitted)
	assert.Equal(t, 1, done.Upgrade.Attempts)
	r.stop()
	h.singleNode()
}

// No room for the commit: the node runs on, and the commit follows when there is room.
func TestNoRoomToCommit(t *testing.T) {
	t.Parallel()
	h := upgradingHome(t)
	d := newDisk(h)
	h.setOf("v2", "RPC", "off") // nothing is committed before a height is read
	r := h.start()
	h.await(trace.FirstBlock, "v2")
	h.awaitState(status.Running)
	d.fill()
	serveHeight(t, filepath.Join(h.dir, "rpc"), "77")
	h.wait("it is said", func() bool { return strings.Contains(h.lines(), "cannot record that the upgrade is committed") })
	assert.NotNil(t, h.awaitState(status.Running).PID)
	d.free()
	h.awaitResult(upgrade.ResultCommitted)
	h.awaitStatus("no upgrade is in flight", func(st *status.Document) bool { return st.Upgrade == nil })
	r.stop()
	assert.Equal(t, 1, h.count(trace.Start, "v2"))
	assert.Len(t, h.history(), 1)
}

// No room for anything while the node just runs, crashes and is restarted.
func TestNoRoomAtAll(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.SnapshotOn = nil
	d := newDisk(h)
	r := h.start()
	h.awaitState(status.Running)
	d.fill()
	for i := range 2 {
		pid := *h.awaitStatus("it runs", func(st *status.Document) bool { return st.PID != nil }).PID
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		h.awaitCount(i+2, trace.FirstBlock, "v1")
	}
	r.stop()
	d.free()
	assert.Nil(t, h.journal().Hold, fmt.Sprint(h.journal().Hold))
}
