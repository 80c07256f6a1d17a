package bench

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"nodevisor/genesis/kwil"
	"nodevisor/snapshot/postgres/kwildb"
	"nodevisor/snapshot/postgres/server"
)

// client is one set of client programs, and what is measured of Nodevisor with it.
type client struct {
	bin, version               string
	archive, archiveSize, dump *series
}

// name is short, with the major version.
func (k *client) name() string {
	fields := strings.Fields(k.version) // pg_dump (PostgreSQL) 15.18 (Debian …)
	major, _, _ := strings.Cut(fields[min(2, len(fields)-1)], ".")
	return "pg_dump " + major
}

// measured is everything of one run.
type measured struct {
	clients                                    []*client // the last one is what restores
	plain, plainSize, psql, test, copied       *series   // the other way
	clone, verify, deep, restored, renamed     *series
	pair, pairSize, singlePair, singlePairSize *series
}

// measurePostgres compares with pg_dump, gzip, psql and cp. Every step of a round is done once before the next round.
func measurePostgres(t *testing.T, s settings, m *machine) *table {
	c := newChain(t, s)
	tab := &table{other: "beside it"}
	f := tab.postgresRows(t, c, s)
	m.add("PostgreSQL", version(t, filepath.Join(c.Bin, "postgres"), "--version")+", fsync on")
	for _, k := range f.clients {
		m.add(k.name(), k.version)
	}
	m.add("database", fmt.Sprintf("%.0f MB on the disk: %d tables of hashes and JSON, and a small state of Kwil's", float64(c.bytes)/1e6, chainTable))
	for round := range s.rounds {
		say("databases, round %d of %d (load average %s)", round+1, s.rounds, loadAverage(t))
		for _, step := range inTurn(round, func() { f.otherWay(t, c) }, func() { f.snapshots(t, c) }, func() { f.dumps(t, c) }, func() { f.pairs(t, c) }) {
			step()
		}
	}
	return tab
}

// inTurn begins with another one each time.
func inTurn(round int, steps ...func()) []func() {
	n := round % len(steps)
	return append(steps[n:len(steps):len(steps)], steps[:n]...)
}

// postgresRows are the rows, and the series to fill.
func (tab *table) postgresRows(t testing.TB, c *chain, s settings) *measured {
	f := &measured{
		plain: &series{}, plainSize: &series{unit: bytes}, psql: &series{}, test: &series{}, copied: &series{},
		singlePair: &series{}, singlePairSize: &series{unit: bytes},
	}
	for _, bin := range []string{c.Bin, s.pgClient} {
		if bin != "" {
			f.clients = append(f.clients, &client{bin: bin, version: version(t, filepath.Join(bin, "pg_dump"), "--version")})
		}
	}
	const dumped = "`pg_dump \\| gzip -6`"
	f.clone = tab.compare("the node's downtime with a clone", dumped, millis, f.plain)
	tab.rows = append(tab.rows, row{what: "the same", ours: f.clone, other: f.copied, name: "`cp -a` of the stopped cluster"})
	for _, k := range f.clients {
		k.dump = tab.compare("the node's downtime with a dump, "+k.name(), dumped, millis, f.plain)
	}
	for _, k := range f.clients {
		k.archive = tab.compare("the archive from the clone, rows hashed, "+k.name(), dumped, millis, f.plain)
		k.archiveSize = tab.compare("its size", dumped, bytes, f.plainSize)
	}
	f.verify = tab.compare("verify: every byte against its digest", "`gzip -t`", millis, f.test)
	f.deep = tab.compare("verify --deep: restored aside, every row compared", "`gunzip \\| psql`", millis, f.psql)
	f.restored = tab.compare("restore of the archive, every row compared, swapped in", "`gunzip \\| psql`", millis, f.psql)
	f.renamed = tab.compare("restore of the kept clone, its archive verified", "`gunzip \\| psql`", millis, f.psql)
	f.pair = tab.compare("Kwil's pair", "one thread, `compress/gzip`", millis, f.singlePair)
	f.pairSize = tab.compare("its size", "", bytes, f.singlePairSize)
	return f
}

