package postgres

import (
	_ "embed"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/pgtest"
	"nodevisor/snapshot/datadir"
	"nodevisor/snapshot/manifest"
)

// everything is a database with what a dump can lose.
//
//go:embed testdata/everything.sql
var everything string

const longName = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn" // 63 bytes

// newChain starts a server with a database "chain" and its source, in the given mode.
func newChain(t *testing.T, sql, mode string, change ...func(*Options)) (*pgtest.Cluster, *Source) {
	c := pgtest.Start(t)
	c.Create("chain", sql)
	return c, chainOf(t, c, t.TempDir(), mode, change...)
}

// chainOf is a source of the database "chain", with a store's directory below home.
func chainOf(t testing.TB, c *pgtest.Cluster, home, mode string, change ...func(*Options)) *Source {
	o := Options{
		Config: Config{DSN: c.DSN("chain"), Mode: mode, Fallback: "hold", KeepClones: 1, FreeSpace: 10 << 30},
		Name:   "kwild", Home: home, State: filepath.Join(home, "snapshots"), Bin: c.Bin, Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&o)
	}
	s, err := New(o)
	require.NoError(t, err)
	return s
}

// taken takes a snapshot of the source and finishes it, as the store does.
func taken(t testing.TB, s *Source, id string) (dir string, rec manifest.Source) {
	t.Helper()
	dir = filepath.Join(s.o.State, id)
	require.NoError(t, os.MkdirAll(dir, 0o700))
	rec, err := s.Freeze(t.Context(), manifest.Job{ID: id, Dir: dir, Room: func(...manifest.Need) error { return nil }})
	require.NoError(t, err)
	rec, err = s.Finish(t.Context(), dir, rec)
	require.NoError(t, err)
	return dir, rec
}

func restoreOf(s *Source, dir string, rec manifest.Source) manifest.Restore {
	return manifest.Restore{ID: filepath.Base(dir), From: filepath.Join(dir, s.Name()), Record: rec, Verified: true}
}

// restored carries a restore out, each step twice: a crash may have been between.
func restored(t testing.TB, s *Source, r manifest.Restore) (before string) {
	t.Helper()
	require.NoError(t, s.Stage(t.Context(), r))
	for range 2 {
		require.NoError(t, s.Commit())
	}
	for range 2 {
		var err error
		before, _, err = s.Swap()
		require.NoError(t, err)
	}
	for range 2 {
		require.NoError(t, s.Done())
	}
	phase, err := s.Pending()
	require.NoError(t, err)
	require.Empty(t, phase)
	return before
}

// contentNow reads the content of a database as a restore's comparison does.
func contentNow(t testing.TB, s *Source, database string, at string, rec manifest.Source) []manifest.Fault {
	t.Helper()
	faults, err := s.tools(s.Server).Compare(t.Context(), database, at, rec, false)
	require.NoError(t, err)
	return faults
}

func tableOf(t testing.TB, rec manifest.Source, name string) manifest.Table {
	t.Helper()
	for _, table := range rec.Database.Tables {
		if table.Name == name {
			return table
		}
	}
	require.Fail(t, "no such table", name)
	return manifest.Table{}
}

const snapshotID = "20260102T030405Z-x"

func TestRoundTripOfEverything(t *testing.T) {
	for _, mode := range []string{ModeDump, ModeClone} {
		t.Run(mode, func(t *testing.T) {
			c, s := newChain(t, everything, mode)
			dir, rec := taken(t, s, snapshotID)
			at := filepath.Join(dir, "kwild")
			faults, err := datadir.Verify(t.Context(), at, rec, true, nil)
			require.NoError(t, err)
			require.Empty(t, faults, "the archive is as its entries say")
			assert.Empty(t, contentNow(t, s, "chain", at, rec), "the archive's content is the database's, read by the server")

			for name, rows := range map[string]int64{
				"vals": 202, "nasty": 22, "none": 3, "dropped": 2, "ident": 2, "parted_1": 10, "parted_2": 20, "base": 2, "derived": 1, "ring_a": 1, "self": 2, "unlogged": 1,
				"guarded": 2, "fresh": 1, "used": 1, "ta.b\nle; DROP": 1, longName: 1, "large objects": 3, "long": 1,
			} {
				assert.Equal(t, rows, tableOf(t, rec, name).Rows, name)
			}
			require.NotNil(t, rec.Database.DumpedAt)
			assert.Nil(t, rec.Frozen)
			assert.Equal(t, manifest.Dump, rec.Method)
			assert.NotEmpty(t, rec.Database.ClientVersion)
			assert.NotEmpty(t, rec.Database.ServerVersion)

			deep, err := s.VerifyDeep(t.Context(), at, rec)
			require.NoError(t, err)
			assert.Empty(t, deep)

			c.Exec("chain", "BEGIN READ WRITE; DELETE FROM vals WHERE id > 10; UPDATE nasty SET a = 'changed'; DROP TABLE long; SELECT nextval('used'); COMMIT")
			before := restored(t, s, restoreOf(s, dir, rec))
			assert.Regexp(t, `^sv_[0-9a-f]{8}_[0-9a-f]{8}$`, before)
			assert.Empty(t, contentNow(t, s, "chain", at, rec), "restored")
			assert.Equal(t, []string{"10"}, c.Query(before, "SELECT count(*) FROM vals"), "the data of before is kept")
			assert.Equal(t, []string{"22101"}, c.Query("chain", "SELECT sum::text FROM summed"), "the view is filled")
			assert.Equal(t, []string{"Asia/Kolkata"}, c.Query("chain", "SELECT current_setting('timezone')"), "settings came back")
			assert.Len(t, c.Query("postgres", "SELECT 1 FROM pg_database WHERE datname LIKE 'sv\\_%'"), 1, "nothing is left but the data of before")
		})
	}
}

