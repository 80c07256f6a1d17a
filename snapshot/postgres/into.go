package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/dump"
	"nodevisor/snapshot/postgres/server"
)

// Into restores the archive into an existing database, which must be empty, and compares it: for servers that grant no
// CREATEDB. It is one transaction: what fails leaves it empty. Everything in it belongs to the role that connects; the
// settings and grants of the database itself stay as they are.
func (s *Source) Into(ctx context.Context, r manifest.Restore, dsn string) error {
	if err := errors.Join(server.CheckDSN("--into", dsn)...); err != nil {
		return &hint.Error{Op: "restore into", Path: s.o.Name, Err: err, Hint: "give the password by PGPASSFILE or PGPASSWORD, and " + s.o.Name + "='host=… user=… dbname=…'"}
	}
	v := s.Server.At(dsn)
	if damage, err := s.intact(ctx, &r); err != nil || damage != nil {
		return errors.Join(err, damage)
	}
	cfg, err := v.Settings("")
	if err != nil {
		return err
	}
	if err := empty(ctx, v); err != nil {
		return err
	}
	faults, err := s.tools(v).Load(ctx, cfg.Database, r.From, r.Record, true, "--no-owner", "--no-privileges", "--no-tablespaces", "--single-transaction")
	if err != nil {
		return err
	}
	if len(faults) > 0 {
		return &hint.Error{Op: "restore into", Path: v.Where(), Err: fmt.Errorf("what came there differs, don't use it: %w", faults[0]), Hint: "supervisor snapshot verify --deep " + r.ID}
	}
	return nil
}

// empty refuses a database that holds anything but what its template and extensions brought.
func empty(ctx context.Context, v *server.Server) error {
	conn, err := v.Connect(ctx, "")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the session ends with us
	var found *string
	err = conn.QueryRow(ctx, `
		WITH spaces AS (SELECT oid, nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\_%' AND nspname <> 'information_schema'),
		theirs AS (SELECT classid, objid FROM pg_depend WHERE deptype = 'e')
		SELECT min(what) FROM (
			SELECT 'schema ' || nspname FROM spaces WHERE nspname <> 'public' AND oid NOT IN (SELECT objid FROM theirs WHERE classid = 'pg_namespace'::regclass)
			UNION ALL SELECT 'relation ' || relname FROM pg_class WHERE relnamespace IN (SELECT oid FROM spaces) AND oid NOT IN (SELECT objid FROM theirs WHERE classid = 'pg_class'::regclass)
			UNION ALL SELECT 'function ' || proname FROM pg_proc WHERE pronamespace IN (SELECT oid FROM spaces) AND oid NOT IN (SELECT objid FROM theirs WHERE classid = 'pg_proc'::regclass)
			UNION ALL SELECT 'type ' || typname FROM pg_type WHERE typnamespace IN (SELECT oid FROM spaces) AND oid NOT IN (SELECT objid FROM theirs WHERE classid = 'pg_type'::regclass)
			UNION ALL SELECT 'large object ' || oid FROM pg_largeobject_metadata
		) AS found(what)`).Scan(&found)
	if err != nil {
		return v.Explain(ctx, "look into", err)
	}
	if found != nil {
		return &hint.Error{Op: "restore into", Path: v.Where(), Err: fmt.Errorf("the database is not empty: it holds %s", *found), Hint: "name a database that is empty"}
	}
	return nil
}

// Extract writes the archive to the directory to, which isn't there or is empty, and compares it with its digests:
// pg_restore reads it.
func (s *Source) Extract(ctx context.Context, r manifest.Restore, to string) (_ []manifest.Signer, err error) {
	if entries, err := os.ReadDir(to); len(entries) > 0 || (err != nil && !errors.Is(err, os.ErrNotExist)) {
		return nil, &hint.Error{Op: "restore to", Path: to, Err: errors.Join(err, errors.New("it is not an empty directory")), Hint: "name another directory"}
	}
	if r.Record.Frozen != nil {
		return nil, &hint.Error{
			Op: "extract source " + s.o.Name, Path: r.ID, Err: fmt.Errorf("it is a clone in the server still (%s): its archive was not made yet", *r.Record.Frozen),
			Hint: "supervisor status    # the archive is made while the node runs",
		}
	}
	if err := atomicfile.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return nil, fmt.Errorf("cannot restore: %w", err)
	}
	partial := filepath.Join(filepath.Dir(to), "."+filepath.Base(to)+".partial")
	if err := atomicfile.RemoveTree(partial); err != nil {
		return nil, fmt.Errorf("cannot restore: %w", err)
	}
	if err = dump.Unpack(ctx, r, partial, s.o.Observe); err == nil {
		os.Remove(to) // an empty directory; one that isn't fails the rename
		err = atomicfile.Rename(partial, to)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot extract archive: %w", err), atomicfile.RemoveTree(partial))
	}
	return nil, nil
}
