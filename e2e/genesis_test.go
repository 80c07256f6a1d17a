//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A chain's state is exported at rest, given another chain id and time, judged by the chain's own binary, and is what a
// new chain of that name starts from, with the accounts of the old one.
func TestGenesisExport(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	n.supervisor(t, "init", chainV1.path)
	config := "[genesis]\nkind = \"cosmos\"\nset = { chain_id = \"demo-2\" }\n"
	require.NoError(t, os.WriteFile(filepath.Join(n.home, "supervisor", "supervisor.toml"), []byte(config), 0o600))
	run := n.startSupervisor(t)
	n.waitHeight(t, 5)
	_, stderr, code := n.try(t, supervisorBin.path, "genesis", "create")
	assert.NotZero(t, code, "a node that runs is not exported")
	assert.Contains(t, stderr, "Hint: supervisor halt --now")
	run.signal(t, syscall.SIGTERM)
	require.Zero(t, run.exitCode(t, time.Minute))
	last := n.signerHeight(t)

	var made struct {
		Kind      string   `json:"kind"`
		ChainID   string   `json:"chain_id"`
		Canonical string   `json:"canonical_sha256"`
		Defaults  []string `json:"defaults"`
	}
	out := filepath.Join(n.base, "template")
	start := time.Now().UTC().Truncate(time.Second)
	create := func(to string) {
		answer := n.supervisor(t, "genesis", "create", "--out", to, "--set", "genesis_time="+start.Format(time.RFC3339), "--json")
		require.NoError(t, json.Unmarshal([]byte(answer), &made), answer)
	}
	create(out)
	assert.Equal(t, "demo-2", made.ChainID)
	require.Len(t, made.Defaults, 1, "what nobody set is said, and the binary judged the rest")
	assert.Contains(t, made.Defaults[0], "initial_height")
	first := made.Canonical
	create(filepath.Join(n.base, "again"))
	assert.Equal(t, first, made.Canonical, "the same state is the same document")

	document := filepath.Join(out, "genesis.json")
	n.supervisor(t, "genesis", "validate", out, "--binary", chainV1.path)
	n.run(t, chainV1.path, "genesis", "validate", document, "--home", filepath.Join(n.base, "judge"))
	var shown struct {
		Initial json.Number `json:"initial_height"`
	}
	require.NoError(t, json.Unmarshal([]byte(n.supervisor(t, "genesis", "show", document, "--json")), &shown))
	initial, err := shown.Initial.Int64()
	require.NoError(t, err)
	assert.GreaterOrEqual(t, initial, last, "blocks go on where the old chain ended")

	// A new home: the configuration and the validator's key of the old one, and no data.
	for _, dir := range []string{"data", "cosmovisor", "supervisor"} {
		require.NoError(t, os.RemoveAll(filepath.Join(n.home, dir)))
	}
	require.NoError(t, os.Mkdir(filepath.Join(n.home, "data"), 0o700))
	state := []byte(`{"height":"0","round":0,"step":0}`)
	require.NoError(t, os.WriteFile(filepath.Join(n.home, "data", "priv_validator_state.json"), state, 0o600))
	content, err := os.ReadFile(document)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(n.home, "config", "genesis.json"), content, 0o600))
	n.supervisor(t, "init", chainV1.path)
	n.startSupervisor(t)
	n.waitHeight(t, initial+2)

	status := n.run(t, chainV1.path, "status", "--home", n.home)
	assert.Contains(t, strings.ReplaceAll(status, " ", ""), `"network":"demo-2"`)
	accounts := n.chain(t, chainV1, "query", "bank", "total")
	assert.Contains(t, accounts, "stake", "the old chain's tokens, at height "+strconv.FormatInt(initial, 10))
}
