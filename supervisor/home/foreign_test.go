package home

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
	"nodevisor/internal/proctest"
)

// home makes a tree with a program in genesis/bin, and a data directory.
func home(t *testing.T) (root, data, program string) {
	t.Helper()
	dir := t.TempDir()
	root, data = filepath.Join(dir, "cosmovisor"), filepath.Join(dir, "data")
	require.NoError(t, os.MkdirAll(filepath.Join(data, "application.db"), 0o755))
	return root, data, copyProgram(t, "/bin/sleep", filepath.Join(root, "genesis", "bin", "simd"))
}

// abandon starts a process that isn't this one's child, but an orphan, as an abandoned node is; it is killed at the end.
func abandon(t *testing.T, command string) int {
	t.Helper()
	pidFile := filepath.Join(t.TempDir(), "pid")
	require.NoError(t, proc.Run(proctest.Shell(`setsid sh -c 'echo $$ > `+pidFile+`; `+command+`' >/dev/null 2>&1 & while ! [ -s `+pidFile+` ]; do sleep 0.01; done`)))
	pid := proctest.PidIn(t, pidFile)
	id, err := proc.Identify(pid)
	require.NoError(t, err)
	t.Cleanup(func() {
		if id.Alive() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		proctest.WaitFor(t, 10*time.Second, "the process is gone", func() bool { proc.Reap(); return !id.Alive() })
	})
	return pid
}

// runs waits until pid has executed a program with this path.
func runs(t *testing.T, pid int, path string) {
	t.Helper()
	proctest.WaitFor(t, 10*time.Second, path+" runs", func() bool {
		exe, err := os.Readlink(procPath(pid, "exe"))
		return err == nil && strings.TrimSuffix(exe, " (deleted)") == path
	})
}

func find(t *testing.T, root, data string, self ...int) []Foreign {
	t.Helper()
	found, err := FindForeign(root, data, self...)
	require.NoError(t, err)
	return found
}

func TestFindForeignByExecutable(t *testing.T) {
	root, data, program := home(t)
	assert.Empty(t, find(t, root, data))
	pid := abandon(t, "exec "+program+" 60")
	runs(t, pid, program)

	found := find(t, root, data)
	require.Len(t, found, 1)
	assert.Equal(t, pid, found[0].Pid)
	assert.Equal(t, program, found[0].Exe)
	assert.Equal(t, program+" 60", found[0].Cmdline)
	assert.Equal(t, "runs a binary of the tree", found[0].Why)
	assert.WithinDuration(t, time.Now(), found[0].Since, time.Minute)
	assert.Empty(t, find(t, root, data, pid), "one that we know is left out")
	assert.Empty(t, find(t, filepath.Dir(root)+"/cosmo", data), "half a name is no directory")

	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(root, link))
	assert.Len(t, find(t, link, data), 1, "the kernel knows the tree by its real path")

	require.NoError(t, os.Remove(program))
	found = find(t, root, data)
	require.Len(t, found, 1, "a binary that was replaced still runs")
	assert.Contains(t, found[0].Exe, "(deleted)")
}

func TestFindForeignLeavesOwnChildrenOut(t *testing.T) {
	root, data, program := home(t)
	cmd := exec.Command(program, "60")
	require.NoError(t, proc.Start(cmd))
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = proc.Wait(cmd) })
	runs(t, cmd.Process.Pid, program)
	assert.Empty(t, find(t, root, data))
	for _, f := range find(t, filepath.Dir(os.Args[0]), data) { // other tests may lie there, too
		assert.NotEqual(t, os.Getpid(), f.Pid, "nor is the supervisor itself foreign, should it lie in the tree")
	}
}

