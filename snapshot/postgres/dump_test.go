package postgres

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/hint"
	"nodevisor/internal/pgtest"
	"nodevisor/internal/proc"
	"nodevisor/snapshot/manifest"
)

// big takes long enough to dump and to restore that something can happen meanwhile.
const big = "CREATE TABLE a (id int PRIMARY KEY, t text); INSERT INTO a SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 60000) i"

func jobIn(s *Source, id string) manifest.Job {
	return manifest.Job{ID: id, Dir: filepath.Join(s.o.State, id), Room: func(...manifest.Need) error { return nil }}
}

func mkdir(t testing.TB, dir string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o700))
}

// A dump beneath a running node is of one moment: both tables tell the same height.
func TestLiveDumpIsOfOneMoment(t *testing.T) {
	c, s := newChain(t, "CREATE TABLE a (h int); CREATE TABLE b (h int); INSERT INTO a VALUES (0); INSERT INTO b VALUES (0)", ModeDump)
	ctx, stop := context.WithCancel(t.Context())
	var node sync.WaitGroup
	conn := c.Connect("chain")
	node.Go(func() {
		for ctx.Err() == nil {
			_, _ = conn.Exec(ctx, "WITH n AS (INSERT INTO a SELECT max(h) + 1 FROM a RETURNING h) INSERT INTO b SELECT h FROM n")
		}
	})
	job := jobIn(s, snapshotID)
	job.Live = true
	mkdir(t, job.Dir)
	rec, err := s.Freeze(t.Context(), job)
	stop()
	node.Wait()
	require.NoError(t, err)
	rec, err = s.Finish(t.Context(), job.Dir, rec)
	require.NoError(t, err)
	assert.Equal(t, tableOf(t, rec, "a").Rows, tableOf(t, rec, "b").Rows)
	assert.Equal(t, tableOf(t, rec, "a").Hash, tableOf(t, rec, "b").Hash)
}

func TestFinishTwice(t *testing.T) {
	c, s := newChain(t, small, ModeClone)
	job := jobIn(s, snapshotID)
	mkdir(t, job.Dir)
	sealed, err := s.Freeze(t.Context(), job)
	require.NoError(t, err)
	c.Exec("chain", "DELETE FROM a")
	first, err := s.Finish(t.Context(), job.Dir, sealed)
	require.NoError(t, err)
	assert.Nil(t, sealed.Database.Tables, "the caller's record is its own")
	second, err := s.Finish(t.Context(), job.Dir, sealed)
	require.NoError(t, err, "as after a crash before the manifest was written")
	assert.Equal(t, first.Database.Tables, second.Database.Tables)
	assert.EqualValues(t, 1000, tableOf(t, second, "a").Rows)
	third, err := s.Finish(t.Context(), job.Dir, second)
	require.NoError(t, err)
	assert.Equal(t, second, third)
}

// What a program complains of comes to the operator with its exit code, the end of its output, and what to do.
func TestDumpFailures(t *testing.T) {
	c, s := newChain(t, small, ModeDump)
	fails := func(s *Source, text string) error {
		t.Helper()
		job := jobIn(s, "x")
		mkdir(t, job.Dir)
		_, err := s.Freeze(t.Context(), job)
		require.ErrorContains(t, err, text)
		assert.NotEmpty(t, hint.Of(err))
		entries, rerr := os.ReadDir(job.Dir)
		require.NoError(t, rerr)
		assert.Empty(t, entries, "nothing half is left")
		return err
	}
	c.Exec("postgres", "CREATE ROLE blind LOGIN")
	blind := chainOf(t, c, t.TempDir(), ModeDump, func(o *Options) { o.DSN = strings.Replace(o.DSN, "user=postgres", "user=blind", 1) })
	err := fails(blind, "permission denied for table a")
	assert.Contains(t, proc.Tail(err), "LOCK TABLE")

	c.Exec("chain", "GRANT SELECT ON a TO blind; ALTER TABLE a ENABLE ROW LEVEL SECURITY")
	err = fails(blind, "row-level security")
	assert.Contains(t, hint.Of(err), "BYPASSRLS")

	missing := chainOf(t, c, t.TempDir(), ModeDump, func(o *Options) { o.Bin = t.TempDir() })
	err = fails(missing, "pg_dump")
	assert.Contains(t, hint.Of(err), "postgresql-client")

	old := chainOf(t, c, t.TempDir(), ModeDump, func(o *Options) { o.Bin = t.TempDir() })
	require.NoError(t, os.WriteFile(filepath.Join(old.o.Bin, "pg_dump"), []byte("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n"), 0o755))
	fails(old, "older than the server")

	c.StopServer()
	require.ErrorIs(t, fails(s, "the server doesn't answer"), manifest.ErrAway)
}

