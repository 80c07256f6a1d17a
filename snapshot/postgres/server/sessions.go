package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"nodevisor/internal/hint"
)

const (
	// passing is how long sessions may take to go by themselves: an exporter connects, asks and leaves.
	passing = 1500 * time.Millisecond
	// look is the pause between two looks at the sessions.
	look = 100 * time.Millisecond
)

// Sessions are those that keep a source's databases from being copied or renamed, and say which of them may be ended.
type Sessions struct {
	Server     *Server
	Disconnect []string // application names whose sessions may be ended
	Log        *slog.Logger
}

// Client is a session in the database.
type Client struct {
	PID   int32
	App   string
	User  string
	Addr  string // "" = a unix socket, or hidden from us
	Port  int
	Since *time.Time // nil: hidden from us
	State string     // "" = hidden from us
}

// String names it as an operator looks for it.
func (c Client) String() string {
	app, from := c.App, "a local socket"
	if app == "" {
		app = "a session without application_name"
	}
	if c.Addr != "" {
		from = c.Addr
	}
	text := fmt.Sprintf("%s (pid %d, user %s, from %s", app, c.PID, c.User, from)
	if c.Since != nil {
		text += ", since " + c.Since.UTC().Format(time.RFC3339)
	}
	return text + ")"
}

// Clients lists the sessions that keep a database from being copied or renamed: all but our own connection, and
// autovacuum, which the server ends itself.
func Clients(ctx context.Context, conn Session, database string) ([]Client, error) {
	rows, err := conn.Query(ctx, `SELECT pid, coalesce(application_name, ''), coalesce(usename::text, ''), coalesce(host(client_addr), ''),
		coalesce(client_port, 0), backend_start, coalesce(state, '') FROM pg_stat_activity
		WHERE datname = $1 AND pid <> pg_backend_pid() AND usename IS NOT NULL
		AND coalesce(backend_type, '') NOT IN ('autovacuum worker', 'parallel worker') ORDER BY pid`, database)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Client])
}

// Clear ends the sessions of a database that may be ended, and gives those that stay for more than a moment: the node is
// at rest. It ends what the configuration lists in disconnect, and the node's own left-overs, always.
func (s Sessions) Clear(ctx context.Context, conn *pgx.Conn, database string) ([]Client, error) {
	origin, err := s.origin(ctx, conn)
	if err != nil {
		return nil, err
	}
	for begin := time.Now(); ; {
		others, all, err := s.endSessions(ctx, conn, database, origin)
		if err != nil || all == 0 || time.Since(begin) > passing {
			return others, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(look):
		}
	}
}

// Staying gives those who are found, once those have gone who were only leaving: a session outlives its program by a moment.
func Staying(ctx context.Context, find func() ([]string, error)) ([]string, error) {
	for begin := time.Now(); ; {
		found, err := find()
		if err != nil || len(found) == 0 || time.Since(begin) > passing {
			return found, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(look):
		}
	}
}

// endSessions does one look: it ends who may be ended, and gives the others and how many were there.
func (s Sessions) endSessions(ctx context.Context, conn *pgx.Conn, database string, o origin) (others []Client, all int, err error) {
	found, err := Clients(ctx, conn, database)
	if err != nil {
		return nil, 0, err
	}
	for _, c := range found {
		why := ""
		switch {
		case s.Listed(c):
			why = "it is listed in disconnect"
		case s.leftOver(c, o):
			why = "the node left it behind"
		default:
			others = append(others, c)
			continue
		}
		// The start is compared: the pid may be another session's by now.
		_, err := conn.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start IS NOT DISTINCT FROM $2", c.PID, c.Since)
		switch {
		case State(err) == StateNoRights:
			others = append(others, c)
		case err != nil:
			return nil, 0, err
		default:
			s.Log.Info("session ended", "source", s.Server.source, "database", database, "session", c.String(), "why", why)
		}
	}
	return others, len(found), nil
}

// Listed tells whether the configuration lets the session be ended.
func (s Sessions) Listed(c Client) bool { return c.App != "" && slices.Contains(s.Disconnect, c.App) }

// origin is how the server sees sessions that are opened where we are.
type origin struct {
	user   string // the node's role: the connection string's
	addr   string // our address as the server sees it; "" = a unix socket
	direct bool   // TCP, and no address or port was translated: a session's port is one of this host's
}

// origin asks the server how it sees conn.
func (s Sessions) origin(ctx context.Context, conn *pgx.Conn) (o origin, err error) {
	cfg, err := s.Server.Settings("")
	if err != nil {
		return o, err
	}
	o.user = cfg.User
	var port int
	err = conn.QueryRow(ctx, "SELECT coalesce(host(inet_client_addr()), ''), coalesce(inet_client_port(), 0)").Scan(&o.addr, &port)
	if local, ok := conn.PgConn().Conn().LocalAddr().(*net.TCPAddr); ok {
		o.direct = local.Port == port && local.IP.Equal(net.ParseIP(o.addr))
	}
	return o, err
}

