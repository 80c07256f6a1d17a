package postgres

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
	"nodevisor/snapshot/datadir"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/swap"
)

const small = "CREATE TABLE a (id int PRIMARY KEY, t text); INSERT INTO a SELECT i, md5(i::text) FROM generate_series(1, 1000) i"

// A row whose first column begins with two dashes, and rows of nothing but blanks, are lost by filters that read a dump
// line by line.
func TestR1RowsThatLookLikeComments(t *testing.T) {
	c, s := newChain(t, `CREATE TABLE posts (id text, body text); INSERT INTO posts VALUES ('-- x', 'y'), ('  -- z', ''), ('', ''), ('   ', ''), (E'\t', ''), ('SET x', ''), ('SELECT 1', ''), ('\connect x', '')`, ModeDump)
	dir, rec := taken(t, s, snapshotID)
	assert.EqualValues(t, 8, tableOf(t, rec, "posts").Rows)
	c.Exec("chain", "DELETE FROM posts")
	restored(t, s, restoreOf(s, dir, rec))
	assert.Equal(t, []string{"8"}, c.Query("chain", "SELECT count(*) FROM posts"))
	assert.Empty(t, contentNow(t, s, "chain", filepath.Join(dir, "kwild"), rec))
}

// A byte that was altered is found before anything is touched, at the first try and at every other.
func TestR2AlteredArchive(t *testing.T) {
	c, s := newChain(t, small, ModeDump)
	dir, rec := taken(t, s, snapshotID)
	flip(t, largest(t, filepath.Join(dir, "kwild"), rec), rand.New(rand.NewPCG(1, 2)))
	for range 2 {
		err := s.Stage(t.Context(), restoreOf(s, dir, rec))
		require.ErrorContains(t, err, "sha256")
		require.NoError(t, s.Abort())
		assert.Equal(t, []string{"chain"}, databases(t, c), "nothing was made")
	}
	require.ErrorContains(t, s.Into(t.Context(), restoreOf(s, dir, rec), c.DSN("postgres")), "sha256")
	_, err := s.Extract(t.Context(), restoreOf(s, dir, rec), filepath.Join(t.TempDir(), "out"))
	require.ErrorContains(t, err, "sha256")
}

// A truncated, missing or additional file is named, and the database of before stays what it is.
func TestR3TruncatedArchive(t *testing.T) {
	c, s := newChain(t, small, ModeDump)
	dir, rec := taken(t, s, snapshotID)
	at := filepath.Join(dir, "kwild")
	file := largest(t, at, rec)
	whole, err := os.ReadFile(file)
	require.NoError(t, err)
	for name, damage := range map[string]func() error{
		"truncated": func() error { return os.Truncate(file, int64(len(whole)/2)) },
		"emptied":   func() error { return os.Truncate(file, 0) },
		"missing":   func() error { return os.Remove(file) },
		"extra":     func() error { return os.WriteFile(filepath.Join(at, "9999.dat.gz"), nil, 0o600) },
		"a link": func() error {
			return os.Rename(file, file+".real")
		},
	} {
		require.NoError(t, damage())
		for range 2 {
			require.Error(t, s.Stage(t.Context(), restoreOf(s, dir, rec)), name)
			require.NoError(t, s.Abort())
		}
		require.NoError(t, os.RemoveAll(filepath.Join(at, "9999.dat.gz")))
		require.NoError(t, os.RemoveAll(file+".real"))
		require.NoError(t, os.WriteFile(file, whole, 0o600))
	}
	assert.Equal(t, []string{"chain"}, databases(t, c))
	assert.Equal(t, []string{"1000"}, c.Query("chain", "SELECT count(*) FROM a"))
	restored(t, s, restoreOf(s, dir, rec))
}

// A restore that is broken off leaves the live database alone, and can be done again.
func TestR4InterruptedRestore(t *testing.T) {
	c, s := newChain(t, small, ModeDump)
	dir, rec := taken(t, s, snapshotID)
	c.Exec("chain", "DELETE FROM a WHERE id > 500")
	for _, after := range []time.Duration{time.Millisecond, 50 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		err := s.Stage(ctx, restoreOf(s, dir, rec))
		cancel()
		if err == nil {
			break // this machine was faster
		}
		require.NoError(t, s.Abort())
		assert.Equal(t, []string{"chain"}, databases(t, c), "after %s", after)
		assert.Equal(t, []string{"500"}, c.Query("chain", "SELECT count(*) FROM a"))
	}
	require.NoError(t, s.Abort())
	restored(t, s, restoreOf(s, dir, rec))
	assert.Equal(t, []string{"1000"}, c.Query("chain", "SELECT count(*) FROM a"))
}

