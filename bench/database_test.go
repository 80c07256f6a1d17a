package bench

import (
	"compress/gzip"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/pgtest"
	"nodevisor/snapshot"
	"nodevisor/snapshot/postgres/kwildb"
)

const (
	samples    = "../testdata/kwil/v0.9.4" // a small state that Kwil's own tool wrote: the tables beside the chain's
	chainName  = "kwild"
	chainTable = 8
	// rowBytes is what a row takes on the disk with its part of the index; as SQL it is a little less.
	rowBytes = 370
)

// A chain is a server with one generated database: a state of Kwil's, and tables of hashes and JSON.
type chain struct {
	*pgtest.Cluster
	home  string
	dump  string // the file of the other way: pg_dump | gzip -6
	bytes int64  // pg_database_size
}

// newChain starts a server as production has it and fills the database.
func newChain(t testing.TB, s settings) *chain {
	t.Helper()
	say("generating a database of about %d MiB", s.pgSize>>20)
	buffers := max(16, min(1024, s.pgSize>>20))
	c := &chain{Cluster: pgtest.Start(t, pgtest.Conf("fsync = on", "synchronous_commit = on", "full_page_writes = on",
		fmt.Sprintf("shared_buffers = %dMB", buffers), "max_wal_size = 1GB"))}
	var err error
	c.home, err = os.MkdirTemp(s.dir, "nodevisor-bench-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(c.home)) })
	c.dump = filepath.Join(c.home, "dump.sql.gz")
	state, err := os.Open(filepath.Join(samples, "kwildb-snapshot.sql.gz"))
	require.NoError(t, err)
	defer state.Close()
	sql, err := gzip.NewReader(state)
	require.NoError(t, err)
	target := kwildb.NewTarget(c.home, c.DSN(chainName), "", c.Bin)
	require.NoError(t, target.Prepare(t.Context()))
	require.NoError(t, target.Load(t.Context(), sql, nil))
	c.Exec(chainName, `CREATE SCHEMA kwild_chain; CREATE TABLE kwild_chain.chain (height bigint, app_hash bytea);
		INSERT INTO kwild_chain.chain VALUES (41, '\x00'); CREATE SCHEMA ds_bench;
		INSERT INTO kwild_voting.voters VALUES ('\x01', '\x`+strings.Repeat("ab", 32)+`', 7)`)
	rows := s.pgSize / chainTable / rowBytes
	for i := range chainTable {
		c.Exec(chainName, fmt.Sprintf(`CREATE TABLE ds_bench.t%d (height bigint PRIMARY KEY, hash bytea NOT NULL, parent text NOT NULL, tx jsonb NOT NULL);
			INSERT INTO ds_bench.t%d SELECT n, h, encode(sha256(h), 'hex'), jsonb_build_object('from', encode(substr(h, 1, 20), 'hex'),
				'to', encode(sha256(h || '\x01'), 'hex'), 'amount', n::bigint * 7919, 'memo', 'transfer ' || n, 'ok', n %% 7 > 0)
			FROM (SELECT n, sha256(convert_to(%d || '/' || n, 'UTF8')) AS h FROM generate_series(1, %d) n) AS r`, i, i, i, rows))
	}
	c.Exec(chainName, "VACUUM ANALYZE")
	c.settle(t)
	_, err = fmt.Sscan(c.Query(chainName, "SELECT pg_database_size(current_database())")[0], &c.bytes)
	require.NoError(t, err)
	return c
}

// settle puts all on the disk that was written, so that what follows doesn't pay for it.
func (c *chain) settle(t testing.TB) {
	t.Helper()
	c.Exec("postgres", "CHECKPOINT")
	unix.Sync()
}

// shell runs a line of the other way, with the client programs in bin. It runs at the priority that Nodevisor gives its
// own client programs, so that a busy machine treats both alike.
func (c *chain) shell(t testing.TB, bin, line, database string) {
	t.Helper()
	cmd := exec.Command("nice", "-n", "10", "bash", "-c", "set -o pipefail; "+line)
	cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + c.home, "LC_ALL=C", "DSN=" + c.DSN(database), "DUMP=" + c.dump}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s: %s", line, out)
}

// store is a snapshot store with the database as its one source.
func (c *chain) store(t testing.TB, mode, bin string, keepClones int) *snapshot.Store {
	t.Helper()
	config := snapshot.DefaultConfig()
	config.MinFree, config.PgBin = "0", bin
	config.Sources = []snapshot.SourceConfig{{
		Name: "chain", Kind: "postgres", DSN: c.DSN(chainName), Mode: mode, Fallback: "hold", KeepClones: &keepClones,
	}}
	s, err := snapshot.Open(snapshot.Options{Config: config, Home: c.home, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	return s
}

// create takes a snapshot; into is the time that the node is down for.
func (c *chain) create(t testing.TB, s *snapshot.Store, into *series) (id string) {
	t.Helper()
	c.settle(t)
	_, err := s.Forecast(t.Context()) // it is asked while the node runs
	require.NoError(t, err)
	id = snapshot.NewID(time.Now(), "bench", 41)
	begin := time.Now()
	require.NoError(t, s.Create(t.Context(), id, "bench", 41))
	into.since(begin)
	return id
}

// complete makes the archive, and says how large it is.
func (c *chain) complete(t testing.TB, s *snapshot.Store, id string, into, size *series) {
	t.Helper()
	begin := time.Now()
	require.NoError(t, s.Complete(t.Context(), id))
	into.since(begin)
	m, err := s.Get(id)
	require.NoError(t, err)
	size.add(float64(m.Bytes))
}

// restore puts a snapshot in the place of the live database, and drops what was live.
func (c *chain) restore(t testing.TB, s *snapshot.Store, id string, into *series) {
	t.Helper()
	c.settle(t)
	before := c.content()
	begin := time.Now()
	res, err := s.Restore(t.Context(), id, snapshot.RestoreOptions{})
	require.NoError(t, err)
	into.since(begin)
	require.NotNil(t, res.Sources[0].Before)
	c.Exec("postgres", fmt.Sprintf("DROP DATABASE %q", *res.Sources[0].Before))
	require.Equal(t, before, c.content(), "the restored database holds what the live one held")
}

// content tells databases apart, cheaply.
func (c *chain) content() []string {
	return c.Query(chainName, "SELECT count(*), sum(height)::bigint, max(parent) FROM ds_bench.t7")
}

func (c *chain) sizeOf(t testing.TB, path string) float64 {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	return float64(info.Size())
}

// copyStopped copies the whole cluster while its server is down, and says how long it was down for.
func (c *chain) copyStopped(t testing.TB, into *series) {
	t.Helper()
	c.settle(t)
	to := filepath.Join(c.home, "copy")
	begin := time.Now()
	c.StopServer()
	out, err := exec.Command("cp", "-a", filepath.Join(c.Dir, "data"), to).CombinedOutput()
	c.StartServer()
	into.since(begin)
	require.NoError(t, err, "%s", out)
	require.NoError(t, os.RemoveAll(to))
}

func TestChainIsAsLargeAsAskedFor(t *testing.T) {
	const size = 8 << 20
	c := newChain(t, settings{pgSize: size, dir: t.TempDir()})
	assert.InEpsilon(t, size+8<<20, c.bytes, 0.3, "beside the 8 MiB of an empty database")
}
