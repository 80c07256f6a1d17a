package kwil_test

import (
	"bytes"
	"context"
	"errors"
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

	"nodevisor/genesis/kwil"
	"nodevisor/internal/hint"
	"nodevisor/internal/pgtest"
	"nodevisor/snapshot/postgres/kwildb"
	"nodevisor/snapshot/postgres/server"
)

// TestR6FailuresAreErrors: each failure is an error of its own, with what to do about it.
func TestR6FailuresAreErrors(t *testing.T) {
	c := pgtest.Start(t)
	db := restored(t, c, kwil.V09)
	c.Create("empty", "")
	c.Create("stranger", "CREATE TABLE t (a int)")
	open := func(change func(*server.Config, *kwildb.Options)) error {
		o, k := db.options(), kwildb.Options{Version: kwildb.V09}
		change(&o, &k)
		q, err := kwildb.Open(t.Context(), o, k)
		if err == nil {
			q.Close()
		}
		return err
	}
	require.NoError(t, open(func(*server.Config, *kwildb.Options) {}))
	old := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(old, "pg_dump"), []byte("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n"), 0o755))
	said := map[string]string{}
	for _, f := range []struct {
		name, says, hint string
		change           func(*server.Config, *kwildb.Options)
	}{
		{"server down", "connect", "start it", func(o *server.Config, _ *kwildb.Options) { o.DSN = "host=" + t.TempDir() + " dbname=x user=x" }},
		{"no such database", "no such database", "dbname", func(o *server.Config, _ *kwildb.Options) { o.DSN = c.DSN("nowhere") }},
		{"another database", "holds no chain of Kwil's", "psql -l", func(o *server.Config, _ *kwildb.Options) { o.DSN = c.DSN("stranger") }},
		{"another version", "it is a database of Kwil v0.9", `version = "v0.9"`, func(_ *server.Config, k *kwildb.Options) { k.Version = kwildb.V010 }},
		{"no pg_dump", "pg_dump", "pg_bin", func(o *server.Config, _ *kwildb.Options) { o.Bin = t.TempDir() }},
		{"an older pg_dump", "older than the server", "pg_bin", func(o *server.Config, _ *kwildb.Options) { o.Bin = old }},
		{"no such role", "role", "CREATE ROLE", func(o *server.Config, _ *kwildb.Options) { o.DSN += " user=nobody_of_that_name" }},
	} {
		err := open(f.change)
		require.ErrorContains(t, err, f.says, f.name)
		assert.Contains(t, hint.Of(err), f.hint, f.name)
		assert.NotContains(t, said, err.Error(), "%s and %s", f.name, said[err.Error()])
		said[err.Error()] = f.name
	}
	require.Error(t, open(func(_ *server.Config, k *kwildb.Options) { k.Version = "v0.8" }))
}

// TestUnfinishedChains: a database that the node hasn't finished with.
func TestUnfinishedChains(t *testing.T) {
	db := restored(t, pgtest.Start(t), kwil.V010)
	for name, c := range map[string]struct{ do, undo, says, hint string }{
		"amid a block":   {"UPDATE kwild_chain.chain SET dirty = true", "UPDATE kwild_chain.chain SET dirty = false", "amid block 7", "start the old node once"},
		"half committed": {"BEGIN; DELETE FROM kwild_voting.votes; PREPARE TRANSACTION 'block8'", "ROLLBACK PREPARED 'block8'", "block8", "start the old node once"},
		"no block yet":   {"CREATE TABLE kept AS TABLE kwild_chain.chain; DELETE FROM kwild_chain.chain", "INSERT INTO kwild_chain.chain TABLE kept", "0 rows", "make a block"},
	} {
		db.psql(t, c.do)
		_, err := db.open(t)
		require.ErrorContains(t, err, c.says, name)
		assert.Contains(t, hint.Of(err), c.hint, name)
		db.psql(t, c.undo)
	}
	_, err := db.open(t)
	require.NoError(t, err)
}

// TestLiveNode: others who are connected are named, and refused unless they are expected.
func TestLiveNode(t *testing.T) {
	db := restored(t, pgtest.Start(t), kwil.V09)
	conn := db.Connect(db.name)
	_, err := conn.Exec(t.Context(), "SET application_name = 'kwild'")
	require.NoError(t, err)
	_, err = db.open(t)
	require.ErrorContains(t, err, fmt.Sprintf("others are connected: kwild (pid %d)", conn.PgConn().PID()))
	assert.Contains(t, hint.Of(err), "supervisor halt")
	q, err := kwildb.Open(t.Context(), db.options(), kwildb.Options{Version: kwildb.V09, Live: true})
	require.NoError(t, err)
	q.Close()
}

