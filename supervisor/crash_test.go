package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/internal/proctest"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/version"
)

// chain is the exact list of phases of an upgrade that was carried out, however often it was interrupted.
var chain = []upgrade.Phase{
	upgrade.Staged, upgrade.Stopped, upgrade.Snapshotted, upgrade.Switched, upgrade.Migrated, upgrade.OnProbation, upgrade.Committed,
}

// crashRounds is how many moments of an upgrade are tried, evenly spread from the start of `run` to the commit.
const crashRounds = 64

// A supervisor that is killed at any moment of an upgrade, and killed again during the recovery, ends where it would have
// ended undisturbed, and on the way never runs two nodes, nor the old one on migrated data.
func TestKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	took := make(chan time.Duration, 1)
	undisturbed(t, took)
	whole := <-took
	t.Logf("undisturbed: %s", whole)
	// Most of a round is waiting, so more of them go side by side than `go test` would run tests.
	var rounds sync.WaitGroup
	next := make(chan int)
	for range 5 {
		rounds.Go(func() {
			for i := range next {
				t.Run(fmt.Sprintf("%02d", i), func(t *testing.T) {
					kills := []time.Duration{whole * time.Duration(i) / crashRounds}
					if i%2 == 1 {
						kills = append(kills, whole*time.Duration((i*7)%crashRounds)/crashRounds)
					}
					killedAt(t, kills...)
				})
			}
		})
	}
	for i := range crashRounds {
		next <- i
	}
	close(next)
	rounds.Wait()
}

// upgradeHome is a home whose node is about to upgrade to v2 at height 4, with a store loader that needs the plan's file.
func upgradeHome(t *testing.T) *host {
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.set("STORE_LOADER", "true")
	h.set("BLOCK_TIME", "20ms")
	return newHost(h)
}

// undisturbed measures how long a whole upgrade takes, from the start of `run` to the commit.
func undisturbed(t *testing.T, took chan<- time.Duration) {
	h := upgradeHome(t)
	begun := time.Now()
	pid := h.boot()
	h.awaitResult(upgrade.ResultCommitted)
	took <- time.Since(begun)
	h.finishAndCheck(pid)
}

// killedAt lets each `run` live for one of kills, then the last one for as long as it needs.
func killedAt(t *testing.T, kills ...time.Duration) {
	h := upgradeHome(t)
	for _, after := range kills {
		pid := h.boot()
		time.Sleep(after) // the moment is the test: there is no fact to wait for
		h.killRun(pid)
		h.invariants()
		if node := h.leftNode(); node != 0 {
			h.boot()
			require.Equal(t, ExitLocked, h.exit(), "a second node would have been started beside %d", node)
			h.killNode(node) // KillMode=mixed
		}
	}
	pid := h.boot()
	h.awaitResult(upgrade.ResultCommitted)
	h.finishAndCheck(pid)
}

// invariants holds what must be true at every moment: current names a version that has a binary, and the journal can be
// read. It is no place for what only holds at the end.
func (h *host) invariants() {
	h.Helper()
	if _, err := os.Lstat(h.layout().Link()); err == nil || upgrade.Seen(h.layout()) {
		v, err := h.layout().Current()
		require.NoError(h, err)
		require.FileExists(h, h.layout().Binary(v))
	}
	h.journal()
}

// finishAndCheck stops the supervisor of a committed upgrade and looks at everything that must hold at the end.
func (h *host) finishAndCheck(pid int) {
	h.Helper()
	// Its commit may be an earlier life's: this one must be up before it is asked to stop.
	h.awaitState(status.Running)
	h.wait("the snapshot is verified", h.verified)
	require.NoError(h, syscall.Kill(pid, syscall.SIGTERM))
	require.Equal(h, 0, h.exit())
	h.invariants()
	h.singleNode()
	assert.Equal(h, "v2", h.current())
	all := h.history()
	require.Len(h, all, 1)
	u := all[0].Upgrade
	var phases []upgrade.Phase
	for _, p := range u.Phases {
		phases = append(phases, p.Phase)
	}
	assert.Equal(h, chain, phases)
	assert.Equal(h, upgrade.ResultCommitted, all[0].Result)
	assert.False(h, u.Skipped, "no snapshot")
	j := h.journal()
	assert.Nil(h, j.Upgrade)
	assert.Nil(h, j.Hold)
	h.noOldNodeOnNewData()
	h.noLeftOvers()
}

