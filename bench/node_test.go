package bench

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/fakenode/trace"
)

const (
	oldName    = "v1"
	planName   = "v2"
	planHeight = 3                // the node stands there, as at a real plan, and its RPC answers
	patience   = 60 * time.Second // with a node that must start, or end
)

// A tool is one supervisor. The commands and variables are Cosmovisor's: Nodevisor takes the same.
type tool struct{ name, path, stubs string }

// stub is where the node's program of a version is built.
func stub(dir, version string) string { return filepath.Join(dir, "stub-"+version) }

// kind matches the first event of its kind in the life of a version.
func kind(k trace.Kind, version string) func(trace.Event) bool {
	return func(e trace.Event) bool { return e.Kind == k && e.Version == version }
}

// A run is one supervisor with its node, on a home of its own.
type run struct {
	tool
	home   string
	rpc    string // where the node listens
	trace  string
	cmd    *exec.Cmd
	began  time.Time
	ended  chan struct{}
	prefix []string // what the supervisor is run by: strace
}

// newRun makes a home in dir with the first version installed and the second staged. db, unless empty, is moved into it
// as the application's database.
func newRun(t testing.TB, w tool, dir, db string) *run {
	t.Helper()
	home, err := os.MkdirTemp(dir, "nodevisor-bench-")
	require.NoError(t, err)
	r := &run{tool: w, home: home, trace: filepath.Join(home, "trace")}
	t.Cleanup(func() { r.end(t) })
	r.rpc = freeAddress(t)
	r.command(t, stub(w.stubs, oldName), "init")
	r.command(t, w.path, "init", stub(w.stubs, oldName))
	r.command(t, w.path, "add-upgrade", planName, stub(w.stubs, planName))
	if db != "" {
		require.NoError(t, os.Rename(db, filepath.Join(home, "data", "application.db")))
		t.Cleanup(func() { r.giveBack(t, db) })
	}
	return r
}

// freeAddress is one that nobody listens at. Its port lies below the range that the kernel gives to clients: no connection
// takes it before the node does, or while that is replaced.
func freeAddress(t testing.TB) string {
	t.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(10000))
		if l, err := net.Listen("tcp", address); err == nil {
			require.NoError(t, l.Close())
			return address
		}
	}
	require.Fail(t, "no port is free")
	return ""
}

// giveBack takes the database out of the home, for the next run.
func (r *run) giveBack(t testing.TB, db string) {
	t.Helper()
	r.stop(t)
	err := os.Rename(filepath.Join(r.home, "data", "application.db"), db)
	if !os.IsNotExist(err) { // else it was given back already
		require.NoError(t, err)
	}
}

func (r *run) env() []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + r.home, "DAEMON_HOME=" + r.home, "DAEMON_NAME=node",
		"DAEMON_SHUTDOWN_GRACE=20s", // Cosmovisor's own default kills at once
		"SUPERVISOR_SNAPSHOT_MIN_FREE=0", "BENCH_RPC=" + r.rpc, "BENCH_TRACE=" + r.trace, fmt.Sprintf("BENCH_HEIGHT=%d", planHeight),
	}
}

func (r *run) command(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env, cmd.Dir = r.env(), r.home
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
}

// start starts the supervisor and waits for the node at the plan's height.
func (r *run) start(t testing.TB) trace.Event {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(r.home, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	defer log.Close()
	args := append(append([]string{}, r.prefix...), r.path, "run", "start")
	r.cmd, r.ended = exec.Command(args[0], args[1:]...), make(chan struct{})
	r.cmd.Env, r.cmd.Dir, r.cmd.Stdout, r.cmd.Stderr = r.env(), r.home, log, log
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r.began = time.Now()
	require.NoError(t, r.cmd.Start())
	go func() {
		_ = r.cmd.Wait()
		close(r.ended)
	}()
	first := r.wait(t, kind(trace.Start, oldName))
	r.wait(t, kind(trace.FirstBlock, oldName))
	return first
}

// wait gives the first such event of the node's life.
func (r *run) wait(t testing.TB, match func(trace.Event) bool) trace.Event {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		events, err := trace.Read(r.trace)
		require.NoError(t, err)
		for _, e := range events {
			if match(e) {
				return e
			}
		}
	}
	log, _ := os.ReadFile(filepath.Join(r.home, "log"))
	require.FailNow(t, "the node didn't do what was waited for", "%s:\n%s", r.name, log[max(0, len(log)-4<<10):])
	return trace.Event{}
}

// announce writes the plan as x/upgrade does, in one go, and says when.
func (r *run) announce(t testing.TB) time.Time {
	t.Helper()
	plan := fmt.Appendf(nil, `{"name":%q,"time":"0001-01-01T00:00:00Z","height":%d,"info":""}`, planName, planHeight)
	begin := time.Now()
	require.NoError(t, os.WriteFile(filepath.Join(r.home, "data", "upgrade-info.json"), plan, 0o600))
	return begin
}

// stop ends the supervisor, and a node that it left behind: Cosmovisor v1.5.0 may leave one after an upgrade.
func (r *run) stop(t testing.TB) {
	t.Helper()
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	if len(r.prefix) > 0 { // strace doesn't pass it on; the supervisor is in its process group
		_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGTERM)
	}
	select {
	case <-r.ended:
	case <-time.After(patience):
		_ = r.cmd.Process.Kill()
		<-r.ended
	}
	events, err := trace.Read(r.trace)
	require.NoError(t, err)
	for _, e := range events {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", e.PID)); err == nil && strings.HasPrefix(exe, r.home+"/") {
			_ = syscall.Kill(e.PID, syscall.SIGKILL)
		}
	}
	r.cmd = nil
}

// end removes all of it.
func (r *run) end(t testing.TB) {
	t.Helper()
	r.stop(t)
	require.NoError(t, os.RemoveAll(r.home))
}

// at is the moment of an event.
func at(e trace.Event) time.Time { return time.Unix(0, e.Time) }

// processorTime is what a process has used, with the children that it has waited for.
func processorTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	// The clock of another process, exact to the nanosecond: clock_getcpuclockid(3), CPUCLOCK_SCHED in the kernel.
	var ts unix.Timespec
	require.NoError(t, unix.ClockGettime(int32(^pid<<3|2), &ts)) //nolint:gosec // pids are small
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(t, err)
	rest := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	ticks := 0
	for _, f := range rest[13:15] { // cutime and cstime, in hundredths of a second: proc(5)
		n := 0
		_, err := fmt.Sscan(f, &n)
		require.NoError(t, err)
		ticks += n
	}
	return time.Duration(ts.Nano()) + time.Duration(ticks)*10*time.Millisecond
}

// memory is one of the figures of a process's status, in bytes.
func memory(t testing.TB, pid int, name string) float64 {
	t.Helper()
	var kb float64
	_, err := fmt.Sscan(field(t, fmt.Sprintf("/proc/%d/status", pid), name), &kb)
	require.NoError(t, err)
	return kb * 1024
}
