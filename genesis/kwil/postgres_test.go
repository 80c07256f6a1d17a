package kwil_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/genesis"
	"nodevisor/genesis/kwil"
	"nodevisor/internal/pgtest"
	"nodevisor/snapshot/postgres"
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
func (c chain) options() postgres.Options {
	return postgres.Options{Name: "kwild", Config: postgres.Config{DSN: c.DSN(c.name)}, Bin: c.Bin}
}

// open reads the chain's state.
func (c chain) open(t testing.TB) (*postgres.Kwil, error) {
	t.Helper()
	q, err := postgres.OpenKwil(t.Context(), c.options(), postgres.KwilOptions{Version: string(c.version)})
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

// TestSamplesComeOutEqual: the states that Kwil's own tools wrote, restored and written again, have Kwil's own hash.
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
			want, have := read(t, filepath.Join(testdata, sample.dir, version.StateFile())), read(t, filepath.Join(dir, version.StateFile()))
			if sum(pair) != sample.hash {
				a, b := strings.Split(want, "\n"), strings.Split(have, "\n")
				for i := range min(len(a), len(b)) {
					if a[i] != b[i] {
						t.Logf("line %d:\n- %s\n+ %s", i+1, a[i], b[i])
					}
				}
				t.Logf("%d lines, %d lines", len(a), len(b))
			}
			assert.Equal(t, sample.hash, sum(pair))
		})
	}
}

var _ = bytes.NewReader
var _ = time.Second
