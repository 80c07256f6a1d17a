package postgres

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/pgtest"
)

// verdicts shows each check as "name ok|fail|unknown".
func verdicts(checks []Check) (all []string, by map[string]Check) {
	by = map[string]Check{}
	for _, c := range checks {
		verdict := "unknown"
		if c.OK != nil {
			verdict = map[bool]string{true: "ok", false: "fail"}[*c.OK]
		}
		all, by[c.Name] = append(all, c.Name+" "+verdict), c
	}
	return all, by
}

func TestCheckOfADatabaseThatIsFine(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	s := newSource(t, c.DSN("chain"), func(o *Options) { o.Disconnect = []string{"grafana"} })
	all, by := verdicts(s.Check(t.Context(), t.TempDir()))
	assert.Equal(t, []string{
		"server ok", "pg_dump ok", "pg_restore ok", "connections ok", "rights ok", "disconnect ok", "method ok", "archive ok", "prepared ok", "rollback ok", "sessions ok",
	}, all)
	assert.Contains(t, by["method"].Detail, "by clone: rights and room are there")
	for _, check := range by {
		assert.Empty(t, check.Fix, check.Name)
	}
	assert.Empty(t, clonesOf(c), "it changes nothing")
}

func TestCheckFindsWhatAWindowWouldFailOn(t *testing.T) {
	pgtest.CleanEnv(t)
	c := pgtest.Start(t, pgtest.TCP())
	c.Exec("postgres", "CREATE ROLE node LOGIN PASSWORD 'x'")
	c.Exec("postgres", "CREATE DATABASE chain OWNER node")
	c.Exec("chain", "SELECT pg_create_logical_replication_slot('kept', 'pgoutput')")
	stay(t, c.DSN("chain"), "grafana")
	password := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(password, []byte("x"), 0o600))
	s := newSource(t, c.TCPDSN("chain", "node"), func(o *Options) {
		o.PasswordFile, o.Disconnect = password, []string{"indexer"}
	})
	all, by := verdicts(s.Check(t.Context(), t.TempDir()))
	assert.Equal(t, []string{
		"password ok", "server ok", "pg_dump ok", "pg_restore ok", "connections ok", "rights fail", "disconnect unknown", "method unknown", "archive ok", "prepared ok",
		"rollback fail", "sessions unknown",
	}, all)
	assert.Contains(t, by["rights"].Fix, `ALTER ROLE "node" CREATEDB`)
	assert.Contains(t, by["disconnect"].Fix, `GRANT pg_signal_backend TO "node"`)
	assert.Contains(t, by["method"].Detail, "by dump: role node lacks CREATEDB")
	assert.Contains(t, by["rollback"].Detail, "replication slot kept")
	assert.Contains(t, by["sessions"].Detail, "grafana (pid ")
	assert.Contains(t, by["sessions"].Fix, `disconnect = ["grafana"]`)

	// Each line that mends it does.
	c.Exec("postgres", `ALTER ROLE "node" CREATEDB; GRANT pg_signal_backend TO "node"; SELECT pg_drop_replication_slot('kept'); GRANT pg_read_all_settings TO node`)
	c.Exec("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'grafana'")
	eventually(t, "the session's end", func() bool {
		_, by = verdicts(s.Check(t.Context(), t.TempDir()))
		return by["sessions"].OK != nil
	})
	for _, check := range by {
		require.NotNil(t, check.OK, check.Detail)
		assert.True(t, *check.OK, check.Detail)
	}

	require.NoError(t, chmod(password, 0o644))
	all, by = verdicts(s.Check(t.Context(), t.TempDir()))
	assert.Equal(t, []string{"password fail"}, all)
	assert.Contains(t, by["password"].Fix, "chmod 600 "+password)
}

// Sessions are ended by the role of admin_dsn: its rights count. A superuser's session takes a superuser.
func TestCheckOfDisconnectAsksForTheRoleThatEndsSessions(t *testing.T) {
	c := pgtest.Start(t)
	c.Exec("postgres", "CREATE ROLE node LOGIN CREATEDB; CREATE ROLE admin LOGIN CREATEDB; GRANT pg_signal_backend TO admin")
	c.Exec("postgres", "CREATE DATABASE chain OWNER node")
	node := strings.Replace(c.DSN("chain"), "user=postgres", "user=node", 1)
	for admin, want := range map[string]string{
		"user=postgres": "sessions of grafana may be ended", "user=admin": "sessions of grafana may be ended, but a superuser's",
	} {
		_, by := verdicts(newSource(t, node, func(o *Options) {
			o.Disconnect, o.AdminDSN = []string{"grafana"}, strings.Replace(c.DSN("postgres"), "user=postgres", admin, 1)
		}).Check(t.Context(), t.TempDir()))
		assert.Equal(t, want, by["disconnect"].Detail)
		require.NotNil(t, by["disconnect"].OK)
	}
}

func TestCheckOfAServerThatCannotBeAsked(t *testing.T) {
	s := newSource(t, "host="+t.TempDir()+" dbname=chain user=node", nil)
	all, by := verdicts(s.Check(t.Context(), t.TempDir()))
	assert.Equal(t, []string{"server fail"}, all)
	assert.Contains(t, by["server"].Detail, "doesn't answer")
	assert.NotEmpty(t, by["server"].Fix)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	all, _ = verdicts(s.Check(ctx, t.TempDir()))
	assert.Equal(t, []string{"server fail"}, all)
}

