package supervisor

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/internal/proc"
	"nodevisor/internal/proctest"
	"nodevisor/supervisor/child"
	"nodevisor/supervisor/restart"
	"nodevisor/supervisor/status"
)

// startUnder starts `run` as systemd would, with more in its environment.
func (h *testHome) startUnder(m *manager, more ...string) *run {
	h.Helper()
	cmd := h.command()
	cmd.Env = append(cmd.Env, m.env(more...)...)
	return h.startCommand(cmd)
}

// One life under systemd: ready once the node has lived a second, fed while it runs, extended while it stops.
func TestUnderSystemd(t *testing.T) {
	t.Parallel()
	h, m := newHome(t), newManager(t)
	h.set("STOP_DELAY", "700ms")
	h.Env = append(h.Env, "NOTIFY_SOCKET="+m.path, "WATCHDOG_USEC=1", "WATCHDOG_PID=1")
	r := h.startUnder(m, "WATCHDOG_USEC=200000")
	m.await("STATUS=starting")
	begun := h.await(trace.Start, "v1")
	m.await("READY=1")
	assert.GreaterOrEqual(t, time.Since(*h.status().StartedAt), okayAfter)
	m.await(fmt.Sprintf("MAINPID=%d", r.cmd.Process.Pid))
	assert.Regexp(t, `^STATUS=running, version genesis, height \d+$`, m.await("STATUS=running, version genesis, height"))

	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", begun.PID))
	require.NoError(t, err)
	assert.NotContains(t, string(environ), "NOTIFY_SOCKET")
	assert.NotContains(t, string(environ), "WATCHDOG_")

	m.said = nil
	for fed := 0; fed < 3; fed++ {
		m.await("WATCHDOG=1")
	}
	m.never("EXTEND_TIMEOUT_USEC") // nothing takes long
	m.never("READY=1")
	r.signal(syscall.SIGTERM)
	m.await("STOPPING=1")
	assert.Equal(t, "EXTEND_TIMEOUT_USEC=40000000", m.await("EXTEND_TIMEOUT_USEC"), "twice the stop timeout")
	require.Equal(t, 0, r.exit())
}

// A stop asks for its time as it begins: a unit's TimeoutStopSec= may be over before the next sign of life.
func TestStopAsksForTimeAtOnce(t *testing.T) {
	t.Parallel()
	h, m := newHome(t), newManager(t)
	r := h.startUnder(m) // without a watchdog a sign of life comes each five seconds
	m.await("READY=1")
	r.signal(syscall.SIGTERM)
	m.await("STOPPING=1")
	assert.Equal(t, "EXTEND_TIMEOUT_USEC=40000000", m.await(""), "what is said next")
	require.Equal(t, 0, r.exit())
}

// A watchdog that is meant for another process is not fed, and is no reason to be silent.
func TestWatchdogOfAnother(t *testing.T) {
	t.Parallel()
	h, m := newHome(t), newManager(t)
	r := h.startUnder(m, "WATCHDOG_USEC=100000", "WATCHDOG_PID=1")
	m.await("READY=1")
	for m.next(300*time.Millisecond) != nil && len(m.said) < 20 {
	}
	m.never("WATCHDOG=1")
	r.stop()
}

// ready = "healthy" waits for a height, and systemd is asked for time meanwhile.
func TestReadyWhenHealthy(t *testing.T) {
	t.Parallel()
	h, m := newHome(t), newManager(t)
	h.Systemd.Ready = ReadyHealthy
	open := h.gate()
	r := h.startUnder(m, "WATCHDOG_USEC=400000")
	m.await("EXTEND_TIMEOUT_USEC")
	m.await("STATUS=running")
	m.never("READY=1")
	open()
	m.await("READY=1")
	assert.NotNil(t, h.status().HeightSource)
	r.stop()
}

// Held waiting is a state to be ready in: socket and watchdog go on. Held with an exit is not.
func TestReadyWhileHeld(t *testing.T) {
	t.Parallel()
	for mode, ready := range map[HoldMode]bool{HoldWait: true, HoldExit: false} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			h, m := newHome(t), newManager(t)
			h.Node.Hold = mode
			h.write("supervisor/upgrade.json", "{")
			r := h.startUnder(m, "WATCHDOG_USEC=200000")
			if !ready {
				require.Equal(t, ExitHeld, r.exit())
				for m.next(100*time.Millisecond) != nil {
				}
				m.never("READY=1")
				assert.Contains(t, strings.Join(m.said, "\n"), "STATUS=HELD: ", "the last words arrive")
				return
			}
			m.await("READY=1")
			m.await("STATUS=HELD: ")
			m.await("WATCHDOG=1")
			r.stop()
		})
	}
}

func TestIsReady(t *testing.T) {
	for state, want := range map[status.State]bool{
		status.Upgrading: true, status.WaitingForBinary: true, status.Starting: false, status.Backoff: false, status.Stopping: false, status.Stopped: false, status.Running: false,
	} {
		s := &Supervisor{state: state}
		assert.Equal(t, want, s.isReady(), state)
	}
	s := &Supervisor{state: status.Running, child: &child.Process{}}
	assert.True(t, s.isReady())
	s.o.ReadyWhen = ReadyHealthy
	assert.False(t, s.isReady())
	s.height.from = "rpc"
	assert.True(t, s.isReady())
	s.o.NodeSocket = "/run/x"
	assert.True(t, s.isReady(), "a reload's: the node that lives has none")
	s.tale.nodeTells = true
	assert.False(t, s.isReady())
	s.tale.nodeReady = &child.Process{}
	assert.False(t, s.isReady(), "an earlier node said so")
	s.tale.nodeReady = s.child
	assert.True(t, s.isReady())
}