// The three ways in which a store's lock is seen: taken by flock, by a byte-range lock, and inherited from a process
// that has ended since.
func TestFindForeignByStoreLock(t *testing.T) {
	other := copyProgram(t, os.Args[0], filepath.Join(t.TempDir(), "node"))
	for name, command := range map[string]string{
		"flock":             "exec flock --no-fork $LOCK sleep 60",
		"byte-range lock":   "export " + proctest.HelperEnv + "=posix-lock; exec " + other + " $LOCK",
		"inherited, orphan": "exec 9>$LOCK; flock 9; exec sleep 60",
	} {
		t.Run(name, func(t *testing.T) {
			root, data, _ := home(t)
			lock := filepath.Join(data, "application.db", "LOCK")
			pid := abandon(t, strings.ReplaceAll(command, "$LOCK", lock))
			var found []Foreign
			proctest.WaitFor(t, 20*time.Second, "it alone is found", func() bool { // flock(1) holds it beside its shell for a moment
				found = find(t, root, data)
				return len(found) == 1 && found[0].Pid == pid
			})
			assert.Equal(t, "holds "+lock, found[0].Why)
			assert.Empty(t, find(t, root, ""), "no data, no lock")
			assert.Empty(t, find(t, root, t.TempDir()), "other data")
		})
	}
}

func TestFindLocksLooksThreeDeepAndNotIntoStores(t *testing.T) {
	data := t.TempDir()
	want := []string{}
	for _, dir := range []string{"a", "b/c", "d/e/f", "a/inside"} {
		path := filepath.Join(data, dir, "LOCK")
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, nil, 0o600))
	}
	require.NoError(t, os.MkdirAll(filepath.Join(data, "g", "LOCK"), 0o755))
	require.NoError(t, os.Symlink(data, filepath.Join(data, "loop")))
	findLocks(data, lockDepth, func(path string, _ os.FileInfo) { want = append(want, path) })
	assert.ElementsMatch(t, []string{filepath.Join(data, "a/LOCK"), filepath.Join(data, "b/c/LOCK")}, want)
}

func TestWaitNoForeign(t *testing.T) {
	root, data, program := home(t)
	began := time.Now()
	require.NoError(t, WaitNoForeign(t.Context(), root, data, time.Minute))
	assert.Less(t, time.Since(began), 10*time.Second, "it waits for nothing")

	// a query that takes a moment
	query := abandon(t, "exec "+program+" 60")
	runs(t, query, program)
	time.AfterFunc(200*time.Millisecond, func() { _ = syscall.Kill(query, syscall.SIGKILL) })
	require.NoError(t, WaitNoForeign(t.Context(), root, data, 20*time.Second))
	assert.False(t, proctest.Alive(query))

	// a node that stays
	node := abandon(t, "exec "+program+" 60")
	runs(t, node, program)
	began = time.Now()
	err := WaitNoForeign(t.Context(), root, data, 300*time.Millisecond)
	require.ErrorIs(t, err, ErrForeign)
	assert.GreaterOrEqual(t, time.Since(began), 300*time.Millisecond)
	assert.Contains(t, err.Error(), fmt.Sprintf("process %d (%s) runs a binary of the tree, since ", node, program))
	assert.Contains(t, hint.Of(err), "supervisor --takeover run")
	var foreign *ForeignError
	require.ErrorAs(t, err, &foreign)
	require.Len(t, foreign.Found, 1)
	assert.Equal(t, node, foreign.Found[0].Pid)

	cause := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	require.ErrorIs(t, WaitNoForeign(ctx, root, data, time.Hour), cause)
}

func TestStopForeignGracefully(t *testing.T) {
	told := filepath.Join(t.TempDir(), "told")
	pid := abandon(t, `trap "echo yes > `+told+`; exit 0" TERM; echo up > `+told+`; while :; do sleep 0.02; done`)
	proctest.FileWith(t, told)
	forced, err := StopForeign(t.Context(), foreign(t, pid), syscall.SIGTERM, 20*time.Second)
	require.NoError(t, err)
	assert.False(t, forced)
	assert.False(t, proctest.Alive(pid))
	assert.Equal(t, "yes\n", proctest.Text(t, told))

	forced, err = StopForeign(t.Context(), Foreign{Pid: pid}, syscall.SIGTERM, time.Second)
	require.NoError(t, err, "gone already")
	assert.False(t, forced)
}