// What keeps a server from being asked is told apart, each with what mends it, and no password is shown.
func TestCheckTellsFailuresApart(t *testing.T) {
	pgtest.CleanEnv(t)
	c := pgtest.Start(t, pgtest.TCP())
	c.Create("chain", "CREATE ROLE node LOGIN PASSWORD 'correcthorse'")
	file := filepath.Join(t.TempDir(), "password")
	for name, tc := range map[string]struct{ dsn, password, detail, fix string }{
		"wrong password": {c.TCPDSN("chain", "node"), "batterystaple", "the password is wrong or missing", "password_file"},
		"wrong database": {c.TCPDSN("chian", "node"), "correcthorse", "no such database", "dbname in dsn"},
		"wrong role":     {strings.Replace(c.DSN("chain"), "user=postgres", "user=nobody", 1), "correcthorse", "no such role", "correct user"},
		"server down":    {"host=127.0.0.1 port=1 user=node dbname=chain", "correcthorse", "doesn't answer", "systemctl start postgresql"},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(file, []byte(tc.password), 0o600))
			all, by := verdicts(newSource(t, tc.dsn, func(o *Options) { o.PasswordFile = file }).Check(t.Context(), t.TempDir()))
			assert.Equal(t, []string{"password ok", "server fail"}, all)
			assert.Contains(t, by["server"].Detail, tc.detail)
			assert.Contains(t, by["server"].Fix, tc.fix)
			for _, check := range by {
				assert.NotContains(t, check.Detail+check.Fix, tc.password)
			}
		})
	}
}

func TestCheckCountsConnections(t *testing.T) {
	c := pgtest.Start(t, pgtest.Conf("max_connections = 6", "superuser_reserved_connections = 2", "max_wal_senders = 0"))
	_, by := verdicts(newSource(t, c.DSN("postgres"), nil).Check(t.Context(), t.TempDir()))
	require.NotNil(t, by["connections"].OK)
	assert.False(t, *by["connections"].OK)
	assert.Contains(t, by["connections"].Fix, "max_connections")
}

func TestCheckNamesMissingAndOldPrograms(t *testing.T) {
	c := pgtest.Start(t)
	bin := t.TempDir()
	require.NoError(t, os.WriteFile(bin+"/pg_dump", []byte("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n"), 0o755))
	_, by := verdicts(newSource(t, c.DSN("postgres"), func(o *Options) { o.Bin = bin }).Check(t.Context(), t.TempDir()))
	assert.False(t, *by["pg_dump"].OK)
	assert.Contains(t, by["pg_dump"].Detail, "version 9.6.24, older than the server's")
	assert.False(t, *by["pg_restore"].OK)
	assert.True(t, strings.Contains(by["pg_restore"].Fix, "postgresql-client"), by["pg_restore"].Fix)
}

// A clone needs none of the rights that its archive does: what nobody said before would leave snapshots sealed for ever,
// and fail the rollback that needs the archive.
func TestCheckOfWhatAnArchiveNeeds(t *testing.T) {
	c := pgtest.Start(t)
	c.Exec("postgres", "CREATE ROLE node LOGIN CREATEDB; CREATE ROLE other")
	c.Exec("postgres", "CREATE DATABASE chain OWNER node")
	s := newSource(t, strings.Replace(c.DSN("chain"), "user=postgres", "user=node", 1), nil)
	for _, tc := range []struct{ name, sql, verdict, detail, fix, undo string }{
		{"a table that can't be read", `CREATE TABLE secret(); CREATE VIEW seen AS SELECT 1 AS one; ALTER VIEW seen OWNER TO node`, "archive fail", "public.secret", `GRANT pg_read_all_data TO "node"`, "DROP TABLE secret; DROP VIEW seen"},
		{"a sequence", "CREATE SEQUENCE ids", "archive fail", "public.ids", "", "DROP SEQUENCE ids"},
		{"a schema", "CREATE SCHEMA s; CREATE TABLE s.t(); ALTER TABLE s.t OWNER TO node", "archive fail", "s.t", "", "DROP SCHEMA s CASCADE"},
		{"hidden rows", "CREATE TABLE t(); ALTER TABLE t OWNER TO node; ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY", "archive fail", "public.t", `ALTER ROLE "node" BYPASSRLS`, "DROP TABLE t"},
		{"another role's table", "CREATE TABLE t(); ALTER TABLE t OWNER TO other; GRANT SELECT ON t TO node", "archive fail", "public.t of other", "set admin_dsn to a superuser", "DROP TABLE t"},
		{"a member's table", "CREATE TABLE t(); ALTER TABLE t OWNER TO other; GRANT other TO node", "archive ok", "", "", "DROP TABLE t; REVOKE other FROM node"},
		{"a superuser's extension", "CREATE EXTENSION dblink", "archive fail", "extension dblink", "set admin_dsn to a superuser", "DROP EXTENSION dblink"},
		{"a trusted extension", "CREATE EXTENSION pgcrypto", "archive ok", "", "", "DROP EXTENSION pgcrypto"},
		{"an event trigger", "CREATE FUNCTION f() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION f()", "archive fail", "event trigger e", "", "DROP FUNCTION f CASCADE"},
		{"a publication of everything", "CREATE PUBLICATION p FOR ALL TABLES", "archive fail", "publication p for all tables", "", "DROP PUBLICATION p"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c.Exec("chain", tc.sql)
			defer c.Exec("chain", tc.undo)
			all, by := verdicts(s.Check(t.Context(), t.TempDir()))
			assert.Contains(t, all, tc.verdict)
			assert.Contains(t, by["archive"].Detail, tc.detail)
			assert.Contains(t, by["archive"].Fix, tc.fix)
			_, by = verdicts(newSource(t, c.DSN("chain"), nil).Check(t.Context(), t.TempDir()))
			assert.True(t, *by["archive"].OK, "a superuser may: %s", by["archive"].Detail)
		})
	}
}