// What pg_restore doesn't bring back is an error, whether it complained or not.
func TestR5RestoreThatLosesRows(t *testing.T) {
	c, s := newChain(t, small+"; CREATE TABLE b (id int); INSERT INTO b VALUES (1)", ModeDump)
	dir, rec := taken(t, s, snapshotID)
	c.Exec("template1", "CREATE TABLE a (x int)") // a left-over that in-place restores stumble over: ours is from template0
	restored(t, s, restoreOf(s, dir, rec))

	lying := rec
	db := *rec.Database
	db.Tables = append([]manifest.Table{}, db.Tables...)
	for i := range db.Tables {
		if db.Tables[i].Name == "a" {
			db.Tables[i].Rows++
		}
	}
	lying.Database = &db
	err := s.Stage(t.Context(), restoreOf(s, dir, lying))
	require.ErrorContains(t, err, "kwild/public.a: want table of 1001 rows, hash ")
	require.ErrorContains(t, err, "got table of 1000 rows, hash ")
	require.NoError(t, s.Abort())
	faults, err := s.VerifyDeep(t.Context(), filepath.Join(dir, "kwild"), lying)
	require.NoError(t, err)
	require.Len(t, faults, 1)
	assert.Equal(t, "kwild/public.a", faults[0].Path)

	// SQL that fails ends the restore: nothing goes on without it.
	broken := filepath.Join(t.TempDir(), "kwild")
	require.NoError(t, os.CopyFS(broken, os.DirFS(filepath.Join(dir, "kwild"))))
	require.NoError(t, os.Remove(largest(t, broken, rec)))
	_, err = s.VerifyDeep(t.Context(), broken, rec)
	require.ErrorContains(t, err, "pg_restore: error: ")
	assert.NotEmpty(t, proc.Tail(err))
	assert.Len(t, databases(t, c), 2, "live and before: the scratch database is gone")
}

// A failing run leaves the last good snapshot alone, and nothing of its own.
func TestR7FailingRunKeepsTheGoodOne(t *testing.T) {
	c, s := newChain(t, small, ModeClone)
	dir, rec := taken(t, s, snapshotID)
	bad := filepath.Join(s.o.State, snapshotID+"2")
	require.NoError(t, os.MkdirAll(bad, 0o700))
	sealed, err := s.Freeze(t.Context(), manifest.Job{ID: snapshotID + "2", Dir: bad, Room: func(...manifest.Need) error { return nil }})
	require.NoError(t, err)
	broken := chainOf(t, c, s.o.Home, ModeClone, func(o *Options) { o.Bin = t.TempDir() })
	require.NoError(t, os.WriteFile(filepath.Join(broken.o.Bin, "pg_dump"), []byte("#!/bin/sh\n[ \"$1\" = --version ] && echo 'pg_dump (PostgreSQL) 15.18' && exit\nfor a; do case $a in --file=*) mkdir \"${a#--file=}\";; esac; done\necho 'pg_dump: error: it broke' >&2; exit 3\n"), 0o755))
	_, err = broken.Finish(t.Context(), bad, sealed)
	require.ErrorContains(t, err, "exit code 3: pg_dump: error: it broke")
	entries, err := os.ReadDir(bad)
	require.NoError(t, err)
	assert.Empty(t, entries, "nothing half is left")
	faults, err := datadir.Verify(t.Context(), filepath.Join(dir, "kwild"), rec, true, nil)
	require.NoError(t, err)
	assert.Empty(t, faults)
	_, err = s.Finish(t.Context(), bad, sealed)
	require.NoError(t, err, "the clone is still there: the archive is made the next time")
}

func largest(t testing.TB, at string, rec manifest.Source) string {
	t.Helper()
	var best manifest.Entry
	for _, e := range rec.Entries {
		if e.Type == manifest.File && strings.Contains(e.Path, ".dat") && e.Path != "toc.dat" && e.Size >= best.Size {
			best = e
		}
	}
	return filepath.Join(at, best.Path)
}

// flip flips one random bit.
func flip(t testing.TB, path string, r *rand.Rand) {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	bit := r.IntN(len(data) * 8)
	data[bit/8] ^= 1 << (bit % 8)
	require.NoError(t, os.WriteFile(path, data, 0o600))
}