func foreign(t *testing.T, pid int) Foreign {
	t.Helper()
	id, err := proc.Identify(pid)
	require.NoError(t, err)
	return foreignOf(id, "is there")
}

func TestStopForeignForces(t *testing.T) {
	up := filepath.Join(t.TempDir(), "up")
	pid := abandon(t, `trap "" TERM; echo up > `+up+`; while :; do sleep 0.02; done`)
	proctest.FileWith(t, up)
	began := time.Now()
	forced, err := StopForeign(t.Context(), foreign(t, pid), syscall.SIGTERM, 300*time.Millisecond)
	require.NoError(t, err)
	assert.True(t, forced)
	assert.False(t, proctest.Alive(pid))
	assert.GreaterOrEqual(t, time.Since(began), 300*time.Millisecond)
}

func TestStopForeignEndsWithItsContext(t *testing.T) {
	up := filepath.Join(t.TempDir(), "up")
	pid := abandon(t, `trap "" TERM; echo up > `+up+`; while :; do sleep 0.02; done`)
	proctest.FileWith(t, up)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	forced, err := StopForeign(ctx, foreign(t, pid), syscall.SIGTERM, time.Hour)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.False(t, forced)
	assert.True(t, proctest.Alive(pid))
}

// A process that has got the pid since must not be hit.
func TestStopForeignSparesALaterProcess(t *testing.T) {
	pid := abandon(t, "exec sleep 60")
	f := foreign(t, pid)
	f.start--
	_, err := StopForeign(t.Context(), f, syscall.SIGKILL, 0)
	require.NoError(t, err)
	assert.True(t, proctest.Alive(pid))
}

func TestLockOwnersReadsTheKernelsList(t *testing.T) {
	path := filepath.Join(t.TempDir(), "LOCK")
	cmd := proctest.Command("posix-lock", path)
	require.Equal(t, "locked", startHelper(t, cmd))
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Contains(t, lockOwners()[info.Sys().(*syscall.Stat_t).Ino], cmd.Process.Pid)
	holders := fileHolders(info)
	assert.Equal(t, []int{cmd.Process.Pid}, holders)
}

// The promise is 5 ms beside 300 processes; the benchmark shows it, a test on a busy machine can't.
func BenchmarkFindForeign(b *testing.B) {
	root, data := b.TempDir(), b.TempDir()
	require.NoError(b, os.MkdirAll(filepath.Join(data, "application.db"), 0o755))
	require.NoError(b, os.WriteFile(filepath.Join(data, "application.db", "LOCK"), nil, 0o600))
	for range 300 {
		cmd := exec.Command("/bin/sleep", "600")
		require.NoError(b, proc.Start(cmd))
		b.Cleanup(func() { _ = cmd.Process.Kill(); _ = proc.Wait(cmd) })
	}
	for b.Loop() {
		if _, err := FindForeign(root, data); err != nil {
			b.Fatal(err)
		}
	}
}

func TestArgv0(t *testing.T) {
	assert.Equal(t, os.Args[0], argv0(os.Getpid()))
	assert.Empty(t, argv0(1<<30))
	long := strings.Repeat("x", 1000)
	cmd := exec.Command("/bin/sh", "-c", "echo up; read x", long)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	cmd.Stdout = w
	in, hold, err := os.Pipe()
	require.NoError(t, err)
	cmd.Stdin = in
	require.NoError(t, proc.Start(cmd))
	w.Close()
	in.Close()
	_, err = bufio.NewReader(r).ReadString('\n')
	require.NoError(t, err)
	assert.Len(t, foreign(t, cmd.Process.Pid).Cmdline, 200, "process "+strconv.Itoa(cmd.Process.Pid))
	hold.Close()
	_ = proc.Wait(cmd)
	r.Close()
}
