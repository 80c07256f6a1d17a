package postgres

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/pgtest"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/server"
)

// chainSQL is a small chain's state.
const chainSQL = `CREATE TABLE blocks (height bigint PRIMARY KEY, hash text NOT NULL);
	INSERT INTO blocks SELECT n, md5(n::text) FROM generate_series(1, 1000) n`

// chainSum tells whether a database holds chainSQL's rows.
const chainSum = "SELECT count(*), sum(height)::bigint, md5(string_agg(hash, '' ORDER BY height)) FROM blocks"

// newSource is a source of c's database, with the configuration's defaults but for what change does.
func newSource(t testing.TB, dsn string, change func(*Options)) *Source {
	t.Helper()
	o := Options{
		Config: Config{DSN: dsn, Mode: ModeAuto, Fallback: "dump", KeepClones: 1, FreeSpace: -1},
		Name:   "chain", Home: "/home/of/" + t.Name(), State: t.TempDir(),
	}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	require.NoError(t, err)
	return s
}

func newJob(t testing.TB, id string) manifest.Job {
	t.Helper()
	return manifest.Job{ID: id, Dir: t.TempDir(), Room: func(...manifest.Need) error { return nil }}
}

func TestFreezeClonesWhereRightsAndRoomAreProven(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	s := newSource(t, c.DSN("chain"), nil)
	e, err := s.Forecast(t.Context(), t.TempDir())
	require.NoError(t, err)
	assert.Equal(t, manifest.Clone, e.Method)
	assert.Positive(t, e.Bytes)
	assert.Equal(t, filepath.Join(c.Dir, "data"), e.Needs[0].Path)
	assert.Equal(t, e.Bytes, e.Needs[0].Bytes)

	rec, err := s.Freeze(t.Context(), newJob(t, "one"))
	require.NoError(t, err)
	assert.Equal(t, manifest.Clone, rec.Method)
	assert.Equal(t, s.FrozenAt("one"), *rec.Frozen)
	assert.Equal(t, "chain", rec.Database.Name)
	ids, err := s.FrozenIDs()
	require.NoError(t, err)
	assert.Equal(t, []string{"one"}, ids)
	faults, err := s.VerifyClone(t.Context(), rec)
	require.NoError(t, err)
	assert.Empty(t, faults)

	_, err = newSource(t, c.DSN(*rec.Frozen), nil).Server.Connect(t.Context(), "")
	assert.Equal(t, server.StateNotConnectable, server.State(err), "nobody works in a frozen clone: %v", err)
	shut, err := s.Owner.Open(t.Context(), s.Server, *rec.Frozen, s.o.Log)
	require.NoError(t, err)
	assert.Equal(t, c.Query("chain", chainSum), c.Query(*rec.Frozen, chainSum))
	shut()

	require.NoError(t, s.Drop("one"))
	require.NoError(t, s.Drop("one"), "done twice")
	assert.Empty(t, clonesOf(c))
}

func clonesOf(c *pgtest.Cluster) []string {
	return c.Query("postgres", "SELECT datname::text FROM pg_database WHERE datname LIKE 'sv\\_%' ORDER BY 1")
}
