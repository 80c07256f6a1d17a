package snapshot

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/pgtest"
	"nodevisor/snapshot/manifest"
)

// A set is a directory and two databases, each after the other.
type set struct {
	*Store
	home    string
	cluster *pgtest.Cluster
}

// setSources are its sources, reached through the socket in dir.
func setSources(dir, mode string) []SourceConfig {
	dsn := func(name string) string { return "host=" + dir + " port=5432 user=postgres dbname=" + name }
	return []SourceConfig{
		{Name: "beta", Kind: "postgres", DSN: dsn("beta"), Mode: mode, Fallback: "hold", FreeSpace: "10G", After: []string{"alpha"}},
		{Name: "alpha", Kind: "postgres", DSN: dsn("alpha"), Mode: mode, Fallback: "hold", FreeSpace: "10G", After: []string{"data"}},
		{Name: "data", Kind: "dir", Path: "data"},
	}
}

func newSet(t *testing.T, mode string) *set {
	s := &set{cluster: pgtest.Start(t)}
	s.begin(t, mode)
	return s
}

// begin fills the databases and a new home.
func (s *set) begin(t *testing.T, mode string) {
	s.home = newHome(t, 1200)
	for _, name := range []string{"alpha", "beta"} {
		s.cluster.Create(name, "CREATE TABLE blocks (height int PRIMARY KEY, hash text); INSERT INTO blocks SELECT i, md5(i::text) FROM generate_series(1, 1200) i")
	}
	s.Store = open(t, s.home, func(o *Options) { o.Config.Sources = setSources(s.cluster.Dir, mode) })
}

// goOn is what the node does after a snapshot.
func (s *set) goOn(t *testing.T) {
	for _, name := range []string{"alpha", "beta"} {
		s.cluster.Exec(name, "INSERT INTO blocks SELECT i, 'later' FROM generate_series(1201, 1300) i")
	}
	require.NoError(t, os.WriteFile(filepath.Join(s.home, "data", "later"), []byte("x"), 0o600))
}

// state tells for each source whether it is as "snapshot" or as "later".
func (s *set) state(t *testing.T) string {
	t.Helper()
	var all []string
	for _, name := range []string{"alpha", "beta"} {
		all = append(all, map[string]string{"1200": "snapshot", "1300": "later"}[s.cluster.Query(name, "SELECT count(*) FROM blocks")[0]])
	}
	data := "snapshot"
	if _, err := os.Stat(filepath.Join(s.home, "data", "later")); err == nil {
		data = "later"
	}
	return strings.Join(append(all, data), " ")
}

// ours lists the databases that are not the node's.
func (s *set) ours() []string {
	return s.cluster.Query("postgres", "SELECT shobj_description(oid, 'pg_database')::json ->> 'role' FROM pg_database WHERE datname LIKE 'sv\\_%' ORDER BY oid")
}

func (s *set) drop() {
	for _, name := range s.cluster.Query("postgres", "SELECT datname::text FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'") {
		s.cluster.Exec("postgres", "DROP DATABASE "+name+" WITH (FORCE)")
	}
}

const (
	allSnapshot = "snapshot snapshot snapshot"
	allLater    = "later later later"
)