// TestDumpEndsWithItsContext: a lock that another session holds is not waited for past that.
func TestDumpEndsWithItsContext(t *testing.T) {
	db := restored(t, pgtest.Start(t), kwil.V09)
	q, err := db.open(t)
	require.NoError(t, err)
	conn := db.Connect(db.name)
	_, err = conn.Exec(t.Context(), "BEGIN; LOCK TABLE kwild_accts.accounts IN ACCESS EXCLUSIVE MODE")
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	require.ErrorIs(t, q.Dump(ctx, io.Discard), context.DeadlineExceeded)
	assert.Less(t, time.Since(began), 20*time.Second)
}

// TestServerGone: the server ends in the middle; nothing of the pair is left.
func TestServerGone(t *testing.T) {
	db := restored(t, pgtest.Start(t), kwil.V09)
	fill(t, db, "ds_x49e13be82f0041a6ec894830052a513b274a29f13855dbc12503993b")
	q, err := db.open(t)
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "pair")
	_, err = build(t.Context(), dir, kwil.PairOptions{
		Height: 7, Document: kwil.Options{Version: kwil.V09, Old: db.old},
		Dump: func(ctx context.Context, w io.Writer) error {
			return q.Dump(ctx, writer(func(p []byte) (int, error) {
				if bytes.Contains(p, []byte("COPY ")) {
					db.Stop()
				}
				return w.Write(p)
			}))
		},
	})
	require.ErrorContains(t, err, "pg_dump")
	entries, err := os.ReadDir(filepath.Dir(dir))
	require.NoError(t, err)
	assert.Empty(t, entries)
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// whole is a source that needs no server.
func whole(text string) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}
}

const smallDump = "CREATE SCHEMA kwild_voting;\nCOPY kwild_voting.voters (id, name, power) FROM stdin;\n" +
	"\\\\x01\t\\\\xa7a4b2a9cdedea37a70507f4bb48b66efb6cf9c43775892670e402267486faa5\t1\n\\.\n\n--\n-- PostgreSQL database dump complete\n--\n\n"

func small(t testing.TB, text string) kwil.PairOptions {
	t.Helper()
	old, err := os.ReadFile(filepath.Join(testdata, "v0.9.4", kwil.GenesisFile))
	require.NoError(t, err)
	return kwil.PairOptions{Height: 7, Dump: whole(text), Document: kwil.Options{Version: kwil.V09, Old: old}}
}

// TestR7AnOlderPairStays: whatever goes wrong, the pair from before is still there, to the byte, and nothing beside it.
func TestR7AnOlderPairStays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pair")
	_, err := build(t.Context(), dir, small(t, smallDump))
	require.NoError(t, err)
	before := tree(t, filepath.Dir(dir))
	require.Len(t, before, 4)
	broken := errors.New("pg_dump: exit code 1")
	for name, change := range map[string]func(*kwil.PairOptions){
		"pg_dump fails":       func(o *kwil.PairOptions) { o.Dump = func(context.Context, io.Writer) error { return broken } },
		"it ends early":       func(o *kwil.PairOptions) { o.Dump = whole(smallDump[:len(smallDump)-30]) },
		"no voters at all":    func(o *kwil.PairOptions) { o.Dump = whole(strings.ReplaceAll(smallDump, "voters", "others")) },
		"SQL of another kind": func(o *kwil.PairOptions) { o.Dump = whole("\\! id\n" + smallDump) },
		"no chain id":         func(o *kwil.PairOptions) { o.Document.Old = nil },
		"a bad document":      func(o *kwil.PairOptions) { o.Document.Old = []byte("{") },
		"an unknown version":  func(o *kwil.PairOptions) { o.Document.Version = "v0.8" },
		"fails after the dump": func(o *kwil.PairOptions) {
			o.Dump = func(_ context.Context, w io.Writer) error {
				return errors.Join(whole(smallDump)(t.Context(), w), broken)
			}
		},
	} {
		o := small(t, smallDump)
		change(&o)
		_, err := build(t.Context(), dir, o)
		require.Error(t, err, name)
		assert.Equal(t, before, tree(t, filepath.Dir(dir)), name)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o := small(t, smallDump)
	o.Dump = func(ctx context.Context, _ io.Writer) error { cancel(); <-ctx.Done(); return ctx.Err() }
	_, err = build(ctx, dir, o)
	require.ErrorIs(t, err, context.Canceled)
	assert.Equal(t, before, tree(t, filepath.Dir(dir)))
}

