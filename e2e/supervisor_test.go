//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// upgradeTime is the longest that a test waits for what the supervisor does at a plan's height, probation included.
const upgradeTime = 3 * time.Minute

// status is what the tests read of `status --json`; pointers are for what may be null.
type status struct {
	Schema  int     `json:"schema"`
	State   string  `json:"state"`
	PID     *int    `json:"pid"`
	Version *string `json:"version"`
	Height  *int64  `json:"height"`
	Plan    *struct {
		Name   string `json:"name"`
		Height int64  `json:"height"`
		Ready  bool   `json:"ready"`
	} `json:"plan"`
	Hold *struct {
		Reason string `json:"reason"`
		Hint   string `json:"hint"`
	} `json:"hold"`
	Upgrade *struct {
		Name  string `json:"name"`
		Phase string `json:"phase"`
	} `json:"upgrade"`
	LastUpgrade *lastUpgrade `json:"last_upgrade"`
	Snapshots   struct {
		Count int `json:"count"`
	} `json:"snapshots"`
}

type lastUpgrade struct {
	Name       string  `json:"name"`
	From       string  `json:"from"`
	To         string  `json:"to"`
	Result     string  `json:"result"`
	DowntimeMS int64   `json:"downtime_ms"`
	Snapshot   *string `json:"snapshot"`
	Phases     []struct {
		Phase string `json:"phase"`
		MS    int64  `json:"ms"`
	} `json:"phases"`
}

// phases lists the timeline's phases in their order.
func (u *lastUpgrade) phases() []string {
	var names []string
	for _, p := range u.Phases {
		names = append(names, p.Phase)
	}
	return names
}

// supervise makes the tree of versions and starts the supervisor with v1.
func (n *network) supervise(t *testing.T) *daemon {
	t.Helper()
	n.supervisor(t, "init", chainV1.path)
	return n.startSupervisor(t)
}

// startSupervisor starts `run` with the node's arguments, as a unit's ExecStart would.
func (n *network) startSupervisor(t *testing.T) *daemon {
	t.Helper()
	return n.start(t, supervisorBin.path, "run", "start", "--home", n.home, "--log_no_color")
}

// supervisor runs one of its commands, which must succeed.
func (n *network) supervisor(t *testing.T, args ...string) string {
	t.Helper()
	return n.run(t, supervisorBin.path, args...)
}

// status reads `status --json`, whose exit code tells held (3) from all else (0).
func (n *network) status(t *testing.T) status {
	t.Helper()
	stdout, stderr, code := n.try(t, supervisorBin.path, "status", "--json")
	require.Contains(t, []int{0, 3}, code, "status: %s%s", stdout, stderr)
	var s status
	require.NoError(t, json.Unmarshal([]byte(stdout), &s), "status: %s", stdout)
	require.Equal(t, 1, s.Schema)
	require.Equal(t, code == 3, s.Hold != nil, "exit code %d and hold must agree: %s", code, stdout)
	return s
}

// waitStatus waits until status fulfils holds, and gives it.
func (n *network) waitStatus(t *testing.T, within time.Duration, what string, holds func(status) bool) status {
	t.Helper()
	var last status
	wait(t, within, func() bool {
		last = n.status(t)
		return holds(last)
	}, "status: %s", what)
	return last
}

// waitCommitted waits for the end of probation.
func (n *network) waitCommitted(t *testing.T) *lastUpgrade {
	t.Helper()
	s := n.waitStatus(t, upgradeTime, "upgrade committed", func(s status) bool {
		return s.LastUpgrade != nil && s.LastUpgrade.Name == upgradeName && s.LastUpgrade.Result == "committed"
	})
	return s.LastUpgrade
}

// requireGone waits until the node that pid named has ended. A node that this process adopted is waited for here:
// else it would stay a zombie, which still answers to its number.
func requireGone(t *testing.T, pid int) {
	t.Helper()
	wait(t, time.Minute, func() bool {
		_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
		return syscall.Kill(pid, 0) != nil
	}, "the end of process %d", pid)
}

// version reads the link `current` as a name: "genesis" or "upgrades/<name>".
func (n *network) version(t *testing.T) string {
	t.Helper()
	target, err := filepath.EvalSymlinks(filepath.Join(n.root(), "current"))
	require.NoError(t, err)
	return relative(t, n.root(), target)
}

// signerHeight reads how far the validator has signed. It must never go down.
func (n *network) signerHeight(t *testing.T) int64 {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(n.home, "data", "priv_validator_state.json"))
	require.NoError(t, err)
	var state struct {
		Height int64 `json:"height,string"`
	}
	require.NoError(t, json.Unmarshal(content, &state))
	return state.Height
}