// A table that another session holds is named within the time that is waited for it, and nobody waits for ever.
func TestDumpOfALockedTable(t *testing.T) {
	c, s := newChain(t, small, ModeDump)
	holder := c.Connect("chain")
	_, err := holder.Exec(t.Context(), "BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE")
	require.NoError(t, err)
	err = s.tools(s.Server).Write(t.Context(), filepath.Join(t.TempDir(), "x"), "chain", &manifest.Database{}, false, "--lock-wait-timeout=200")
	require.ErrorContains(t, err, "LOCK TABLE public.a")
	assert.Contains(t, hint.Of(err), "pg_stat_activity")
}

func TestDumpWithAWrongPassword(t *testing.T) {
	c := pgtest.Start(t, pgtest.HBA("local all guarded scram-sha-256", "local all all trust"))
	c.Create("chain", small+"; CREATE ROLE guarded LOGIN SUPERUSER PASSWORD 'right'")
	file := filepath.Join(t.TempDir(), "password")
	s := chainOf(t, c, t.TempDir(), ModeDump, func(o *Options) {
		o.DSN, o.PasswordFile = strings.Replace(o.DSN, "user=postgres", "user=guarded", 1), file
	})
	require.NoError(t, os.WriteFile(file, []byte("right\n"), 0o600))
	dir, rec := taken(t, s, snapshotID)
	faults, err := s.VerifyDeep(t.Context(), filepath.Join(dir, "kwild"), rec)
	require.NoError(t, err, "every program and session gets the password")
	assert.Empty(t, faults)
	require.NoError(t, os.WriteFile(file, []byte("geheim\n"), 0o600))
	err = s.tools(s.Server).Write(t.Context(), filepath.Join(t.TempDir(), "x"), "chain", &manifest.Database{}, false)
	require.ErrorContains(t, err, "password authentication failed")
	assert.NotContains(t, err.Error()+proc.Tail(err)+hint.Of(err), "geheim")
	_, err = s.VerifyDeep(t.Context(), filepath.Join(dir, "kwild"), rec)
	require.ErrorContains(t, err, "password")
}

// The server ends amid a dump and amid a restore: an error that says so, nothing half is left, and later it works.
func TestServerGoneInTheMiddle(t *testing.T) {
	c, s := newChain(t, big, ModeDump)
	dir, rec := taken(t, s, snapshotID)
	job := jobIn(s, "x")
	err := goneAmid(t, c, "the dump runs", func() error {
		if err := os.RemoveAll(job.Dir); err != nil {
			return err
		}
		_ = os.MkdirAll(job.Dir, 0o700)
		_, err := s.Freeze(t.Context(), job)
		return err
	})
	require.ErrorIs(t, err, manifest.ErrAway)
	entries, err := os.ReadDir(job.Dir)
	require.NoError(t, err)
	assert.Empty(t, entries)

	c.StartServer()
	err = goneAmid(t, c, "the restore runs", func() error {
		if err := s.Abort(); err != nil {
			return err
		}
		return s.Stage(t.Context(), restoreOf(s, dir, rec))
	})
	require.ErrorIs(t, err, manifest.ErrAway)
	assert.NotContains(t, hint.Of(err), "tried again", "nobody does that but the operator")
	require.ErrorIs(t, s.Abort(), manifest.ErrAway, "what was staged can't be removed now")
	c.StartServer()
	require.NoError(t, s.Abort())
	assert.Equal(t, []string{"chain"}, databases(t, c))
	restored(t, s, restoreOf(s, dir, rec))
}

