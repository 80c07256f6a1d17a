// Package kwildb reads the databases of Kwil's nodes, and makes those of new ones: the state of a chain with its dump, all of
// one moment, and the database that such a state is tried and restored in.
package kwildb

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/postgres/server"
)

// The generations of Kwil's database that are known.
const (
	V09  = "v0.9"
	V010 = "v0.10"
)

// ErrNoChain means that the database holds no chain of Kwil's: it is another one's, or its node hasn't made a block yet.
var ErrNoChain = errors.New("it holds no chain of Kwil's")

// Options say which database is read, and what is expected of it.
type Options struct {
	Version  string // v0.9 | v0.10: another one in the database is an error
	Database string // "" = the connection string's; else a frozen clone of it
	Live     bool   // the node may be connected: what is read is its last commit
	Home     string // the node's, absolute: whose clones are ours
	Log      *slog.Logger
}

// State is what a Kwil database says of its chain.
type State struct {
	Height     int64           // of the last block
	AppHash    []byte          // of the same; nil where the chain has none yet
	Namespaces []string        // v0.10: the schemas that belong to the state besides Kwil's own
	Validators int64           // the number of voters
	Owner      string          // v0.10: of the database; "" = none
	Params     json.RawMessage // the network's parameters, a JSON object; nil = the database doesn't have them
}

// Database is one Kwil database, read at one moment: height, parameters and dump come from the same exported snapshot, so that
// they belong together also where the node runs.
type Database struct {
	server   *server.Server
	o        Options
	conn     *pgx.Conn
	client   string // pg_dump's version
	snapshot string
	state    State
	shut     func() // closes a clone again; nil = none was opened
}

// Open connects, checks the database and the client program, and reads the chain's state. It refuses a database in
// which others have sessions or prepared transactions, unless o.Live. Close must be called.
func Open(ctx context.Context, c server.Config, o Options) (_ *Database, err error) {
	if o.Version != V09 && o.Version != V010 {
		return nil, fmt.Errorf("cannot read Kwil's database: %q is neither v0.9 nor v0.10", o.Version)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	q := &Database{server: server.New(c).In(o.Database), o: o}
	if err := q.open(ctx); err != nil {
		return nil, err
	}
	if q.conn, err = q.server.Connect(ctx, ""); err != nil {
		q.Close()
		return nil, err
	}
	for _, step := range []func(context.Context) error{q.checkClient, q.checkQuiet, q.begin, q.checkVersion, q.readChain, q.readNetwork} {
		if err := step(ctx); err != nil {
			q.Close()
			return nil, err
		}
	}
	return q, nil
}

// State is what was read.
func (q *Database) State() State { return q.state }

// open lets us into a clone of ours, which is shut to all; a copy that somebody else made is as it is.
func (q *Database) open(ctx context.Context) (err error) {
	owner := server.Owner{Home: q.o.Home, Source: q.server.Source()}
	if owner.Owns(q.o.Database) {
		q.shut, err = owner.Open(ctx, q.server, q.o.Database, q.o.Log)
	}
	return err
}

// Close ends the session, and with it the snapshot.
func (q *Database) Close() {
	if q.conn != nil {
		server.Close(q.conn)
	}
	if q.shut != nil {
		q.shut()
	}
}

// checkClient finds pg_dump. Before 15 it can't leave out access methods, which then stand among the tables.
func (q *Database) checkClient(ctx context.Context) (err error) {
	q.client, err = q.server.CheckClient(ctx, "pg_dump", q.conn.PgConn().ParameterStatus("server_version"))
	if err == nil && server.Major(q.client) < minKwilClient {
		err = &hint.Error{
			Op: "use", Path: "pg_dump", Err: fmt.Errorf("it is version %s, and Kwil's state needs %d or newer", q.client, minKwilClient),
			Hint: "install PostgreSQL's client programs of version 16, and set [snapshot] pg_bin to their directory",
		}
	}
	return err
}

// checkQuiet refuses a database that is in use. The node commits in two steps: what is prepared is decided by the node.
func (q *Database) checkQuiet(ctx context.Context) error {
	if q.o.Live {
		return nil
	}
	// What a session is, is hidden from a role that isn't its own nor in pg_read_all_stats: then it counts.
	const sessions = `SELECT coalesce(nullif(application_name, ''), usename, 'a session') || ' (pid ' || pid || ')' FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name IS DISTINCT FROM $1
		AND coalesce(backend_type, 'client backend') IN ('client backend', 'walsender')`
	found, err := server.Staying(ctx, func() ([]string, error) { return q.strings(ctx, sessions, server.AppName) })
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return &hint.Error{
			Op: "read the chain's state in", Path: q.server.Where(), Err: fmt.Errorf("others are connected: %s", strings.Join(found, ", ")),
			Hint: "stop the node first: supervisor halt --now",
		}
	}
	found, err = q.strings(ctx, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
	if err == nil && len(found) > 0 {
		err = &hint.Error{
			Op: "read the chain's state in", Path: q.server.Where(), Err: fmt.Errorf("a block is half committed (prepared transaction %s)", found[0]),
			Hint: "start the old node once, let it recover, and stop it again",
		}
	}
	return err
}

// begin fixes the moment that everything is read at.
func (q *Database) begin(ctx context.Context) error {
	if _, err := q.conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"); err != nil {
		return q.explain(ctx, err)
	}
	for _, setting := range []string{
		// The session waits for pg_dump as long as that takes.
		"SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')",
		// A role may have other ones, and bytes are read as text below.
		"SELECT set_config('bytea_output', 'hex', true), set_config('client_encoding', 'UTF8', true)",
	} {
		if _, err := q.conn.Exec(ctx, setting); err != nil {
			return q.explain(ctx, err)
		}
	}
	return q.explain(ctx, q.conn.QueryRow(ctx, "SELECT pg_export_snapshot()").Scan(&q.snapshot))
}

