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
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

// blind takes the node's RPC away: its height can't be read.
func (h *testHome) blind() {
	h.set("RPC", "off")
	h.Upgrade.Probation.HeightAbovePlan = false
}

// A node that ends at H, in whatever way, has announced its upgrade: it goes on, also where no height could be read, and
// the end of the old version is no failed attempt of the new one.
func TestNodeEndsAtTheHeight(t *testing.T) {
	t.Parallel()
	for _, blind := range []bool{false, true} {
		for _, ending := range []string{"stay", "exit", "exit0", "panic"} {
			t.Run(fmt.Sprintf("%s blind %v", ending, blind), func(t *testing.T) {
				t.Parallel()
				h := newHome(t, "v2")
				h.set("UPGRADE", "v2@4")
				h.set("AT_UPGRADE", ending)
				if blind {
					h.blind()
				}
				r := h.start()
				done := h.awaitResult(upgrade.ResultCommitted)
				assert.Equal(t, 1, done.Upgrade.Attempts)
				assert.Contains(t, []plan.Evidence{plan.ByFile, plan.ByHeight, plan.BySigner}, done.Upgrade.Evidence)
				h.awaitState(status.Running)
				r.stop()
				assert.Equal(t, 1, h.count(trace.Start, "v1"))
				assert.Equal(t, 1, h.count(trace.Start, "v2"))
				h.singleNode()
				h.noOldNodeOnNewData()
			})
		}
	}
}

// The file is written in two writes, or by a rename.
func TestPlanFileInParts(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"PARTIAL_PLAN", "PLAN_RENAME"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			h := newHome(t, "v2")
			h.set("UPGRADE", "v2@4")
			h.set(way, "true")
			r := h.start()
			h.awaitResult(upgrade.ResultCommitted)
			r.stop()
			assert.Equal(t, 1, h.count(trace.Start, "v1"))
		})
	}
}

// A plan whose height is far ahead, written into the node's file by another tool, is no upgrade now: it is kept as
// scheduled and carried out when its height has come. Between, a node that is killed is restarted, not upgraded.
func TestPlanFarAhead(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	r := h.start()
	h.awaitStatus("a height", func(st *status.Document) bool { return st.Height != nil })
	const at = 1200
	h.plan("v2", at)
	st := h.awaitStatus("it is scheduled", func(st *status.Document) bool { return st.Plan != nil && !st.Plan.Exact })
	assert.Equal(t, int64(at), *st.Plan.Height)
	require.NoError(t, syscall.Kill(*st.PID, syscall.SIGKILL)) // as the OOM killer does
	h.awaitCount(2, trace.FirstBlock, "v1")
	done := h.awaitResult(upgrade.ResultCommitted)
	assert.Equal(t, plan.ByHeight, done.Upgrade.Evidence)
	assert.GreaterOrEqual(t, done.Upgrade.Stood, int64(at), "never early")
	r.stop()
	assert.Equal(t, 1, h.count(trace.Start, "v2"))
}

// The same file, and no height to contradict it: the node's own announcement can't be told from another tool's. But a file
// that was there before the node started, and says nothing else, never makes a killed node an upgraded one.
func TestPlanFileAtTheStart(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.link()
	h.plan("v2", 100000)
	r := h.start()
	node := h.await(trace.FirstBlock, "v1").PID
	st := h.awaitStatus("a height", func(st *status.Document) bool { return st.Height != nil })
	assert.Equal(t, "v2", st.Plan.Name, "it is seen all the same")
	require.NoError(t, syscall.Kill(node, syscall.SIGKILL))
	h.awaitCount(2, trace.FirstBlock, "v1")
	r.stop()
	assert.Zero(t, h.count(trace.Start, "v2"))
	assert.Equal(t, "genesis", h.current())
}

