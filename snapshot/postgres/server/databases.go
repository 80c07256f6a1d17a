package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A database of ours is called sv_<8 hex of the home's digest>_<8 hex>, which stays below the 63 bytes that PostgreSQL
// keeps of a name. Its comment says what it is. Comments can't be made in the statement that creates a database, so until
// it has one its connection limit tells that it is ours: a number that follows from home and source.
//
// Invariant: a database is touched only where its name is ours, and its comment, or without one its connection limit,
// says that it belongs to this home and this source.

// The roles of a database of ours.
const (
	RoleClone   = "clone"   // the frozen copy of a snapshot
	RoleScratch = "scratch" // a restored archive, for a comparison
	RoleStaged  = "staged"  // a restored archive or a copied clone, to be swapped in
	RoleBefore  = "before"  // what was live before a restore
)

// limitInvalid is what a server sets where DROP DATABASE was interrupted (15.4 and newer): it can only be dropped again.
const limitInvalid = -2

// Mark is the comment on a database of ours.
type Mark struct {
	By       string    `json:"by"` // always AppName
	Role     string    `json:"role"`
	Name     string    `json:"name"` // the real name of the database that it was made from
	Snapshot string    `json:"snapshot"`
	Source   string    `json:"source"`
	Home     string    `json:"home"`
	MadeAt   time.Time `json:"made_at"`  // by the server's clock
	Complete bool      `json:"complete"` // its content is whole; until then it is made anew
	Archived bool      `json:"archived"` // of a clone: the snapshot's archive is verified
}

// Owned is a database of ours as the server has it.
type Owned struct {
	Name string
	OID  uint32
	Mark *Mark // nil: it was being created when its maker died
}

// Owner is whose databases they are: those of one home and one source.
type Owner struct {
	Home   string // the node's, absolute
	Source string // its name
}

// digest8 is 8 hex digits of the parts.
func digest8(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:4])
}

// Prefix is that of every database of this home.
func (w Owner) Prefix() string { return "sv_" + digest8(w.Home) + "_" }

// CloneName follows from snapshot and source, so that a Freeze that is done again finds what it began.
func (w Owner) CloneName(id string) string { return w.Prefix() + digest8(id, w.Source) }

// Owns tells whether a name could be one that we gave.
func (w Owner) Owns(name string) bool {
	return len(name) == len(w.Prefix())+8 && name[:len(w.Prefix())] == w.Prefix()
}

// FreshName is one that no other database has.
func (w Owner) FreshName() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	return w.Prefix() + hex.EncodeToString(b[:])
}

// limit is the connection limit that tells that a database without a comment is ours. It is far above every
// max_connections (262143 at most), so it limits nothing.
func (w Owner) limit() int32 {
	sum := sha256.Sum256([]byte(w.Home + "\x00" + w.Source))
	return int32(binary.BigEndian.Uint32(sum[:4])&0x3fffffff) | 0x40000000
}

// NewMark describes a database that is about to be made for a snapshot.
func (w Owner) NewMark(role, database, id string) Mark {
	return Mark{By: AppName, Role: role, Name: database, Snapshot: id, Source: w.Source, Home: w.Home}
}

// Create makes a database of ours and comments it. options are those of CREATE DATABASE, beginning with a blank, without
// CONNECTION LIMIT; identifiers in them are quoted by the caller. The connection is no transaction.
func (w Owner) Create(ctx context.Context, conn *pgx.Conn, name, options string, m Mark) error {
	// Until the comment is there, the lock tells Sweep that somebody is at it. It goes with the session.
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock(hashtextextended($1, 0))", name); err != nil {
		return err
	}
	defer func() {
		if ctx.Err() == nil {
			_, _ = conn.Exec(ctx, "SELECT pg_advisory_unlock(hashtextextended($1, 0))", name)
		}
	}()
	stmt := fmt.Sprintf("CREATE DATABASE %s%s CONNECTION LIMIT %d", Quote(name), options, w.limit())
	if _, err := conn.Exec(ctx, stmt); err != nil {
		return err
	}
	if err := conn.QueryRow(ctx, "SELECT now()").Scan(&m.MadeAt); err != nil {
		return err
	}
	return Comment(ctx, conn, name, m)
}

// Session is a connection, or a transaction on one.
type Session interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Comment writes a mark. The server quotes: how strings are written depends on its settings.
func Comment(ctx context.Context, conn Session, name string, m Mark) error {
	m.MadeAt = m.MadeAt.UTC().Truncate(time.Microsecond)
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return Formatted(ctx, conn, "COMMENT ON DATABASE %I IS %L", name, string(text))
}

// Formatted executes a statement that the server's format() makes.
func Formatted(ctx context.Context, conn Session, format string, args ...string) error {
	var stmt string
	if err := conn.QueryRow(ctx, "SELECT format($1, VARIADIC $2::text[])", format, args).Scan(&stmt); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, stmt)
	return err
}

// Quote is an identifier in SQL.
func Quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// List lists the databases of this home and this source, in the order in which they were made.
func (w Owner) List(ctx context.Context, conn Session) ([]Owned, error) {
	rows, err := conn.Query(ctx, `SELECT datname::text, oid, datconnlimit, coalesce(shobj_description(oid, 'pg_database'), '')
		FROM pg_database WHERE starts_with(datname::text, $1) ORDER BY oid`, w.Prefix())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []Owned
	for rows.Next() {
		var o Owned
		var limit int32
		var text string
		if err := rows.Scan(&o.Name, &o.OID, &limit, &text); err != nil {
			return nil, err
		}
		var m Mark
		switch {
		case text == "" && (limit == w.limit() || limit == limitInvalid):
		case json.Unmarshal([]byte(text), &m) == nil && m.By == AppName && m.Home == w.Home && m.Source == w.Source:
			o.Mark = &m
		default:
			continue // another source's, or none of ours
		}
		all = append(all, o)
	}
	return all, rows.Err()
}

// Find gives the database of ours with that name, or nil.
func (w Owner) Find(ctx context.Context, conn Session, name string) (*Owned, error) {
	all, err := w.List(ctx, conn)
	for i := range all {
		if all[i].Name == name {
			return &all[i], err
		}
	}
	return nil, err
}

// Drop removes a database that List or Find gave. Who is connected to it is disconnected: nobody but us has business there.
func (w Owner) Drop(ctx context.Context, conn *pgx.Conn, o Owned) error {
	var now uint32
	err := conn.QueryRow(ctx, "SELECT oid FROM pg_database WHERE datname = $1", o.Name).Scan(&now)
	if errors.Is(err, pgx.ErrNoRows) || (err == nil && now != o.OID) {
		return nil // gone, or renamed: then the name is another's
	}
	if err == nil {
		_, err = conn.Exec(ctx, "DROP DATABASE IF EXISTS "+Quote(o.Name)+" WITH (FORCE)") // FORCE: 13 and newer
	}
	return err
}

// Sweep drops what was being created when its maker died: a database of ours without a mark, that nobody is at.
func (w Owner) Sweep(ctx context.Context, conn *pgx.Conn) error {
	all, err := w.List(ctx, conn)
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.Mark != nil {
			continue
		}
		var free bool
		if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock(hashtextextended($1, 0))", o.Name).Scan(&free); err != nil {
			return err
		}
		if !free {
			continue
		}
		now, err := w.Find(ctx, conn, o.Name) // it may have got its mark in between
		if err == nil && now != nil && now.Mark == nil {
			err = w.Drop(ctx, conn, *now)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