func TestSetOfDirectoryAndDatabases(t *testing.T) {
	for _, mode := range []string{"clone", "dump"} {
		t.Run(mode, func(t *testing.T) {
			s := newSet(t, mode)
			id := completed(t, s.Store, "set", 1200)
			s.goOn(t)
			r, err := s.Verify(t.Context(), id, true)
			require.NoError(t, err)
			assert.True(t, r.OK && r.Hashed && r.Deep, "%v", r.Errors)
			assert.Equal(t, allLater, s.state(t))

			all, err := s.List()
			require.NoError(t, err)
			require.Len(t, all, 1)
			assert.Equal(t, manifest.Verified, all[0].State)
			total := int64(0)
			for _, src := range all[0].Sources {
				total += src.Bytes
			}
			assert.Equal(t, total, all[0].Bytes)
			m, err := s.Get(id)
			require.NoError(t, err)
			text, err := json.Marshal(m)
			require.NoError(t, err)
			assert.Contains(t, string(text), `"name":"blocks","kind":"table","rows":1200,"hash":"`)

			dry, err := s.Restore(t.Context(), id, RestoreOptions{DryRun: true})
			require.NoError(t, err)
			assert.Equal(t, []string{"alpha", "beta", "data"}, sourceNames(dry.Sources), "databases before the directory")
			assert.Equal(t, allLater, s.state(t), "a dry run changes nothing")
			done, err := s.Restore(t.Context(), id, RestoreOptions{})
			require.NoError(t, err)
			assert.Equal(t, allSnapshot, s.state(t))
			for _, src := range done.Sources {
				require.NotNil(t, src.Before, src.Name)
			}
			assert.Equal(t, []string{"1300"}, s.cluster.Query(*done.Sources[0].Before, "SELECT count(*) FROM blocks"), "the data of before is kept")
			assert.NotContains(t, s.ours(), "staged")
			assert.NotContains(t, s.ours(), "scratch")

			s.goOn(t)
			_, err = s.Restore(t.Context(), id, RestoreOptions{})
			require.NoError(t, err, "once more: the clone is used up, the archive is there")
			assert.Equal(t, allSnapshot, s.state(t))

			require.NoError(t, s.Pin(id))
			require.ErrorContains(t, s.Delete(id), "pinned")
			require.NoError(t, s.Unpin(id))
			require.NoError(t, s.Delete(id))
			assert.Equal(t, []string{"before", "before", "before", "before"}, s.ours(), "a deleted snapshot leaves no clone")
		})
	}
}

func sourceNames(all []RestoredSource) (names []string) {
	for _, r := range all {
		names = append(names, r.Name)
	}
	return names
}

// A snapshot that was sealed alone can be restored too: that is what a rollback before the archive is made needs. Its clone
// stays, and the archive is made of it afterwards.
func TestRestoreOfASealedSet(t *testing.T) {
	for _, mode := range []string{"clone", "dump"} {
		s := newSet(t, mode)
		id := create(t, s.Store, "set", 1200)
		s.goOn(t)
		_, err := s.Restore(t.Context(), id, RestoreOptions{})
		require.NoError(t, err)
		assert.Equal(t, allSnapshot, s.state(t), mode)
		require.NoError(t, s.Complete(t.Context(), id))
		r, err := s.Verify(t.Context(), id, true)
		require.NoError(t, err)
		assert.True(t, r.OK, "%v", r.Errors)
	}
}

// Into fills an empty database of another name, and leaves everything else as it is.
func TestRestoreInto(t *testing.T) {
	s := newSet(t, "clone")
	id := create(t, s.Store, "set", 1200)
	s.cluster.Exec("postgres", "CREATE DATABASE other")
	into := RestoreOptions{Into: map[string]string{"beta": s.cluster.DSN("other")}}
	_, err := s.Restore(t.Context(), id, into)
	require.ErrorContains(t, err, "no archive of a database", "it is a clone still")
	require.NoError(t, s.Complete(t.Context(), id))
	s.goOn(t)
	done, err := s.Restore(t.Context(), id, into)
	require.NoError(t, err)
	require.Len(t, done.Sources, 1)
	assert.Equal(t, s.cluster.DSN("other"), done.Sources[0].Path)
	assert.Equal(t, []string{"1200"}, s.cluster.Query("other", "SELECT count(*) FROM blocks"))
	assert.Equal(t, allLater, s.state(t))
	_, err = s.Restore(t.Context(), id, RestoreOptions{Into: map[string]string{"data": "x"}})
	require.ErrorContains(t, err, "no archive of a database")
	to := filepath.Join(t.TempDir(), "out")
	_, err = s.Restore(t.Context(), id, RestoreOptions{To: to})
	require.NoError(t, err)
	assert.FileExists(t, filepath.Join(to, "alpha", "toc.dat"))
	assert.Equal(t, allLater, s.state(t))
}

// A source starts only when those that it comes after are complete, and a set is valid only when every member is.
func TestAFailingMemberLeavesNoSet(t *testing.T) {
	s := newSet(t, "clone")
	good := completed(t, s.Store, "good", 1200)
	clones := s.ours()
	s.cluster.Exec("alpha", "BEGIN; INSERT INTO blocks VALUES (5000, ''); PREPARE TRANSACTION 'block'")
	id := NewID(time.Now(), "bad", 1201)
	require.ErrorContains(t, s.Create(t.Context(), id, "bad", 1201), "prepared transaction")
	assert.Equal(t, clones, s.ours(), "beta, which comes after alpha, was not begun")
	assert.NoDirExists(t, filepath.Join(s.Dir(), id))
	assert.NoDirExists(t, filepath.Join(s.Dir(), id+partialSuffix))
	r, err := s.Verify(t.Context(), good, true)
	require.NoError(t, err)
	assert.True(t, r.OK, "the last good one is untouched: %v", r.Errors)
	s.cluster.Exec("alpha", "ROLLBACK PREPARED 'block'")
	require.NoError(t, s.Create(t.Context(), id, "bad", 1201), "the same id again")
}