// Garbage in the plan file never stops a node. If the node ends while it is still there, nobody can say why: hold.
func TestGarbageInThePlanFile(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	r := h.start()
	node := h.await(trace.FirstBlock, "v1").PID
	for _, text := range []string{"", "{", `{"name":"../../evil","height":3}`, `{"name":"v2","height":-1}`, strings.Repeat("[", 10000)} {
		h.write("data/upgrade-info.json", text)
		h.awaitStatus(fmt.Sprintf("%.20q is seen", text), func(st *status.Document) bool { return len(st.Warnings) > 0 && st.State == status.Running })
		require.NoError(t, os.Remove(h.layout().Plan))
		h.awaitStatus("it is gone", func(st *status.Document) bool { return len(st.Warnings) == 0 })
	}
	h.write("data/upgrade-info.json", "{")
	h.awaitStatus("it is seen", func(st *status.Document) bool { return len(st.Warnings) > 0 })
	assert.True(t, proctest.Alive(node))
	require.NoError(t, syscall.Kill(node, syscall.SIGKILL))
	require.Equal(t, ExitHeld, r.exit())
	assert.Contains(t, h.journal().Hold.Reason, "plan file can't be read")
	assert.Equal(t, 1, h.count(trace.Start, ""))
}

// link makes current name genesis: a home with a plan's file is no fresh one, where that would be done by itself.
func (h *testHome) link() {
	h.Helper()
	require.NoError(h, h.layout().SwitchTo(version.Genesis))
}

// runToHalt lets the node run to its upgrade without a supervisor, as before a supervisor is installed, or in a crash.
func (h *testHome) runToHalt() {
	h.Helper()
	h.link()
	require.NoError(h, os.MkdirAll(filepath.Join(h.dir, "data"), 0o755))
	cmd := exec.Command(h.layout().Binary(version.Genesis), "start")
	cmd.Env = h.Env
	require.NoError(h, proc.Start(cmd))
	h.await(trace.Halted, "v1")
	require.NoError(h, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(h, proc.Wait(cmd))
}

// At the start the file holds a plan and the signer's state says that its height has come: the old version isn't started.
func TestSignerIsEvidenceAtTheStart(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.blind()
	h.runToHalt()
	r := h.start()
	done := h.awaitResult(upgrade.ResultCommitted)
	assert.Equal(t, plan.BySigner, done.Upgrade.Evidence)
	r.stop()
	assert.Equal(t, 1, h.count(trace.Start, "v1"))
}

// Without a signer, current is started once: the line that it ends with is the evidence, wherever it stands in its output.
func TestLineIsEvidenceAtTheStart(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.blind()
	h.link()
	h.plan("v2", 4)
	h.script("echo run >> " + h.dir + "/runs\necho 'ERR UPGRADE \"v2\" NEEDED at height: 4: module=x/upgrade'\nexit 1\n")
	r := h.start()
	done := h.awaitResult(upgrade.ResultCommitted)
	assert.Equal(t, plan.ByLog, done.Upgrade.Evidence)
	r.stop()
	runs, err := os.ReadFile(filepath.Join(h.dir, "runs"))
	require.NoError(t, err)
	assert.Equal(t, "run\n", string(runs), "the old version is started once")
}

// Nothing says whether the plan's height has come: never switch, hold.
func TestNoEvidenceAtTheStart(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.blind()
	h.set("EXIT_AFTER", "100ms")
	h.link()
	h.plan("v2", 100000)
	r := h.start()
	require.Equal(t, ExitHeld, r.exit())
	assert.Equal(t, 1, h.count(trace.Start, "v1"))
	assert.Contains(t, h.journal().Hold.Hint, "supervisor upgrade apply v2")
	require.Equal(t, ExitHeld, h.start().exit())
	assert.Equal(t, 1, h.count(trace.Start, ""))
}

// A hand patch (v3 run by `current` over the plan v2, whose file stays) isn't undone by the stale file: not by a crash, a
// chown, a touch or a copy of the file over itself.
func TestStaleFileUnderAHandPatch(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2", "v3")
	h.set("UPGRADE", "v2@4")
	h.setOf("v3", "HANDLES", "v2,v3")
	r := h.start()
	h.awaitResult(upgrade.ResultCommitted)
	r.stop()
	require.NoError(t, h.layout().SwitchTo(version.Of("v3")))
	r = h.start()
	h.awaitStatus("a height", func(st *status.Document) bool { return st.HeightSource != nil && st.State == status.Running })
	require.NoError(t, os.Chmod(h.layout().Plan, 0o640))
	require.NoError(t, os.Chtimes(h.layout().Plan, time.Now(), time.Now()))
	data, err := os.ReadFile(h.layout().Plan)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(h.layout().Plan, data, 0o600))
	require.NoError(t, syscall.Kill(h.await(trace.FirstBlock, "v3").PID, syscall.SIGKILL))
	h.awaitCount(2, trace.FirstBlock, "v3")
	h.awaitStatus("it runs", func(st *status.Document) bool { return st.State == status.Running && st.Upgrade == nil })
	r.stop()
	assert.Equal(t, "v3", h.current())
	assert.Equal(t, 1, h.count(trace.Start, "v2"))
	assert.Len(t, h.history(), 1)
}