// tree is all files below dir with what is in them.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		all[strings.TrimPrefix(path, dir)] = string(data)
		return err
	}))
	return all
}

// TestDiskFull: a file system without room is an error, and leaves the older pair.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", dir).CombinedOutput(); err != nil {
		require.NotZero(t, os.Geteuid(), "%s", out)
		t.Skip("only root may mount a small file system") // CI is root
	}
	t.Cleanup(func() { assert.NoError(t, exec.Command("umount", dir).Run()) })
	_, err := build(t.Context(), filepath.Join(dir, "pair"), small(t, smallDump))
	require.NoError(t, err)
	before := tree(t, dir)
	o := small(t, "")
	o.Dump = func(_ context.Context, w io.Writer) error { return endless(w) }
	_, err = build(t.Context(), filepath.Join(dir, "pair"), o)
	require.ErrorContains(t, err, "no space left")
	assert.Equal(t, before, tree(t, dir))
}

// endless writes rows that can't be compressed, until it is stopped.
func endless(w io.Writer) error {
	if _, err := io.WriteString(w, "CREATE SCHEMA a;\nCOPY a.b (c) FROM stdin;\n"); err != nil {
		return err
	}
	random, err := os.Open("/dev/urandom")
	if err != nil {
		return err
	}
	defer random.Close()
	row := make([]byte, 64<<10)
	for {
		if _, err := io.ReadFull(random, row); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%x\n", row); err != nil {
			return err
		}
	}
}

// TestKilledInTheMiddle: kill -9 leaves the older pair, and no half of a new one; the next run clears up.
func TestKilledInTheMiddle(t *testing.T) {
	if dir := os.Getenv("KWIL_TEST_WRITE"); dir != "" { // the program that is killed
		o := small(t, "")
		o.Dump = func(_ context.Context, w io.Writer) error {
			fmt.Println("writing")
			return endless(w)
		}
		_, err := build(t.Context(), dir, o)
		t.Fatal("not killed: ", err)
	}
	dir := filepath.Join(t.TempDir(), "pair")
	_, err := build(t.Context(), dir, small(t, smallDump))
	require.NoError(t, err)
	before := tree(t, dir)
	for i := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKilledInTheMiddle$", "-test.v")
		cmd.Env = append(os.Environ(), "KWIL_TEST_WRITE="+dir)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		for seen := ""; !strings.Contains(seen, "writing"); {
			piece := make([]byte, 1024)
			n, err := out.Read(piece)
			require.NoError(t, err, seen)
			seen += string(piece[:n])
		}
		time.Sleep(time.Duration(i) * 40 * time.Millisecond) // anywhere in the middle
		require.NoError(t, cmd.Process.Kill())
		require.Error(t, cmd.Wait())
		assert.Equal(t, before, tree(t, dir))
	}
	_, err = build(t.Context(), dir, small(t, smallDump))
	require.NoError(t, err)
	entries, err := os.ReadDir(filepath.Dir(dir))
	require.NoError(t, err)
	assert.Len(t, entries, 1, "nothing is left beside it")
}

// TestR6WrongPassword: it is said, and the password isn't.
func TestR6WrongPassword(t *testing.T) {
	c := pgtest.Start(t, pgtest.HBA("local all all scram-sha-256"))
	file := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(file, []byte("correct-horse-7\n"), 0o600))
	o := server.Config{Source: "kwild", DSN: c.DSN("postgres"), PasswordFile: file, Bin: c.Bin}
	_, err := kwildb.Open(t.Context(), o, kwildb.Options{Version: kwildb.V09})
	require.ErrorContains(t, err, "password is wrong or missing")
	assert.Contains(t, hint.Of(err), "password_file")
	assert.NotContains(t, fmt.Sprintf("%+v %s", err, hint.Of(err)), "correct-horse-7")
}
