package upgrade

import (
	"bytes"
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

	"nodevisor/upgrade/version"
)

// changes are the system calls by which a file system is changed, each of which is a place to die at. A process that is
// killed on entering one has done everything up to it.
func changes() []string {
	return []string{
		"fsync", "fdatasync", "rename", "renameat", "renameat2", "symlink", "symlinkat", "unlink", "unlinkat", "rmdir", "link", "linkat",
		"mkdir", "mkdirat", "write", "pwrite64", "copy_file_range", "fchmod", "fchmodat", "fchownat", "ftruncate",
	}
}

// scratch is a directory in memory where there is one: hundreds of homes are made, and no power is cut.
func scratch(t *testing.T) string {
	t.Helper()
	if dir, err := os.MkdirTemp("/dev/shm", "upgrade-test-"); err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		script(t, filepath.Join(dir, "may-execute"), "exit 0")
		if exec.Command(filepath.Join(dir, "may-execute")).Run() == nil {
			return dir
		}
	}
	return t.TempDir()
}

// place is where a process dies: on entering a system call for the n-th time. (strace counts each system call of each
// thread for itself; the acts do all their file work on the first thread, the only one that is traced without -f.)
type place struct {
	call string
	n    int
}

// act runs one act in a process of its own, which dies at the place, if it comes there. It tells whether it did.
func act(t *testing.T, name, dir string, at place) (hit bool) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	args := []string{self}
	if at.n > 0 {
		args = []string{"strace", "-qq", "-o", "/dev/null", fmt.Sprintf("--inject=%s:signal=SIGKILL:when=%d", at.call, at.n), self}
	}
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	// The race detector waits a second at each end of a process, in case more is found.
	cmd.Env = append(os.Environ(), actEnv+"="+name, homeEnv+"="+dir, "GOMAXPROCS=1", "GOGC=off", "GORACE=atexit_sleep_ms=0")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && at.n > 0 && ws.Signaled() && ws.Signal() == syscall.SIGKILL {
		return true
	}
	require.NoError(t, err, "%s (to die at %s %d): %s", name, at.call, at.n, out.String())
	return false
}

// crashHome is a home with a plan whose height has come, and a node that says whenever it runs.
func crashHome(t *testing.T, dir string) *home {
	t.Helper()
	h := newHomeIn(t, dir)
	h.stage(staged, v2)
	h.customScript(`echo "$SUPERVISOR_ATTEMPT" >> "$HOME_DIR/custom"`)
	h.announce("V2", 100)
	return h
}

// requireInvariants holds after every kill, before anything is recovered.
func requireInvariants(t *testing.T, h *home, plan string) {
	t.Helper()
	require.NoError(t, h.unloaded().Load(), "journal, schedule and link agree")
	current := h.current()
	require.FileExists(t, h.l.Binary(current))
	data := h.read(h.app())
	require.Contains(t, []string{"v1", "v2"}, data)
	if data == "v2" {
		require.Equal(t, staged, current, "the old binary never runs on migrated data")
		require.Equal(t, "v1", h.read(h.snaps.path("v2-100")), "what was migrated has a snapshot from before")
	}
	require.Equal(t, plan, h.read(h.l.Plan), "the node's file is never changed")
}

// requireCommitted is how every crash of an upgrade ends: as if there had been none.
func requireCommitted(t *testing.T, h *home) {
	t.Helper()
	require.Equal(t, staged, h.current())
	require.Equal(t, "v2", h.read(h.app()))
	require.Nil(t, h.onDisk().Upgrade)
	require.Nil(t, h.onDisk().Hold)
	all := h.history()
	require.Len(t, all, 1)
	require.Equal(t, ResultCommitted, all[0].Result)
	require.Equal(t, golden, phaseNames(all[0].Upgrade))
	require.JSONEq(t, `{"name":"v2","time":"0001-01-01T00:00:00Z","height":100,"info":"{}"}`, h.read(h.l.InfoPath(staged)))
	snaps, err := os.ReadDir(h.snaps.dir)
	require.NoError(t, err)
	require.Len(t, snaps, 1, "one snapshot, however often it was begun")
	require.Equal(t, "v1", h.read(h.snaps.template("v2-100")), "its template is of the same moment")
	requireNoLeftOvers(t, h.l.Home)
}