// goneAmid ends the server while a program of do's copies rows, and gives do's error. A do that was done before the server
// ended is done again.
func goneAmid(t *testing.T, c *pgtest.Cluster, what string, do func() error) error {
	t.Helper()
	for range 10 {
		done := make(chan error, 1)
		go func() { done <- do() }()
		conn := c.Connect("postgres")
		eventually(t, what, func() bool {
			var n int
			err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'nodevisor' AND query LIKE 'COPY%'").Scan(&n)
			return err == nil && n > 0 || len(done) > 0
		})
		require.NoError(t, conn.Close(t.Context()))
		c.Stop()
		if err := <-done; err != nil {
			return err
		}
		c.StartServer()
	}
	require.Fail(t, "it was always faster")
	return nil
}

// A cancelled dump ends at once, with all of its processes and sessions.
func TestCancelledDump(t *testing.T) {
	c, s := newChain(t, big, ModeDump)
	holder := c.Connect("chain")
	_, err := holder.Exec(t.Context(), "BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	job := jobIn(s, "x")
	mkdir(t, job.Dir)
	go func() {
		_, err := s.Freeze(ctx, job)
		done <- err
	}()
	waiting := "SELECT 1 FROM pg_stat_activity WHERE application_name = 'nodevisor' AND wait_event_type = 'Lock'"
	eventually(t, "pg_dump waits", func() bool { return len(c.Query("postgres", waiting)) > 0 })
	begin := time.Now()
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	assert.Less(t, time.Since(begin), 20*time.Second, "not only when the lock was waited for in vain")
	eventually(t, "its sessions are gone", func() bool { return len(c.Query("postgres", waiting)) == 0 })
	entries, err := os.ReadDir(job.Dir)
	require.NoError(t, err)
	assert.Empty(t, entries)
}

// Our disk is full, then the server's: an error that says so, and nothing half is left.
func TestDiskFull(t *testing.T) {
	tiny := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", tiny, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(tiny, unix.MNT_DETACH)) })
	c, s := newChain(t, "CREATE TABLE a (t text); INSERT INTO a SELECT md5(random()::text) FROM generate_series(1, 100000)", ModeDump)
	dir, rec := taken(t, s, snapshotID)
	_, err := s.dump(t.Context(), manifest.Job{ID: "x", Dir: tiny}, "")
	require.ErrorContains(t, err, "No space left on device")
	assert.Contains(t, hint.Of(err), "make room")
	entries, err := os.ReadDir(tiny)
	require.NoError(t, err)
	assert.Empty(t, entries)

	space := filepath.Join(c.Dir, "space")
	require.NoError(t, os.Mkdir(space, 0o777))
	require.NoError(t, unix.Mount("tmpfs", space, "tmpfs", 0, "size=15m,mode=777"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(space, unix.MNT_DETACH)) })
	require.NoError(t, chownLike(space, filepath.Join(c.Dir, "data")))
	c.Exec("postgres", "CREATE TABLESPACE tiny LOCATION '"+space+"'")
	c.Exec("postgres", "ALTER DATABASE template0 SET TABLESPACE tiny") // where a fresh database goes, then
	err = s.Stage(t.Context(), restoreOf(s, dir, rec))
	require.ErrorContains(t, err, "No space left on device")
	assert.Contains(t, hint.Of(err), "room")
	require.NoError(t, s.Abort())
	assert.Equal(t, []string{"chain"}, databases(t, c))
	assert.Equal(t, []string{"100000"}, c.Query("chain", "SELECT count(*) FROM a"))
	c.Exec("postgres", "ALTER DATABASE template0 SET TABLESPACE pg_default")
	restored(t, s, restoreOf(s, dir, rec))
	c.Stop() // before its disk goes
}

func chownLike(path, like string) error {
	var st unix.Stat_t
	if err := unix.Stat(like, &st); err != nil {
		return err
	}
	return os.Chown(path, int(st.Uid), int(st.Gid))
}
