package home

import (
	"encoding/json"
	"errors"
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
	"golang.org/x/sys/unix"

	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
	"nodevisor/internal/proctest"
)

func lockPath(t *testing.T) string { return filepath.Join(t.TempDir(), "lock") }

func acquire(t *testing.T, path string) *Lock {
	t.Helper()
	l, err := AcquireLock(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.file.Close() })
	return l
}

// lockedBy fails unless path is locked, and returns who is named.
func lockedBy(t *testing.T, path string) *LockedError {
	t.Helper()
	l, err := AcquireLock(path)
	if l != nil {
		_ = l.Close()
	}
	require.ErrorIs(t, err, ErrLocked)
	var locked *LockedError
	require.ErrorAs(t, err, &locked)
	assert.NotEmpty(t, hint.Of(err))
	return locked
}

func TestLockIsExclusiveAndNamesItsHolder(t *testing.T) {
	path := lockPath(t)
	l := acquire(t, path)
	locked := lockedBy(t, path)
	assert.Equal(t, RoleSupervisor, locked.Role)
	assert.Equal(t, os.Getpid(), locked.Holder.Pid)
	assert.False(t, locked.Left(), "a running supervisor must not be taken over")

	info, err := ReadLock(path)
	require.NoError(t, err)
	require.NotNil(t, info.Supervisor)
	assert.Equal(t, os.Getpid(), info.Supervisor.Pid)
	assert.Nil(t, info.Node)

	require.NoError(t, l.Close())
	info, err = ReadLock(path)
	require.NoError(t, err)
	assert.Equal(t, LockInfo{}, info)
	assert.FileExists(t, path, "the file is never unlinked")
	require.NoError(t, acquire(t, path).Close())
}

func TestLockFile(t *testing.T) {
	path := lockPath(t)
	l := acquire(t, path)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	require.NoError(t, l.SetNode(os.Getppid()))
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Len(t, data, lockSize)
	var fields map[string]map[string]any
	require.NoError(t, json.Unmarshal(data, &fields))
	assert.EqualValues(t, os.Getppid(), fields["node"]["pid"])
	assert.NotEmpty(t, fields["node"]["boot_id"])
	assert.NotZero(t, fields["supervisor"]["start_time"])
	require.NoError(t, l.ClearNode())
	assert.Contains(t, proctest.Text(t, path), `"node":null`)
	require.Error(t, l.SetNode(1<<30), "a process that isn't there")
}

func TestLockGetsTheDirectorysOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes files for others")
	}
	path := lockPath(t)
	require.NoError(t, os.Chown(filepath.Dir(path), 4711, 4712))
	acquire(t, path)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	assert.EqualValues(t, 4711, st.Uid)
	assert.EqualValues(t, 4712, st.Gid)
}

func TestLockRefusesWhatIsNoPlainFile(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	require.NoError(t, os.WriteFile(target, []byte("precious"), 0o600))
	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink(target, link))
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	for _, path := range []string{dir, link, fifo} {
		_, err := AcquireLock(path)
		require.Error(t, err, path)
		assert.NotErrorIs(t, err, ErrLocked)
	}
	assert.Equal(t, "precious", proctest.Text(t, target))
	_, err := AcquireLock(filepath.Join(dir, "none", "lock"))
	require.ErrorIs(t, err, os.ErrNotExist)
	assert.Equal(t, "supervisor init", hint.Of(err))
}

func TestLockRefusesNFS(t *testing.T) {
	require.ErrorIs(t, lockableFS(0x6969), ErrNetworkFS)
	require.NoError(t, lockableFS(unix.EXT4_SUPER_MAGIC))
}

