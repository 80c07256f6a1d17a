package main

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/genesis"
	"nodevisor/internal/pgtest"
	"nodevisor/snapshot/postgres/kwildb"
)

// oldNetwork is a stopped node's database, of a state that Kwil's own tool wrote, and the home of its supervisor.
func oldNetwork(t *testing.T, server *pgtest.Cluster, set string) (home string) {
	t.Helper()
	f, err := os.Open(pairs["v0.9"][1])
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	old := kwildb.NewTarget("/old", server.DSN("old"), "", "")
	require.NoError(t, old.Prepare(t.Context()))
	require.NoError(t, old.Load(t.Context(), z, nil))
	server.Exec("old", "CREATE SCHEMA kwild_chain; CREATE TABLE kwild_chain.chain (height bigint, app_hash bytea); INSERT INTO kwild_chain.chain VALUES (41, '\\x00');"+
		"INSERT INTO kwild_voting.voters VALUES ('\\x01', '\\x"+strings.Repeat("ab", 32)+"', 7);"+
		"CREATE TABLE kwild_accts.nasty (t text); INSERT INTO kwild_accts.nasty VALUES ('-- lost'), ('  '), (''), ('\\.')")
	home = newHome(t)
	config := fmt.Sprintf("[node]\nname = \"kwild\"\nhome = %q\n[[snapshot.source]]\nname = \"kwild\"\nkind = \"postgres\"\ndsn = %q\n"+
		"[genesis]\nkind = \"kwil\"\nversion = \"v0.9\"\nfrom = %q\n%s\n", home, server.DSN("old"), mustAbs(t, pairs["v0.9"][0]), set)
	require.NoError(t, os.MkdirAll(filepath.Join(home, "supervisor"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(home, "supervisor", "supervisor.toml"), []byte(config), 0o600))
	return home
}

// madeTemplate is what `genesis create --json` says.
type madeTemplate struct {
	Dir string `json:"dir"`
	*genesis.Template
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	require.NoError(t, err)
	return path
}

// The whole way: a stopped node's database becomes a pair, the pair a new root, and every row arrives, also those that
// Kwil's own tool loses (R1).
func TestR8R12FromDatabaseToRoot(t *testing.T) {
	server := pgtest.Start(t)
	home := oldNetwork(t, server, "")
	out := filepath.Join(t.TempDir(), "pair")
	stdout, stderr, code := runHere(t, "--home", home, "genesis", "create", "--out", out, "--set", "chain_id=new-net", "--json")
	require.Zero(t, code, stdout+stderr)
	var made madeTemplate
	require.NoError(t, json.Unmarshal([]byte(stdout), &made))
	assert.Equal(t, "new-net", made.ChainID)
	assert.EqualValues(t, 41, *made.Height)
	assert.Equal(t, "kwildb-snapshot.sql.gz", *made.State)
	stdout, stderr, code = runHere(t, "genesis", "validate", out, "--json")
	require.Zero(t, code, stdout+stderr)

	// The old network's parameters are carried; what changes is shown.
	stdout, _, code = runHere(t, "genesis", "diff", pairs["v0.9"][0], out, "--json")
	require.Zero(t, code)
	var changes []genesis.Change
	require.NoError(t, json.Unmarshal([]byte(stdout), &changes))
	var paths []string
	for _, c := range changes {
		paths = append(paths, c.Path)
	}
	assert.Subset(t, paths, []string{"app_hash", "chain_id"})
	assert.NotContains(t, strings.Join(paths, " "), "consensus_params")

	root := filepath.Join(t.TempDir(), "root")
	stdout, stderr, code = runHere(t, "genesis", "init", "--root-dir", root, "--genesis", filepath.Join(out, "genesis.json"),
		"--genesis-state", filepath.Join(out, *made.State), "--dsn", server.DSN("new"), "--restore-now")
	require.Zero(t, code, stdout+stderr)
	for _, query := range []string{"SELECT t FROM kwild_accts.nasty ORDER BY 1", "SELECT count(*)::text FROM kwild_voting.resolution_types"} {
		assert.Equal(t, server.Query("old", query), server.Query("new", query), query)
	}

	// Done again the state and the document are the same, but for the time.
	_, stderr, code = runHere(t, "--home", home, "genesis", "create", "--out", out+"2", "--set", "chain_id=new-net", "--set", "genesis_time=2026-01-01T00:00:00Z")
	require.Zero(t, code, stderr)
	sameFile(t, filepath.Join(out, *made.State), filepath.Join(out+"2", *made.State))
}

// What a template would fail on is said before the network has halted, also beneath the running node.
func TestDoctorOfATemplate(t *testing.T) {
	server := pgtest.Start(t)
	home := oldNetwork(t, server, "")
	server.Connect("old") // as the node's session
	check := func() (ok *bool, text string) {
		stdout, _, _ := runHere(t, "--home", home, "doctor", "--json")
		var d struct {
			Checks []struct {
				Name, Detail, Fix string
				OK                *bool
			}
		}
		require.NoError(t, json.Unmarshal([]byte(stdout), &d))
		for _, c := range d.Checks {
			if c.Name == "template" {
				return c.OK, c.Detail + "; " + c.Fix
			}
		}
		require.Fail(t, "no line about the template", stdout)
		return nil, ""
	}
	ok, text := check()
	assert.Equal(t, new(true), ok)
	assert.Contains(t, text, "the state of Kwil v0.9 can be read, at height 41")

	file := filepath.Join(home, "supervisor", "supervisor.toml")
	config, err := os.ReadFile(file)
	require.NoError(t, err)
	bad := filepath.Join(home, "bad.json")
	require.NoError(t, os.WriteFile(bad, []byte("{"), 0o600))
	for _, tc := range []struct{ old, changed, says string }{
		{`version = "v0.9"`, `version = "v0.10"`, `it is a database of Kwil v0.9, not v0.10; set [genesis] version = "v0.9"`},
		{"from = ", fmt.Sprintf("from = %q #", bad), "cannot use " + bad},
	} {
		require.NoError(t, os.WriteFile(file, []byte(strings.Replace(string(config), tc.old, tc.changed, 1)), 0o600))
		ok, text = check()
		assert.Equal(t, new(false), ok)
		assert.Contains(t, text, tc.says)
	}

	require.NoError(t, os.WriteFile(file, config, 0o600))
	server.Exec("old", "DELETE FROM kwild_chain.chain")
	ok, text = check()
	assert.Nil(t, ok, "a node that hasn't begun is no fault")
	assert.Contains(t, text, "let the node make a block first")
}

func TestGenesisCreateRefusesABusyDatabase(t *testing.T) {
	server := pgtest.Start(t)
	home := oldNetwork(t, server, "")
	out := filepath.Join(t.TempDir(), "pair")
	create := func(args ...string) (string, int) {
		stdout, stderr, code := runHere(t, append([]string{"--home", home, "genesis", "create", "--out", out}, args...)...)
		return stdout + stderr, code
	}
	text, code := create()
	require.Zero(t, code, text)
	before, err := genesis.SumFile(filepath.Join(out, "genesis.json"))
	require.NoError(t, err)

	node := server.Connect("old") // as the node's session
	text, code = create()
	assert.NotZero(t, code)
	assert.Contains(t, text, "others are connected")
	assert.Contains(t, text, "Hint: ")
	require.NoError(t, node.Close(t.Context()))
	text, code = create("--set", "app_hash=AAAA")
	assert.NotZero(t, code, text)
	text, code = create("--set", "validators=[]")
	assert.NotZero(t, code, text)
	server.StopServer()
	text, code = create()
	assert.NotZero(t, code, text)
	server.StartServer()

	// R7: what was there before is still there, whole.
	after, err := genesis.SumFile(filepath.Join(out, "genesis.json"))
	require.NoError(t, err)
	assert.Equal(t, before, after)
	read, err := genesis.ReadTemplate(out)
	require.NoError(t, err)
	require.NoError(t, read.Verify(out))
	assert.NoDirExists(t, out+".partial")
}

// A snapshot's template is read from its frozen clone: the state of that moment, whatever the node wrote since, and though
// it runs. Once the clone is gone that is said, and nothing else is taken in its place.
func TestGenesisOfASnapshotIsOfItsClone(t *testing.T) {
	server := pgtest.Start(t)
	home := oldNetwork(t, server, "")
	id, stderr, code := runHere(t, "--home", home, "snapshot", "create", "--label", "then")
	require.Zero(t, code, stderr)
	id = strings.TrimSpace(id)
	dir := t.TempDir()
	create := func(name string, args ...string) (made madeTemplate) {
		t.Helper()
		args = append([]string{"--home", home, "genesis", "create", "--out", filepath.Join(dir, name), "--set", "chain_id=n", "--json"}, args...)
		stdout, stderr, code := runHere(t, args...)
		require.Zero(t, code, stdout+stderr)
		require.NoError(t, json.Unmarshal([]byte(stdout), &made))
		return made
	}
	atRest := create("at-rest")
	assert.Contains(t, strings.Join(atRest.Defaults, "\n"), "genesis_time = ")
	assert.NotContains(t, strings.Join(create("set", "--set", "genesis_time=2026-01-01T00:00:00Z").Defaults, "\n"), "genesis_time")

	server.Exec("old", "INSERT INTO kwild_accts.nasty VALUES ('later'); UPDATE kwild_chain.chain SET height = 42")
	node := server.Connect("old") // it runs again
	defer node.Close(t.Context()) //nolint:errcheck // the server goes with the test
	frozen := create("frozen", "--snapshot", id)
	assert.Equal(t, *atRest.StateSum, *frozen.StateSum)
	assert.EqualValues(t, 41, *frozen.Height)
	assert.Equal(t, id, *frozen.Snapshot)

	clones := server.Query("postgres", "SELECT datname::text FROM pg_database WHERE starts_with(datname, 'sv_') AND NOT datallowconn")
	require.Len(t, clones, 1, "it is shut again")
	server.Exec("postgres", "DROP DATABASE "+clones[0])
	stdout, stderr, code := runHere(t, "--home", home, "genesis", "create", "--snapshot", id, "--out", filepath.Join(dir, "gone"))
	assert.NotZero(t, code, stdout)
	assert.Contains(t, stderr, "Hint: ")
	assert.NoDirExists(t, filepath.Join(dir, "gone"))
}
