//go:build e2e

package systemd

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func itoa(n int) string { return strconv.Itoa(n) }

// chain are the phases of an upgrade, each once, however often it was interrupted.
var chain = []string{"staged", "stopped", "snapshotted", "switched", "migrated", "probation", "committed"}

// record is what the tests read of an upgrade in flight or finished.
type record struct {
	Result  string `json:"result"`
	Upgrade struct {
		Phase  string `json:"phase"`
		Phases []struct {
			Phase string `json:"phase"`
		} `json:"phases"`
	} `json:"upgrade"`
}

// inFlight is the phase that the journal names; "" = none is in flight.
func (n *node) inFlight() string {
	n.Helper()
	text, err := os.ReadFile(filepath.Join(n.dir, "supervisor", "upgrade.json"))
	if os.IsNotExist(err) {
		return ""
	}
	require.NoError(n, err)
	var r record
	require.NoError(n, json.Unmarshal(text, &r), string(text))
	return r.Upgrade.Phase
}

// history reads the finished upgrades.
func (n *node) history() (all []record) {
	n.Helper()
	names, _ := filepath.Glob(filepath.Join(n.dir, "supervisor", "history", "*.json"))
	for _, name := range names {
		text, err := os.ReadFile(name)
		require.NoError(n, err)
		var r record
		require.NoError(n, json.Unmarshal(text, &r), string(text))
		all = append(all, r)
	}
	return all
}

// committed tells whether the upgrade has come to its good end.
func (n *node) committed() bool {
	n.Helper()
	all := n.history()
	return len(all) > 0 && all[len(all)-1].Result == "committed"
}

// converged waits for the end of the upgrade and checks that it is the one that an undisturbed upgrade has.
func (n *node) converged() {
	n.Helper()
	wait(n.T, "a committed upgrade", n.committed)
	all := n.history()
	require.Len(n, all, 1)
	var phases []string
	for _, p := range all[0].Upgrade.Phases {
		phases = append(phases, p.Phase)
	}
	assert.Equal(n, chain, phases)
	target, err := os.Readlink(filepath.Join(n.dir, "cosmovisor", "current"))
	require.NoError(n, err)
	assert.Equal(n, "upgrades/v2", target)
	wait(n.T, "a running node", func() bool { st := n.status(); return st.State == "running" && st.Version == "v2" })
	wait(n.T, "a verified snapshot", func() bool { return n.snapshots("verified") == 1 })
	assert.Zero(n, n.snapshots("sealed"))
	wait(n.T, "a tidy home", func() bool { return n.leftOver() == "" })
	n.oneNode()
}

// snapshots counts those in a state.
func (n *node) snapshots(state string) (count int) {
	manifests, _ := filepath.Glob(filepath.Join(n.dir, "supervisor", "snapshots", "*", "manifest.json"))
	for _, m := range manifests {
		var read struct{ State string }
		if text, err := os.ReadFile(m); err == nil && json.Unmarshal(text, &read) == nil && read.State == state {
			count++
		}
	}
	return count
}

// leftOver names something temporary, partial or staged in the home; "" = there is none.
func (n *node) leftOver() (found string) {
	_ = filepath.WalkDir(n.dir, func(path string, _ os.DirEntry, _ error) error { // what goes meanwhile is none
		for _, part := range []string{".atomic-", ".partial", ".stage"} {
			if strings.Contains(filepath.Base(path), part) {
				found = path
			}
		}
		return nil
	})
	return found
}