// What is in the way of a swap is named before anything is touched: nothing is half done.
func TestRestoreIsRefused(t *testing.T) {
	c, s := newChain(t, small+"; CREATE ROLE keeper; CREATE ROLE guest; ALTER TABLE a OWNER TO keeper; GRANT SELECT ON a TO guest; GRANT CONNECT ON DATABASE chain TO guest", ModeDump)
	dir, rec := taken(t, s, snapshotID)
	r := restoreOf(s, dir, rec)
	refused := func(text string) {
		t.Helper()
		err := s.Stage(t.Context(), r)
		require.ErrorContains(t, err, text)
		assert.NotEmpty(t, hint.Of(err))
		phase, err := s.Pending()
		require.NoError(t, err)
		assert.Empty(t, phase)
		assert.Equal(t, []string{"chain"}, databases(t, c))
	}
	other := c.Connect("chain")
	_, err := other.Exec(t.Context(), "SET application_name = 'explorer'")
	require.NoError(t, err)
	refused("explorer (pid ")
	require.NoError(t, other.Close(t.Context()))
	c.Exec("chain", "BEGIN; INSERT INTO a VALUES (5000); PREPARE TRANSACTION 'block-7'")
	refused("block-7")
	c.Exec("chain", "ROLLBACK PREPARED 'block-7'")
	c.Exec("chain", "SELECT pg_create_logical_replication_slot('feed', 'pgoutput')")
	_, err = s.Preview(r)
	require.ErrorContains(t, err, "replication slot feed")
	refused("replication slot feed")
	c.Exec("chain", "SELECT pg_drop_replication_slot('feed')")
	c.Exec("chain", "REASSIGN OWNED BY keeper TO postgres; DROP OWNED BY guest; DROP ROLE keeper; DROP ROLE guest")
	_, err = s.Preview(r)
	require.ErrorContains(t, err, "guest, keeper")
	refused("guest, keeper")
	assert.Contains(t, hint.Of(err), `CREATE ROLE "guest"; CREATE ROLE "keeper";`)
	r.Elsewhere = true
	_, err = s.Preview(r)
	require.NoError(t, err, "elsewhere roles don't matter")
	r.Elsewhere = false
	c.Exec("chain", "CREATE ROLE keeper; CREATE ROLE guest")
	restored(t, s, r)
	assert.Equal(t, []string{"keeper"}, c.Query("chain", "SELECT tableowner::text FROM pg_tables WHERE tablename = 'a'"))
	assert.Equal(t, []string{"true"}, c.Query("chain", "SELECT has_database_privilege('guest', 'chain', 'CONNECT') AND has_table_privilege('guest', 'a', 'SELECT')"))
}

// An exporter that comes back at once, and stays, keeps nothing from happening where it may be disconnected.
func TestSwapBesideAnExporter(t *testing.T) {
	c, s := newChain(t, small, ModeClone, func(o *Options) { o.Disconnect = []string{"exporter"} })
	dir, rec := taken(t, s, snapshotID)
	c.Exec("chain", "DELETE FROM a")
	ctx, stop := context.WithCancel(t.Context())
	var times atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			conn, err := pgx.Connect(ctx, c.DSN("chain")+" application_name=exporter")
			if err != nil {
				continue
			}
			times.Add(1)
			for err == nil {
				_, err = conn.Exec(ctx, "SELECT count(*), pg_sleep(0.05) FROM a")
			}
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	eventually(t, "the exporter is there", func() bool { return times.Load() > 0 })
	restored(t, s, restoreOf(s, dir, rec))
	eventually(t, "its return: it was disconnected", func() bool { return times.Load() > 1 })
	stop()
	<-ended
	assert.Equal(t, []string{"1000"}, c.Query("chain", "SELECT count(*) FROM a"))
}

