package session

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/config"
	"nodevisor/internal/hint"
	"nodevisor/internal/pgtest"
	"nodevisor/snapshot"
)

// pgStore is a store whose sources are those given, in a home with a data directory.
func pgStore(t *testing.T, sources ...snapshot.SourceConfig) *Snapshots {
	t.Helper()
	s := &Session{Log: slog.New(slog.DiscardHandler)}
	s.Config = config.Default()
	s.Config.Node.Home = t.TempDir()
	s.Layout.Home = s.Config.Node.Home
	require.NoError(t, os.MkdirAll(filepath.Join(s.Config.Node.Home, "data"), 0o755))
	s.Config.Snapshot.MinFree, s.Config.Snapshot.Sources = "0", sources
	store, err := openSnapshots(s, nil)
	require.NoError(t, err)
	return store
}

// Beneath a running node a snapshot is taken where every source allows that, and nowhere else. Broken off, it leaves nothing.
func TestCreateBeneathTheNode(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t)
	pg.Create("node", "CREATE TABLE blocks AS SELECT generate_series(1, 1000) AS height")
	pg.Connect("node") // the node
	db := snapshot.SourceConfig{Name: "blocks", Kind: "postgres", DSN: pg.DSN("node"), Mode: "dump"}
	create := SnapshotRequest{Op: "create", Label: "live", Height: 5}.Raw()

	store := pgStore(t, db)
	out, err := store.Do(t.Context(), create, false)
	require.NoError(t, err)
	made, ok := out.(snapshot.Info)
	require.True(t, ok, "%T", out)
	assert.Equal(t, "sealed", made.State)
	require.NoError(t, store.Tidy(t.Context(), ""))
	r, err := store.Verify(t.Context(), made.ID, true)
	require.NoError(t, err)
	assert.True(t, r.OK, "%+v", r.Errors)

	ended, end := context.WithCancel(t.Context())
	end()
	_, err = store.Do(ended, create, false)
	require.Error(t, err)
	partial, err := filepath.Glob(filepath.Join(store.Dir(), "*.partial"))
	require.NoError(t, err)
	assert.Empty(t, partial)

	for _, sources := range [][]snapshot.SourceConfig{
		{db, {Name: "data", Kind: "dir", Path: "data"}},
		{{Name: "blocks", Kind: "postgres", DSN: pg.DSN("node"), Mode: "auto"}},
	} {
		_, err = pgStore(t, sources...).Do(t.Context(), create, false)
		assert.ErrorContains(t, err, "the node is running")
	}
}

// The status says beforehand what the next snapshot will be, and that no database could be put back.
func TestSummaryOfDatabases(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t)
	pg.Create("node", "CREATE TABLE blocks AS SELECT generate_series(1, 1000) AS height")
	source := snapshot.SourceConfig{Name: "blocks", Kind: "postgres", DSN: pg.DSN("node"), Mode: "clone"}
	store := pgStore(t, source)
	sum, _, err := store.Summary(t.Context())
	require.NoError(t, err)
	require.NotNil(t, sum.Method)
	assert.Equal(t, "clone", *sum.Method)
	assert.Nil(t, sum.Note)
	assert.Nil(t, sum.Blocked)

	pg.Exec("node", "SELECT pg_create_logical_replication_slot('exporter', 'pgoutput')")
	sum, _, err = store.Summary(t.Context())
	require.NoError(t, err)
	require.NotNil(t, sum.Blocked)
	assert.Contains(t, *sum.Blocked, "exporter")

	source.Mode = "dump"
	sum, _, err = pgStore(t, source).Summary(t.Context())
	require.NoError(t, err)
	require.NotNil(t, sum.Note)
	assert.Contains(t, *sum.Note, "dumps a database while the node is down")
}

// A source that has gone since the start is told of where the next upgrade's room is looked at: it isn't begun.
func TestRoomWithoutASource(t *testing.T) {
	t.Parallel()
	store := pgStore(t, snapshot.SourceConfig{Name: "data", Kind: "dir", Path: "data"})
	require.NoError(t, store.Room(t.Context()))
	for _, where := range store.Sources() {
		require.NoError(t, os.Rename(where, where+".away"))
	}
	err := store.Room(t.Context())
	require.EqualError(t, err, store.Check().Error())
	require.ErrorContains(t, err, "cannot use source data")
	assert.Contains(t, hint.Of(err), "supervisor snapshot restore ID")
}

// What the status says of the next snapshot is of the data as it is now, also where there was none when the store was opened.
func TestSummaryFollowsTheData(t *testing.T) {
	t.Parallel()
	store := pgStore(t) // the default source
	data := store.Sources()["data"]
	require.NoError(t, os.Remove(data))
	sum, disk, err := store.Summary(t.Context())
	require.NoError(t, err)
	assert.Nil(t, sum.Method)
	before := *disk.Needed
	db := filepath.Join(data, "application.db")
	require.NoError(t, os.MkdirAll(db, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(db, "CURRENT"), []byte("MANIFEST-000001\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(db, "MANIFEST-000001"), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(db, "000001.ldb"), make([]byte, 1<<20), 0o600))
	sum, disk, err = store.Summary(t.Context())
	require.NoError(t, err)
	require.NotNil(t, sum.Method)
	assert.Contains(t, []string{"hardlink", "reflink"}, *sum.Method)
	assert.GreaterOrEqual(t, *disk.Needed, before+1<<20)
}
