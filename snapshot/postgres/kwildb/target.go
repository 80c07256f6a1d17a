package kwildb

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/postgres/server"
)

// Target is the database of a new node, and the server on which its state is tried first.
type Target struct {
	server  *server.Server
	scratch string // the name of the database for the trial
}

// Settings is how a node reaches its database.
type Settings struct{ Host, Port, User, Password, Database string }

// Table is a table of a state, as SQL writes its name, and the rows it must have.
type Table struct {
	Name string
	Rows int64
}

// NewTarget takes the new node's root, the connection string of its database, the file with the password (or "":
// PGPASSWORD, PGPASSFILE) and the directory of the client programs (or "": PATH). It connects to nothing.
func NewTarget(root, dsn, passwordFile, bin string) *Target {
	sum := sha256.Sum256([]byte(root))
	return &Target{
		server: server.New(server.Config{Source: "genesis", DSN: dsn, PasswordFile: passwordFile, Bin: bin}),
		// One name for each root, so that what a killed trial left is found and dropped by the next.
		scratch: "sv_genesis_" + hex.EncodeToString(sum[:6]),
	}
}

// Settings are the settings that the node needs. The password is among them.
func (g *Target) Settings() (Settings, error) {
	cfg, err := g.server.Settings("")
	if err != nil {
		return Settings{}, err
	}
	return Settings{
		Host: cfg.Host, Port: strconv.Itoa(int(cfg.Port)), User: cfg.User, Password: cfg.Password, Database: cfg.Database,
	}, nil
}

// Try restores the state into a database of its own, with one transaction, compares the rows, and drops the database.
func (g *Target) Try(ctx context.Context, sql io.Reader, tables []Table) (err error) {
	admin, err := g.server.Scratch(ctx)
	if err != nil {
		return err
	}
	defer admin.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the session ends with us
	if err := g.manage(ctx, admin, g.scratch, drop, create); err != nil {
		return err
	}
	defer func() {
		// Also where ctx has ended: what was made is taken away.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, g.manage(ctx, admin, g.scratch, drop))
	}()
	return g.server.OnScratch().LoadSQL(ctx, g.scratch, sql, check(tables))
}

// Prepare makes the node's database where there is none, and refuses one that holds something already: a node that finds
// its schemas doesn't restore, and runs on whatever is there.
func (g *Target) Prepare(ctx context.Context) error {
	conn, err := g.server.Connect(ctx, "")
	if server.State(err) == server.StateNoDatabase {
		return g.onAdmin(ctx, create)
	}
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing hangs on it
	return g.empty(ctx, conn)
}

const (
	drop   = "DROP DATABASE IF EXISTS %s WITH (FORCE)"
	create = "CREATE DATABASE %s TEMPLATE template0 ENCODING 'UTF8'"
)

// onAdmin runs statements about the node's database, with its name in them, on the way for such.
func (g *Target) onAdmin(ctx context.Context, statements ...string) error {
	cfg, err := g.server.Settings("")
	if err != nil {
		return err
	}
	conn, err := g.server.Admin(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing hangs on it
	return g.manage(ctx, conn, cfg.Database, statements...)
}

// manage runs statements with a database's name in them. Those of one root wait for each other, also for those of a
// process that was killed: its session still makes or drops the database for a moment.
func (g *Target) manage(ctx context.Context, conn *pgx.Conn, database string, statements ...string) error {
	const lock, unlock = "SELECT pg_advisory_lock(hashtextextended($1, 0))", "SELECT pg_advisory_unlock(hashtextextended($1, 0))"
	if _, err := conn.Exec(ctx, lock, g.scratch); err != nil {
		return g.server.Explain(ctx, "make the database on", err)
	}
	defer conn.Exec(ctx, unlock, g.scratch) //nolint:errcheck // else it goes with the session
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, fmt.Sprintf(sql, server.Quote(database))); err != nil {
			return g.server.Explain(ctx, "make the database on", err)
		}
	}
	return nil
}

// Check is Prepare's look alone: an empty database, or none.
func (g *Target) Check(ctx context.Context) error {
	conn, err := g.server.Connect(ctx, "")
	if server.State(err) == server.StateNoDatabase {
		return nil
	}
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing hangs on it
	return g.empty(ctx, conn)
}

func (g *Target) empty(ctx context.Context, conn *pgx.Conn) error {
	const find = `SELECT n.nspname || coalesce('.' || c.relname, '') FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
		WHERE n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema' AND (n.nspname <> 'public' OR c.oid IS NOT NULL) LIMIT 1`
	var found string
	err := conn.QueryRow(ctx, find).Scan(&found)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return g.server.Explain(ctx, "look into", err)
	}
	return &hint.Error{
		Op: "use the database", Path: g.server.Where(), Err: fmt.Errorf("it isn't empty (%s), and the node would run on what is in it", found),
		Hint: "name another database in --dsn, or drop this one by hand, if nothing in it is needed",
	}
}

// Load restores the state into the node's database and then does what the node would do after its own restore, all in one
// transaction: anything that goes wrong leaves the database empty.
func (g *Target) Load(ctx context.Context, sql io.Reader, tables []Table, then ...string) error {
	return g.server.LoadSQL(ctx, "", sql, check(tables), then...)
}

// ErrRestored means that a restore had come to its end: the node itself has written since.
var ErrRestored = errors.New("the node has run on this database already")

// Recreate drops the node's database and makes it anew, empty: for a restore that was interrupted, after which the node
// would run on the half of it. A database with the schema kwild_chain isn't dropped, ErrRestored: no state holds that
// schema, kwild makes it when it starts on a whole one.
func (g *Target) Recreate(ctx context.Context) error {
	conn, err := g.server.Connect(ctx, "")
	if err != nil && server.State(err) != server.StateNoDatabase {
		return err
	}
	if err == nil {
		var run bool
		err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'kwild_chain')").Scan(&run)
		_ = conn.Close(ctx)
		if err != nil {
			return g.server.Explain(ctx, "look into", err)
		}
		if run {
			return &hint.Error{Op: "make anew the database", Path: g.server.Where(), Err: ErrRestored, Hint: "if nothing in it is needed, drop it by hand"}
		}
	}
	return g.onAdmin(ctx, drop, create)
}

// check is SQL that fails where a table has other rows than it must.
func check(tables []Table) string {
	var b strings.Builder
	b.WriteString("DO $check$ DECLARE n bigint; BEGIN\n")
	for _, t := range tables {
		name := strings.ReplaceAll(t.Name, "'", "''")
		fmt.Fprintf(&b, "SELECT count(*) INTO n FROM %s; IF n <> %d THEN RAISE EXCEPTION '%s has %% rows, want %d', n; END IF;\n",
			t.Name, t.Rows, strings.ReplaceAll(name, "%", "%%"), t.Rows)
	}
	b.WriteString("END $check$;\n")
	return b.String()
}