// A session in the second database keeps both, and the directory, as they are.
func TestASessionInOneDatabaseStopsTheWholeRestore(t *testing.T) {
	s := newSet(t, "clone")
	id := completed(t, s.Store, "set", 1200)
	s.goOn(t)
	other := s.cluster.Connect("alpha")
	_, err := s.Restore(t.Context(), id, RestoreOptions{})
	require.ErrorContains(t, err, "sessions are connected")
	require.NoError(t, other.Close(t.Context()))
	assert.Equal(t, allLater, s.state(t))
	assert.NotContains(t, s.ours(), "staged")
	for _, sl := range s.slots {
		phase, err := s.source(sl).Pending()
		require.NoError(t, err)
		assert.Empty(t, phase)
	}
	_, err = s.Restore(t.Context(), id, RestoreOptions{})
	require.NoError(t, err)
	assert.Equal(t, allSnapshot, s.state(t))
}

// A server that is away while a restore is unfinished is an error at the start, never passed over.
func TestRecoverWithoutTheServer(t *testing.T) {
	s := newSet(t, "dump") // of a clone nothing would have to be removed
	id := completed(t, s.Store, "set", 1200)
	s.goOn(t)
	_, m, err := s.find(id)
	require.NoError(t, err)
	for _, p := range partsOf(t, s.Store, m) {
		require.NoError(t, p.source.Stage(t.Context(), p.job))
	}
	s.cluster.StopServer()
	require.ErrorIs(t, s.Recover(t.Context()), manifest.ErrAway, "staged: what was staged can't be removed")
	s.cluster.StartServer()
	require.NoError(t, s.Recover(t.Context()), "undone")
	assert.Equal(t, allLater, s.state(t))
	parts := partsOf(t, s.Store, m)
	for _, p := range parts {
		require.NoError(t, p.source.Stage(t.Context(), p.job))
	}
	require.NoError(t, parts[0].source.Commit())
	s.cluster.StopServer()
	require.ErrorIs(t, s.Recover(t.Context()), manifest.ErrAway)
	s.cluster.StartServer()
	require.NoError(t, s.Recover(t.Context()))
	assert.Equal(t, allSnapshot, s.state(t), "one was committed: all are finished")
	s.cluster.StopServer()
	require.NoError(t, s.Recover(t.Context()), "nothing is unfinished: tidying waits for the server")
}

func partsOf(t *testing.T, s *Store, m *manifest.Manifest) []*part {
	parts, err := s.parts(context.Background(), filepath.Join(s.Dir(), m.ID), m, RestoreOptions{})
	require.NoError(t, err)
	return parts
}

// A thousand bits, anywhere in a snapshot: each one is found.
func TestEveryBitFlipInASetIsFound(t *testing.T) {
	s := newSet(t, "dump")
	id := completed(t, s.Store, "set", 1200)
	dir := filepath.Join(s.Dir(), id)
	var files []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if info, ierr := d.Info(); ierr == nil && info.Mode().IsRegular() && info.Size() > 0 {
			files = append(files, path)
		}
		return err
	}))
	r := rand.New(rand.NewPCG(7, 7)) // the same ones in every run
	for i := range 1000 {
		path := files[r.IntN(len(files))]
		if i%4 == 0 {
			path = filepath.Join(dir, manifest.Name)
		}
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		bit := r.IntN(len(data) * 8)
		data[bit/8] ^= 1 << (bit % 8)
		require.NoError(t, os.WriteFile(path, data, 0o600))
		report, err := s.Verify(t.Context(), id, false)
		require.NoError(t, err)
		if report.OK {
			t.Fatalf("bit %d of %s was not found", bit, path)
		}
		data[bit/8] ^= 1 << (bit % 8)
		require.NoError(t, os.WriteFile(path, data, 0o600))
	}
	report, err := s.Verify(t.Context(), id, false)
	require.NoError(t, err)
	assert.True(t, report.OK, "%v", report.Errors)
}
