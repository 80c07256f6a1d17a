package proc

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The promise of the package, with the reaper at work: 1,000 programs that each leave an orphan behind, no exit code
// lost, no zombie left.
func TestThousandExitCodesBesideOrphans(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := ReapOn(ctx)
	t.Cleanup(func() { cancel(); <-done })

	const runs, workers = 1000, 4
	var next, lost atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for n := next.Add(1); n <= runs; n = next.Add(1) {
				code := int(n % 256)
				cmd := sh(fmt.Sprintf("( : & ) ; exit %d", code)) // the inner : outlives its parent, or tries to
				_ = Run(cmd)
				if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
					lost.Add(1)
				}
			}
		})
	}
	wg.Wait()
	assert.Zero(t, lost.Load(), "exit codes were lost")
	waitFor(t, 20*time.Second, "no child is left, dead or alive", func() bool {
		pids, err := children()
		return err == nil && len(pids) == 0
	})
	assert.Empty(t, own.pids, "pids stayed registered")
}

func TestEndWithUs(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TEST_DYING="+pidFile)
	cmd.Stderr = os.Stderr
	require.NoError(t, Start(cmd))
	pid := 0
	waitFor(t, 20*time.Second, "the program runs", func() bool {
		data, _ := os.ReadFile(pidFile)
		_, err := fmt.Sscanf(string(data), "%d\n", &pid)
		return err == nil
	})
	t.Cleanup(func() { endOrphan(t, pid) })
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, Wait(cmd))
	waitFor(t, 20*time.Second, "its end", func() bool {
		st, err := ReadStat(pid)
		return err != nil || st.Ended()
	})
}

func TestOrphanIsReaped(t *testing.T) {
	pid := startOrphan(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := ReapOn(ctx)
	t.Cleanup(func() { cancel(); <-done })

	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	waitFor(t, 20*time.Second, "the orphan is reaped", func() bool {
		_, err := ReadStat(pid)
		return err != nil
	})
}

func TestReapOnReapsWhatEndedBefore(t *testing.T) {
	pid := startOrphan(t)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	waitFor(t, 20*time.Second, "the orphan is a zombie", func() bool {
		st, err := ReadStat(pid)
		return err == nil && st.Ended()
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := ReapOn(ctx)
	waitFor(t, 20*time.Second, "the orphan is reaped", func() bool { _, err := ReadStat(pid); return err != nil })
	cancel()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		require.Fail(t, "the reaper goes on after its context")
	}
}

// orphans lists the adopted processes that live.
func orphans(t *testing.T) (live []int) {
	t.Helper()
	require.NoError(t, EachOrphan(func(pid int) { live = append(live, pid) }))
	return live
}

func TestEachOrphanTellsTheLivingAndReapsTheDead(t *testing.T) {
	before := orphans(t)
	live, dead := startOrphan(t), startOrphan(t)
	cmd := sh("exec sleep 60")
	require.NoError(t, Start(cmd))
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = Wait(cmd) })
	require.NoError(t, syscall.Kill(dead, syscall.SIGKILL))
	waitFor(t, 20*time.Second, "it has ended", func() bool {
		st, err := ReadStat(dead)
		return err != nil || st.Ended()
	})

	got := orphans(t)
	want := append(slices.Clone(before), live)
	slices.Sort(want)
	assert.Equal(t, want, got, "own child %d isn't one, %d has ended", cmd.Process.Pid, dead)
	_, err := ReadStat(dead)
	assert.Error(t, err, "the dead one stayed a zombie")
	assert.True(t, Owns(cmd.Process.Pid))
	assert.False(t, Owns(live))
}

// A zombie of ours must wait for its Wait however often the reaper walks.
func TestReapLeavesOwnZombiesAlone(t *testing.T) {
	cmd := sh("exit 42")
	require.NoError(t, Start(cmd))
	require.NoError(t, AwaitEnd(cmd.Process.Pid))
	for range 20 {
		Reap()
	}
	st, err := ReadStat(cmd.Process.Pid)
	require.NoError(t, err, "it was reaped")
	assert.True(t, st.Ended())
	var exit *exec.ExitError
	require.ErrorAs(t, Wait(cmd), &exit)
	assert.Equal(t, 42, exit.ExitCode())
	assert.False(t, Owns(cmd.Process.Pid))
}

func TestLookTellsWhetherAChildLivesOrHasEnded(t *testing.T) {
	told := func(some, ended bool) [2]bool { return [2]bool{some, ended} }
	require.Equal(t, [2]bool{false, false}, told(look()), "an earlier test left a child")
	cmd := sh("read -r _ || :")
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, Start(cmd))
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = Wait(cmd) })
	// Asked by another thread than the one that forked: the kernel keeps children by thread.
	apart := make(chan [2]bool)
	go func() {
		runtime.LockOSThread() // it ends with the goroutine
		apart <- told(look())
	}()
	assert.Equal(t, [2]bool{true, false}, <-apart)
	require.NoError(t, stdin.Close())
	require.NoError(t, AwaitEnd(cmd.Process.Pid))
	assert.Equal(t, [2]bool{true, true}, told(look()))
	require.NoError(t, Wait(cmd))
	assert.Equal(t, [2]bool{false, false}, told(look()))
}

