//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// underCosmovisor makes the home Cosmovisor's, and starts it.
func (n *network) underCosmovisor(t *testing.T) *daemon {
	t.Helper()
	n.run(t, cosmovisorBin.path, "init", chainV1.path)
	return n.startCosmovisor(t)
}

func (n *network) startCosmovisor(t *testing.T) *daemon {
	t.Helper()
	return n.start(t, cosmovisorBin.path, "run", "start", "--home", n.home, "--log_no_color")
}

// The control: Cosmovisor upgrades this chain. If this test fails, the chain is broken and not the supervisor.
func TestCosmovisorUpgradesTheChain(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	run := n.underCosmovisor(t)
	n.run(t, cosmovisorBin.path, "add-upgrade", upgradeName, chainV2.path)
	height := n.vote(t)
	n.requireUpgraded(t, height)
	assert.Equal(t, 1, n.logged(t, 0, needed))
	backups, err := filepath.Glob(filepath.Join(n.home, "data-backup-*"))
	require.NoError(t, err)
	require.Len(t, backups, 1)
	n.requireV1StopsAt(t, backups[0], height)

	// Told to stop after an upgrade, Cosmovisor v1.5.0 may end without its node, and without telling it: the test does.
	run.signal(t, syscall.SIGTERM)
	run.exitCode(t, time.Minute)
	for _, pid := range orphans(n.home) {
		_ = syscall.Kill(pid, syscall.SIGTERM)
		requireGone(t, pid)
	}
}

// There and back: a home that Cosmovisor runs is taken over, upgraded, and given back.
func TestCosmovisorRoundTrip(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	peer := n.underCosmovisor(t)
	n.waitHeight(t, 3)
	peer.signal(t, syscall.SIGTERM)
	peer.exitCode(t, time.Minute)
	require.Empty(t, orphans(n.home))
	require.Zero(t, n.height(), "the node is down")

	// Taken over with nothing but Cosmovisor's own environment and Cosmovisor's own commands.
	run := n.startSupervisor(t)
	n.waitHeight(t, 6)
	n.supervisor(t, "add-upgrade", upgradeName, chainV2.path)
	height := n.vote(t)
	n.waitCommitted(t)
	n.requireUpgraded(t, height)
	run.signal(t, syscall.SIGTERM)
	require.Zero(t, run.exitCode(t, time.Minute))

	// Given back: Cosmovisor goes on with v2, and doesn't take the old plan for a new one.
	reached, from := n.signerHeight(t), n.logEnd(t)
	n.supervisor(t, "uninit")
	for _, path := range []string{"data/application.db", "cosmovisor/genesis/bin/chaind", "cosmovisor/upgrades/v2/bin/chaind", "data/upgrade-info.json"} {
		_, err := os.Stat(filepath.Join(n.home, path))
		assert.NoError(t, err, "uninit leaves it")
	}
	assert.Equal(t, reached, n.signerHeight(t))
	peer = n.startCosmovisor(t)
	n.waitHeight(t, reached+3)
	n.requireUpgraded(t, height)
	assert.Zero(t, n.logged(t, from, needed))
	assert.Zero(t, n.logged(t, from, "upgrade detected"))
	peer.signal(t, syscall.SIGTERM)
	peer.exitCode(t, time.Minute)
}
