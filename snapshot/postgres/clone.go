package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/server"
)

const (
	// A clone may take this long, and as long as its size takes at a rate that only a failing disk stays below.
	cloneTimeout = 5 * time.Minute
	cloneRate    = 10 << 20 // bytes per second
	// undoTimeout bounds what must be done after a cancellation.
	undoTimeout = 15 * time.Second
	// strategySince is the version of the servers that copy a database through the WAL unless they are told not to. Older
	// ones copy files, and know no STRATEGY.
	strategySince = 15
)

// clone copies the database inside its server and records it. Each step can be done again: a clone of this snapshot
// without the mark "complete" is dropped and made anew.
func (s *Source) clone(ctx context.Context, job manifest.Job, database string, p choice) (manifest.Source, error) {
	if job.Room != nil {
		if err := job.Room(p.needs...); err != nil {
			return manifest.Source{}, err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cloneTimeout+time.Duration(p.size/cloneRate)*time.Second, errors.New("the clone took too long"))
	defer cancel()
	conn, err := s.Server.Admin(ctx)
	if err != nil {
		return manifest.Source{}, err
	}
	defer server.Close(conn)
	fail := func(err error) (manifest.Source, error) {
		return manifest.Source{}, s.Server.OnAdmin().Explain(ctx, "clone "+database+" in", err)
	}
	db, err := server.Describe(ctx, conn, database)
	if err != nil {
		return fail(err)
	}
	name := s.Owner.CloneName(job.ID)
	if err := s.Owner.EndOrphans(ctx, conn, name); err != nil {
		return fail(err)
	}
	made, err := s.Owner.Find(ctx, conn, name)
	if err != nil {
		return fail(err)
	}
	if made != nil && (made.Mark == nil || !made.Mark.Complete) {
		if err := s.Owner.Drop(ctx, conn, *made); err != nil {
			return fail(err)
		}
		made = nil
	}
	if made == nil {
		if err := s.makeClone(ctx, conn, job.ID, db); err != nil {
			return manifest.Source{}, s.undoClone(err, name)
		}
		if made, err = s.Owner.Find(ctx, conn, name); err != nil {
			return fail(err)
		}
		if made == nil {
			return manifest.Source{}, hint.New("clone", database, "the clone "+name+" is gone again", "look for who drops databases on this server")
		}
	}
	db.Clone, db.CloneOID = &made.Name, &made.OID
	return manifest.Source{
		Name: s.o.Name, Kind: Kind, Path: s.Where(), Method: manifest.Clone, Bytes: db.Size, Frozen: &made.Name, Database: &db,
		Followed: []manifest.Followed{}, Mounts: []string{}, Skipped: []manifest.Skipped{}, Entries: []manifest.Entry{},
	}, nil
}

// makeClone creates the clone and marks it complete. While CREATE DATABASE runs nobody can connect to the database that it
// copies: it holds a lock that every new session waits for. What is connected already it waits for, 5 s; meanwhile the
// sessions that may be ended are ended, also those that came in the last moment.
func (s *Source) makeClone(ctx context.Context, conn *pgx.Conn, id string, db manifest.Database) error {
	others, err := s.Sessions.Clear(ctx, conn, db.Name)
	if err != nil {
		return s.Server.OnAdmin().Explain(ctx, "read sessions in", err)
	}
	if len(others) > 0 {
		return s.Sessions.InUse("clone database", db.Name, others)
	}
	var self string
	if err := conn.QueryRow(ctx, "SELECT current_user::text").Scan(&self); err != nil {
		return s.Server.OnAdmin().Explain(ctx, "clone in", err)
	}
	options := copyOf(conn, db.Name) + " ALLOW_CONNECTIONS false"
	if db.Owner != self {
		options += " OWNER " + server.Quote(db.Owner)
	}
	stop := s.watchClone(ctx, db)
	begin := time.Now()
	name := s.Owner.CloneName(id)
	m := s.Owner.NewMark(server.RoleClone, db.Name, id)
	err = s.Owner.Create(ctx, conn, name, options, m)
	stop()
	if server.State(err) == server.StateInUse {
		if others, cerr := server.Clients(ctx, conn, db.Name); cerr == nil && len(others) > 0 {
			return errors.Join(s.Sessions.InUse("clone database", db.Name, others), err)
		}
	}
	if err == nil {
		err = s.sealClone(ctx, conn, name, m)
	}
	if err != nil {
		return s.Server.OnAdmin().Explain(ctx, "clone "+db.Name+" in", err)
	}
	s.o.Observe("snapshot", db.Size, db.Size)
	s.o.Log.Info("database cloned", "source", s.o.Name, "database", db.Name, "clone", name, "bytes", db.Size, "took", time.Since(begin))
	return nil
}

// copyOf are the options of a CREATE DATABASE on conn's server that copies the files of another database.
func copyOf(conn *pgx.Conn, name string) string {
	options := " TEMPLATE " + server.Quote(name)
	if server.Major(conn.PgConn().ParameterStatus("server_version")) >= strategySince {
		options += " STRATEGY FILE_COPY"
	}
	return options
}

// sealClone closes the clone to all but its owner and superusers, for the time when it is open, and says that it is
// complete: in one transaction.
func (s *Source) sealClone(ctx context.Context, conn *pgx.Conn, name string, m server.Mark) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := server.Formatted(ctx, tx, "REVOKE ALL ON DATABASE %I FROM PUBLIC", name); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, "SELECT now()").Scan(&m.MadeAt); err != nil {
			return err
		}
		m.Complete = true
		return server.Comment(ctx, tx, name, m)
	})
}

// watchClone ends the sessions that may be ended while a clone waits for them, and shows how far it is where the server's
// files can be seen. The returned function ends it.
func (s *Source) watchClone(ctx context.Context, db manifest.Database) (stop func()) {
	var g *growth
	return s.Sessions.KeepClear(ctx, db.Name, func(ctx context.Context, conn *pgx.Conn) {
		if g == nil {
			seen := s.growth(ctx, conn)
			g = &seen
		}
		if n := g.bytes(); n > 0 {
			s.o.Observe("snapshot", min(n, db.Size), db.Size)
		}
	})
}

// undoClone drops what a failed or cancelled attempt left, and gives its error back. The server itself tidies up after a
// CREATE DATABASE that it didn't finish.
func (s *Source) undoClone(err error, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	if derr := s.dropClone(ctx, name); derr != nil && !errors.Is(err, manifest.ErrAway) {
		return errors.Join(err, derr)
	}
	return err
}

// dropClone removes the database of ours with that name, if there is one. Done twice it is no error.
func (s *Source) dropClone(ctx context.Context, name string) error {
	conn, err := s.Server.Admin(ctx)
	if err != nil {
		return err
	}
	defer server.Close(conn)
	err = s.Owner.EndOrphans(ctx, conn, name)
	var o *server.Owned
	if err == nil {
		o, err = s.Owner.Find(ctx, conn, name)
	}
	if err == nil && o != nil {
		err = s.Owner.Drop(ctx, conn, *o)
	}
	return s.Server.OnAdmin().Explain(ctx, "drop clone "+name+" in", err)
}