// verified tells whether there is one snapshot and it is verified.
func (h *testHome) verified() bool {
	manifests, _ := filepath.Glob(filepath.Join(h.layout().State(), "snapshots", "*", "manifest.json"))
	if len(manifests) != 1 {
		return false
	}
	data, err := os.ReadFile(manifests[0])
	return err == nil && strings.Contains(string(data), `"verified"`)
}

// noOldNodeOnNewData: once v2 began its migration, no v1 starts; and no height was signed twice or below an earlier one.
func (h *testHome) noOldNodeOnNewData() {
	h.Helper()
	migrated, signed := false, int64(0)
	for _, e := range h.events() {
		migrated = migrated || e.Kind == trace.PreUpgrade
		if e.Kind == trace.Start {
			assert.False(h, migrated && e.Version == "v1", "the old node was started on migrated data")
		}
		if e.Kind == trace.Block && e.Signed {
			assert.Greater(h, e.Height, signed, "signed again")
			signed = e.Height
		}
	}
	assert.Positive(h, h.signerHeight())
}

// noLeftOvers: nothing temporary, partial or staged is left anywhere in the home.
func (h *testHome) noLeftOvers() {
	h.Helper()
	err := filepath.WalkDir(h.dir, func(path string, _ os.DirEntry, err error) error {
		for _, part := range []string{".atomic-", ".partial", ".stage"} {
			assert.NotContains(h, filepath.Base(path), part, path)
		}
		return err
	})
	require.NoError(h, err)
}

// The supervisor is killed out of the custom script, once: the script runs again and is told so, and nothing is done twice
// that must not be.
func TestKilledByTheScript(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.Upgrade.CustomPreUpgrade = "pre.sh"
	h.write("cosmovisor/pre.sh", "#!/bin/sh\necho \"$1 $2 $SUPERVISOR_ATTEMPT\" >> "+h.dir+"/calls\n"+
		"[ $(wc -l < "+h.dir+"/calls) = 1 ] && kill -9 $PPID\nexit 0\n")
	host := newHost(h)
	host.boot()
	require.Equal(t, -1, host.exit())
	assert.Equal(t, upgrade.Snapshotted, h.journal().Upgrade.Phase)
	pid := host.boot()
	h.awaitResult(upgrade.ResultCommitted)
	host.finishAndCheck(pid)
	calls, err := os.ReadFile(filepath.Join(h.dir, "calls"))
	require.NoError(t, err)
	assert.Equal(t, "v2 4 1\nv2 4 2\n", string(calls))
}

// The same out of the new binary's pre-upgrade.
func TestKilledByPreUpgrade(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.set("PRE_UPGRADE_KILL_PARENT", "once")
	host := newHost(h)
	host.boot()
	require.Equal(t, -1, host.exit())
	assert.Equal(t, upgrade.Switched, h.journal().Upgrade.Phase)
	pid := host.boot()
	h.awaitResult(upgrade.ResultCommitted)
	host.finishAndCheck(pid)
	var attempts []string
	for _, e := range h.events() {
		if e.Kind == trace.PreUpgrade {
			attempts = append(attempts, e.Attempt)
		}
	}
	assert.Equal(t, []string{"1", "2"}, attempts)
}

// wrap puts a script in front of the binary of v2; it ends by executing "$0.node".
func (h *testHome) wrap(text string) {
	h.Helper()
	bin := h.layout().Binary(version.Of("v2"))
	require.NoError(h, os.Rename(bin, bin+".node"))
	h.write("v2.sh", "#!/bin/sh\n"+text+"\nexec \"$0.node\" \"$@\"\n")
	require.NoError(h, os.Chmod(filepath.Join(h.dir, "v2.sh"), 0o755))
	require.NoError(h, os.Rename(filepath.Join(h.dir, "v2.sh"), bin))
}