// The sense of the whole: the supervisor is killed, its node lives, the home stays locked and the node is named.
func TestLockOutlivesAKilledSupervisorWithItsNode(t *testing.T) {
	path := lockPath(t)
	cmd := proctest.Command("holder", path)
	node, err := strconv.Atoi(startHelper(t, cmd))
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Kill(node, syscall.SIGKILL); proc.Reap() })
	locked := lockedBy(t, path)
	assert.Equal(t, RoleSupervisor, locked.Role)
	assert.Equal(t, cmd.Process.Pid, locked.Holder.Pid)

	require.NoError(t, cmd.Process.Kill())
	require.NoError(t, proc.AwaitEnd(cmd.Process.Pid))
	require.True(t, proctest.Alive(node), "the node must outlive its supervisor")
	locked = lockedBy(t, path)
	assert.Equal(t, RoleNode, locked.Role)
	assert.Equal(t, node, locked.Holder.Pid)
	assert.True(t, locked.Left())
	assert.Equal(t, "node pid "+strconv.Itoa(node)+" of an earlier supervisor still runs", locked.Error())
	assert.Contains(t, locked.hint(), "supervisor --takeover run")
	info, err := ReadLock(path)
	require.NoError(t, err)
	assert.Nil(t, info.Supervisor, "it is dead")
	require.NotNil(t, info.Node)
	assert.Equal(t, node, info.Node.Pid)

	forced, err := StopForeign(t.Context(), locked.Holder, syscall.SIGTERM, 20*time.Second)
	require.NoError(t, err)
	assert.False(t, forced)
	require.NoError(t, acquire(t, path).Close())
}

// holdLock starts a process that inherits l, closes our own descriptor, and returns its pid.
func holdLock(t *testing.T, l *Lock) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sleep", "60")
	cmd.ExtraFiles = []*os.File{l.File()}
	require.NoError(t, proc.Start(cmd))
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = proc.Wait(cmd) })
	// The start is over before the kernel has put the new arguments in place.
	proctest.WaitFor(t, 20*time.Second, "it has its name", func() bool { return argv0(cmd.Process.Pid) == "/bin/sleep" })
	return cmd
}

func TestLockHeldByAnUnrecordedProcess(t *testing.T) {
	path := lockPath(t)
	l := acquire(t, path)
	cmd := holdLock(t, l)
	require.NoError(t, l.Close())
	locked := lockedBy(t, path)
	assert.Equal(t, RoleOther, locked.Role)
	assert.Equal(t, cmd.Process.Pid, locked.Holder.Pid)
	assert.Contains(t, locked.Error(), strconv.Itoa(cmd.Process.Pid))
	assert.Contains(t, locked.Error(), "sleep")
	assert.Contains(t, locked.hint(), "end process "+strconv.Itoa(cmd.Process.Pid))

	require.NoError(t, cmd.Process.Kill())
	require.NoError(t, proc.AwaitEnd(cmd.Process.Pid))
	require.NoError(t, acquire(t, path).Close())
}

// A program that works on the data holds the home without its supervisor; one that was seen to end, and what it left, doesn't.
func TestLockOfAProgramAtWork(t *testing.T) {
	path := lockPath(t)
	l := acquire(t, path)
	begin := func() (program *exec.Cmd, release func(bool)) {
		file, release, err := l.BeginProgram()
		require.NoError(t, err)
		program = exec.Command("/bin/sleep", "60")
		program.ExtraFiles = []*os.File{file}
		require.NoError(t, proc.Start(program))
		t.Cleanup(func() { _ = program.Process.Kill(); _ = proc.Wait(program) })
		proctest.WaitFor(t, 20*time.Second, "it has its name", func() bool { return argv0(program.Process.Pid) == "/bin/sleep" })
		return program, release
	}
	_, release := begin()
	release(true)
	_, release = begin()
	release(true)
	require.NoError(t, l.Close())
	l = acquire(t, path)

	require.NoError(t, l.SetArgs([]string{"start"}))
	program, release := begin()
	release(false)
	require.NoError(t, l.Close())
	locked := lockedBy(t, path)
	assert.Equal(t, RoleProgram, locked.Role)
	assert.True(t, locked.Left())
	assert.Equal(t, program.Process.Pid, locked.Holder.Pid)
	assert.Contains(t, locked.Error(), strconv.Itoa(program.Process.Pid))
	assert.Contains(t, locked.hint(), "supervisor --takeover run start")

	require.NoError(t, program.Process.Kill())
	require.NoError(t, proc.AwaitEnd(program.Process.Pid))
	require.NoError(t, acquire(t, path).Close())
	assert.NoFileExists(t, ProgramLock(path), "it was of no more use")
	require.NoError(t, os.Mkdir(ProgramLock(path), 0o700))
	_, err := AcquireLock(path)
	require.ErrorContains(t, err, "is a directory", "not known is not free")
	require.NotErrorIs(t, err, ErrLocked)
}