// A node that begins again from genesis goes through an upgrade that history, record and signer know already.
func TestResyncFromGenesis(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	r := h.start()
	h.awaitResult(upgrade.ResultCommitted)
	h.awaitStatus("heights", func(st *status.Document) bool { return st.Height != nil && *st.Height > 50 })
	r.stop()
	require.NoError(t, os.RemoveAll(filepath.Join(h.dir, "data", "fake.db")))
	require.NoError(t, os.Remove(h.layout().Plan))
	require.NoError(t, h.layout().SwitchTo(version.Genesis))
	r = h.start()
	h.wait("it is carried out again", func() bool { return len(h.history()) == 2 })
	h.awaitState(status.Running)
	r.stop()
	assert.Equal(t, "v2", h.current())
	assert.Equal(t, 2, h.count(trace.Upgrade, "v2"))
}

// The data directory is missing at the start, and is replaced while the node runs: the file is seen all the same.
func TestDataDirectoryIsReplaced(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.blind()
	h.SnapshotOn = nil
	h.script("echo up > " + h.dir + "/up\nexec sleep 1000\n")
	require.NoDirExists(t, filepath.Join(h.dir, "data"))
	r := h.start()
	proctest.FileWith(t, filepath.Join(h.dir, "up"))
	h.awaitState(status.Running)
	require.NoError(t, os.Mkdir(filepath.Join(h.dir, "data"), 0o755))
	require.NoError(t, os.Rename(filepath.Join(h.dir, "data"), filepath.Join(h.dir, "data.old")))
	h.plan("v2", 4)
	done := h.awaitResult(upgrade.ResultCommitted)
	assert.Equal(t, plan.ByFile, done.Upgrade.Evidence)
	r.stop()
}

// A link that was changed by hand beside the running node: what is gone, or was set to the next version ahead of its height,
// is put back before the upgrade begins, so that a roll-back leads to what ran. A third version is nobody's choice: the node
// is left running until the link is.
func TestLinkChangedBesideTheNode(t *testing.T) {
	t.Parallel()
	for name, target := range map[string]string{"gone": "", "ahead of time": "upgrades/v2", "another": "upgrades/v3", "dangling": "upgrades/v9"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHome(t, "v2", "v3")
			h.set("UPGRADE", "v2@4")
			open := h.gate()
			r := h.start()
			h.runs()
			link := h.layout().Link()
			require.NoError(t, os.Remove(link))
			if target != "" {
				require.NoError(t, os.Symlink(target, link))
			}
			open()
			if name == "another" || name == "dangling" {
				st := h.awaitState(status.WaitingForBinary)
				assert.NotNil(t, st.PID)
				assert.Contains(t, st.Message, ", but genesis runs")
				require.NoError(t, proc.Run(proctest.Shell(strings.TrimSuffix(*st.Plan.Hint, " (then it goes on)"))))
			}
			h.awaitResult(upgrade.ResultCommitted)
			assert.Equal(t, version.Genesis, h.history()[0].Upgrade.From)
			r.stop()
			assert.Equal(t, "v2", h.current())
			assert.Equal(t, 1, h.count(trace.Start, "v1"))
		})
	}
}