// A second snapshot, in which nothing changed but the physical order of rows, has the same hashes.
func TestHashDoesNotDependOnOrder(t *testing.T) {
	c, s := newChain(t, "CREATE TABLE a (id int PRIMARY KEY, t text); INSERT INTO a SELECT i, md5(i::text) FROM generate_series(1, 1000) i", ModeDump)
	_, first := taken(t, s, snapshotID)
	c.Exec("chain", "CREATE INDEX by_text ON a (t); CLUSTER a USING by_text")
	_, second := taken(t, s, snapshotID+"2")
	assert.Equal(t, tableOf(t, first, "a"), tableOf(t, second, "a"))
	c.Exec("chain", "UPDATE a SET t = t || ' ' WHERE id = 500")
	_, third := taken(t, s, snapshotID+"3")
	assert.NotEqual(t, tableOf(t, first, "a").Hash, tableOf(t, third, "a").Hash)
}

func databases(t testing.TB, c *pgtest.Cluster) []string {
	t.Helper()
	return c.Query("postgres", "SELECT datname::text FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY 1")
}

func eventually(t testing.TB, what string, fact func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !fact(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.Fail(t, "in vain", what)
		}
	}
}

// Nothing here needs a superuser: the database's owner, with CREATEDB, is enough.
func TestRoundTripAsTheOwner(t *testing.T) {
	c := pgtest.Start(t)
	c.Exec("postgres", "CREATE ROLE node LOGIN CREATEDB; CREATE ROLE reader")
	c.Exec("postgres", "CREATE DATABASE chain OWNER node")
	c.Exec("chain", "SET ROLE node; CREATE TABLE a (id serial PRIMARY KEY, t text); INSERT INTO a (t) SELECT md5(i::text) FROM generate_series(1, 100) i; CREATE EXTENSION pgcrypto; SELECT lo_from_bytea(0, 'x')")
	c.Exec("chain", "SET ROLE node; GRANT SELECT ON a TO reader; REVOKE ALL ON DATABASE chain FROM PUBLIC; GRANT CONNECT ON DATABASE chain TO reader; ALTER DATABASE chain SET work_mem = '7MB'")
	for _, mode := range []string{ModeDump, ModeClone} {
		s := chainOf(t, c, t.TempDir(), mode, func(o *Options) { o.DSN = strings.Replace(o.DSN, "user=postgres", "user=node", 1) })
		dir, rec := taken(t, s, snapshotID)
		faults, err := s.VerifyDeep(t.Context(), filepath.Join(dir, "kwild"), rec)
		require.NoError(t, err)
		assert.Empty(t, faults)
		c.Exec("chain", "DELETE FROM a")
		restored(t, s, restoreOf(s, dir, rec))
		assert.Empty(t, contentNow(t, s, "chain", filepath.Join(dir, "kwild"), rec))
		assert.Equal(t, []string{"true true false 7MB node"}, c.Query("chain", `SELECT concat_ws(' ', has_table_privilege('reader', 'a', 'SELECT')::text, has_database_privilege('reader', 'chain', 'CONNECT')::text,
			has_database_privilege('reader', 'chain', 'TEMP')::text, current_setting('work_mem'), pg_get_userbyid(datdba)) FROM pg_database WHERE datname = 'chain'`), mode)
	}
}
