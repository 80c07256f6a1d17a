package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/dump"
	"nodevisor/snapshot/postgres/server"
)

// spare is how many connections a snapshot wants beside the parallel ones of a dump: ours, the one that watches it, and
// pg_dump's own.
const spare = 3

// Check is one line of a preflight.
type Check struct {
	Name   string
	OK     *bool // nil: it can't be known
	Detail string
	Fix    string // the command that mends it, or what to change; may be empty
}

// checkup is one preflight of a source. ctx bounds all of it.
type checkup struct {
	*Source
	ctx     context.Context
	conn    *pgx.Conn // to the database itself
	version string    // the server's
	checks  []Check
}

func (c *checkup) ok(name, format string, args ...any) {
	c.checks = append(c.checks, Check{Name: name, OK: new(true), Detail: fmt.Sprintf(format, args...)})
}

func (c *checkup) fail(name, fix, format string, args ...any) {
	c.checks = append(c.checks, Check{Name: name, OK: new(false), Detail: fmt.Sprintf(format, args...), Fix: fix})
}

func (c *checkup) unknown(name, fix, format string, args ...any) {
	c.checks = append(c.checks, Check{Name: name, Detail: fmt.Sprintf(format, args...), Fix: fix})
}

// failErr reports an error with its own hint.
func (c *checkup) failErr(name string, err error) { c.fail(name, hint.Of(err), "%v", err) }

// Check looks for all that a snapshot, a verification or a rollback of the database would fail on. It changes nothing,
// the node may run, and it takes 30 s at most. dir is where archives go.
func (s *Source) Check(ctx context.Context, dir string) []Check {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	c := &checkup{Source: s, ctx: ctx}
	if s.o.PasswordFile != "" {
		if err := server.CheckPasswordFile(s.o.PasswordFile); err != nil {
			c.failErr("password", err)
			return c.checks
		}
		c.ok("password", "%s is private", s.o.PasswordFile)
	}
	conn, err := s.Server.Connect(ctx, "")
	if err != nil {
		c.failErr("server", err)
		return c.checks
	}
	defer server.Close(conn)
	c.conn = conn
	for _, look := range []func() error{c.reach, c.connections, c.rights, func() error { return c.method(dir) }, c.archive, c.prepared, c.bindings, c.sessions} {
		if err := look(); err != nil {
			c.failErr("server", s.Server.Explain(ctx, "look into", err))
		}
	}
	return c.checks
}

// reach compares the server's version with those of the client programs.
func (c *checkup) reach() error {
	if err := c.conn.QueryRow(c.ctx, "SELECT split_part(current_setting('server_version'), ' ', 1)").Scan(&c.version); err != nil {
		return err
	}
	c.ok("server", "%s answers, PostgreSQL %s", c.Where(), c.version)
	for _, name := range []string{"pg_dump", "pg_restore"} {
		client, err := c.Server.CheckClient(c.ctx, name, c.version)
		if err != nil {
			c.failErr(name, err)
			continue
		}
		c.ok(name, "version %s", client)
	}
	return nil
}

// connections counts what the server has left for roles that aren't superusers.
func (c *checkup) connections() error {
	var left int
	err := c.conn.QueryRow(c.ctx, `SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
		- (SELECT count(*) FROM pg_stat_activity WHERE coalesce(backend_type, 'client backend') = 'client backend')`).Scan(&left)
	if err != nil {
		return err
	}
	if want := dump.Jobs(false) + spare; left < want {
		c.fail("connections", "raise max_connections in postgresql.conf by "+strconv.Itoa(want), "%d are left, a snapshot uses up to %d", max(left, 0), want)
	} else {
		c.ok("connections", "%d are left", left)
	}
	return nil
}

