// Package postgres snapshots and restores one PostgreSQL database.
//
// In the window, while the node is at rest, Freeze clones the database inside its server, or dumps it. After the restart
// Finish makes the archive from the frozen clone: pg_dump's directory format, with the number of rows and a content hash
// of each table. A restore fills a fresh database, compares it, and swaps the two by renaming them.
package postgres

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/dump"
	"nodevisor/snapshot/postgres/rename"
	"nodevisor/snapshot/postgres/server"
)

// Kind is the kind of source that this package implements.
const Kind = "postgres"

// The modes of Config.
const (
	ModeAuto  = "auto"  // a clone where rights and room are proven, else a dump
	ModeClone = "clone" // CREATE DATABASE … TEMPLATE
	ModeDump  = "dump"  // pg_dump, in the window
)

// Config says which database, and how it may be treated. DSNs hold no password.
type Config struct {
	DSN          string   // a connection string or URI of libpq
	PasswordFile string   // absolute; holds the password alone, 0600; "" = PGPASSFILE, PGPASSWORD or a systemd credential
	Mode         string   // auto | clone | dump
	Fallback     string   // what follows a clone that fails in the window: dump | hold
	AdminDSN     string   // where databases are created and renamed; "" = the same server, database postgres
	ScratchDSN   string   // where a deep verification restores; "" = as AdminDSN
	Disconnect   []string // application names whose sessions may be ended for a clone or a swap
	KeepClones   int      // clones that stay when their archive is verified
	FreeSpace    int64    // room on the server in bytes, where it can't be seen from here; negative = not known
}

// Validate reports every mistake of the values.
func (c Config) Validate() (errs []error) {
	if c.DSN == "" {
		errs = append(errs, errors.New("dsn: must not be empty"))
	}
	for _, d := range [][2]string{{"dsn", c.DSN}, {"admin_dsn", c.AdminDSN}, {"scratch_dsn", c.ScratchDSN}} {
		errs = append(errs, server.CheckDSN(d[0], d[1])...)
	}
	if !slices.Contains([]string{ModeAuto, ModeClone, ModeDump}, c.Mode) {
		errs = append(errs, fmt.Errorf("mode: %q is none of auto, clone, dump", c.Mode))
	}
	if c.Fallback != "dump" && c.Fallback != "hold" {
		errs = append(errs, fmt.Errorf("fallback: %q is neither dump nor hold", c.Fallback))
	}
	if c.KeepClones < 0 {
		errs = append(errs, errors.New("keep_clones: must not be negative"))
	}
	return errs
}

// Options describe a source.
type Options struct {
	Config
	Name    string // the source's, and its folder's in a snapshot
	Home    string // the node's home, absolute: its digest is in the names of our databases
	State   string // where the journal of a restore is kept: a directory of this home alone
	Bin     string // where pg_dump and pg_restore lie; "" = PATH
	Log     *slog.Logger
	Free    func(path string) (int64, error) // the room that may be used on path's file system, in bytes; nil: all that is free
	Observe manifest.Observe
}

// Source is one database.
type Source struct {
	rename.Place // where it is, and how a restore gets there
	o            Options

	mu     sync.Mutex // guards choice
	choice *choice    // what Forecast decided; nil: nothing yet
}

// New makes a source. It does no I/O: a server that is away is Check's to report.
func New(o Options) (*Source, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Observe == nil {
		o.Observe = func(string, int64, int64) {}
	}
	if o.Free == nil {
		o.Free = freeOf
	}
	v := server.New(server.Config{
		Source: o.Name, DSN: o.DSN, PasswordFile: o.PasswordFile, AdminDSN: o.AdminDSN, ScratchDSN: o.ScratchDSN, Bin: o.Bin,
	})
	return &Source{o: o, Place: rename.Place{
		Server: v, Owner: server.Owner{Home: o.Home, Source: o.Name}, State: o.State,
		Sessions: server.Sessions{Server: v, Disconnect: o.Disconnect, Log: o.Log},
	}}, nil
}

// tools run on v, as this source is configured.
func (s *Source) tools(v *server.Server) dump.Tools {
	return dump.Tools{Server: v, Log: s.o.Log, Observe: s.o.Observe}
}

// Name is the source's name.
func (s *Source) Name() string { return s.o.Name }

// Kind says that it is a database.
func (s *Source) Kind() string { return Kind }

// Where shows user@host:port/database; it opens nothing.
func (s *Source) Where() string { return s.Server.Where() }

// Present is always true: whether the server answers is Check's to tell.
func (s *Source) Present() bool { return true }