// TestKilledAtEveryChange kills an upgrade at each change of the file system that it makes, and recovers it in a new
// process; and again kills the recovery. The number of places is found, not written down: what is added later is hit, too.
func TestKilledAtEveryChange(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(h *home)
		done    func(t *testing.T, h *home)
	}{
		{"upgrade", func(*home) {}, requireCommitted},
		{"roll-back", func(h *home) { h.carried() }, requireRolledBack},
		{"restart", func(h *home) {
			h.carried()
			require.NoError(h.t, h.engine().Hold("no attempt is left", "supervisor upgrade resume --restore"))
		}, requireCommitted},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, points, again := scratch(t), 0, 0
			for _, call := range changes() {
				for n := 1; ; n++ {
					h := crashHome(t, filepath.Join(dir, call+strconv.Itoa(n)))
					c.prepare(h)
					plan := h.read(h.l.Plan)
					if !act(t, c.name, h.l.Home, place{call, n}) {
						c.done(t, h)
						break
					}
					points++
					requireInvariants(t, h, plan)
					if act(t, c.name, h.l.Home, second[points%len(second)]) {
						again++
						requireInvariants(t, h, plan)
					}
					act(t, c.name, h.l.Home, place{})
					act(t, c.name, h.l.Home, place{}) // once more changes nothing
					c.done(t, h)
					require.Equal(t, plan, h.read(h.l.Plan))
					require.NoError(t, os.RemoveAll(h.l.Home))
				}
			}
			t.Logf("%s: died at %d places, and %d times again while it recovered", c.name, points, again)
			assert.Greater(t, points, 30, "the injection doesn't reach the file work")
			assert.Greater(t, again, points/4)
		})
	}
}

// second are the places at which a recovery dies, too: in turn.
var second = []place{
	{"renameat", 1},
	{"fsync", 2},
	{"renameat", 2},
	{"write", 3},
	{"fsync", 4},
	{"unlinkat", 2},
	{"renameat", 3},
	{"fsync", 6},
	{"symlinkat", 1},
	{"renameat", 4},
	{"fsync", 1},
	{"renameat", 5},
	{"fsync", 8},
}

// carried brings the home to a probation that fails.
func (h *home) carried() {
	h.t.Helper()
	e := h.engine()
	h.beginFile(e)
	require.NoError(h.t, e.Carry(h.t.Context()))
	require.NoError(h.t, e.Attempt())
	require.NoError(h.t, e.Ended("exit status 1", 0))
}

// requireNoLeftOvers looks for what an interrupted write could leave.
func requireNoLeftOvers(t *testing.T, root string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		assert.NotContains(t, path, ".atomic-")
		return err
	}))
}

func requireRolledBack(t *testing.T, h *home) {
	t.Helper()
	require.Equal(t, version.Genesis, h.current())
	require.Equal(t, "v1", h.read(h.app()))
	j := h.onDisk()
	require.Nil(t, j.Upgrade)
	require.NotNil(t, j.Hold, "held: it is not begun again by itself")
	all := h.history()
	require.Len(t, all, 1)
	require.Equal(t, ResultRolledBack, all[0].Result)
	requireNoLeftOvers(t, h.l.Home)
}

