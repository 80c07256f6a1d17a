package postgres

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/pgtest"
)

const tablespaceOf = "SELECT spcname::text FROM pg_tablespace t JOIN pg_database d ON d.dattablespace = t.oid WHERE datname = 'chain'"

// A node's database is often on a disk of its own: what is restored from an archive belongs there too, and not on the
// server's own disk. Another server, where an archive is verified or restored into, needs no such tablespace.
func TestATablespaceOfItsOwn(t *testing.T) {
	c := pgtest.Start(t)
	for _, name := range []string{"Disk 2", "third"} {
		dir := filepath.Join(c.Dir, name)
		require.NoError(t, os.Mkdir(dir, 0o700))
		c.Own(dir)
		c.Exec("postgres", `CREATE TABLESPACE "`+name+`" LOCATION '`+dir+`'`)
	}
	c.Exec("postgres", `CREATE ROLE node LOGIN CREATEDB; GRANT CREATE ON TABLESPACE "Disk 2" TO node; GRANT CREATE ON TABLESPACE third TO node`)
	c.Exec("postgres", `CREATE DATABASE chain OWNER node TABLESPACE "Disk 2"`)
	c.Exec("chain", "CREATE TABLE a TABLESPACE third AS SELECT 1 AS i; ALTER TABLE a OWNER TO node")
	asNode := func(o *Options) { o.DSN = strings.Replace(o.DSN, "user=postgres", "user=node", 1) }
	s := chainOf(t, c, t.TempDir(), ModeDump, asNode)
	dir, rec := taken(t, s, snapshotID)
	require.Equal(t, "Disk 2", rec.Database.Tablespace)
	restored(t, s, restoreOf(s, dir, rec))
	assert.Equal(t, []string{"Disk 2"}, c.Query("postgres", tablespaceOf))
	assert.Equal(t, []string{"third"}, c.Query("chain", "SELECT spcname::text FROM pg_tablespace t JOIN pg_class c ON c.reltablespace = t.oid WHERE relname = 'a'"))

	c.Exec("postgres", `REVOKE CREATE ON TABLESPACE "Disk 2" FROM node`)
	restored(t, s, restoreOf(s, dir, rec))
	assert.Equal(t, []string{"pg_default"}, c.Query("postgres", tablespaceOf), "better there than nowhere")

	other := pgtest.Start(t)
	other.Exec("postgres", "CREATE DATABASE empty")
	s = chainOf(t, c, t.TempDir(), ModeDump, asNode, func(o *Options) { o.ScratchDSN = other.DSN("postgres") })
	faults, err := s.VerifyDeep(t.Context(), filepath.Join(dir, s.Name()), rec)
	require.NoError(t, err)
	assert.Empty(t, faults)
	require.NoError(t, s.Into(t.Context(), restoreOf(s, dir, rec), other.DSN("empty")))
	assert.Equal(t, []string{"1"}, other.Query("empty", "SELECT i FROM a"))
}