// A torn or alien content must neither free the lock nor keep anybody out.
func TestLockToleratesATornContent(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "torn": `{"supervisor":{"pid":12,"sta`, "garbage": strings.Repeat("\x00\xff", 4000), "null": "null", "other types": `{"node":7}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := lockPath(t)
			require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
			l := acquire(t, path)
			assert.Len(t, proctest.Text(t, path), lockSize, "the old content shows through")
			require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
			info, err := ReadLock(path)
			require.NoError(t, err)
			assert.Equal(t, LockInfo{}, info)
			cmd := holdLock(t, l)
			require.NoError(t, l.file.Close())
			locked := lockedBy(t, path)
			assert.Equal(t, RoleOther, locked.Role)
			assert.Equal(t, cmd.Process.Pid, locked.Holder.Pid)
		})
	}
}

func writeRecord(t *testing.T, path string, info LockInfo) {
	t.Helper()
	data, err := json.Marshal(info)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, data, 0o600))
}

// A node that made a daemon of itself has closed the descriptor: the lock is free, the record isn't.
func TestLockRefusesBesideARecordedNodeThatLetGo(t *testing.T) {
	path := lockPath(t)
	cmd := exec.Command("/bin/sleep", "60")
	require.NoError(t, proc.Start(cmd))
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = proc.Wait(cmd) })
	id, err := proc.Identify(cmd.Process.Pid)
	require.NoError(t, err)
	writeRecord(t, path, LockInfo{Node: &id})
	locked := lockedBy(t, path)
	assert.Equal(t, RoleNode, locked.Role)
	assert.Equal(t, cmd.Process.Pid, locked.Holder.Pid)
	assert.Contains(t, proctest.Text(t, path), strconv.Itoa(cmd.Process.Pid), "the record was lost by asking")

	other := id // the pid, given to another process since
	other.StartTime -= 5
	writeRecord(t, path, LockInfo{Node: &other, Supervisor: &other})
	require.NoError(t, acquire(t, path).Close())
	other = id // the pid, of before the reboot
	other.BootID = "before"
	writeRecord(t, path, LockInfo{Node: &other})
	require.NoError(t, acquire(t, path).Close())
}

func TestReadLockOfNothing(t *testing.T) {
	info, err := ReadLock(lockPath(t))
	require.NoError(t, err)
	assert.Equal(t, LockInfo{}, info)
	_, err = ReadLock(filepath.Join(t.TempDir(), "none", "lock"))
	require.NoError(t, err)
	link := lockPath(t)
	require.NoError(t, os.Symlink("/etc/passwd", link))
	_, err = ReadLock(link)
	require.Error(t, err)
}

// A record is replaced whole: whoever reads meanwhile sees the old or the new one, or is told that it is torn.
func TestLockRecordUnderReaders(t *testing.T) {
	path := lockPath(t)
	l := acquire(t, path)
	stop := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			info, err := ReadLock(path)
			if err == nil && info.Node != nil && info.Node.Pid != os.Getppid() {
				err = errors.New("a node that nobody recorded")
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	for range 200 {
		require.NoError(t, l.SetNode(os.Getppid()))
		require.NoError(t, l.ClearNode())
	}
	close(stop)
	require.NoError(t, <-done)
}

// Nothing but the node inherits the lock: not what is started beside it.
func TestLockIsNotInheritedByAccident(t *testing.T) {
	l := acquire(t, lockPath(t))
	_ = holdLock(t, l)
	info, err := l.file.Stat()
	require.NoError(t, err)
	cmd := exec.Command("/bin/sleep", "60")
	require.NoError(t, proc.Start(cmd))
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = proc.Wait(cmd) })
	proctest.WaitFor(t, 20*time.Second, "it was executed", func() bool {
		exe, err := os.Readlink(procPath(cmd.Process.Pid, "exe"))
		return err == nil && strings.HasSuffix(exe, "sleep")
	})
	has, err := hasOpen(cmd.Process.Pid, info)
	require.NoError(t, err)
	assert.False(t, has)
}

// The command that takes over is the one that the operator would have typed; what is too long to be kept is left out.
func TestTakeoverKeepsTheArguments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l, err := AcquireLock(path)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	require.NoError(t, l.SetArgs([]string{"start", "--moniker", "a b"}))
	locked := lockedBy(t, path)
	assert.Equal(t, "supervisor --takeover run start --moniker 'a b'    # stops it gracefully and goes on", Takeover(locked.Args))
	require.NoError(t, l.SetArgs([]string{strings.Repeat("x", lockSize)}))
	info, err := ReadLock(path)
	require.NoError(t, err)
	assert.Nil(t, info.Args)
	assert.NotNil(t, info.Supervisor)
}