// A walk, which may take long on a host with many threads, keeps nobody from the end of its own child.
func TestWaitIsNotHeldUpByAWalk(t *testing.T) {
	cmd := sh("exit 3")
	require.NoError(t, Start(cmd))
	own.Lock() // as a walk does
	defer own.Unlock()
	ended := make(chan error, 1)
	go func() { ended <- Wait(cmd) }()
	select {
	case err := <-ended:
		assert.Error(t, err)
		assert.False(t, Owns(cmd.Process.Pid))
	case <-time.After(10 * time.Second):
		require.Fail(t, "it waits for the walk")
	}
}

func TestStartFailures(t *testing.T) {
	cmd := exec.Command(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, Start(cmd), os.ErrNotExist)
	require.Error(t, Wait(cmd), "waiting for what never started")
	require.Error(t, Run(exec.Command(t.TempDir())), "a directory was executed")
}

// A program that is still open for writing elsewhere is started as soon as it is closed.
func TestStartRetriesABusyProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	image, err := os.ReadFile("/bin/true")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, image, 0o755))
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		require.NoError(t, err)
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	f := open()

	began := time.Now()
	err = Start(exec.Command(path))
	require.ErrorIs(t, err, syscall.ETXTBSY, "the premise: a file that stays open can't be executed")
	assert.GreaterOrEqual(t, time.Since(began), busyRetries*busyPause)

	var cmd *exec.Cmd
	for try := 1; err != nil; try++ {
		require.LessOrEqual(t, try, 10) // on a busy machine it may be closed after the last try
		require.ErrorIs(t, err, syscall.ETXTBSY)
		closed := make(chan struct{})
		time.AfterFunc(busyPause+busyPause/2, func() { _ = f.Close(); close(closed) })
		cmd = exec.Command(path)
		cmd.Env, cmd.Dir = []string{"A=b"}, t.TempDir()
		if err = Run(cmd); err != nil {
			<-closed
			f = open()
		}
	}
	assert.Equal(t, []string{"A=b"}, cmd.Env, "the second try has lost a field")
	assert.NotEmpty(t, cmd.Dir)
}

func TestAwaitEndOfNoChild(t *testing.T) {
	require.ErrorIs(t, AwaitEnd(1), syscall.ECHILD)
}

// Both ways of listing must agree, for kernels without the first one.
func TestChildrenByTaskAndByStatAgree(t *testing.T) {
	var want []int
	for range 3 {
		cmd := sh("exec sleep 60")
		require.NoError(t, Start(cmd))
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = Wait(cmd) })
		want = append(want, cmd.Process.Pid)
	}
	want = append(want, startOrphan(t))
	slices.Sort(want)

	byTask, err := childrenByTask("/proc", os.Getpid())
	require.NoError(t, err)
	slices.Sort(byTask)
	assert.Equal(t, want, byTask)
	byStat, err := childrenByStat("/proc", os.Getpid())
	require.NoError(t, err)
	slices.Sort(byStat)
	assert.Equal(t, want, byStat)
}

func TestChildrenWithoutTheKernelsList(t *testing.T) {
	procfs := t.TempDir()
	put := func(pid, stat string) {
		require.NoError(t, os.MkdirAll(filepath.Join(procfs, pid, "task", pid), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(procfs, pid, "stat"), []byte(stat), 0o644))
	}
	tail := " 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 777 0 0\n"
	put("10", "10 (supervisor) S 1 10 10"+tail)
	put("12", "12 (a) Z 1 (b) S 10 12 12"+tail)
	put("11", "11 (node) Z 10 11 11"+tail)
	put("13", "13 (other) S 1 13 13"+tail)
	put("14", "torn")
	require.NoError(t, os.MkdirAll(filepath.Join(procfs, "sys"), 0o755))

	got, err := childrenOf(procfs, 10)
	require.NoError(t, err)
	assert.Equal(t, []int{11, 12}, got)
	_, err = childrenOf(filepath.Join(procfs, "none"), 10)
	require.Error(t, err, "no /proc at all is an error, not an empty list")
}

// Owns is asked while other goroutines wait for their children: a look for foreign nodes beside a probe's end.
func TestOwnsBesideWait(t *testing.T) {
	stop, asked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(asked)
		for {
			select {
			case <-stop:
				return
			default:
				Owns(1)
			}
		}
	}()
	for range 20 {
		require.NoError(t, Run(exec.Command("/bin/true")))
	}
	close(stop)
	<-asked
}

func TestEnviron(t *testing.T) {
	assert.Equal(t, []string{"A=1", "NOTIFY_SOCKETS=x"},
		Environ([]string{"A=1", "NOTIFY_SOCKET=/run/x", "WATCHDOG_PID=1", "NOTIFY_SOCKETS=x", "WATCHDOG_USEC=5"}))
}
