// Package dump makes archives of databases and fills databases from them: it runs pg_dump and pg_restore, seals what they
// write, and compares a database with the archive that it came from, row by row.
package dump

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodevisor/internal/atomicfile"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/server"
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

// Tools are pg_dump and pg_restore, run against one server.
type Tools struct {
	Server  *server.Server
	Log     *slog.Logger
	Observe manifest.Observe // never nil
}

// Write runs pg_dump into dst, which isn't there yet, and records in db what wrote it. from is the database that is
// read: the live one, or its clone; beside says that the node runs.
func (p Tools) Write(ctx context.Context, dst, from string, db *manifest.Database, beside bool, args ...string) error {
	client, err := p.Server.CheckClient(ctx, "pg_dump", db.ServerVersion)
	if err != nil {
		return err
	}
	begin := time.Now().UTC().Truncate(time.Millisecond)
	compression := gzipFast
	if server.Major(client) >= 16 {
		compression = zstdFast
	}
	c := &clientRun{server: p.Server, log: p.Log, op: "dump", program: "pg_dump", database: from, version: db.ServerVersion, beside: beside, observe: p.Observe, phase: "dump", total: db.Size}
	run := func() error {
		level := compression
		if server.Major(client) < 16 {
			level = "1" // it knows no other method, nor a name for this one
		}
		return c.run(ctx, append([]string{
			"--format=directory", "--file=" + dst, "--jobs=" + strconv.Itoa(Jobs(beside)), "--compress=" + level,
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

// Jobs is how many sessions of a server are used at once: beside the node half of our cores, four at most; while it waits
// for us all of them, eight at most.
func Jobs(beside bool) int {
	if beside {
		return min(4, max(2, runtime.NumCPU()/2))
	}
	return min(8, max(2, runtime.NumCPU()))
}

// Size is the room that the archive of a database of that size is counted with, in bytes. Measured: hashes and
// JSON a third, random bytes about the size (hex doubles them, the compression halves that again); indexes, which no
// archive holds, are counted in.
func Size(size int64) int64 { return size / 2 }

// Load fills an empty database from the archive at and compares the two. Nothing that pg_restore complains of is passed
// over, and what it didn't notice, the comparison does. beside says that the node runs.
func (p Tools) Load(ctx context.Context, database, at string, rec manifest.Source, beside bool, args ...string) ([]manifest.Fault, error) {
	conn, err := p.Server.Connect(ctx, database)
	if err != nil {
		return nil, err
	}
	defer server.Close(conn)
	var version string
	if err := conn.QueryRow(ctx, "SELECT current_setting('server_version')").Scan(&version); err != nil {
		return nil, p.Server.Explain(ctx, "restore into", err)
	}
	needed := version
	if server.Major(rec.Database.ClientVersion) > server.Major(version) {
		needed = rec.Database.ClientVersion // the archive's form is pg_dump's
	}
	client, err := p.Server.CheckClient(ctx, "pg_restore", needed)
	if err != nil {
		return nil, err
	}
	older, whole := stumbles(client, version), slices.Contains(args, "--single-transaction")
	if !whole {
		args = append(args, fmt.Sprintf("--jobs=%d", Jobs(beside)))
	}
	if !older {
		args = append(args, "--exit-on-error")
	}
	args = append(args, "--format=directory", "--no-password")
	c := &clientRun{server: p.Server, log: p.Log, op: "restore into", program: "pg_restore", database: database, version: version, beside: beside, observe: p.Observe, phase: "restore", total: rec.Database.Size}
	if older && whole {
		err = loadText(ctx, p.Server, database, append(slices.DeleteFunc(args, func(a string) bool { return a == "--single-transaction" }), at)...)
	} else {
		err = c.run(ctx, append(args, "--dbname="+conninfo(database), at)...)
	}
	if err != nil && (!older || !onlyStumbled(err)) {
		return nil, err
	}
	faults, err := p.Compare(ctx, database, at, rec, beside)
	if err != nil || len(faults) > 0 {
		return faults, err
	}
	_, err = conn.Exec(ctx, "ANALYZE") // without it the first queries are planned blindly
	return nil, p.Server.Explain(ctx, "analyse", err)
}

// conninfo names a database so that no character of its name makes it anything else (a name with = in it would be a
// connection string).
func conninfo(database string) string {
	return "dbname='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(database) + "'"
}
