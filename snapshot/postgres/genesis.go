package postgres

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
	"nodevisor/internal/proc"
)

// GenesisTarget is the database of a new node, and the server on which its state is tried first.
type GenesisTarget struct {
	server  *Server
	scratch string // the name of the database for the trial
}

// GenesisSettings is how a node reaches its database.
type GenesisSettings struct{ Host, Port, User, Password, Database string }

// GenesisTable is a table of a state, as SQL writes its name, and the rows it must have.
type GenesisTable struct {
	Name string
	Rows int64
}

// NewGenesisTarget takes the new node's root, the connection string of its database, the file with the password (or "":
// PGPASSWORD, PGPASSFILE) and the directory of the client programs (or "": PATH). It connects to nothing.
func NewGenesisTarget(root, dsn, passwordFile, bin string) *GenesisTarget {
	sum := sha256.Sum256([]byte(root))
	return &GenesisTarget{
		server: newServer(Options{Name: "genesis", Config: Config{DSN: dsn, PasswordFile: passwordFile}, Bin: bin}),
		// One name for each root, so that what a killed trial left is found and dropped by the next.
		scratch: "sv_genesis_" + hex.EncodeToString(sum[:6]),
	}
}

// Settings are the settings that the node needs. The password is among them.
func (g *GenesisTarget) Settings() (GenesisSettings, error) {
	cfg, err := g.server.config("")
	if err != nil {
		return GenesisSettings{}, err
	}
	return GenesisSettings{
		Host: cfg.Host, Port: strconv.Itoa(int(cfg.Port)), User: cfg.User, Password: cfg.Password, Database: cfg.Database,
	}, nil
}

// Try restores the state into a database of its own, with one transaction, compares the rows, and drops the database.
func (g *GenesisTarget) Try(ctx context.Context, sql io.Reader, tables []GenesisTable) (err error) {
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
	return g.server.OnScratch().load(ctx, g.scratch, sql, check(tables))
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// Prepare makes the node's database where there is none, and refuses one that holds something already: a node that finds
// its schemas doesn't restore, and runs on whatever is there.
func (g *GenesisTarget) Prepare(ctx context.Context) error {
	conn, err := g.server.Connect(ctx, "")
	if state(err) == stateNoDatabase {
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
func (g *GenesisTarget) onAdmin(ctx context.Context, statements ...string) error {
	cfg, err := g.server.config("")
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
func (g *GenesisTarget) manage(ctx context.Context, conn *pgx.Conn, database string, statements ...string) error {
	const lock, unlock = "SELECT pg_advisory_lock(hashtextextended($1, 0))", "SELECT pg_advisory_unlock(hashtextextended($1, 0))"
	if _, err := conn.Exec(ctx, lock, g.scratch); err != nil {
		return g.server.explain(ctx, "make the database on", err)
	}
	defer conn.Exec(ctx, unlock, g.scratch) //nolint:errcheck // else it goes with the session
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, fmt.Sprintf(sql, quote(database))); err != nil {
			return g.server.explain(ctx, "make the database on", err)
		}
	}
	return nil
}

// Check is Prepare's look alone: an empty database, or none.
func (g *GenesisTarget) Check(ctx context.Context) error {
	conn, err := g.server.Connect(ctx, "")
	if state(err) == stateNoDatabase {
		return nil
	}
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing hangs on it
	return g.empty(ctx, conn)
}

func (g *GenesisTarget) empty(ctx context.Context, conn *pgx.Conn) error {
	const find = `SELECT n.nspname || coalesce('.' || c.relname, '') FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid
		AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
		WHERE n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema' AND (n.nspname <> 'public' OR c.oid IS NOT NULL) LIMIT 1`
	var found string
	err := conn.QueryRow(ctx, find).Scan(&found)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return g.server.explain(ctx, "look into", err)
	}
	return &hint.Error{
		Op: "use the database", Path: g.server.Where(), Err: fmt.Errorf("it isn't empty (%s), and the node would run on what is in it", found),
		Hint: "name another database in --dsn, or drop this one by hand, if nothing in it is needed",
	}
}

// Load restores the state into the node's database and then does what the node would do after its own restore, all in one
// transaction: anything that goes wrong leaves the database empty.
func (g *GenesisTarget) Load(ctx context.Context, sql io.Reader, tables []GenesisTable, then ...string) error {
	return g.server.load(ctx, "", sql, check(tables), then...)
}

// ErrRestored means that a restore had come to its end: the node itself has written since.
var ErrRestored = errors.New("the node has run on this database already")

// Recreate drops the node's database and makes it anew, empty: for a restore that was interrupted, after which the node
// would run on the half of it. A database with the schema kwild_chain isn't dropped, ErrRestored: no state holds that
// schema, kwild makes it when it starts on a whole one.
func (g *GenesisTarget) Recreate(ctx context.Context) error {
	conn, err := g.server.Connect(ctx, "")
	if err != nil && state(err) != stateNoDatabase {
		return err
	}
	if err == nil {
		var run bool
		err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'kwild_chain')").Scan(&run)
		_ = conn.Close(ctx)
		if err != nil {
			return g.server.explain(ctx, "look into", err)
		}
		if run {
			return &hint.Error{Op: "make anew the database", Path: g.server.Where(), Err: ErrRestored, Hint: "if nothing in it is needed, drop it by hand"}
		}
	}
	return g.onAdmin(ctx, drop, create)
}

// check is SQL that fails where a table has other rows than it must.
func check(tables []GenesisTable) string {
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

// load feeds SQL to psql. BEGIN and COMMIT are written around it here, and not by psql's -1: an input that breaks off would
// otherwise be committed as far as it came.
func (v *Server) load(ctx context.Context, database string, sql io.Reader, after string, then ...string) error {
	cmd, err := v.Program("psql", database, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=terse", "-f", "-")
	if err != nil {
		return err
	}
	in := &transaction{sql: sql}
	// The encoding is one of the settings that the state's SQL has lost, and pg_dump's text relies on.
	in.parts = io.MultiReader(strings.NewReader("BEGIN;\nSET LOCAL client_min_messages = warning;\nSET LOCAL client_encoding = 'UTF8';\n"), in.body(),
		strings.NewReader("\nSET LOCAL search_path = pg_catalog;\n"+after+strings.Join(then, ";\n")+";\nCOMMIT;\n"))
	cmd.Stdin = in
	_, err = proc.Output(ctx, cmd, 64<<10)
	if in.err != nil { // the server rolled back when its client went away
		err = in.err
	}
	if err != nil {
		return &hint.Error{Op: "restore the state into", Path: v.Where(), Err: fmt.Errorf("%w: nothing of it is kept", err), Hint: "mend what the server complains of, then do it again"}
	}
	return nil
}

// transaction is psql's input; what can't be read ends it before COMMIT.
type transaction struct {
	sql   io.Reader
	parts io.Reader
	err   error
}

func (t *transaction) Read(p []byte) (int, error) {
	if t.err != nil {
		return 0, io.EOF
	}
	return t.parts.Read(p)
}

func (t *transaction) body() io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		n, err := t.sql.Read(p)
		if err != nil && !errors.Is(err, io.EOF) {
			t.err = fmt.Errorf("cannot read the state: %w", err)
		}
		return n, err
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
