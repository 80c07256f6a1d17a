//go:build e2e

package e2e

import (
	"encoding/json"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The main story: v1 runs, governance votes v2, and the supervisor carries it out without a hand.
func TestGovernanceUpgrade(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	run := n.supervise(t)
	n.supervisor(t, "upgrade", "add", upgradeName, chainV2.path)
	height := n.vote(t)

	done := n.waitCommitted(t)
	n.requireUpgraded(t, height)
	assert.Equal(t, "genesis", done.From)
	assert.Equal(t, upgradeName, done.To)
	assert.Positive(t, done.DowntimeMS)
	assert.Subset(t, done.phases(), []string{"stopped", "snapshotted", "switched"}, "the timeline")
	t.Logf("downtime %d ms, phases %+v", done.DowntimeMS, done.Phases)

	s := n.status(t)
	assert.Equal(t, "running", s.State)
	require.NotNil(t, s.Version)
	assert.Equal(t, upgradeName, *s.Version)
	assert.Nil(t, s.Upgrade, "no upgrade is in flight any more")
	assert.Equal(t, 1, n.logged(t, 0, needed), "v1 reached the height once, and was not started again")

	require.NotNil(t, done.Snapshot)
	n.requireSnapshot(t, *done.Snapshot, height)

	require.NotNil(t, s.PID)
	run.signal(t, syscall.SIGTERM)
	assert.Zero(t, run.exitCode(t, time.Minute), "a requested stop")
	requireGone(t, *s.PID)
	assert.Equal(t, "stopped", n.status(t).State)
}

// requireSnapshot verifies the snapshot with all its hashes, restores it to a directory beside the home, and starts v1
// on it.
func (n *network) requireSnapshot(t *testing.T, id string, height int64) {
	t.Helper()
	var verified struct {
		OK     bool              `json:"ok"`
		Errors []json.RawMessage `json:"errors"`
	}
	answer := n.supervisor(t, "snapshot", "verify", id, "--json")
	require.NoError(t, json.Unmarshal([]byte(answer), &verified), answer)
	require.True(t, verified.OK, answer)

	to := filepath.Join(n.base, "restored")
	n.supervisor(t, "snapshot", "restore", id, "--to", to, "--yes")
	n.requireV1StopsAt(t, findData(t, to), height)
}

// The node is killed at the height, the host's supervisor restarted, and the binary comes last: v1 can't run any more
// on this data, so nothing but the files tells that an upgrade is due (the crash loop of cosmos-sdk issue 22731).
func TestLateBinary(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	run := n.supervise(t)
	height := n.vote(t)
	wait(t, blocksTime, func() bool { return n.logged(t, 0, needed) > 0 }, "v1 at the height")

	waiting := func(s status) bool { return s.State == "waiting-for-binary" }
	before := n.waitStatus(t, upgradeTime, "waiting for the binary", waiting)
	if before.PID != nil { // the halted node may be kept for its RPC, or stopped already
		require.NoError(t, syscall.Kill(*before.PID, syscall.SIGKILL))
		requireGone(t, *before.PID)
	}
	n.waitStatus(t, upgradeTime, "still waiting after the node's end", waiting)
	assert.True(t, run.running(), "a missing binary is no reason for `run` to end")

	require.NoError(t, run.cmd.Process.Kill()) // the supervisor too has a bad day
	<-run.ended
	run = n.startSupervisor(t)
	n.waitStatus(t, upgradeTime, "waiting after the restart", waiting)
	assert.Equal(t, "genesis", n.version(t))

	n.supervisor(t, "upgrade", "add", upgradeName, chainV2.path)
	done := n.waitCommitted(t)
	assert.Equal(t, "genesis", done.From)
	n.requireUpgraded(t, height)
	assert.LessOrEqual(t, n.logged(t, 0, "starting node with ABCI"), 4, "v1 must not be started in a loop")
	assert.True(t, run.running())
}

// SIGTERM in the moment after the switch: Cosmovisor then ends at once and abandons the new node. The supervisor
// stops it cleanly, and the next start goes on where this one stopped.
func TestTermRightAfterUpgrade(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	run := n.supervise(t)
	n.supervisor(t, "upgrade", "add", upgradeName, chainV2.path)
	height := n.vote(t)
	wait(t, blocksTime, func() bool { return n.logged(t, 0, applying) > 0 }, "v2 at the height")
	run.signal(t, syscall.SIGTERM)

	from := n.logEnd(t)
	assert.Zero(t, run.exitCode(t, time.Minute), "a requested stop")
	assert.Empty(t, orphans(n.home), "no node is left behind")
	assert.Positive(t, n.logged(t, max(0, from-1<<14), "Stopping Node service"), "the node ended in its own way")
	assert.Equal(t, "upgrades/"+upgradeName, n.version(t))

	run = n.startSupervisor(t)
	n.waitCommitted(t)
	n.requireUpgraded(t, height)
	assert.Equal(t, 1, n.logged(t, 0, applying), "the handler ran once")
	assert.True(t, run.running())
}

// A SIGKILL of the supervisor alone, at the height: the node lives on, and the next supervisor must neither start a
// second one beside it nor lose the upgrade.
func TestSupervisorKilledAtHeight(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	run := n.supervise(t)
	n.supervisor(t, "upgrade", "add", upgradeName, chainV2.path)
	height := n.vote(t)
	wait(t, blocksTime, func() bool { return n.logged(t, 0, needed) > 0 }, "v1 at the height")
	require.NoError(t, run.cmd.Process.Kill())
	<-run.ended

	// As an init system would do it: until the old node is gone, `run` refuses with 75, because it holds the home.
	left := orphans(n.home)
	if len(left) > 0 {
		second := n.startSupervisor(t)
		select {
		case <-second.ended:
			assert.Equal(t, 75, second.exitCode(t, time.Second), "a node is left, so `run` refuses")
			assert.Subset(t, left, orphans(n.home), "the refusal started nothing; the node may have been told to stop before")
		case <-time.After(30 * time.Second): // the node had been told to stop before the kill, and was gone in time
			for _, pid := range left {
				requireGone(t, pid)
			}
			second.signal(t, syscall.SIGTERM)
			assert.Zero(t, second.exitCode(t, time.Minute))
		}
	}
	run = n.start(t, supervisorBin.path, "--takeover", "run", "start", "--home", n.home, "--log_no_color")
	n.waitCommitted(t)
	n.requireUpgraded(t, height)
	assert.True(t, run.running())
}

// The upgrade's snapshot, put back in place: v1 starts at the height again. What the validator has signed stays.
func TestRestoreStartsV1AtTheHeight(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	run := n.supervise(t)
	n.supervisor(t, "upgrade", "add", upgradeName, chainV2.path)
	height := n.vote(t)
	done := n.waitCommitted(t)
	require.NotNil(t, done.Snapshot)
	n.requireUpgraded(t, height)
	run.signal(t, syscall.SIGTERM)
	require.Zero(t, run.exitCode(t, time.Minute))
	signed, from := n.signerHeight(t), n.logEnd(t)

	n.supervisor(t, "snapshot", "restore", *done.Snapshot, "--yes")
	assert.Equal(t, signed, n.signerHeight(t), "the signer's state never goes back")
	n.supervisor(t, "upgrade", "use", "genesis")
	assert.Equal(t, "genesis", n.version(t))
	if n.status(t).Hold != nil {
		n.supervisor(t, "resume")
	}

	n.startSupervisor(t)
	line := needed + " at height: " + strconv.FormatInt(height, 10)
	wait(t, upgradeTime, func() bool { return n.logged(t, from, line) > 0 }, "v1 at the height, again")
	// v2 then runs on the restored data. It can't sign new blocks before the height that it has signed already, so
	// the chain of one validator stands still: that's what the signer's state is for.
	wait(t, upgradeTime, func() bool { return n.logged(t, from, applying) > 0 }, "v2 at the height, again")
	assert.False(t, strings.Contains(tail(n.nodeLog()), "double sign"))
}