// The same out of the trial run of the staged binary, while the old version runs: it lives on, and nothing was begun.
func TestKilledByTheTrialRun(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.Upgrade.Probe = []string{"version"}
	h.wrap(`if [ "$1" = version ] && ! [ -e ` + h.dir + `/once ]; then touch ` + h.dir + `/once; kill -9 $PPID; fi`)
	host := newHost(h)
	host.boot()
	require.Equal(t, -1, host.exit())
	assert.Nil(t, h.journal().Upgrade)
	if node := host.leftNode(); node != 0 {
		host.killNode(node)
	}
	pid := host.boot()
	h.awaitResult(upgrade.ResultCommitted)
	host.finishAndCheck(pid)
}

// And out of the new version itself: each of its starts was counted before, so that one which takes the supervisor with it
// isn't started for ever.
func TestKilledByTheNewVersion(t *testing.T) {
	t.Parallel()
	for name, times := range map[string]int{"once": 1, "always": 99} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHome(t, "v2")
			h.set("UPGRADE", "v2@4")
			starts := filepath.Join(h.dir, "starts")
			h.wrap(fmt.Sprintf(`if [ "$1" = start ]; then echo >> %s; [ $(wc -l < %[1]s) -le %d ] && kill -9 $PPID && exit 1; fi`, starts, times))
			host := newHost(h)
			for attempt := range min(times, h.Upgrade.Probation.Attempts) {
				host.boot()
				require.Equal(t, -1, host.exit())
				h.wait("its end", func() bool { return host.leftNode() == 0 })
				assert.Equal(t, upgrade.OnProbation, h.journal().Upgrade.Phase)
				assert.Equal(t, attempt+1, h.journal().Upgrade.Attempts)
			}
			pid := host.boot()
			if times == 1 {
				assert.Equal(t, 2, h.awaitResult(upgrade.ResultCommitted).Upgrade.Attempts)
				host.finishAndCheck(pid)
				return
			}
			require.Equal(t, ExitHeld, host.exit())
			assert.Contains(t, h.journal().Hold.Reason, "no attempt is left")
			text, err := os.ReadFile(starts)
			require.NoError(t, err)
			assert.Len(t, text, h.Upgrade.Probation.Attempts)
			h.noOldNodeOnNewData()
		})
	}
}

// A script that kills the supervisor each time is not run for ever: after some crashes in a row it holds.
func TestKilledTooOften(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.set("PRE_UPGRADE_KILL_PARENT", "always")
	host := newHost(h)
	code := -1
	for n := 0; code == -1; n++ {
		require.Less(t, n, 10)
		host.boot()
		code = host.exit()
	}
	assert.Equal(t, ExitHeld, code)
	assert.Contains(t, h.journal().Hold.Reason, "interrupted 5 times in a row")
	host.boot()
	assert.Equal(t, ExitHeld, host.exit(), "a hold survives the restart")
}

// A node that outlives its supervisor keeps the next one from starting a second node.
func TestNodeLeftBehind(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	host := newHost(h)
	pid := host.boot()
	node := *h.runs().PID // and it is recorded
	h.await(trace.FirstBlock, "v1")
	host.killRun(pid)
	host.boot()
	require.Equal(t, ExitLocked, host.exit())
	assert.Contains(t, h.lines(), fmt.Sprintf("node pid %d of an earlier supervisor still runs", node))
	assert.Contains(t, h.lines(), "Hint: supervisor --takeover run")
	require.True(t, proctest.Alive(node))
	host.killNode(node)
	pid = host.boot()
	h.awaitCount(2, trace.FirstBlock, "v1")
	require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
	require.Equal(t, 0, host.exit())
	h.singleNode()
}

// Two supervisors: the second one ends and names the first.
func TestSecondSupervisor(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	r := h.start()
	h.await(trace.FirstBlock, "v1")
	second := h.start()
	require.Equal(t, ExitLocked, second.exit())
	assert.Contains(t, h.lines(), fmt.Sprintf("another supervisor, process %d, has it", r.cmd.Process.Pid))
	r.stop()
	assert.Equal(t, 1, h.count(trace.Start, ""))
}
