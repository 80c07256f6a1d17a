package postgres

import (
	"strings"

	"github.com/jackc/pgx/v5"

	"nodevisor/snapshot/postgres/server"
)

// unreadable names what pg_dump fails on as the current role: it locks every table, reads every sequence, and refuses a
// table of which policies would hide rows. What an extension brings isn't dumped.
const unreadable = `SELECT format('%I.%I', n.nspname, c.relname)
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
	AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
	AND (NOT has_schema_privilege(n.oid, 'USAGE') OR row_security_active(c.oid)
		OR NOT CASE c.relkind WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT') ELSE has_table_privilege(c.oid, 'SELECT') END)
	ORDER BY 1`

// unrestorable names what a role that is no superuser can't make again: what only a superuser may create, and what
// belongs to a role that it can't hand it to.
const unrestorable = `WITH restorer AS (SELECT oid FROM pg_roles WHERE rolname = $1 AND NOT rolsuper)
	SELECT 'extension ' || quote_ident(e.extname) FROM restorer, pg_extension e
		JOIN pg_available_extension_versions a ON a.name = e.extname AND a.version = e.extversion WHERE a.superuser AND NOT a.trusted
	UNION ALL SELECT 'event trigger ' || quote_ident(t.evtname) FROM restorer, pg_event_trigger t
		WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = t.oid AND d.deptype = 'e')
	UNION ALL SELECT 'publication ' || quote_ident(p.pubname) || ' for all tables' FROM restorer, pg_publication p WHERE p.puballtables
	UNION ALL SELECT format('%I.%I of %I', n.nspname, c.relname, pg_get_userbyid(c.relowner))
		FROM restorer, pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p', 'S', 'v', 'm', 'f') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
		AND NOT pg_has_role(restorer.oid, c.relowner, 'MEMBER')
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
	ORDER BY 1`

// archive looks whether the role of dsn can write an archive, and that of admin_dsn restore it: a clone needs neither
// right, so that nothing else says it before a snapshot stays sealed, or a rollback from the archive fails.
func (c *checkup) archive() error {
	hidden, err := c.names(unreadable)
	if err != nil {
		return err
	}
	if len(hidden) > 0 {
		role := server.Quote(c.conn.Config().User)
		c.fail("archive", "GRANT pg_read_all_data TO "+role+"; where policies hide rows: ALTER ROLE "+role+" BYPASSRLS",
			"pg_dump would fail, and no snapshot be verified: %s may not read all rows of %s", role, some(hidden))
		return nil
	}
	role := c.adminRole()
	foreign, err := c.names(unrestorable, role)
	if err != nil {
		return err
	}
	if len(foreign) > 0 {
		c.fail("archive", "set admin_dsn to a superuser of this server", "it could be restored only by a superuser, which %s isn't: %s", server.Quote(role), some(foreign))
		return nil
	}
	c.ok("archive", "all tables can be read, and restored")
	return nil
}

func (c *checkup) names(sql string, args ...any) ([]string, error) {
	rows, err := c.conn.Query(c.ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// some shows a list's beginning: a database may hold thousands of tables.
func some(names []string) string {
	const shown = 5
	if len(names) > shown {
		return strings.Join(names[:shown], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}
