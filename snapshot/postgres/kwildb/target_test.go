package kwildb

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/internal/pgtest"
	"nodevisor/snapshot/postgres/server"
)

const genesisSQL = `CREATE SCHEMA kwild_voting;
CREATE TABLE kwild_voting.resolutions (id integer, note text);
CREATE TABLE kwild_voting."Odd 'name'%" (id integer);
COPY kwild_voting.resolutions (id, note) FROM stdin;
1	-- not a comment
2	
3	\\.
\.
UPDATE kwild_voting.resolutions SET id = id+1;
`

func tables(rows int64) []Table {
	return []Table{{"kwild_voting.resolutions", rows}, {`kwild_voting."Odd 'name'%"`, 0}}
}

func TestStateIsTriedElsewhere(t *testing.T) {
	c := pgtest.Start(t)
	target := NewTarget("/root/of/a/node", c.DSN("node"), "", "")
	only := []string{"postgres"}
	databases := func() []string {
		return c.Query("postgres", "SELECT datname::text FROM pg_database WHERE NOT datistemplate ORDER BY 1")
	}
	require.NoError(t, target.Check(t.Context()), "a database that isn't there yet is fine")
	require.NoError(t, target.Try(t.Context(), strings.NewReader(genesisSQL), tables(3)))
	assert.Equal(t, only, databases(), "nothing is left of a trial")

	// A row fewer, a statement that fails, an input that breaks off: refused, and nothing left.
	require.ErrorContains(t, target.Try(t.Context(), strings.NewReader(genesisSQL), tables(4)), "has 3 rows, want 4")
	require.ErrorContains(t, target.Try(t.Context(), strings.NewReader(genesisSQL+"SELECT 1/0;\n"), tables(3)), "division by zero")
	broken := errors.New("broken off")
	half := io.MultiReader(strings.NewReader(genesisSQL), iotest.ErrReader(broken))
	require.ErrorIs(t, target.Try(t.Context(), half, tables(3)), broken)
	assert.Equal(t, only, databases())

	// What a killed trial left is dropped by the next.
	c.Exec("postgres", "CREATE DATABASE "+server.Quote(target.scratch))
	c.Exec(target.scratch, "CREATE SCHEMA kwild_voting")
	require.NoError(t, target.Try(t.Context(), strings.NewReader(genesisSQL), tables(3)))
	assert.Equal(t, only, databases())
}

func TestStateIsLoadedWholeOrNotAtAll(t *testing.T) {
	c := pgtest.Start(t)
	target := NewTarget("/root/of/a/node", c.DSN("node"), "", "")
	require.NoError(t, target.Prepare(t.Context()))
	require.NoError(t, target.Prepare(t.Context()), "an empty one is taken as it is")
	schemas := func() []string {
		return c.Query("node", `SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'kwild\_%' ORDER BY 1`)
	}
	broken := errors.New("broken off")
	for _, sql := range []io.Reader{
		io.MultiReader(strings.NewReader(genesisSQL), iotest.ErrReader(broken)),
		strings.NewReader(genesisSQL + "SELECT nothing;\n"),
	} {
		err := target.Load(t.Context(), sql, tables(3))
		require.ErrorContains(t, err, "nothing of it is kept")
		assert.NotEmpty(t, hint.Of(err))
		assert.Empty(t, schemas())
	}
	require.Error(t, target.Load(t.Context(), strings.NewReader(genesisSQL), tables(3), "DELETE FROM nowhere"))
	assert.Empty(t, schemas(), "what follows belongs to the same transaction")
	require.NoError(t, target.Load(t.Context(), strings.NewReader(genesisSQL), tables(3), "DELETE FROM kwild_voting.resolutions WHERE id = 2", "SELECT 1"))
	assert.Equal(t, []string{"3", "4"}, c.Query("node", "SELECT id::text FROM kwild_voting.resolutions ORDER BY 1"))

	err := target.Prepare(t.Context())
	require.ErrorContains(t, err, "it isn't empty (kwild_voting")
	require.Error(t, target.Check(t.Context()))

	// A restore that was interrupted is begun anew; a database that a node has run on is left alone.
	require.NoError(t, target.Recreate(t.Context()))
	assert.Empty(t, schemas())
	c.Exec("node", "CREATE SCHEMA kwild_chain")
	require.ErrorIs(t, target.Recreate(t.Context()), ErrRestored)
	assert.Equal(t, []string{"kwild_chain"}, schemas())
}

// A psql of a restore that was killed lives on for a moment, with all of its input in a pipe. What it can't do is fill the
// database that the next try has made: here it is made while psql is on its way to it.
func TestAKilledRestoreFillsNoOtherDatabase(t *testing.T) {
	c := pgtest.Start(t)
	psql, err := exec.LookPath("psql")
	require.NoError(t, err)
	bin := t.TempDir()
	late := func(database string) string {
		return "#!/bin/sh\nfor sql in 'DROP DATABASE \"" + database + "\"' 'CREATE DATABASE \"" + database + "\"'; do " +
			psql + " -q -c \"$sql\" postgres </dev/null || exit 9; done\nexec " + psql + " \"$@\"\n"
	}
	target := NewTarget("/root/of/a/node", c.DSN("node"), "", bin)
	require.NoError(t, target.Prepare(t.Context()))
	require.NoError(t, os.WriteFile(filepath.Join(bin, "psql"), []byte(late("node")), 0o755)) //nolint:gosec // a program
	require.ErrorContains(t, target.Load(t.Context(), strings.NewReader(genesisSQL), tables(3)), "another database was made in its place")
	assert.Empty(t, c.Query("node", "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'kwild%'"))
	require.NoError(t, os.WriteFile(filepath.Join(bin, "psql"), []byte(late(target.scratch)), 0o755)) //nolint:gosec // a program
	require.ErrorContains(t, target.Try(t.Context(), strings.NewReader(genesisSQL), tables(3)), "another database was made in its place")
}

func TestSettings(t *testing.T) {
	t.Setenv("PGPASSWORD", "s3cret")
	s, err := NewTarget("/x", "host=/run/pg port=5433 user=kwild dbname=chain", "", "").Settings()
	require.NoError(t, err)
	assert.Equal(t, Settings{Host: "/run/pg", Port: "5433", User: "kwild", Password: "s3cret", Database: "chain"}, s)
	_, err = NewTarget("/x", "host=/run/pg password=open", "", "").Settings()
	require.Error(t, err, "a password doesn't belong on a command line")
	assert.NotContains(t, err.Error(), "open")
}
