package child

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/proc"
	"nodevisor/internal/proctest"
)

// A node that ends in time on its signal isn't forced, whatever its code, and gets the signal once.
func TestTerminateGracefully(t *testing.T) {
	c := startScript(t, `n=0; trap 'n=$((n+1)); [ $n = 1 ] && echo first > told' TERM
		echo up > up; while [ ! -e end ]; do sleep 0.02; done; exit $((10+n))`)
	proctest.FileWith(t, filepath.Join(c.cmd.Dir, "up"))
	assert.WithinDuration(t, time.Now(), c.StartedAt(), 30*time.Second)
	c.Terminate(syscall.SIGTERM, time.Minute)
	proctest.FileWith(t, filepath.Join(c.cmd.Dir, "told"))
	c.Terminate(syscall.SIGTERM, time.Minute)
	time.Sleep(50 * time.Millisecond) // time for a second signal, which must not come
	require.NoError(t, os.WriteFile(filepath.Join(c.cmd.Dir, "end"), nil, 0o600))
	exit := exitOfChild(t, c)
	assert.Equal(t, 11, exit.Code)
	assert.False(t, exit.Forced)
	assert.False(t, exit.Gone.Before(exit.At))
	assert.ErrorIs(t, c.Signal(syscall.SIGTERM), os.ErrProcessDone)
	select {
	case e := <-c.Exited():
		assert.Fail(t, "a second value", "%v", e)
	default:
	}
}

func TestTerminateForcesWhatIgnoresTheSignal(t *testing.T) {
	c := startScript(t, `trap "" TERM; sh -c 'trap "" TERM; echo $$ > inner; while :; do sleep 1; done' & echo up > up; while :; do sleep 1; done`)
	proctest.FileWith(t, filepath.Join(c.cmd.Dir, "up"))
	inner := proctest.PidIn(t, filepath.Join(c.cmd.Dir, "inner"))
	began := time.Now()
	c.Terminate(syscall.SIGTERM, 300*time.Millisecond)
	c.Terminate(syscall.SIGTERM, time.Hour) // grants no more time
	exit := exitOfChild(t, c)
	assert.True(t, exit.Forced)
	assert.Equal(t, syscall.SIGKILL, exit.Signal)
	assert.Equal(t, "killed after the stop timeout", exit.String())
	assert.GreaterOrEqual(t, time.Since(began), 300*time.Millisecond, "killed before its time")
	assert.False(t, proctest.Alive(inner), "a member of the group outlives the stop")
}

func TestTerminateEscalatesAtOnce(t *testing.T) {
	c := startScript(t, `trap "" TERM; echo up > up; while :; do sleep 1; done`)
	proctest.FileWith(t, filepath.Join(c.cmd.Dir, "up"))
	c.Terminate(syscall.SIGTERM, time.Hour)
	began := time.Now()
	c.Terminate(syscall.SIGTERM, 0)
	exit := exitOfChild(t, c)
	assert.True(t, exit.Forced)
	assert.Less(t, time.Since(began), 20*time.Second)
}

// A node that was stopped by a terminal or a debugger must hear the stop signal too.
func TestTerminateWakesAStoppedNode(t *testing.T) {
	c := startScript(t, `mkfifo wait; trap 'exit 3' TERM; echo up > up; while :; do read x <> wait; done`) // no forks: vfork delays a stop
	proctest.FileWith(t, filepath.Join(c.cmd.Dir, "up"))
	require.NoError(t, c.Signal(syscall.SIGSTOP))
	proctest.WaitFor(t, 20*time.Second, "it is stopped", func() bool {
		st, err := proc.ReadStat(c.Pid())
		return err == nil && st.State == 'T'
	})
	c.Terminate(syscall.SIGTERM, 20*time.Second)
	exit := exitOfChild(t, c)
	assert.Equal(t, 3, exit.Code)
	assert.False(t, exit.Forced)
}