func TestExtension(t *testing.T) {
	c := &child.Process{}
	ready := telling{ready: true}
	for name, s := range map[string]*Supervisor{
		"at rest":               {tale: ready, child: c, state: status.Running},
		"a moment's job":        {tale: ready, job: &job{name: "cancel"}},
		"crash loop at a start": {state: status.Backoff},
	} {
		assert.Zero(t, s.extension(), name)
	}
	for name, s := range map[string]*Supervisor{
		"stopping":     {tale: ready, stopping: true},
		"for upgrade":  {tale: ready, onExit: func(child.Exit) {}},
		"a long job":   {tale: ready, job: &job{long: true}},
		"other units":  {tale: ready, units: unitWork{acting: 1}},
		"not ready":    {child: c},
		"short by far": {stopping: true, o: Options{Config: Config{StopTimeout: time.Second}}},
	} {
		assert.Equal(t, minExtension, s.extension(), name)
	}
	s := &Supervisor{stopping: true, o: Options{Config: Config{StopTimeout: time.Minute}}}
	assert.Equal(t, 2*time.Minute, s.extension())
}

// With node_notify the node's own READY=1 is waited for. Only its process group is believed, and it can neither feed the
// watchdog nor name another main process.
func TestNodeNotify(t *testing.T) {
	t.Parallel()
	h, m := newHome(t), newManager(t)
	h.Systemd.NodeNotify = true
	h.Systemd.Units = []unitSpec{{At: AfterHealthy, Name: "feeder"}}
	h.set("RPC", "off") // no height: only the node can say that it is well
	r := h.startUnder(m)
	node := h.await(trace.Start, "v1").PID
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", node))
	require.NoError(t, err)
	socket := filepath.Join(h.dir, "n")
	assert.Contains(t, string(environ), "NOTIFY_SOCKET="+socket+"\x00")

	h.say(socket, 0, "READY=1\nSTATUS=I am not the node")
	m.await("STATUS=running")
	h.wait("the stranger was heard", func() bool { return strings.Contains(h.lines(), "doesn't come from the node") })
	m.never("READY=1")
	assert.Equal(t, []string{""}, h.unitsActed())

	h.say(socket, node, "STATUS=replaying\nMAINPID=1\nWATCHDOG=1\nWATCHDOG_USEC=1")
	m.await("STATUS=running, version genesis; the node: replaying")
	m.never("READY=1")
	h.say(socket, node, "READY=1")
	m.await("READY=1")
	h.wait("the unit", func() bool { return h.unitsActed()[0] == "after-healthy feeder" })
	m.never("MAINPID=1\n")
	m.never("WATCHDOG")
	r.stop()
	assert.NoFileExists(t, socket)
}

// say sends a message as a process of that group would (0: of another), and waits until it was taken in: the sender must
// live so long, and sd_notify_barrier(3) is how it knows.
func (h *testHome) say(socket string, group int, text string) {
	h.Helper()
	cmd := exec.Command(os.Args[0], text)
	cmd.Env = append(os.Environ(), proctest.HelperEnv+"=notify", "NOTIFY_SOCKET="+socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: group}
	out, err := cmd.StdoutPipe()
	require.NoError(h, err)
	require.NoError(h, proc.Start(cmd))
	_, err = out.Read(make([]byte, 1))
	require.Error(h, err, "it says nothing, and ends")
	require.NoError(h, proc.Wait(cmd))
}

// A loop that hangs is not fed any more, and asks for no time. The watchdog's SIGABRT then stops the node gracefully.
func TestWatchdogFindsAHungLoop(t *testing.T) {
	t.Parallel()
	h, m := newHome(t), newManager(t)
	h.Systemd.Trouble = filepath.Join(h.dir, "trouble")
	h.set("DAEMON", "true")
	h.set("STOP_DELAY", "300ms")
	r := h.startUnder(m, "WATCHDOG_USEC=200000")
	m.await("READY=1")
	grandchild := h.await(trace.Daemon, "v1").PID
	h.write("trouble", "hang")
	h.wait("silence", func() bool { return m.next(time.Second) == nil })
	r.signal(syscall.SIGABRT)
	require.Equal(t, 134, r.exit())
	assert.Equal(t, []string{"terminated", "terminated"}, h.signals(), "the node, and what it left")
	assert.Equal(t, 1, h.count(trace.Exit, "v1"))
	assert.Contains(t, h.lines(), "goroutine ")
	_, err := proc.ReadStat(grandchild)
	assert.Error(t, err, "what the node left is gone, too")
}

// A panic stops the node gracefully, and nothing starts it again before the end.
func TestPanicStopsTheNode(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.Systemd.Trouble = filepath.Join(h.dir, "trouble")
	h.Node.Restart = restart.Always
	h.set("STOP_DELAY", "200ms")
	r := h.start()
	h.await(trace.FirstBlock, "v1")
	h.write("trouble", "panic")
	require.Equal(t, 134, r.exit())
	assert.Equal(t, []string{"terminated"}, h.signals())
	assert.Equal(t, 1, h.count(trace.Start, "v1"))
	assert.Contains(t, h.lines(), "as the test wants it")
}
