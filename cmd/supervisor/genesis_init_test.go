package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/genesis"
	"nodevisor/internal/pgtest"
)

// initCase is a pair of Kwil's own tools, and a root that isn't there yet.
type initCase struct {
	t        *testing.T
	dir      string // with copies of the pair
	document string
	state    string
	root     string
	dsn      string
}

// pairs are the files that Kwil's own tools wrote.
var pairs = map[string][2]string{
	"v0.9":  {"../../testdata/kwil/v0.9.4/genesis.json", "../../testdata/kwil/v0.9.4/kwildb-snapshot.sql.gz"},
	"v0.10": {"../../testdata/kwil/v0.10.2/genesis.json", "../../testdata/kwil/v0.10.2/snapshot.sql.gz"},
}

func newInitCase(t *testing.T, version, dsn string) *initCase {
	t.Helper()
	dir := t.TempDir()
	c := &initCase{t: t, dir: dir, root: filepath.Join(dir, "parent", "root"), dsn: dsn}
	require.NoError(t, os.Mkdir(filepath.Dir(c.root), 0o755))
	for i, to := range []*string{&c.document, &c.state} {
		data, err := os.ReadFile(pairs[version][i])
		require.NoError(t, err)
		*to = filepath.Join(dir, filepath.Base(pairs[version][i]))
		require.NoError(t, os.WriteFile(*to, data, 0o644))
	}
	return c
}

// run does `genesis init` in this process; it gives stdout and stderr, and the exit code.
func (c *initCase) run(args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	base := []string{"genesis", "init", "--root-dir", c.root, "--genesis", c.document, "--genesis-state", c.state, "--dsn", c.dsn}
	return runHere(c.t, append(base, args...)...)
}

// runHere runs a command line in this process, as main does.
func runHere(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	dir := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o600)
		require.NoError(t, err)
		return f
	}
	out, errs, in := open("out"), open("err"), open("in")
	defer out.Close()
	defer errs.Close()
	defer in.Close()
	code = execute(t.Context(), newApp(args, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}, in, out, errs))
	read := func(f *os.File) string {
		data, err := os.ReadFile(f.Name())
		require.NoError(t, err)
		return string(data)
	}
	return read(out), read(errs), code
}

// untouched fails the test if anything is where the root would be, or beside it.
func (c *initCase) untouched(why string) {
	c.t.Helper()
	entries, err := os.ReadDir(filepath.Dir(c.root))
	require.NoError(c.t, err)
	require.Empty(c.t, entries, why)
}

func TestGenesisInitSetsUpARoot(t *testing.T) {
	server := pgtest.Start(t)
	for version, want := range map[string]map[string]string{
		"v0.9":  {"key": "private_key", "host": "app.pg_db_host", "name": "app.pg_db_name", "state": "app.genesis_state"},
		"v0.10": {"key": "nodekey.json", "host": "db.host", "name": "db.dbname", "state": "genesis_state"},
	} {
		name := "node_" + strings.ReplaceAll(version[1:], ".", "_")
		c := newInitCase(t, version, server.DSN(name))
		key := filepath.Join(c.dir, "key")
		require.NoError(t, os.WriteFile(key, []byte(strings.Repeat("ab", 64)), 0o644))
		out, errs, code := c.run("--key", key, "--json")
		require.Zero(t, code, out+errs)
		var result struct {
			Version  string
			State    string `json:"state_sha256"`
			Rows     int64
			Restored bool
		}
		require.NoError(t, json.Unmarshal([]byte(out), &result))
		assert.Equal(t, version, result.Version)
		assert.Positive(t, result.Rows)
		assert.False(t, result.Restored)
		for _, file := range []string{"genesis.json", "genesis-state.sql.gz", "config.toml", want["key"]} {
			info, err := os.Stat(filepath.Join(c.root, file))
			require.NoError(t, err)
			assert.Equal(t, fs.FileMode(0o600), info.Mode(), file)
		}
		var config map[string]any
		_, err := toml.DecodeFile(filepath.Join(c.root, "config.toml"), &config)
		require.NoError(t, err)
		assert.Equal(t, server.Dir, lookUp(config, want["host"]))
		assert.Equal(t, name, lookUp(config, want["name"]))
		assert.True(t, strings.HasSuffix(lookUp(config, want["state"]), "genesis-state.sql.gz"))
		sameFile(t, c.state, filepath.Join(c.root, "genesis-state.sql.gz"))
		sameFile(t, c.document, filepath.Join(c.root, "genesis.json"))

		// The node is to restore: its database is there, and empty; the marker says so to `run`.
		assert.Empty(t, server.Query(name, `SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'kwild%'`))
		m, err := genesis.ReadMarker(c.root)
		require.NoError(t, err)
		require.NotNil(t, m)
		assert.Equal(t, genesis.Restoring, m.Phase)
		assert.Equal(t, result.State, m.StateHash)
		again, err := m.BeginStart(c.root)
		require.NoError(t, err)
		assert.False(t, again)
		again, err = m.BeginStart(c.root)
		require.NoError(t, err)
		assert.True(t, again, "the first one was interrupted")
		assert.Equal(t, []string{"postgres"}, server.Query("postgres", `SELECT datname::text FROM pg_database WHERE NOT datistemplate AND datname NOT LIKE 'node%'`))

		_, errs, code = c.run()
		assert.Equal(t, 1, code)
		assert.Contains(t, errs, "set up already")
	}
}

