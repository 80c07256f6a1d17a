package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/internal/fakenode/build"
	"nodevisor/supervisor/home"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

// lent is a home that has been a supervisor's for a while: scheduled, halted, snapshotted, with left-overs.
func lent(t *testing.T) *patient {
	t.Helper()
	p := newPatient(t)
	p.stage("upgrades/v2")
	p.link("genesis")
	p.write(filepath.Join(p.l.DataDir(), "app.db"), "data")
	p.schedule(plan.Schedule{
		Plans: []plan.Plan{
			{Name: "v2", Height: 100, Source: plan.FromOperator},
			{Name: "timed", Time: time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC), Source: plan.FromOperator},
		},
		Skip: []plan.Skip{{Name: "bad"}},
	})
	p.record(50, time.Now())
	p.history("upgrades/v2", upgrade.ResultCancelled)
	code, _, errs := p.invoke("snapshot", "create", "--label", "kept")
	require.Equal(t, cli.ExitOK, code, errs)
	p.dir(filepath.Join(p.l.Root, "upgrades", ".stage-123"))
	p.dir(filepath.Join(p.l.Root, "upgrades", ".fetch-123"))
	p.write(filepath.Join(p.l.State(), ".atomic-123"), "half")
	return p
}

func TestUninitForetells(t *testing.T) {
	p := lent(t)
	before := fingerprint(t, p.home)
	code, out, errs := p.invoke("uninit", "--dry-run")
	require.Equal(t, cli.ExitOK, code, errs)
	assert.Equal(t, before, fingerprint(t, p.home))
	assert.Contains(t, out, "hand over  v2 at 100, in "+p.l.BatchPath())
	assert.Contains(t, out, "the plan timed at 2040-01-01T00:00:00Z: Cosmovisor has no place for it")
	assert.Contains(t, out, "current -> "+p.l.Dir(version.Genesis)+" (an absolute link")
	assert.Contains(t, out, "nothing was changed")
}

func TestUninitGivesTheHomeBack(t *testing.T) {
	p := lent(t)
	code, out, errs := p.invoke("--json", "uninit")
	require.Equal(t, cli.ExitOK, code, errs)
	type handedOver struct {
		Name   string
		Height int64
	}
	var r struct {
		DryRun         bool `json:"dry_run"`
		Plans, Dropped []handedOver
		Homeless       []string
		Current        struct{ Version string }
	}
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	assert.Equal(t, []handedOver{{"v2", 100}}, r.Plans)
	assert.Empty(t, r.Dropped)
	assert.Len(t, r.Homeless, 1)
	assert.Equal(t, "genesis", r.Current.Version)
	assert.False(t, r.DryRun)

	batch, err := os.ReadFile(p.l.BatchPath())
	require.NoError(t, err)
	assert.JSONEq(t, `[{"name":"v2","time":"0001-01-01T00:00:00Z","height":100}]`, string(batch))
	assert.NoFileExists(t, p.l.Plan, "Cosmovisor's own watcher moves the next one there")
	s, err := plan.LoadSchedule(p.l.SchedulePath())
	require.NoError(t, err)
	assert.Empty(t, s.Plans)
	assert.Len(t, s.Skip, 1)
	target, err := os.Readlink(p.l.Link())
	require.NoError(t, err)
	assert.Equal(t, p.l.Dir(version.Genesis), target, "Cosmovisor up to 1.6 can't run a relative one")
	for _, gone := range []string{
		p.l.HeightPath(), filepath.Join(p.l.Root, "upgrades", ".stage-123"), filepath.Join(p.l.Root, "upgrades", ".fetch-123"),
		filepath.Join(p.l.State(), ".atomic-123"),
	} {
		_, err := os.Lstat(gone)
		assert.ErrorIs(t, err, os.ErrNotExist, gone)
	}
	for _, kept := range []string{p.l.Binary(version.Genesis), p.l.Binary("upgrades/v2"), filepath.Join(p.l.DataDir(), "app.db")} {
		assert.FileExists(t, kept)
	}
	history, err := upgrade.LoadHistory(p.l.HistoryDir())
	require.NoError(t, err)
	assert.Len(t, history, 1)
	_, list, _ := p.invoke("--json", "snapshot", "list")
	assert.Contains(t, list, `"kept"`)

	code, _, errs = p.invoke("uninit")
	assert.Equal(t, cli.ExitOK, code, "done again it finds nothing to do: %s", errs)
	again, err := os.ReadFile(p.l.BatchPath())
	require.NoError(t, err)
	assert.Equal(t, batch, again)
}

// A hold was the supervisor's; what it stood for is said before.
func TestUninitLiftsAHold(t *testing.T) {
	p := lent(t)
	p.journal("", &upgrade.Hold{Reason: "halted", Hint: "supervisor resume", Since: time.Now()})
	code, out, errs := p.invoke("uninit")
	require.Equal(t, cli.ExitOK, code, errs)
	assert.Contains(t, out, "a hold")
	assert.Equal(t, cli.ExitOK, p.doctor().code)
}

func TestUninitIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(p *patient)
		code    int
		says    []string
	}{
		"in flight": {
			func(p *patient) { p.journal(upgrade.Staged, nil) }, cli.ExitFailed,
			[]string{"the upgrade v2 is in flight, at staged", "Hint: supervisor run", "supervisor upgrade skip v2"},
		},
		"a journal that can't be trusted": {func(p *patient) { p.write(p.l.JournalPath(), "{") }, cli.ExitHeld, []string{"cannot read the journal", "Hint: "}},
		"a batch that can't be merged":    {func(p *patient) { p.write(p.l.BatchPath(), "{") }, cli.ExitFailed, []string{"batch", "Hint: mend"}},
		"never a supervisor's":            {func(p *patient) { require.NoError(p.t, os.RemoveAll(p.l.State())) }, cli.ExitFailed, []string{"never was a supervisor's"}},
		"a left node": {func(p *patient) {
			lock, err := home.AcquireLock(p.l.LockPath())
			require.NoError(p.t, err)
			node := exec.Command("sleep", "300")
			node.ExtraFiles = []*os.File{lock.File()}
			require.NoError(p.t, lock.SetNode(spawn(p.t, node).Pid))
			require.NoError(p.t, lock.Close())
		}, cli.ExitLocked, []string{"still runs", "Hint: stop it first: kill "}},
		"a foreign node": {func(p *patient) {
			build.Install(p.t, p.l.Binary(version.Genesis), "v1")
			spawn(p.t, exec.Command(p.l.Binary(version.Genesis), "start", "--home", p.home, "--block-time", "0"))
			eventually(p.t, "the node runs", func() bool {
				found, err := home.FindForeign(p.l.Root, p.l.DataDir())
				return err == nil && len(found) == 1
			})
		}, cli.ExitLocked, []string{"runs a binary of the tree", "Hint: stop it first"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := lent(t)
			c.prepare(p)
			schedule, _ := os.ReadFile(p.l.SchedulePath())
			batch, _ := os.ReadFile(p.l.BatchPath())
			code, _, errs := p.invoke("uninit")
			assert.Equal(t, c.code, code, errs)
			for _, text := range c.says {
				assert.Contains(t, errs, text)
			}
			now, _ := os.ReadFile(p.l.SchedulePath())
			assert.Equal(t, string(schedule), string(now), "the plans are still ours")
			now, _ = os.ReadFile(p.l.BatchPath())
			assert.Equal(t, string(batch), string(now))
		})
	}
}

// Beside a run it is refused; after it, and after the uninit, a new run works again.
func TestUninitAndARun(t *testing.T) {
	p := newPatient(t, "SUPERVISOR_NODE_STOP_TIMEOUT=5s", "FAKENODE_BLOCK_TIME=50ms", "GORACE=atexit_sleep_ms=0")
	p.env = append(p.env, "FAKENODE_RPC=unix://"+filepath.Join(t.TempDir(), "rpc.sock"))
	build.Install(t, p.l.Binary(version.Genesis), "v1")
	program, err := exec.LookPath("supervisor")
	require.NoError(t, err)
	start := func() *os.Process {
		run := exec.Command(program, "run", "start", "--home", p.home)
		run.Env = p.env
		process := spawn(t, run)
		eventually(t, "the node runs", p.running)
		return process
	}
	stop := func(process *os.Process) {
		require.NoError(t, process.Signal(os.Interrupt))
		eventually(t, "all of it is gone", func() bool {
			// The process, too: it has the lock a moment longer than its record says.
			gone := errors.Is(process.Signal(syscall.Signal(0)), os.ErrProcessDone)
			info, err := home.ReadLock(p.l.LockPath())
			return gone && err == nil && info.Supervisor == nil && info.Node == nil && !p.running()
		})
	}
	process := start()
	p.stage("upgrades/v2")
	code, _, errs := p.invoke("upgrade", "add", "v2", p.l.Binary("upgrades/v2"), "--height", "1000000")
	require.Equal(t, cli.ExitOK, code, errs)
	code, _, errs = p.invoke("uninit")
	assert.Equal(t, cli.ExitLocked, code)
	assert.Contains(t, errs, fmt.Sprintf("a supervisor, process %d, is running", process.Pid))
	assert.Contains(t, errs, "Hint: stop it first: ")

	stop(process)
	code, out, errs := p.invoke("uninit")
	require.Equal(t, cli.ExitOK, code, errs)
	assert.Contains(t, out, "v2 at 1000000")
	stop(start())
}

func TestUninitRemovesAStaleSocket(t *testing.T) {
	p := lent(t)
	path := filepath.Join(p.l.State(), "control.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	code, _, errs := p.invoke("uninit")
	require.Equal(t, cli.ExitOK, code, errs)
	assert.NoFileExists(t, path)
}
