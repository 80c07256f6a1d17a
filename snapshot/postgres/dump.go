package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"nodevisor/internal/atomicfile"
	"nodevisor/snapshot/manifest"
)

const (
	// lockWait bounds pg_dump's wait for its locks, in milliseconds: a table that another holds must be named, not
	// waited for.
	lockWait = "30000"

	// The compressions of an archive. Level 1 of zstd is faster than gzip's and smaller than gzip's best on hashes and
	// JSON; pg_dump knows it since 16, where it was built with it.
	zstdFast = "zstd:1"
	gzipFast = "gzip:1"
)

// dump writes the archive of a database, the source's own where database is "", into job.Dir/<name>: in the window, or
// beneath a running node (job.Live). It is complete and on the disk when it returns; Finish adds digests and rows.
func (s *Source) dump(ctx context.Context, job manifest.Job, database string) (manifest.Source, error) {
	conn, err := s.server.Connect(ctx, database)
	if err != nil {
		return manifest.Source{}, err
	}
	defer s.close(conn)
	// What is recorded of the database, and what its dump holds, are of one moment. The transaction stays open for it.
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return manifest.Source{}, s.server.explain(ctx, "dump", err)
	}
	var snapshot string
	if err := tx.QueryRow(ctx, "SELECT pg_export_snapshot()").Scan(&snapshot); err != nil {
		return manifest.Source{}, s.server.explain(ctx, "dump", err)
	}
	var name string
	if err := tx.QueryRow(ctx, "SELECT current_database()").Scan(&name); err != nil {
		return manifest.Source{}, s.server.explain(ctx, "dump", err)
	}
	db, err := describe(ctx, tx, name)
	if err != nil {
		return manifest.Source{}, s.server.explain(ctx, "dump", err)
	}
	if job.Room != nil {
		if err := job.Room(manifest.Need{Path: job.Dir, Bytes: archiveSize(db.Size)}); err != nil {
			return manifest.Source{}, err
		}
	}
	rec := manifest.Source{Name: s.o.Name, Kind: Kind, Path: s.Where(), Database: &db}
	dst := filepath.Join(job.Dir, s.o.Name)
	if err := s.archive(ctx, dst, db.Name, &db, job.Live, "--snapshot="+snapshot); err != nil {
		return manifest.Source{}, err
	}
	err = seal(dst, &rec)
	return rec, err
}

// archive runs pg_dump into dst, which isn't there yet, and records in db what wrote it. from is the database that is
// read: the live one, or its clone; beside says that the node runs.
func (s *Source) archive(ctx context.Context, dst, from string, db *manifest.Database, beside bool, args ...string) error {
	client, err := s.server.CheckClient(ctx, "pg_dump", db.ServerVersion)
	if err != nil {
		return err
	}
	begin := time.Now().UTC().Truncate(time.Millisecond)
	compression := gzipFast
	if major(client) >= 16 {
		compression = zstdFast
	}
	c := &clientRun{server: s.server, log: s.o.Log, op: "dump", program: "pg_dump", database: from, version: db.ServerVersion, beside: beside, observe: s.o.Observe, phase: "dump", total: db.Size}
	run := func() error {
		level := compression
		if major(client) < 16 {
			level = "1" // it knows no other method, nor a name for this one
		}
		return c.run(ctx, append([]string{
			"--format=directory", "--file=" + dst, "--jobs=" + strconv.Itoa(jobs(beside)), "--compress=" + level,
			"--lock-wait-timeout=" + lockWait, "--no-password",
		}, args...)...)
	}
	err = run()
	if err != nil && compression == zstdFast && withoutZstd(err) {
		compression = gzipFast
		err = errors.Join(atomicfile.RemoveTree(dst))
		if err == nil {
			err = run()
		}
	}
	if err != nil {
		return errors.Join(err, atomicfile.RemoveTree(dst))
	}
	db.ClientVersion, db.Compression, db.DumpedAt = client, compression, &begin
	return nil
}

// jobs is how many sessions of a server are used at once: beside the node half of our cores, four at most; while it waits
// for us all of them, eight at most.
func jobs(beside bool) int {
	if beside {
		return min(4, max(2, runtime.NumCPU()/2))
	}
	return min(8, max(2, runtime.NumCPU()))
}

// archiveSize is the room that the archive of a database of that size is counted with, in bytes. Measured: hashes and
// JSON a third, random bytes about the size (hex doubles them, the compression halves that again); indexes, which no
// archive holds, are counted in.
func archiveSize(size int64) int64 { return size / 2 }

// seal makes an archive durable and lists it: private, as all that a snapshot holds.
func seal(dir string, rec *manifest.Source) error {
	rec.Method, rec.Bytes, rec.Files, rec.Entries = manifest.Dump, 0, 0, nil
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		e, err := sealOne(dir, path, d.IsDir())
		if err != nil {
			return err
		}
		if rec.Entries = append(rec.Entries, e); e.Type == manifest.File {
			rec.Bytes += e.Size
			rec.Files++
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot seal archive: %w", err)
	}
	return atomicfile.SyncDir(filepath.Dir(dir))
}

func sealOne(root, path string, isDir bool) (manifest.Entry, error) {
	e := manifest.Entry{Type: manifest.File, Mode: 0o600, Method: manifest.Dump}
	if isDir {
		e.Type, e.Mode, e.Method = manifest.Dir, 0o700, ""
	}
	f, err := os.OpenFile(path, os.O_RDONLY|openNoFollow, 0)
	if err != nil {
		return e, err
	}
	defer f.Close()
	if err := f.Chmod(e.Mode.FileMode()); err != nil {
		return e, err
	}
	if err := atomicfile.Adopt(path); err != nil {
		return e, err
	}
	if err := f.Sync(); err != nil {
		return e, err
	}
	info, err := f.Stat()
	if err != nil {
		return e, err
	}
	if !isDir {
		if !info.Mode().IsRegular() {
			return e, fmt.Errorf("%s is not a regular file", path)
		}
		e.Size = info.Size()
	}
	e.UID, e.GID = ownerOf(info)
	e.MTime = info.ModTime().UTC()
	if e.Path, err = filepath.Rel(root, path); err != nil {
		return e, err
	}
	return e, nil
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
	if err := hashEntries(ctx, dst, rec.Entries, rec.Bytes, s.o.Observe); err != nil {
		return rec, err
	}
	tables, err := contentOf(ctx, dst, rec.Bytes, s.o.Observe)
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
	shut, err := s.openClone(ctx, *rec.Database.Clone)
	if err != nil {
		return err
	}
	err = s.archive(ctx, partial, *rec.Database.Clone, rec.Database, true)
	shut()
	if err != nil {
		return err
	}
	if err := seal(partial, rec); err != nil {
		return errors.Join(err, atomicfile.RemoveTree(partial))
	}
	if err := atomicfile.Rename(partial, dst); err != nil {
		return fmt.Errorf("cannot publish archive: %w", err)
	}
	rec.Frozen = nil
	return nil
}
