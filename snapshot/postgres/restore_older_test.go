package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// newerClient is a directory with a pg_restore that calls itself 17 and begins as that one does; extra is what it does
// besides. The server here is older, as in Debian 12.
func newerClient(t *testing.T, bin, extra string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Symlink(filepath.Join(bin, "pg_dump"), filepath.Join(dir, "pg_dump")))
	require.NoError(t, os.Symlink(filepath.Join(bin, "psql"), filepath.Join(dir, "psql")))
	script := fmt.Sprintf(`#!/bin/sh
case "$*" in
*--version*) echo "pg_restore (PostgreSQL) 17.6"; exit 0 ;;
*--file=-*) echo "SET statement_timeout = 0;"; echo "SET transaction_timeout = 0;"; %[2]s; exec %[1]s/pg_restore "$@" ;;
*--exit-on-error*) echo 'pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter "transaction_timeout"' >&2; exit 1 ;;
esac
echo 'pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter "transaction_timeout"' >&2
echo 'Command was: SET transaction_timeout = 0;' >&2
%[2]s
%[1]s/pg_restore "$@" || exit
echo 'pg_restore: warning: errors ignored on restore: 1' >&2
exit 1
`, bin, extra)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "pg_restore"), []byte(script), 0o755))
	return dir
}

// TestNewerClientRestoresIntoAnOlderServer: pg_restore 17 complains of a setting that servers before 17 don't know.
func TestNewerClientRestoresIntoAnOlderServer(t *testing.T) {
	c, s := newChain(t, chainSQL, ModeDump)
	dir, rec := taken(t, s, "one")
	want := c.Query("chain", chainSum)
	s = chainOf(t, c, s.o.Home, ModeDump, func(o *Options) { o.Bin = newerClient(t, c.Bin, ":") })

	faults, err := s.VerifyDeep(t.Context(), filepath.Join(dir, s.Name()), rec)
	require.NoError(t, err)
	assert.Empty(t, faults)
	c.Exec("chain", "DELETE FROM blocks")
	restored(t, s, restoreOf(s, dir, rec))
	assert.Equal(t, want, c.Query("chain", chainSum))

	c.Create("other", "")
	require.NoError(t, s.Into(t.Context(), restoreOf(s, dir, rec), c.DSN("other")))
	assert.Equal(t, want, c.Query("other", chainSum))
}

// TestNewerClientsOtherErrorsCount: only that one complaint is passed over.
func TestNewerClientsOtherErrorsCount(t *testing.T) {
	c, s := newChain(t, chainSQL, ModeDump)
	dir, rec := taken(t, s, "one")
	for name, extra := range map[string]string{
		"an error": `echo 'pg_restore: error: could not execute query: ERROR:  division by zero' >&2; echo 'SELECT 1/0;'`,
		"too much": `i=0; while [ $i -lt 200 ]; do echo 'pg_restore: while PROCESSING something' >&2; i=$((i+1)); done; echo 'SELECT 1/0;'`,
	} {
		t.Run(name, func(t *testing.T) {
			s := chainOf(t, c, s.o.Home, ModeDump, func(o *Options) { o.Bin = newerClient(t, c.Bin, extra) })
			_, err := s.VerifyDeep(t.Context(), filepath.Join(dir, s.Name()), rec)
			assert.Error(t, err)
			if len(c.Query("postgres", "SELECT 1 FROM pg_database WHERE datname = 'into'")) == 0 {
				c.Create("into", "")
			}
			require.Error(t, s.Into(t.Context(), restoreOf(s, dir, rec), c.DSN("into")))
			assert.Empty(t, c.Query("into", "SELECT 1 FROM pg_class WHERE relname = 'blocks'"), "nothing of it is kept")
		})
	}
}