// leftOver tells whether a session can only be the ended node's. It is of the node's role, and
//   - ours by its name: a program that an earlier supervisor started;
//   - or it came by TCP from where we are, and no process of this host holds its other end;
//   - or it came from where we are, its other end can't be looked at, and it is amid a statement: that is when a server
//     doesn't notice that its client is gone. An idle one has a living client, which is not the node.
//
// The server hides the state of other roles' sessions; those are never the node's.
func (s Sessions) leftOver(c Client, o origin) bool {
	switch {
	case c.User != o.user:
		return false
	case c.App == AppName:
		return true
	case c.Addr != o.addr:
		return false
	case o.direct:
		return socketGone(c.Port)
	}
	return c.State == "active" || c.State == "fastpath function call"
}

// socketGone tells whether no process of this host has a TCP socket with that local port (proc_net(5), tcp: the second
// field is address:port in hex, the tenth the inode, 0 where no process holds it). Addresses aren't compared: a socket
// too many costs a refusal, one too few a living session.
func socketGone(port int) bool {
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 10 || f[9] == "0" {
				continue
			}
			_, hex, _ := strings.Cut(f[1], ":")
			if p, err := strconv.ParseUint(hex, 16, 16); err == nil && int(p) == port {
				return false
			}
		}
	}
	return true
}

// InUse is the refusal that names who is connected. Who is listed in disconnect and stayed, did so for want of a right.
func (s Sessions) InUse(op, database string, others []Client) error {
	apps, next := []string{}, []string{"end these sessions"}
	for _, c := range others {
		if c.App != "" && !s.Listed(c) && !slices.Contains(apps, strconv.Quote(c.App)) {
			apps = append(apps, strconv.Quote(c.App))
		}
	}
	if len(apps) > 0 {
		next = append(next, fmt.Sprintf("or let them be ended: disconnect = [%s] for source %q", strings.Join(apps, ", "), s.Server.source))
	}
	if admin, err := s.Server.OnAdmin().Settings(""); err == nil && slices.ContainsFunc(others, s.Listed) {
		next = append(next, "for those in disconnect GRANT pg_signal_backend TO "+Quote(admin.User)+", for a superuser's set admin_dsn to a superuser")
	}
	return &hint.Error{Op: op, Path: database, Err: fmt.Errorf("%w: %s", ErrInUse, Names(others)), Hint: strings.Join(next, ", ")}
}

// Names names sessions as String does, for one line.
func Names(all []Client) string {
	text := make([]string, 0, len(all))
	for _, c := range all {
		text = append(text, c.String())
	}
	return strings.Join(text, "; ")
}

var (
	// ErrInUse means that sessions are connected that may not be ended.
	ErrInUse = errors.New("sessions are connected to it")
	// ErrPrepared means that the database can't be copied: only the node knows how a transaction of its ends.
	ErrPrepared = errors.New("a prepared transaction is pending in it")
)

// NoPrepared refuses a database with a prepared transaction: only the node that prepared it knows whether it is to be
// committed, and a copy without it would lack a block. conn may be connected to any database.
func NoPrepared(ctx context.Context, conn Session, database string) error {
	var gid string
	var count int
	err := conn.QueryRow(ctx, "SELECT coalesce(min(gid), ''), count(*) FROM pg_prepared_xacts WHERE database = $1", database).Scan(&gid, &count)
	if err != nil || count == 0 {
		return err
	}
	return &hint.Error{
		Op: "use database", Path: database, Err: fmt.Errorf("%w: %q (%d in all)", ErrPrepared, gid, count),
		Hint: "start the old node once (supervisor resume, then supervisor run) and let it recover, then stop it; or, where it is not the node's: ROLLBACK PREPARED " + QuoteText(gid),
	}
}

// QuoteText is a string in SQL that is shown to a person.
func QuoteText(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// Subscriptions lists the persistent replication slots and the subscriptions of a database, as a person names them: they
// are bound to it, and would follow it when it is renamed. conn may be connected to any database.
func Subscriptions(ctx context.Context, conn Session, database string) ([]string, error) {
	rows, err := conn.Query(ctx, `SELECT 'replication slot ' || slot_name FROM pg_replication_slots WHERE database = $1 AND NOT temporary
		UNION ALL SELECT 'subscription ' || subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = $1 ORDER BY 1`, database)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// KeepClear ends the sessions of a database that may be ended, again and again on a connection of its own, until stop is
// called: while a clone or a rename waits for them. each, if there is one, is called after every look.
func (s Sessions) KeepClear(ctx context.Context, database string, each func(context.Context, *pgx.Conn)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := s.Server.Admin(ctx)
		if err != nil {
			return // who waits for the sessions will say what is in its way
		}
		defer Close(conn)
		o, err := s.origin(ctx, conn)
		for err == nil {
			_, _, err = s.endSessions(ctx, conn, database, o)
			if each != nil {
				each(ctx, conn)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(look):
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}