// A session that comes between Commit and Swap, and may not be ended: the swap is refused as a whole and can be undone.
func TestSwapIsUndone(t *testing.T) {
	c, s := newChain(t, small, ModeClone)
	dir, rec := taken(t, s, snapshotID)
	c.Exec("chain", "DELETE FROM a")
	r := restoreOf(s, dir, rec)
	require.NoError(t, s.Stage(t.Context(), r))
	require.NoError(t, s.Commit())
	c.Exec("postgres", "ALTER DATABASE chain RENAME TO hidden")
	_, _, err := s.Swap()
	require.ErrorContains(t, err, "neither as before the swap nor as after it")
	require.Error(t, s.Undo())
	require.Error(t, s.Done())
	require.Error(t, s.Abort(), "it is committed")
	c.Exec("postgres", "ALTER DATABASE hidden RENAME TO chain")
	for range 2 {
		require.NoError(t, s.Undo())
	}
	phase, err := s.Pending()
	require.NoError(t, err)
	assert.Equal(t, swap.Staging, phase)
	require.NoError(t, s.Abort())
	assert.Equal(t, []string{"0"}, c.Query("chain", "SELECT count(*) FROM a"), "as before")
	assert.Len(t, databases(t, c), 2, "the clone stays")
	restored(t, s, r)
	require.NoError(t, s.Undo(), "nothing is pending")
	assert.Equal(t, []string{"1000"}, c.Query("chain", "SELECT count(*) FROM a"))
}

// A clone is used up only with its archive intact; else a copy of it is.
func TestCloneIsUsedUpOnlyBesideAnIntactArchive(t *testing.T) {
	c, s := newChain(t, small, ModeClone)
	dir, rec := taken(t, s, snapshotID)
	clone := *rec.Database.Clone
	flip(t, largest(t, filepath.Join(dir, "kwild"), rec), rand.New(rand.NewPCG(3, 4)))
	c.Exec("chain", "DELETE FROM a")
	before := restored(t, s, restoreOf(s, dir, rec))
	assert.ElementsMatch(t, []string{"chain", before, clone}, databases(t, c))
	assert.Equal(t, []string{"1000"}, c.Query("chain", "SELECT count(*) FROM a"))
}

// Also where the live database is gone there is something to restore.
func TestRestoreOfADroppedDatabase(t *testing.T) {
	c, s := newChain(t, small, ModeDump)
	dir, rec := taken(t, s, snapshotID)
	c.Exec("postgres", "DROP DATABASE chain")
	assert.Empty(t, restored(t, s, restoreOf(s, dir, rec)), "there was none before")
	assert.Equal(t, []string{"1000"}, c.Query("chain", "SELECT count(*) FROM a"))
}

func TestInto(t *testing.T) {
	c, s := newChain(t, everything, ModeDump)
	dir, rec := taken(t, s, snapshotID)
	r := restoreOf(s, dir, rec)
	c.Exec("postgres", `CREATE DATABASE "we'ird=x" TEMPLATE template0`)
	dsn := fmt.Sprintf(`host=%s user=postgres dbname='we\'ird=x'`, c.Dir)
	require.NoError(t, s.Into(t.Context(), r, dsn))
	err := s.Into(t.Context(), r, dsn)
	require.ErrorContains(t, err, "the database is not empty")
	require.ErrorContains(t, s.Into(t.Context(), r, "host="+c.Dir+" user=postgres dbname=nowhere"), "no such database")
	err = s.Into(t.Context(), r, "host="+c.Dir+" user=postgres dbname=x password=geheim")
	require.ErrorContains(t, err, "--into: holds a password")
	assert.Contains(t, hint.Of(err), "PGPASSFILE")
	assert.NotContains(t, err.Error()+hint.Of(err), "geheim")

	c.Exec("postgres", `CREATE DATABASE half TEMPLATE template0`)
	c.Exec("half", "CREATE EXTENSION hstore")
	require.Error(t, s.Into(t.Context(), r, c.DSN("half")), "the extension is there already")
	assert.Equal(t, []string{"0"}, c.Query("half", "SELECT count(*) FROM pg_class WHERE relname IN ('vals', 'nasty')"), "what fails leaves it empty")
}

func TestExtractIsAnArchiveForPgRestore(t *testing.T) {
	c, s := newChain(t, small, ModeClone)
	dir, rec := taken(t, s, snapshotID)
	to := filepath.Join(t.TempDir(), "a", "b")
	_, err := s.Extract(t.Context(), restoreOf(s, dir, rec), to)
	require.NoError(t, err)
	faults, err := datadir.Verify(t.Context(), to, rec, true, nil)
	require.NoError(t, err)
	assert.Empty(t, faults)
	c.Exec("postgres", "CREATE DATABASE by_hand")
	out, err := exec.Command(filepath.Join(c.Bin, "pg_restore"), "-h", c.Dir, "-U", "postgres", "--exit-on-error", "-d", "by_hand", to).CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Equal(t, []string{"1000"}, c.Query("by_hand", "SELECT count(*) FROM a"))
	_, err = s.Extract(t.Context(), restoreOf(s, dir, rec), to)
	require.ErrorContains(t, err, "not an empty directory")
}