func sameFile(t *testing.T, want, got string) {
	t.Helper()
	a, err := os.ReadFile(want)
	require.NoError(t, err)
	b, err := os.ReadFile(got)
	require.NoError(t, err)
	require.True(t, bytes.Equal(a, b), got)
}

func TestGenesisInitRestoresNow(t *testing.T) {
	server := pgtest.Start(t)
	c := newInitCase(t, "v0.9", server.DSN("chain"))
	out, errs, code := c.run("--restore-now", "--json")
	require.Zero(t, code, out+errs)
	m, err := genesis.ReadMarker(c.root)
	require.NoError(t, err)
	assert.Nil(t, m, "no start of the node restores any more")
	assert.Equal(t, []string{"0"}, server.Query("chain", "SELECT count(*)::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind = 'r' AND nspname LIKE ANY (ARRAY['kwild%', 'ds_%']) AND relreplident <> 'f'"))
	assert.NotEqual(t, []string{"0"}, server.Query("chain", "SELECT count(*)::text FROM kwild_voting.resolution_types"))
}

// R2, R3, R10: an altered byte, a truncated file, a document that names no hash. Kwil notices after the restore, once, or
// never; here nothing is touched.
func TestGenesisInitRefusesDamage(t *testing.T) {
	c := newInitCase(t, "v0.10", "host=/nowhere dbname=x")
	document, err := os.ReadFile(c.document)
	require.NoError(t, err)
	state, err := os.ReadFile(c.state)
	require.NoError(t, err)
	sum := sha256.Sum256(document)
	given := []string{"--skip-trial", "--sha256", hex.EncodeToString(sum[:])}
	random := rand.New(rand.NewPCG(1, 2)) // the same ones each time
	for n := range 200 {
		whole, path := state, c.state
		if n%2 == 0 {
			whole, path = document, c.document
		}
		damaged, what := bytes.Clone(whole), ""
		switch at := random.IntN(len(whole)); n % 4 / 2 {
		case 0:
			damaged[at] ^= 1 << random.IntN(8)
			what = fmt.Sprintf("%s: a bit of byte %d", filepath.Base(path), at)
		default:
			damaged = damaged[:at]
			what = fmt.Sprintf("%s: cut to %d bytes", filepath.Base(path), at)
		}
		require.NoError(t, os.WriteFile(path, damaged, 0o600))
		_, errs, code := c.run(given...)
		require.Equal(t, 1, code, "%s: %s", what, errs)
		require.Contains(t, errs, "Hint: ", what)
		c.untouched(what)
		require.NoError(t, os.WriteFile(path, whole, 0o600))
	}
	_, errs, code := c.run(given...)
	require.Zero(t, code, "undamaged: %s", errs)
}