// otherWay is what is done without Nodevisor. It leaves the database as it was.
func (f *measured) otherWay(t testing.TB, c *chain) {
	timed := func(into *series, line, database string) {
		c.settle(t)
		begin := time.Now()
		c.shell(t, c.Bin, line, database)
		into.since(begin)
	}
	timed(f.plain, `pg_dump -d "$DSN" | gzip -6 >"$DUMP"`, chainName)
	f.plainSize.add(c.sizeOf(t, c.dump))
	timed(f.test, `gzip -t "$DUMP"`, chainName)
	c.Create("other", "")
	timed(f.psql, `gunzip -c "$DUMP" | psql -X -q -v ON_ERROR_STOP=1 -d "$DSN" >/dev/null`, "other")
	c.Exec("postgres", "DROP DATABASE other")
	require.NoError(t, os.Remove(c.dump))
	c.copyStopped(t, f.copied)
}

// snapshots is the way of a clone, from the window to both kinds of restore.
func (f *measured) snapshots(t testing.TB, c *chain) {
	for i, k := range f.clients {
		s := c.store(t, "clone", k.bin, 1)
		id := c.create(t, s, f.clone)
		c.complete(t, s, id, k.archive, k.archiveSize)
		if i == len(f.clients)-1 {
			for deep, into := range map[bool]*series{false: f.verify, true: f.deep} {
				begin := time.Now()
				r, err := s.Verify(t.Context(), id, deep)
				require.NoError(t, err)
				into.since(begin)
				require.True(t, r.OK, "%+v", r.Errors)
			}
			c.restore(t, s, id, f.renamed)  // uses the clone up
			c.restore(t, s, id, f.restored) // so this is the archive
		}
		require.NoError(t, s.Delete(id))
	}
}

// dumps is the way where no clone can be made.
func (f *measured) dumps(t testing.TB, c *chain) {
	for _, k := range f.clients {
		s := c.store(t, "dump", k.bin, 0)
		id := c.create(t, s, k.dump)
		require.NoError(t, s.Delete(id))
	}
}

// pairs writes Kwil's pair in both ways: the same SQL, whose hash is compared.
func (f *measured) pairs(t testing.TB, c *chain) {
	ours, err := os.MkdirTemp(c.home, "pair-")
	require.NoError(t, err)
	defer os.RemoveAll(ours) //nolint:errcheck // the home goes as a whole
	var pair kwil.Pair
	c.kwil(t, f.pair, func(o kwil.PairOptions) (err error) {
		pair, err = kwil.WritePair(t.Context(), ours, o)
		return err
	})
	f.pairSize.add(float64(pair.File.Bytes))
	path := filepath.Join(ours, "single.gz")
	var state kwil.State
	c.kwil(t, f.singlePair, func(o kwil.PairOptions) (err error) {
		state, err = singleThreaded(t.Context(), path, o)
		return err
	})
	f.singlePairSize.add(c.sizeOf(t, path))
	require.Equal(t, pair.State.SHA256, state.SHA256, "both wrote the same SQL")
}

// kwil opens the database as a template's making does, and measures what write does with it, beginning with the question.
func (c *chain) kwil(t testing.TB, into *series, write func(kwil.PairOptions) error) {
	t.Helper()
	old, err := os.ReadFile(filepath.Join(samples, kwil.GenesisFile))
	require.NoError(t, err)
	c.settle(t)
	begin := time.Now()
	q, err := kwildb.Open(t.Context(), server.Config{Source: "chain", DSN: c.DSN(chainName), Bin: c.Bin},
		kwildb.Options{Version: kwildb.V09})
	require.NoError(t, err)
	defer q.Close()
	require.NoError(t, write(kwil.PairOptions{Height: q.State().Height, Dump: q.Dump, Document: kwil.Options{
		Version: kwil.V09, Old: old, Set: map[string]json.RawMessage{"chain_id": json.RawMessage(`"bench"`)},
		Database: kwil.Known{Version: kwil.V09, Params: q.State().Params, Owner: q.State().Owner},
	}}))
	into.since(begin)
}

// singleThreaded is the way of Kwil's own tool: one thread cleans, hashes and compresses, with the standard library's
// gzip at its default level. The tool does the three one after the other; here they are one pass, so the comparison is
// kind to it.
func singleThreaded(ctx context.Context, path string, o kwil.PairOptions) (state kwil.State, err error) {
	f, err := os.Create(path)
	if err != nil {
		return state, err
	}
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(o.Dump(ctx, pw)) }()
	buffered := bufio.NewWriterSize(f, 1<<20)
	z := gzip.NewWriter(buffered)
	state, err = kwil.Sanitise(z, pr, kwil.V09, o.Height)
	pr.CloseWithError(err)
	err = errors.Join(err, z.Close(), buffered.Flush(), f.Close())
	return state, err
}
