package postgres

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
	roleClone   = "clone"   // the frozen copy of a snapshot
	roleScratch = "scratch" // a restored archive, for a comparison
	roleStaged  = "staged"  // a restored archive or a copied clone, to be swapped in
	roleBefore  = "before"  // what was live before a restore
)

// limitInvalid is what a server sets where DROP DATABASE was interrupted (15.4 and newer): it can only be dropped again.
const limitInvalid = -2

// mark is the comment on a database of ours.
type mark struct {
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

// owned is a database of ours as the server has it.
type owned struct {
	Name string
	OID  uint32
	Mark *mark // nil: it was being created when its maker died
}

// digest8 is 8 hex digits of the parts.
func digest8(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:4])
}

// prefix is that of every database of this home.
func (s *Source) prefix() string { return "sv_" + digest8(s.o.Home) + "_" }

// cloneName follows from snapshot and source, so that a Freeze that is done again finds what it began.
func (s *Source) cloneName(id string) string { return s.prefix() + digest8(id, s.o.Name) }

// freshName is one that no other database has.
func (s *Source) freshName() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	return s.prefix() + hex.EncodeToString(b[:])
}

// limit is the connection limit that tells that a database without a comment is ours. It is far above every
// max_connections (262143 at most), so it limits nothing.
func (s *Source) limit() int32 {
	sum := sha256.Sum256([]byte(s.o.Home + "\x00" + s.o.Name))
	return int32(binary.BigEndian.Uint32(sum[:4])&0x3fffffff) | 0x40000000
}

// newMark describes a database that is about to be made for a snapshot.
func (s *Source) newMark(role, database, id string) mark {
	return mark{By: AppName, Role: role, Name: database, Snapshot: id, Source: s.o.Name, Home: s.o.Home}
}

// create makes a database of ours and comments it. options are those of CREATE DATABASE, beginning with a blank, without
// CONNECTION LIMIT; identifiers in them are quoted by the caller. The connection is no transaction.
func (s *Source) create(ctx context.Context, conn *pgx.Conn, name, options string, m mark) error {
	// Until the comment is there, the lock tells sweep that somebody is at it. It goes with the session.
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock(hashtextextended($1, 0))", name); err != nil {
		return err
	}
	defer func() {
		if ctx.Err() == nil {
			_, _ = conn.Exec(ctx, "SELECT pg_advisory_unlock(hashtextextended($1, 0))", name)
		}
	}()
	stmt := fmt.Sprintf("CREATE DATABASE %s%s CONNECTION LIMIT %d", quoted(name), options, s.limit())
	if _, err := conn.Exec(ctx, stmt); err != nil {
		return err
	}
	if err := conn.QueryRow(ctx, "SELECT now()").Scan(&m.MadeAt); err != nil {
		return err
	}
	return comment(ctx, conn, name, m)
}

// session is a connection, or a transaction on one.
type session interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// comment writes a mark. The server quotes: how strings are written depends on its settings.
func comment(ctx context.Context, conn session, name string, m mark) error {
	m.MadeAt = m.MadeAt.UTC().Truncate(time.Microsecond)
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return formatted(ctx, conn, "COMMENT ON DATABASE %I IS %L", name, string(text))
}

// formatted executes a statement that the server's format() makes.
func formatted(ctx context.Context, conn session, format string, args ...string) error {
	var stmt string
	if err := conn.QueryRow(ctx, "SELECT format($1, VARIADIC $2::text[])", format, args).Scan(&stmt); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, stmt)
	return err
}

// quoted is an identifier.
func quoted(name string) string { return pgx.Identifier{name}.Sanitize() }

// ours lists the databases of this home and this source, in the order in which they were made.
func (s *Source) ours(ctx context.Context, conn session) ([]owned, error) {
	rows, err := conn.Query(ctx, `SELECT datname::text, oid, datconnlimit, coalesce(shobj_description(oid, 'pg_database'), '')
		FROM pg_database WHERE starts_with(datname::text, $1) ORDER BY oid`, s.prefix())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []owned
	for rows.Next() {
		var o owned
		var limit int32
		var text string
		if err := rows.Scan(&o.Name, &o.OID, &limit, &text); err != nil {
			return nil, err
		}
		var m mark
		switch {
		case text == "" && (limit == s.limit() || limit == limitInvalid):
		case json.Unmarshal([]byte(text), &m) == nil && m.By == AppName && m.Home == s.o.Home && m.Source == s.o.Name:
			o.Mark = &m
		default:
			continue // another source's, or none of ours
		}
		all = append(all, o)
	}
	return all, rows.Err()
}

// find gives the database of ours with that name, or nil.
func (s *Source) find(ctx context.Context, conn session, name string) (*owned, error) {
	all, err := s.ours(ctx, conn)
	for i := range all {
		if all[i].Name == name {
			return &all[i], err
		}
	}
	return nil, err
}

// drop removes a database that ours or find gave. Who is connected to it is disconnected: nobody but us has business there.
func (s *Source) drop(ctx context.Context, conn *pgx.Conn, o owned) error {
	var now uint32
	err := conn.QueryRow(ctx, "SELECT oid FROM pg_database WHERE datname = $1", o.Name).Scan(&now)
	if errors.Is(err, pgx.ErrNoRows) || (err == nil && now != o.OID) {
		return nil // gone, or renamed: then the name is another's
	}
	if err == nil {
		_, err = conn.Exec(ctx, "DROP DATABASE IF EXISTS "+quoted(o.Name)+" WITH (FORCE)") // FORCE: 13 and newer
	}
	return err
}

// sweep drops what was being created when its maker died: a database of ours without a mark, that nobody is at.
func (s *Source) sweep(ctx context.Context, conn *pgx.Conn) error {
	all, err := s.ours(ctx, conn)
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
		now, err := s.find(ctx, conn, o.Name) // it may have got its mark in between
		if err == nil && now != nil && now.Mark == nil {
			err = s.drop(ctx, conn, *now)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
