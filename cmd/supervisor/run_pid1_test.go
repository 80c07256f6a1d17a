package main

import (
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

	"nodevisor/internal/fakenode/build"
	"nodevisor/internal/fakenode/trace"
	"nodevisor/internal/proc"
)

// container is a pid namespace with /proc of its own, in which `supervisor run start` is process 1, as it is in a container.
type container struct {
	t     *testing.T
	cmd   *exec.Cmd
	trace string
	done  chan struct{} // closed when process 1, and with it everything in the namespace, has ended
}

// contain starts one over a fresh home. env is the node's and the supervisor's.
func contain(t *testing.T, env ...string) *container {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	node, dir := build.Binary(t, "v1"), t.TempDir()
	require.NoError(t, os.Symlink(self, filepath.Join(dir, "supervisor"))) // TestMain makes it the program
	require.NoError(t, os.Mkdir(filepath.Join(dir, "run"), 0o700))
	c := &container{t: t, trace: filepath.Join(dir, "trace"), done: make(chan struct{})}
	environ := append([]string{
		"PATH=" + dir + ":" + os.Getenv("PATH"), "HOME=" + dir, "XDG_RUNTIME_DIR=" + filepath.Join(dir, "run"), "DAEMON_NAME=simd",
		"DAEMON_HOME=" + filepath.Join(dir, "home"), "DAEMON_GRPC_ADDRESS=127.0.0.1:1", "SUPERVISOR_SNAPSHOT_MIN_FREE=0",
		"SUPERVISOR_RESTART=never", "FAKENODE_BLOCK_TIME=50ms", "FAKENODE_TRACE=" + c.trace, "GORACE=atexit_sleep_ms=0",
	}, env...)
	for _, args := range [][]string{{node, "init"}, {"supervisor", "init", node}} {
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		if args[0] == "supervisor" {
			cmd.Path, cmd.Err = filepath.Join(dir, "supervisor"), nil
		}
		cmd.Env = environ
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	c.cmd = exec.Command("/bin/sh", "-c", "mount --make-rprivate / && mount -t proc proc /proc && exec supervisor run start")
	c.cmd.Env = environ
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		c.cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		c.cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		c.cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	defer log.Close()
	c.cmd.Stdout, c.cmd.Stderr = log, log
	require.NoError(t, c.cmd.Start())
	go func() {
		defer close(c.done)
		_ = c.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.done
		if t.Failed() {
			t.Log(readTail(log.Name()))
		}
	})
	return c
}

func (c *container) await(kind trace.Kind) trace.Event {
	c.t.Helper()
	return build.WaitEvent(c.t, c.trace, patience, build.Kind(kind, ""))
}

func (c *container) signal(sig syscall.Signal) {
	c.t.Helper()
	require.NoError(c.t, c.cmd.Process.Signal(sig))
}

// code waits for the end of process 1 and returns its exit code.
func (c *container) code() int {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(patience):
		require.FailNow(c.t, "process 1 does not end")
	}
	return c.cmd.ProcessState.ExitCode()
}

// outside is the pid here of a child of process 1, by its pid in the namespace (proc_pid_status(5), NSpid); 0 = it has none
// of that pid, or none any more.
func (c *container) outside(inside int) int {
	c.t.Helper()
	for pid := range c.children() {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil {
			continue // it has ended meanwhile
		}
		_, rest, _ := strings.Cut(string(text), "\nNSpid:")
		line, _, _ := strings.Cut(rest, "\n")
		if pids := strings.Fields(line); len(pids) > 0 && pids[len(pids)-1] == strconv.Itoa(inside) {
			return pid
		}
	}
	return 0
}

// children lists process 1's children, seen from outside, with their states. Beside the node it has one now and then: the
// node's program, asked for its height.
func (c *container) children() map[int]byte {
	c.t.Helper()
	all := map[int]byte{}
	pids, err := proc.Pids()
	require.NoError(c.t, err)
	for _, pid := range pids {
		if st, err := proc.ReadStat(pid); err == nil && st.Parent == c.cmd.Process.Pid {
			all[pid] = st.State
		}
	}
	return all
}