// TestKilledFromInside lets the scripts of an upgrade kill the supervisor that runs them, each once. What was interrupted
// is begun again at most once more, and is told.
func TestKilledFromInside(t *testing.T) {
	for name, c := range map[string]struct{ custom, migrate, wantCustom, wantMigrate string }{
		"custom script": {`test -e "$HOME_DIR/once" || { : > "$HOME_DIR/once"; kill -9 $PPID; }`, "", "1\n2\n", "1\n"},
		"pre-upgrade":   {"", `test -e "$HOME_DIR/once" || { : > "$HOME_DIR/once"; kill -9 $PPID; }`, "1\n", "1\n2\n"},
	} {
		t.Run(name, func(t *testing.T) {
			h := crashHome(t, t.TempDir())
			plan := h.read(h.l.Plan)
			h.customScript(`echo "$SUPERVISOR_ATTEMPT" >> "$HOME_DIR/custom"; ` + c.custom)
			h.stage(staged, v2+"\n"+`test "$1" = pre-upgrade || exit 0`+"\n"+c.migrate)
			self, err := os.Executable()
			require.NoError(t, err)
			cmd := exec.CommandContext(t.Context(), self)
			cmd.Env = append(os.Environ(), actEnv+"=upgrade", homeEnv+"="+h.l.Home)
			require.ErrorContains(t, cmd.Run(), "signal: killed")
			requireInvariants(t, h, plan)
			act(t, "upgrade", h.l.Home, place{})
			requireCommitted(t, h)
			assert.Equal(t, c.wantCustom, h.read(filepath.Join(h.l.Home, "custom")))
			assert.Equal(t, c.wantMigrate, h.read(filepath.Join(h.l.Home, "migrations")))
		})
	}
}

// TestKilledAtAnyMoment complements the exact places: every change is slowed down, in all threads and programs of the
// upgrade, and everything is killed at moments that are spread over it.
func TestKilledAtAnyMoment(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	dir := scratch(t)
	const rounds = 10
	killed := 0
	for n := range rounds {
		h := crashHome(t, filepath.Join(dir, strconv.Itoa(n)))
		plan := h.read(h.l.Plan)
		cmd := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "--inject="+strings.Join(changes(), ",")+":delay_enter=5000", self)
		cmd.Env = append(os.Environ(), actEnv+"=upgrade", homeEnv+"="+h.l.Home)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		require.NoError(t, cmd.Start())
		// The moment is a state of the files, not a time: on a busy machine a time would miss the upgrade.
		moment := []func() bool{
			func() bool { return lines(h.l.JournalPath()) > 0 },
			func() bool { return strings.Contains(readable(h.l.JournalPath()), `"stopped"`) },
			func() bool { return lines(filepath.Join(h.l.Home, "custom")) > 0 },
			func() bool { target, _ := os.Readlink(h.l.Link()); return target != "genesis" }, //nolint:errcheck // not yet
			func() bool { return readable(h.app()) == "v2" },
		}[n%5]
		deadline := time.Now().Add(20 * time.Second)
		for !moment() && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(n) * 3 * time.Millisecond)
		require.NoError(t, syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL))
		if cmd.Wait() != nil {
			killed++
		}
		requireInvariants(t, h, plan)
		act(t, "upgrade", h.l.Home, place{})
		requireCommitted(t, h)
	}
	assert.Positive(t, killed, fmt.Sprintf("none of %d rounds was interrupted", rounds))
}

// readable is a file's content, "" where there is none.
func readable(path string) string {
	data, _ := os.ReadFile(path) //nolint:errcheck // said above
	return string(data)
}

// Between the old node's end and the new one's start lie at most eight fsyncs of ours: on a slow disk each is downtime.
func TestFewFsyncsWhileTheNodeIsDown(t *testing.T) {
	h := crashHome(t, t.TempDir())
	h.snaps = &fakeSnaps{data: h.app(), dir: filepath.Join(h.l.Home, "snaps")}
	h.beginFile(h.engine())
	require.NoError(t, os.WriteFile(h.snaps.path("v2-100"), []byte("v1"), 0o644)) // sealed before: a store that does nothing
	self, err := os.Executable()
	require.NoError(t, err)
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.CommandContext(t.Context(), "strace", "-f", "-qq", "-y", "-o", trace, "-e", "trace=fsync,fdatasync,sync,syncfs,sync_file_range,msync", self)
	cmd.Env = append(os.Environ(), actEnv+"=carry", homeEnv+"="+h.l.Home)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, OnProbation, h.onDisk().Upgrade.Phase)
	n := strings.Count(h.read(trace), "sync(")
	t.Logf("%d fsyncs", n)
	assert.LessOrEqual(t, n, 8+2, "two are for the plan's file, which only a process that didn't see the begin syncs here")
	assert.Contains(t, h.read(trace), h.l.Plan+">", "the node doesn't sync its file, and the new version needs it")
	assert.GreaterOrEqual(t, n, 4, "the link and two records of the journal are worth a file and a directory each")
}
