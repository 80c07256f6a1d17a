package proc

import (
	"io/fs"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestReadStatOfOurselves(t *testing.T) {
	st, err := ReadStat(os.Getpid())
	require.NoError(t, err)
	assert.Equal(t, os.Getpid(), st.Pid)
	assert.Equal(t, os.Getppid(), st.Parent)
	assert.Equal(t, syscall.Getpgrp(), st.Group)
	assert.False(t, st.Ended())
	assert.WithinDuration(t, time.Now(), st.Since(), 10*time.Minute)
	assert.True(t, st.Since().Before(time.Now()))
}

func TestParseStat(t *testing.T) {
	const tail = " 4194304 1 2 3 4 5 6 7 8 20 0 9 0 %s 1 2\n"
	good := "77 (a) R 9 (b) S 5 6 7 8 9" + " 0 1 2 3 4 5 6 7 8 20 0 9 0 123456 1 2\n"
	st, err := parseStat([]byte(good))
	require.NoError(t, err)
	assert.Equal(t, Stat{Pid: 77, Name: "a) R 9 (b", State: 'S', Parent: 5, Group: 6, StartTime: 123456}, st)

	for _, bad := range []string{"", "77", "77 (a", "77 a) S 1", ")(", "77 (a) S 1 2 3", "x (a) S 5 6" + tail + tail, "77 (a) SS 5 6 7 8 9 0 1 2 3 4 5 6 7 8 20 0 9 0 1 1"} {
		_, err := parseStat([]byte(bad))
		assert.Error(t, err, "%q", bad)
	}
}

func TestReadStatOfNobody(t *testing.T) {
	cmd := sh("exit 0")
	require.NoError(t, Run(cmd))
	_, err := ReadStat(cmd.Process.Pid)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = Identify(cmd.Process.Pid)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestIdentity(t *testing.T) {
	cmd := sh("exec sleep 60")
	require.NoError(t, Start(cmd))
	reaped := false
	t.Cleanup(func() {
		if !reaped {
			_ = cmd.Process.Kill()
			_ = Wait(cmd)
		}
	})
	id, err := Identify(cmd.Process.Pid)
	require.NoError(t, err)
	assert.True(t, id.Alive())

	other := id
	other.StartTime++
	assert.False(t, other.Alive(), "the pid of a later process")
	other = id
	other.BootID = "00000000-0000-0000-0000-000000000000"
	assert.False(t, other.Alive(), "the pid of another boot")
	assert.False(t, Identity{}.Alive())

	require.NoError(t, cmd.Process.Kill())
	require.NoError(t, AwaitEnd(id.Pid))
	assert.False(t, id.Alive(), "a zombie runs no more")
	_ = Wait(cmd)
	reaped = true
	assert.False(t, id.Alive())
}

func TestEachExecutable(t *testing.T) {
	self, err := os.Readlink("/proc/self/exe")
	require.NoError(t, err)
	pids, err := Pids()
	require.NoError(t, err)
	seen := map[int]string{}
	require.NoError(t, EachExecutable(func(pid int, exe string, err error) {
		assert.Equal(t, err != nil, exe == "", "process %d", pid)
		seen[pid] = exe
	}))
	assert.Equal(t, self, seen[os.Getpid()])
	assert.Greater(t, len(seen), len(pids)/2, "processes come and go, but not half of them")
}