// As process 1 the supervisor hands the node's code on, as `docker run` and a kubelet read it.
func TestProcess1HandsCodesOn(t *testing.T) {
	t.Parallel()
	c := contain(t, "FAKENODE_EXIT_AFTER=200ms", "FAKENODE_EXIT_CODE=7")
	assert.Equal(t, 7, c.code())

	c = contain(t)
	node := c.outside(c.await(trace.FirstBlock).PID)
	require.Positive(t, node)
	require.NoError(t, syscall.Kill(node, syscall.SIGKILL))
	assert.Equal(t, 128+9, c.code())
}

// The kernel gives process 1 no default action for a signal: what it doesn't forward is lost, and a container that isn't
// stopped is killed after ten seconds.
func TestProcess1ForwardsSignals(t *testing.T) {
	t.Parallel()
	c := contain(t)
	c.await(trace.FirstBlock)
	c.signal(syscall.SIGHUP)
	build.WaitEvent(t, c.trace, patience, func(e trace.Event) bool { return e.Kind == trace.Signal && e.Signal == "hangup" })
	c.signal(syscall.SIGTERM)
	assert.Equal(t, 0, c.code())
	build.WaitEvent(t, c.trace, patience, func(e trace.Event) bool { return e.Kind == trace.Signal && e.Signal == "terminated" })
	c.await(trace.Exit)
}

// Every orphan of the namespace falls to process 1: the node's own, and what `docker exec` leaves. None stays a zombie.
func TestProcess1ReapsOrphans(t *testing.T) {
	t.Parallel()
	c := contain(t, "FAKENODE_CHILDREN=5", "FAKENODE_RELATIVE_LIFE=300ms")
	node := c.outside(c.await(trace.FirstBlock).PID)
	c.await(trace.Child)
	require.Eventually(t, func() bool {
		left := c.children()
		return len(left) == 1 && left[node] != 0 && left[node] != 'Z'
	}, patience, 20*time.Millisecond, "five orphans end and are reaped; the node stays")

	// A shell of an exec that ends before its child.
	enter := []string{"--target", strconv.Itoa(c.cmd.Process.Pid), "--pid", "--mount"}
	if os.Geteuid() != 0 {
		enter = append(enter, "--user", "--preserve-credentials")
	}
	out, err := exec.CommandContext(t.Context(), "nsenter",
		append(enter, "sh", "-c", "sleep 300 >/dev/null 2>&1 & echo $!")...).CombinedOutput()
	require.NoError(t, err, string(out))
	inside, err := strconv.Atoi(strings.TrimSpace(string(out)))
	require.NoError(t, err)
	orphan := c.outside(inside)
	require.Positive(t, orphan, "it was adopted")
	require.NoError(t, syscall.Kill(orphan, syscall.SIGKILL))
	require.Eventually(t, func() bool { return c.outside(inside) == 0 }, patience, 20*time.Millisecond, "it ends and is reaped")
	assert.Contains(t, c.children(), node, "which had no effect on the node")
	c.signal(syscall.SIGTERM)
	assert.Equal(t, 0, c.code())
}

// With process 1 everything goes: a supervisor that is killed leaves no node behind that the next container would meet.
func TestProcess1TakesTheNodeWithIt(t *testing.T) {
	t.Parallel()
	c := contain(t, "FAKENODE_DAEMON=true")
	c.await(trace.Daemon)
	c.await(trace.FirstBlock)
	left := c.children()
	require.NotEmpty(t, left)
	c.signal(syscall.SIGKILL)
	assert.Equal(t, -1, c.code(), "killed")
	for pid := range left {
		assert.True(t, errors.Is(syscall.Kill(pid, 0), syscall.ESRCH), "process %d is gone", pid)
	}
}
