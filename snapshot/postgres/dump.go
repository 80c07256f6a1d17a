package postgres

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/jackc/pgx/v5"

	"nodevisor/internal/atomicfile"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/dump"
	"nodevisor/snapshot/postgres/server"
)

// dump writes the archive of a database, the source's own where database is "", into job.Dir/<name>: in the window, or
// beneath a running node (job.Live). It is complete and on the disk when it returns; Finish adds digests and rows.
func (s *Source) dump(ctx context.Context, job manifest.Job, database string) (manifest.Source, error) {
	conn, err := s.Server.Connect(ctx, database)
	if err != nil {
		return manifest.Source{}, err
	}
	defer server.Close(conn)
	// What is recorded of the database, and what its dump holds, are of one moment. The transaction stays open for it.
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return manifest.Source{}, s.Server.Explain(ctx, "dump", err)
	}
	var snapshot string
	if err := tx.QueryRow(ctx, "SELECT pg_export_snapshot()").Scan(&snapshot); err != nil {
		return manifest.Source{}, s.Server.Explain(ctx, "dump", err)
	}
	var name string
	if err := tx.QueryRow(ctx, "SELECT current_database()").Scan(&name); err != nil {
		return manifest.Source{}, s.Server.Explain(ctx, "dump", err)
	}
	db, err := server.Describe(ctx, tx, name)
	if err != nil {
		return manifest.Source{}, s.Server.Explain(ctx, "dump", err)
	}
	if job.Room != nil {
		if err := job.Room(manifest.Need{Path: job.Dir, Bytes: dump.Size(db.Size)}); err != nil {
			return manifest.Source{}, err
		}
	}
	rec := manifest.Source{Name: s.o.Name, Kind: Kind, Path: s.Where(), Database: &db}
	dst := filepath.Join(job.Dir, s.o.Name)
	if err := s.tools(s.Server).Write(ctx, dst, db.Name, &db, job.Live, "--snapshot="+snapshot); err != nil {
		return manifest.Source{}, err
	}
	err = dump.Seal(dst, &rec)
	return rec, err
}

// Finish makes what Freeze took an archive with digests, rows and hashes, while the node runs: a clone is dumped first.
// The clone stays until Retire. Done twice it does no harm: an archive without a manifest that names it is made anew.
func (s *Source) Finish(ctx context.Context, dir string, rec manifest.Source) (manifest.Source, error) {
	if rec.Database == nil {
		return rec, fmt.Errorf("cannot finish source %s: its record describes no database", rec.Name)
	}
	db := *rec.Database
	rec.Database, rec.Entries = &db, append([]manifest.Entry{}, rec.Entries...)
	dst := filepath.Join(dir, rec.Name)
	if rec.Frozen != nil {
		if err := s.dumpClone(ctx, dir, dst, &rec); err != nil {
			return rec, err
		}
	}
	if err := dump.Hash(ctx, dst, rec.Entries, rec.Bytes, s.o.Observe); err != nil {
		return rec, err
	}
	tables, err := dump.Content(ctx, dst, rec.Bytes, s.o.Observe)
	if err != nil {
		return rec, err
	}
	db.Tables = tables
	return rec, nil
}

// dumpClone makes the archive of a frozen clone under a temporary name, which Recover knows, and then gives it its own.
func (s *Source) dumpClone(ctx context.Context, dir, dst string, rec *manifest.Source) error {
	if err := s.checkClone(ctx, *rec); err != nil {
		return err
	}
	partial := filepath.Join(dir, "."+rec.Name+".partial")
	if err := errors.Join(atomicfile.RemoveTree(partial), atomicfile.RemoveTree(dst)); err != nil {
		return fmt.Errorf("cannot remove an interrupted archive: %w", err)
	}
	shut, err := s.Owner.Open(ctx, s.Server, *rec.Database.Clone, s.o.Log)
	if err != nil {
		return err
	}
	err = s.tools(s.Server).Write(ctx, partial, *rec.Database.Clone, rec.Database, true)
	shut()
	if err != nil {
		return err
	}
	if err := dump.Seal(partial, rec); err != nil {
		return errors.Join(err, atomicfile.RemoveTree(partial))
	}
	if err := atomicfile.Rename(partial, dst); err != nil {
		return fmt.Errorf("cannot publish archive: %w", err)
	}
	rec.Frozen = nil
	return nil
}