// rights are those of a clone, and of a rollback from an archive too: it creates the database that it restores into.
func (c *checkup) rights() error {
	lack, err := c.lackOfRights(c.ctx, c.conn.Config().Database)
	role := server.Quote(c.adminRole())
	switch {
	case err != nil:
		c.failErr("rights", err)
	case strings.Contains(lack, "CREATEDB"):
		c.fail("rights", "ALTER ROLE "+role+" CREATEDB; or set admin_dsn to a role that has it",
			"%s: the database is dumped while the node is down, and nothing can be restored but with --into", lack)
	case lack != "":
		c.fail("rights", "ALTER DATABASE "+server.Quote(c.conn.Config().Database)+" OWNER TO "+role+"; or GRANT the owner to it; or set admin_dsn", "%s", lack)
	default:
		c.ok("rights", "databases may be created, copied and renamed")
	}
	if len(c.o.Disconnect) == 0 {
		return nil
	}
	var super, may bool // of the role that ends them
	err = c.conn.QueryRow(c.ctx, "SELECT rolsuper, pg_has_role(oid, 'pg_signal_backend', 'USAGE') FROM pg_roles WHERE rolname = $1", c.adminRole()).Scan(&super, &may)
	switch apps := strings.Join(c.o.Disconnect, ", "); {
	case err != nil:
	case super:
		c.ok("disconnect", "sessions of %s may be ended", apps)
	case may:
		c.ok("disconnect", "sessions of %s may be ended, but a superuser's", apps)
	default:
		c.unknown("disconnect", "GRANT pg_signal_backend TO "+role, "of %s, only sessions of its own role can be ended", apps)
	}
	return err
}

// adminRole is who creates and renames databases; "" where admin_dsn is wrong, which others say.
func (s *Source) adminRole() string {
	cfg, err := s.Server.OnAdmin().Settings("")
	if err != nil {
		return ""
	}
	return cfg.User
}

// method says which way a snapshot would go now, and why.
func (c *checkup) method(dir string) error {
	p, err := c.decide(c.ctx, dir)
	if err != nil {
		c.failErr("method", err)
		return nil
	}
	detail := fmt.Sprintf("%s, by %s: %s", human(p.size), p.method, p.why)
	if p.method == manifest.Clone || c.o.Mode == ModeDump {
		c.ok("method", "%s", detail)
		return nil
	}
	// A dump in the window is what the configuration allows; the operator should know what it costs.
	c.unknown("method", `make what is lacking, or set mode = "dump" if it shall be so`, "%s; the node is down for the time of the dump", detail)
	return nil
}

// prepared reports prepared transactions that stay: a running node's last for moments.
func (c *checkup) prepared() error {
	var gid string
	var since *time.Time
	err := c.conn.QueryRow(c.ctx, `SELECT coalesce(min(gid), ''), min(prepared) FROM pg_prepared_xacts
		WHERE database = current_database() AND prepared < now() - interval '1 minute'`).Scan(&gid, &since)
	switch {
	case err != nil:
		return err
	case since != nil:
		c.fail("prepared", "start the old node once and let it recover; or, where it is not the node's: ROLLBACK PREPARED "+server.QuoteText(gid),
			"transaction %q is prepared since %s: no snapshot is taken while it is pending", gid, since.UTC().Format(time.RFC3339))
	default:
		c.ok("prepared", "no prepared transaction is left pending")
	}
	return nil
}

// unbind is the SQL that drops what server.Subscriptions found.
func unbind(found []string) string {
	var commands []string
	for _, what := range found {
		if slot, ok := strings.CutPrefix(what, "replication slot "); ok {
			commands = append(commands, "SELECT pg_drop_replication_slot("+server.QuoteText(slot)+")")
		} else {
			commands = append(commands, "DROP SUBSCRIPTION "+pgx.Identifier{strings.TrimPrefix(what, "subscription ")}.Sanitize())
		}
	}
	return strings.Join(commands, "; ")
}

// bindings reports what would keep a rollback from renaming the database.
func (c *checkup) bindings() error {
	found, err := server.Subscriptions(c.ctx, c.conn, c.conn.Config().Database)
	if err != nil {
		return err
	}
	if len(found) > 0 {
		c.fail("rollback", "before the upgrade: "+unbind(found),
			"it would be refused: %s would go on with the data of before", strings.Join(found, ", "))
		return nil
	}
	c.ok("rollback", "no slot and no subscription is bound to the database")
	return nil
}

// sessions names who else is connected: a session that stays keeps the database from being cloned.
func (c *checkup) sessions() error {
	found, err := server.Clients(c.ctx, c.conn, c.conn.Config().Database)
	if err != nil {
		return err
	}
	var others []server.Client
	for _, one := range found {
		if one.User != c.conn.Config().User && !c.Sessions.Listed(one) {
			others = append(others, one)
		}
	}
	if len(others) == 0 {
		c.ok("sessions", "no other role is connected")
		return nil
	}
	err = c.Sessions.InUse("clone database", c.conn.Config().Database, others)
	c.unknown("sessions", hint.Of(err), "who is still connected when the node has stopped prevents a clone: %s", server.Names(others))
	return nil
}
