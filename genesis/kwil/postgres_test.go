package kwil_test

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/genesis"
	"nodevisor/genesis/kwil"
	"nodevisor/internal/pgtest"
	"nodevisor/snapshot/postgres/kwildb"
	"nodevisor/snapshot/postgres/server"
)

const testdata = "../../testdata/kwil"

// chain is a database of Kwil's on a server of the test's own.
type chain struct {
	*pgtest.Cluster
	name    string
	version kwil.Version
	params  []byte
	old     []byte // the old genesis document
}

// psql feeds SQL to a database as a user would, and fails at its first error.
func (c chain) psql(t testing.TB, sql string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(c.Bin, "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", c.DSN(c.name))
	cmd.Stdin = strings.NewReader(sql)
	cmd.Env = []string{"LC_ALL=C", "HOME=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// read decompresses a file of a pair with the standard library, as Kwil does.
func read(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	zr, err := gzip.NewReader(f)
	require.NoError(t, err)
	sql, err := io.ReadAll(zr)
	require.NoError(t, err)
	return string(sql)
}

// restored is a database with the state of one of the samples, as the node had it at height 7: with the tables that
// Kwil's tool leaves out, and the voters that it moves into the document.
func restored(t testing.TB, c *pgtest.Cluster, v kwil.Version) chain {
	t.Helper()
	db := chain{Cluster: c, version: v, name: "kwil09"}
	dir := "v0.9.4"
	if v == kwil.V010 {
		dir, db.name = "v0.10.2", "kwil010"
	}
	c.Create(db.name, "")
	db.psql(t, read(t, filepath.Join(testdata, dir, v.StateFile())))
	doc, err := os.ReadFile(filepath.Join(testdata, dir, kwil.GenesisFile))
	require.NoError(t, err)
	db.old = doc
	var genesis struct {
		Leader     json.RawMessage
		Validators []struct {
			V09  string `json:"pub_key"`
			V010 string `json:"pubkey"`
		}
	}
	require.NoError(t, json.Unmarshal(doc, &genesis))
	key := genesis.Validators[0].V09
	columns, values := "height int8 NOT NULL, app_hash bytea", "7, '\\x2e1e7272'"
	if v == kwil.V010 {
		key = "00000000" + genesis.Validators[0].V010
		columns, values = columns+", dirty boolean DEFAULT false", values+", false"
		db.params = []byte(`{"leader": ` + string(genesis.Leader) +
			`, "max_block_size": 6291456, "join_expiry": "168h0m0s", "disabled_gas_costs": true, "max_votes_per_tx": 200, "migration_status": ""}`)
	}
	sql := fmt.Sprintf("CREATE SCHEMA kwild_chain; CREATE TABLE kwild_chain.chain (%s); INSERT INTO kwild_chain.chain VALUES (%s);\n", columns, values) +
		fmt.Sprintf("INSERT INTO kwild_voting.voters VALUES ('\\x01', '\\x%s', 1);\n", key) +
		"CREATE TABLE kwild_internal.sentry (id int); CREATE SCHEMA kwild_events; CREATE TABLE public.other (id int);\n"
	if db.params != nil {
		sql += fmt.Sprintf("CREATE TABLE kwild_chain.params (params bytea); INSERT INTO kwild_chain.params VALUES (convert_to('%s', 'UTF8'));\n", db.params)
	}
	db.psql(t, sql)
	return db
}

// options are the source's, with the server's own client programs.
func (c chain) options() server.Config {
	return server.Config{Source: "kwild", DSN: c.DSN(c.name), Bin: c.Bin}
}

// open reads the chain's state.
func (c chain) open(t testing.TB) (*kwildb.Database, error) {
	t.Helper()
	q, err := kwildb.Open(t.Context(), c.options(), kwildb.Options{Version: string(c.version)})
	if err == nil {
		t.Cleanup(q.Close)
	}
	return q, err
}

// write makes the pair in dir, as the supervisor does.
func (c chain) write(t testing.TB, dir string, change ...func(*kwil.PairOptions)) (kwil.Pair, error) {
	t.Helper()
	q, err := c.open(t)
	if err != nil {
		return kwil.Pair{}, err
	}
	defer q.Close()
	s := q.State()
	o := kwil.PairOptions{Height: s.Height, Dump: q.Dump, Document: kwil.Options{
		Version: c.version, Old: c.old, Database: kwil.Known{Version: c.version, Params: s.Params, Owner: s.Owner},
	}}
	for _, f := range change {
		f(&o)
	}
	return build(t.Context(), dir, o)
}

// build puts a pair at dir in one step.
func build(ctx context.Context, dir string, o kwil.PairOptions) (pair kwil.Pair, err error) {
	t := &genesis.Template{Kind: genesis.Kwil, Version: string(o.Document.Version)}
	err = genesis.Build(ctx, dir, t, func(ctx context.Context, at string) (err error) {
		pair, err = kwil.WritePair(ctx, at, o)
		return err
	})
	return pair, err
}

func sum(p kwil.Pair) string { return hex.EncodeToString(p.State.SHA256[:]) }

// olderViews is what servers before 16 write otherwise: they name a view's table before each column also where there is
// only one table (PostgreSQL 16 release notes, "View and rule definitions"). pg_dump takes the text from the server.
var olderViews = strings.NewReplacer(
	"\n SELECT user_roles.user_identifier\n", "\n SELECT user_identifier\n",
	"\n  WHERE (user_roles.role_name = 'owner'::text);\n", "\n  WHERE (role_name = 'owner'::text);\n",
	"\n SELECT namespaces.name,\n    (namespaces.type)::text AS type\n", "\n SELECT name,\n    (type)::text AS type\n",
	"\n  ORDER BY namespaces.name;\n", "\n  ORDER BY name;\n",
	"\n SELECT roles.name,\n    roles.built_in\n", "\n SELECT name,\n    built_in\n",
	"\n  ORDER BY roles.name, roles.built_in;\n", "\n  ORDER BY name, built_in;\n",
)

// TestSamplesComeOutEqual: the states that Kwil's own tools wrote, restored and written again, have Kwil's own hash. On a
// server before 16, which Kwil's nodes refuse, eight lines of v0.10's views differ, and nothing else.
func TestSamplesComeOutEqual(t *testing.T) {
	c := pgtest.Start(t)
	for version, sample := range map[kwil.Version]struct{ dir, hash string }{
		kwil.V09:  {"v0.9.4", "0ebe99127fcb2e4cac577c9ff444efb8850434f2a8560dcaf99f96754c85ada1"},
		kwil.V010: {"v0.10.2", "4406ebb816f804783ed17fcdd290854cdc16f8ec0b0d51656e5e62265e87c52c"},
	} {
		t.Run(string(version), func(t *testing.T) {
			db := restored(t, c, version)
			dir := filepath.Join(t.TempDir(), "pair")
			pair, err := db.write(t, dir)
			require.NoError(t, err)
			have := read(t, filepath.Join(dir, version.StateFile()))
			require.Equal(t, hashOf(have), sum(pair))
			if number := c.Query("postgres", "SELECT current_setting('server_version_num')::int / 10000")[0]; number == "15" && version == kwil.V010 {
				want := read(t, filepath.Join(testdata, sample.dir, version.StateFile()))
				assert.Equal(t, 8, differentLines(want, have))
				have = olderViews.Replace(have)
			}
			assert.Equal(t, sample.hash, hashOf(have))

			document, err := os.ReadFile(filepath.Join(dir, kwil.GenesisFile))
			require.NoError(t, err)
			state, err := os.Open(filepath.Join(dir, version.StateFile()))
			require.NoError(t, err)
			defer state.Close()
			_, _, err = kwil.VerifyPair(document, state)
			require.NoError(t, err)
		})
	}
}

func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func differentLines(a, b string) (n int) {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range max(len(x), len(y)) {
		if i >= len(x) || i >= len(y) || x[i] != y[i] {
			n++
		}
	}
	return n
}

// TestPairOfV010 looks at what is in a pair, and how it lies on the disk.
func TestPairOfV010(t *testing.T) {
	db := restored(t, pgtest.Start(t), kwil.V010)
	q, err := db.open(t)
	require.NoError(t, err)
	s := q.State()
	assert.EqualValues(t, 7, s.Height)
	assert.Equal(t, []byte{0x2e, 0x1e, 0x72, 0x72}, s.AppHash)
	assert.EqualValues(t, 1, s.Validators)
	assert.Equal(t, "0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A", s.Owner)
	assert.Equal(t, []string{"info", "main", "kwil_erc20_meta", "kwil_ordered_sync", "snaptest"}, s.Namespaces)
	assert.JSONEq(t, string(db.params), string(s.Params))

	dir := filepath.Join(t.TempDir(), "pair")
	pair, err := db.write(t, dir)
	require.NoError(t, err)
	for name, mode := range map[string]os.FileMode{".": 0o700, kwil.GenesisFile: 0o600, "snapshot.sql.gz": 0o600, "SHA256SUMS": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.Equal(t, mode, info.Mode().Perm(), name)
	}
	cmd := exec.Command("sha256sum", "-c", "SHA256SUMS")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)

	// R11: the new network has the old one's owner, though the old document had none.
	assert.Contains(t, string(pair.Document.JSON), `"db_owner": "`+s.Owner+`"`)
	assert.Contains(t, string(pair.Document.JSON), `"chain_id": "kwil-testnet"`)
	assert.Contains(t, string(pair.Document.JSON), `"state_hash": "`+sum(pair)+`"`)
	assert.Empty(t, pair.Document.Minted)
	sql := read(t, filepath.Join(dir, "snapshot.sql.gz"))
	for _, left := range []string{"kwild_chain", "kwild_events", "sentry", "public.other", "022c45fa"} {
		assert.NotContains(t, sql, left)
	}
}

// nasty are values of a text column; the first five are those of which Kwil's own tool keeps one.
var nasty = []string{
	"-- x", "--", "  -- z", "   ", "an honest row",
	"", "\t", "\\.", "\\.\n", "COPY x FROM stdin;", "a\r\nb", "\r", "SET a", "SELECT 1", `\connect x`, `\restrict x`, "it's", `"`, "$$", "$_$", "/*", "é\u00a0", "CREATE SCHEMA x;",
}

// fill puts into a database everything that is easily taken for something else.
func fill(t testing.TB, db chain, schema string) {
	t.Helper()
	quoted := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	var sql strings.Builder
	fmt.Fprintf(&sql, "CREATE TABLE %s.nasty (a text, n serial);\n", schema)
	for _, row := range nasty {
		fmt.Fprintf(&sql, "INSERT INTO %s.nasty (a) VALUES (%s);\n", schema, quoted(row))
	}
	fmt.Fprintf(&sql, "INSERT INTO %s.nasty (a) VALUES (NULL), (repeat('-- ', 7000000)), (repeat(E'\\n', 100000));\n", schema)
	fmt.Fprintf(&sql, "CREATE TABLE %s.bytes (b bytea); INSERT INTO %s.bytes SELECT decode(md5(i::text), 'hex') FROM generate_series(1, 1000) i;\n", schema, schema)
	fmt.Fprintf(&sql, "INSERT INTO %s.bytes VALUES (''), ('\\x000a5c2e0a'), (NULL);\n", schema)
	fmt.Fprintf(&sql, "CREATE TABLE %s.\"COPY x FROM stdin;\" (\"a;\n-- b\" text DEFAULT 'x\n-- y\n\nCREATE SCHEMA z;');\n", schema)
	fmt.Fprintf(&sql, "INSERT INTO %s.\"COPY x FROM stdin;\" DEFAULT VALUES;\n", schema)
	fmt.Fprintf(&sql, "CREATE TABLE %s.blank (); INSERT INTO %s.blank DEFAULT VALUES; INSERT INTO %s.blank DEFAULT VALUES;\n", schema, schema, schema)
	fmt.Fprintf(&sql, "CREATE FUNCTION %s.text() RETURNS text LANGUAGE plpgsql AS $f$\nDECLARE\n\n  -- gone\n  a text := 'kept\n\n-- kept\n';\n"+
		"BEGIN\n  /* x\n-- kept */\n  RETURN a || E'\\'\n-- kept too\n'; -- stays\n\nEND;\n-- the last line$f$;\n", schema)
	db.psql(t, sql.String())
}

// content is all rows of the tables that fill made, and what its function returns.
func content(db chain, name, schema string) (all []string) {
	for _, sql := range []string{
		"SELECT n::text || ':' || coalesce(md5(a), 'NULL') FROM %s.nasty ORDER BY n", "SELECT coalesce(b::text, 'NULL') FROM %s.bytes ORDER BY 1",
		"SELECT * FROM %s.\"COPY x FROM stdin;\"", "SELECT count(*) FROM %s.blank", "SELECT %s.text()",
	} {
		all = append(all, db.Query(name, fmt.Sprintf(sql, schema))...)
	}
	return all
}

// TestR1NoRowIsLost: through a real database, the pair, and another real database.
func TestR1NoRowIsLost(t *testing.T) {
	c := pgtest.Start(t)
	for version, schema := range map[kwil.Version]string{kwil.V09: "ds_x49e13be82f0041a6ec894830052a513b274a29f13855dbc12503993b", kwil.V010: "snaptest"} {
		t.Run(string(version), func(t *testing.T) {
			db := restored(t, c, version)
			fill(t, db, schema)
			dir := filepath.Join(t.TempDir(), "pair")
			pair, err := db.write(t, dir)
			require.NoError(t, err)
			want := content(db, db.name, schema)
			require.Greater(t, len(want), 1000)

			fresh := chain{Cluster: c, name: "fresh" + db.name}
			c.Create(fresh.name, "")
			fresh.psql(t, read(t, filepath.Join(dir, version.StateFile())))
			assert.Equal(t, want, content(fresh, fresh.name, schema))
			rows := map[string]int64{}
			for _, table := range pair.State.Tables {
				rows[table.Name] = table.Rows
			}
			assert.EqualValues(t, len(nasty)+3, rows[schema+".nasty"])
			assert.EqualValues(t, 2, rows[schema+".blank"])
			assert.EqualValues(t, 1, rows[schema+`."COPY x FROM stdin;"`])
		})
	}
}

// TestR9SameHashTwice: neither pg_dump's random key nor a role's settings change the state.
func TestR9SameHashTwice(t *testing.T) {
	db := restored(t, pgtest.Start(t), kwil.V09)
	first, err := db.write(t, filepath.Join(t.TempDir(), "pair"))
	require.NoError(t, err)
	db.psql(t, "ALTER ROLE postgres SET bytea_output = 'escape'; ALTER ROLE postgres SET standard_conforming_strings = off; ALTER ROLE postgres SET client_encoding = 'LATIN1';")
	second, err := db.write(t, filepath.Join(t.TempDir(), "pair"))
	require.NoError(t, err)
	assert.Equal(t, sum(first), sum(second))
	assert.Equal(t, first.File, second.File, "the archive as well")

	db.Exec("postgres", "CREATE DATABASE frozen TEMPLATE "+db.name)
	q, err := kwildb.Open(t.Context(), db.options(), kwildb.Options{Version: kwildb.V09, Database: "frozen"})
	require.NoError(t, err)
	defer q.Close()
	clone, err := build(t.Context(), filepath.Join(t.TempDir(), "pair"), kwil.PairOptions{
		Height: q.State().Height, Dump: q.Dump, Document: kwil.Options{Version: kwil.V09, Old: db.old},
	})
	require.NoError(t, err)
	assert.Equal(t, sum(first), sum(clone), "a frozen clone has the same state")
}

// TestOneMoment: what changes between the look at the height and the dump is in neither.
func TestOneMoment(t *testing.T) {
	db := restored(t, pgtest.Start(t), kwil.V09)
	before, err := db.write(t, filepath.Join(t.TempDir(), "pair"))
	require.NoError(t, err)

	q, err := db.open(t)
	require.NoError(t, err)
	db.psql(t, "UPDATE kwild_chain.chain SET height = 8; UPDATE kwild_accts.accounts SET nonce = 99; INSERT INTO kwild_voting.voters VALUES ('\\x02', '\\x"+strings.Repeat("cd", 32)+"', 5);")
	after, err := build(t.Context(), filepath.Join(t.TempDir(), "pair"), kwil.PairOptions{
		Height: q.State().Height, Dump: q.Dump, Document: kwil.Options{Version: kwil.V09, Old: db.old},
	})
	require.NoError(t, err)
	assert.Equal(t, sum(before), sum(after))
	assert.Equal(t, before.State.Voters, after.State.Voters)
	q.Close()
	now, err := db.write(t, filepath.Join(t.TempDir(), "pair"))
	require.NoError(t, err)
	assert.NotEqual(t, sum(before), sum(now))
	assert.Len(t, now.State.Voters, 2)
}
