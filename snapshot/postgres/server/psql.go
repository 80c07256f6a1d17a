package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
)

// LoadSQL feeds SQL to psql. BEGIN and COMMIT are written around it here, and not by psql's -1: an input that breaks off would
// otherwise be committed as far as it came.
func (v *Server) LoadSQL(ctx context.Context, database string, sql io.Reader, after string, then ...string) error {
	cmd, err := v.Program("psql", database, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=terse", "-f", "-")
	if err != nil {
		return err
	}
	fence, err := v.fence(ctx, database)
	if err != nil {
		return err
	}
	in := &transaction{sql: sql}
	// The encoding is one of the settings that the state's SQL has lost, and pg_dump's text relies on.
	in.parts = io.MultiReader(strings.NewReader("BEGIN;\nSET LOCAL client_min_messages = warning;\n"+fence+"SET LOCAL client_encoding = 'UTF8';\n"), in.body(),
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

// fence is SQL that fails in any other database than the one that has the name now. A psql whose supervisor was killed lives
// on, with its input in a pipe: it must not fill the database that the next try has made in the place of its own.
func (v *Server) fence(ctx context.Context, database string) (sql string, err error) {
	conn, err := v.Connect(ctx, database)
	if err != nil {
		return "", err
	}
	defer Close(conn)
	const find = "SELECT oid FROM pg_database WHERE datname = current_database()"
	var oid uint32
	if err := conn.QueryRow(ctx, find).Scan(&oid); err != nil {
		return "", v.Explain(ctx, "restore the state into", err)
	}
	return fmt.Sprintf("DO $fence$ BEGIN IF (%s) <> '%d'::oid THEN RAISE EXCEPTION 'another database was made in its place'; END IF; END $fence$;\n", find, oid), nil
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