func TestGenesisInitRefusals(t *testing.T) {
	c := newInitCase(t, "v0.9", "host=/nowhere dbname=x")
	refused := func(code int, text string, args ...string) {
		t.Helper()
		_, errs, got := c.run(args...)
		assert.Equal(t, code, got, errs)
		assert.Contains(t, errs, text)
	}
	refused(1, "/nowhere") // no server: nothing is believed untried
	c.untouched("no server")
	refused(2, "exclude each other", "--restore-now", "--skip-trial")
	refused(2, "64 hexadecimal", "--sha256", "12")
	refused(1, "the command line says", "--skip-trial", "--state-sha256", strings.Repeat("0", 64))
	refused(1, "128 hexadecimal digits", "--skip-trial", "--key", c.document)
	refused(2, "needs --sha256", "--skip-trial", "--genesis", "https://127.0.0.1/genesis.json")
	refused(2, "holds a password", "--skip-trial", "--dsn", "host=/nowhere password=open")
	c.untouched("refusals")

	// SHA256SUMS beside the files counts.
	sums := filepath.Join(c.dir, "SHA256SUMS")
	require.NoError(t, os.WriteFile(sums, []byte(strings.Repeat("0", 64)+"  genesis.json\n"), 0o600))
	refused(1, "SHA256SUMS says", "--skip-trial")
	require.NoError(t, os.Remove(sums))

	// R10: a document without a hash would make the node ignore the state.
	whole, err := os.ReadFile(c.document)
	require.NoError(t, err)
	doc, err := genesis.Parse(whole)
	require.NoError(t, err)
	hash, ok := doc.Get("app_hash")
	require.True(t, ok)
	bare := strings.Replace(string(whole), fmt.Sprintf("%q", hash), "null", 1)
	require.NoError(t, os.WriteFile(c.document, []byte(bare), 0o600))
	refused(1, "app_hash", "--skip-trial")
	// A hash of other data.
	other := base64.StdEncoding.EncodeToString(make([]byte, 32))
	require.NoError(t, os.WriteFile(c.document, []byte(strings.Replace(string(whole), fmt.Sprint(hash), other, 1)), 0o600))
	refused(1, "its hash is", "--skip-trial")
	require.NoError(t, os.WriteFile(c.document, whole, 0o600))

	// A root that is somebody's.
	require.NoError(t, os.MkdirAll(filepath.Join(c.root, "cosmovisor"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(c.root, "supervisor"), 0o755))
	precious := filepath.Join(c.root, "private_key")
	require.NoError(t, os.WriteFile(precious, []byte("x"), 0o600))
	refused(1, "there is private_key in it", "--skip-trial")
	assert.FileExists(t, precious)
	require.NoError(t, os.Remove(precious))
	_, errs, code := c.run("--skip-trial")
	require.Zero(t, code, errs)
}

// A state whose document fits it, and which no server takes, or which says other rows than it has, is refused too.
func TestGenesisInitTriesTheState(t *testing.T) {
	server := pgtest.Start(t)
	c := newInitCase(t, "v0.9", server.DSN("chain"))
	f, err := os.Open(c.state)
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	var sql bytes.Buffer
	_, err = sql.ReadFrom(z)
	require.NoError(t, err)
	text := strings.Replace(sql.String(), "CREATE SCHEMA kwild_accts;", "CREATE SCHEMA kwild_accts;\nCREATE SCHEMA kwild_accts;", 1)
	require.NotEqual(t, sql.String(), text)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err = w.Write([]byte(text))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, os.WriteFile(c.state, packed.Bytes(), 0o600))
	sum := sha256.Sum256([]byte(text))
	doc, _, err := genesis.ReadFile(c.document)
	require.NoError(t, err)
	require.NoError(t, doc.Set("app_hash", base64.StdEncoding.EncodeToString(sum[:])))
	require.NoError(t, os.WriteFile(c.document, doc.Text(), 0o600))

	_, errs, code := c.run()
	require.Equal(t, 1, code)
	assert.Contains(t, errs, "already exists")
	c.untouched("what no server takes")

	// A database that holds something is refused before all.
	c = newInitCase(t, "v0.9", server.DSN("used"))
	server.Create("used", "CREATE SCHEMA kwild_voting")
	_, errs, code = c.run()
	require.Equal(t, 1, code)
	assert.Contains(t, errs, "isn't empty")
	c.untouched("a used database")
}