// A SIGKILL from elsewhere during a stop that still had time isn't ours.
func TestKilledByAnotherDuringAStop(t *testing.T) {
	c := startScript(t, `trap "" TERM; echo up > up; while :; do sleep 1; done`)
	proctest.FileWith(t, filepath.Join(c.cmd.Dir, "up"))
	c.Terminate(syscall.SIGTERM, time.Hour)
	require.NoError(t, syscall.Kill(c.Pid(), syscall.SIGKILL))
	exit := exitOfChild(t, c)
	assert.Equal(t, syscall.SIGKILL, exit.Signal)
	assert.False(t, exit.Forced)
}

func TestSignalReachesTheGroup(t *testing.T) {
	c := startScript(t, `sh -c 'trap "echo got > inner" USR1; echo up > innerup; while :; do sleep 0.02; done' &
		trap 'echo got > outer' USR1; echo up > up; while :; do sleep 0.02; done`)
	proctest.FileWith(t, filepath.Join(c.cmd.Dir, "up"))
	proctest.FileWith(t, filepath.Join(c.cmd.Dir, "innerup"))
	require.NoError(t, c.Signal(syscall.SIGUSR1))
	assert.Equal(t, "got", proctest.FileWith(t, filepath.Join(c.cmd.Dir, "inner")))
	assert.Equal(t, "got", proctest.FileWith(t, filepath.Join(c.cmd.Dir, "outer")))
	st, err := proc.ReadStat(c.Pid())
	require.NoError(t, err)
	assert.Equal(t, c.Pid(), st.Group, "the node leads no group of its own")
}

// A node that ends by itself and leaves processes behind is stopped only when they are gone; gracefully, if they can.
func TestLeftBehindAreStopped(t *testing.T) {
	for name, tc := range map[string]struct {
		leave string // starts a process that writes its pid to "left", and "told" at SIGTERM unless it ignores it
		swept bool
	}{
		"group, obeys":     {`sh -c 'trap "echo yes > told; exit 0" TERM; echo $$ > left; while :; do sleep 0.02; done' &`, false},
		"group, ignores":   {`sh -c 'trap "" TERM; echo $$ > left; while :; do sleep 0.02; done' &`, true},
		"session, obeys":   {`setsid sh -c 'trap "echo yes > told; exit 0" TERM; echo $$ > left; while :; do sleep 0.02; done' &`, false},
		"session, ignores": {`setsid sh -c 'trap "" TERM; echo $$ > left; while :; do sleep 0.02; done' &`, true},
		"double fork":      {`( setsid sh -c 'trap "" TERM; echo $$ > left; while :; do sleep 0.02; done' & ) &`, true},
		"stopped, obeys": {`sh -c 'trap "echo yes > told; exit 0" TERM; echo $$ > left; kill -STOP $$; while :; do sleep 0.02; done' &
			while ! grep -qs "^State:.T" /proc/$(cat left 2>/dev/null || echo 0)/status; do sleep 0.01; done;`, false},
		// What is born of the stop, ignoring SIGTERM from birth, is found too.
		"breeds a newcomer": {`setsid sh -c 'trap "trap \"\" TERM; setsid sleep 60 & echo \$! > left; exit 0" TERM; echo $$ > left; while :; do sleep 0.02; done' &`, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := startScript(t, tc.leave+` while ! [ -s left ]; do sleep 0.01; done; exit 9`, func(s *Spec) {
				s.Linger = 20 * time.Second
				if tc.swept {
					s.Linger = 400 * time.Millisecond
				}
			})
			exit := exitOfChild(t, c)
			left := proctest.PidIn(t, filepath.Join(c.cmd.Dir, "left"))
			assert.False(t, proctest.Alive(left), "process %d outlives the node's end", left)
			assert.Equal(t, 9, exit.Code)
			assert.False(t, exit.Forced, "the node itself ended by itself")
			assert.Equal(t, tc.swept, exit.Swept)
			if tc.swept {
				assert.GreaterOrEqual(t, exit.Gone.Sub(exit.At), 400*time.Millisecond)
			} else {
				assert.Equal(t, "yes", proctest.FileWith(t, filepath.Join(c.cmd.Dir, "told")))
			}
			assert.Empty(t, leftOf(c))
		})
	}
}