// checkVersion tells Kwil's databases from others, and the generations from each other.
func (q *Database) checkVersion(ctx context.Context) error {
	schemas, err := q.strings(ctx, "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'kwild\\_%'")
	if err != nil {
		return err
	}
	has := func(name string) bool { return slices.Contains(schemas, name) }
	if !has("kwild_chain") || !has("kwild_voting") {
		return &hint.Error{
			Op: "read the chain's state in", Path: q.server.Where(), Err: fmt.Errorf("%w: kwild_chain and kwild_voting aren't both among its schemas", ErrNoChain),
			Hint: "correct dbname in dsn; psql -l lists what is there",
		}
	}
	found := V09
	if has("kwild_engine") {
		found = V010
	}
	if found != q.o.Version {
		return &hint.Error{
			Op: "read the chain's state in", Path: q.server.Where(), Err: fmt.Errorf("it is a database of Kwil %s, not %s", found, q.o.Version),
			Hint: fmt.Sprintf("set [genesis] version = %q", found),
		}
	}
	return nil
}

// readChain reads the one row of the chain's table: height and app_hash, from v0.10 on also dirty, which is set while a
// block is being executed.
func (q *Database) readChain(ctx context.Context) error {
	rows, err := q.strings(ctx, "SELECT to_jsonb(c)::text FROM kwild_chain.chain c LIMIT 2")
	if err != nil {
		return err
	}
	if len(rows) != 1 {
		return &hint.Error{
			Op: "read the chain's height in", Path: q.server.Where(), Err: fmt.Errorf("%w: kwild_chain.chain has %d rows, not one", ErrNoChain, len(rows)),
			Hint: "let the node make a block first",
		}
	}
	var chain struct {
		Height *int64  `json:"height"`
		Hash   *string `json:"app_hash"`
		Dirty  *bool   `json:"dirty"`
	}
	if err := json.Unmarshal([]byte(rows[0]), &chain); err != nil || chain.Height == nil {
		return fmt.Errorf("cannot read the chain's height in %s: %w", q.server.Where(), cmp.Or(err, errors.New("there is none")))
	}
	if chain.Dirty != nil && *chain.Dirty && !q.o.Live {
		return &hint.Error{
			Op: "read the chain's state in", Path: q.server.Where(), Err: fmt.Errorf("the node was stopped amid block %d", *chain.Height),
			Hint: "start the old node once, let it recover, and stop it again",
		}
	}
	q.state.Height = *chain.Height
	if chain.Hash != nil {
		q.state.AppHash, err = hex.DecodeString(strings.TrimPrefix(*chain.Hash, `\x`))
	}
	return err
}

// readNetwork reads what a genesis document needs.
func (q *Database) readNetwork(ctx context.Context) error {
	if err := q.conn.QueryRow(ctx, "SELECT count(*) FROM kwild_voting.voters").Scan(&q.state.Validators); err != nil {
		return q.explain(ctx, err)
	}
	if q.o.Version == V09 {
		return q.readParams09(ctx)
	}
	var err error
	if q.state.Namespaces, err = q.strings(ctx, "SELECT name FROM kwild_engine.namespaces ORDER BY id"); err != nil {
		return err
	}
	owners, err := q.strings(ctx, `SELECT u.user_identifier FROM kwild_engine.user_roles u JOIN kwild_engine.roles r ON r.id = u.role_id WHERE r.name = 'owner'`)
	if err != nil {
		return err
	}
	if len(owners) == 1 { // several can't be named in a document: the operator's to choose
		q.state.Owner = owners[0]
	}
	params, err := q.optional(ctx, "kwild_chain.params", "SELECT convert_from(params, 'UTF8') FROM kwild_chain.params LIMIT 1")
	if err == nil && len(params) == 1 && json.Valid([]byte(params[0])) {
		q.state.Params = json.RawMessage(params[0])
	}
	return err
}

// readParams09 reads v0.9's table of parameters: numbers of eight bytes, little-endian, and flags of one byte.
func (q *Database) readParams09(ctx context.Context) error {
	rows, err := q.optional(ctx, "kwild_chain.consensus_params", `SELECT param_name || '=' || encode(param_value, 'hex') FROM kwild_chain.consensus_params`)
	if err != nil || len(rows) == 0 {
		return err
	}
	all := map[string]any{}
	for _, row := range rows {
		name, text, _ := strings.Cut(row, "=")
		value, err := hex.DecodeString(text)
		switch {
		case err != nil:
			return err
		case len(value) == 8:
			var n int64
			for i := len(value) - 1; i >= 0; i-- {
				n = n<<8 | int64(value[i])
			}
			all[name] = n
		case len(value) == 1:
			all[name] = value[0] == 1
		}
	}
	q.state.Params, err = json.Marshal(all)
	return err
}

// optional is strings on a table that older nodes don't have.
func (q *Database) optional(ctx context.Context, table, sql string) ([]string, error) {
	var there bool
	if err := q.conn.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", table).Scan(&there); err != nil || !there {
		return nil, q.explain(ctx, err)
	}
	return q.strings(ctx, sql)
}

// strings gives the first column of all rows.
func (q *Database) strings(ctx context.Context, sql string, args ...any) ([]string, error) {
	rows, err := q.conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, q.explain(ctx, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return all, q.explain(ctx, err)
}

func (q *Database) explain(ctx context.Context, err error) error {
	return q.server.Explain(ctx, "read the chain's state in", err)
}