// Each process that is left is told once, and not at every look: a second SIGTERM often means "drop everything".
func TestLeftBehindAreToldOnce(t *testing.T) {
	for name, setsid := range map[string]string{"group": "", "session": "setsid "} {
		t.Run(name, func(t *testing.T) {
			c := startScript(t, setsid+`sh -c 'n=0; trap "n=\$((n+1))" TERM; echo $$ > left; while [ $n = 0 ]; do sleep 0.01; done
				i=0; while [ $i -lt 20 ]; do sleep 0.01; i=$((i+1)); done; echo $n > told' & while ! [ -s left ]; do sleep 0.01; done`)
			assert.False(t, exitOfChild(t, c).Swept)
			assert.Equal(t, "1", proctest.FileWith(t, filepath.Join(c.cmd.Dir, "told")))
		})
	}
}

// During a stop, too: the grandchild in another session gets its signal once the node has ended, within the deadline.
func TestTerminateStopsTheGrandchildInAnotherSession(t *testing.T) {
	c := startScript(t, `setsid sh -c 'trap "echo yes > told; exit 0" TERM; echo $$ > left; while :; do sleep 0.02; done' &
		trap 'exit 0' TERM; while ! [ -s left ]; do sleep 0.01; done; echo up > up; while :; do sleep 0.02; done`)
	proctest.FileWith(t, filepath.Join(c.cmd.Dir, "up"))
	left := proctest.PidIn(t, filepath.Join(c.cmd.Dir, "left"))
	c.Terminate(syscall.SIGTERM, 20*time.Second)
	exit := exitOfChild(t, c)
	assert.False(t, exit.Swept)
	assert.False(t, proctest.Alive(left))
	assert.Equal(t, "yes", proctest.FileWith(t, filepath.Join(c.cmd.Dir, "told")))
}

// While something is left the node isn't stopped, and that is known by name; an order to hurry still works then.
func TestTerminateHurriesWhatIsLeft(t *testing.T) {
	c := startScript(t, `setsid sh -c 'trap "" TERM; echo $$ > left; while :; do sleep 0.02; done' & while ! [ -s left ]; do sleep 0.01; done; exit 0`,
		func(s *Spec) { s.Linger = time.Hour })
	left := proctest.PidIn(t, filepath.Join(c.cmd.Dir, "left"))
	proctest.WaitFor(t, 10*time.Second, "the node itself has ended", func() bool { return !proctest.Alive(c.Pid()) })
	select {
	case <-c.Exited():
		require.Fail(t, "it is called stopped while a process of it lives")
	case <-time.After(100 * time.Millisecond):
	}
	assert.Contains(t, leftOf(c), left)
	c.Terminate(syscall.SIGTERM, 0)
	exit := exitOfChild(t, c)
	assert.True(t, exit.Swept)
	assert.False(t, proctest.Alive(left))
}

// What was adopted before the node began can't be the node's, and must outlive its stop.
func TestOlderOrphansAreNotTheNodes(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	_, err := proc.Output(t.Context(), proctest.Shell(`setsid sh -c 'echo $$ > `+pidFile+`; exec sleep 60' & while ! [ -s `+pidFile+` ]; do sleep 0.01; done`), 0)
	require.NoError(t, err)
	pid := proctest.PidIn(t, pidFile)
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL); proc.Reap() })
	id, err := proc.Identify(pid)
	require.NoError(t, err)
	self := filepath.Join("/proc", "self")
	proctest.WaitFor(t, 20*time.Second, "the clock of start times has moved on", func() bool {
		res, err := proc.Output(t.Context(), proctest.Shell("cat "+self+"/stat"), 1000)
		fields := strings.Fields(string(res.Stdout))
		start, perr := strconv.ParseUint(fields[21], 10, 64)
		return err == nil && perr == nil && start > id.StartTime
	})
	c := startScript(t, "exit 0", func(s *Spec) { s.Linger = 100 * time.Millisecond })
	exit := exitOfChild(t, c)
	assert.False(t, exit.Swept)
	assert.True(t, proctest.Alive(pid))
}
