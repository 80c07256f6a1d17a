package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
)

const (
	// A clone may take this long, and as long as its size takes at a rate that only a failing disk stays below.
	cloneTimeout = 5 * time.Minute
	cloneRate    = 10 << 20 // bytes per second
	// undoTimeout bounds what must be done after a cancellation.
	undoTimeout = 15 * time.Second
	// strategySince is the server_version_num since which CREATE DATABASE copies through the WAL unless it is told not
	// to. Older servers copy files, and know no STRATEGY.
	strategySince = 150000
)

// clone copies the database inside its server and records it. Each step can be done again: a clone of this snapshot
// without the mark "complete" is dropped and made anew.
func (s *Source) clone(ctx context.Context, job manifest.Job, database string, p plan) (manifest.Source, error) {
	if job.Room != nil {
		if err := job.Room(p.needs...); err != nil {
			return manifest.Source{}, err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cloneTimeout+time.Duration(p.size/cloneRate)*time.Second, errors.New("the clone took too long"))
	defer cancel()
	conn, err := s.server.Admin(ctx)
	if err != nil {
		return manifest.Source{}, err
	}
	defer s.close(conn)
	fail := func(err error) (manifest.Source, error) {
		return manifest.Source{}, s.server.OnAdmin().explain(ctx, "clone "+database+" in", err)
	}
	db, err := describe(ctx, conn, database)
	if err != nil {
		return fail(err)
	}
	name := s.cloneName(job.ID)
	if err := s.endOrphans(ctx, conn, name); err != nil {
		return fail(err)
	}
	made, err := s.find(ctx, conn, name)
	if err != nil {
		return fail(err)
	}
	if made != nil && (made.Mark == nil || !made.Mark.Complete) {
		if err := s.drop(ctx, conn, *made); err != nil {
			return fail(err)
		}
		made = nil
	}
	if made == nil {
		if err := s.makeClone(ctx, conn, job.ID, db); err != nil {
			return manifest.Source{}, s.undoClone(err, name)
		}
		if made, err = s.find(ctx, conn, name); err != nil {
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
	others, err := s.clear(ctx, conn, db.Name)
	if err != nil {
		return s.server.OnAdmin().explain(ctx, "read sessions in", err)
	}
	if len(others) > 0 {
		return s.inUse("clone database", db.Name, others)
	}
	var version int
	var self string
	if err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int, current_user::text").Scan(&version, &self); err != nil {
		return s.server.OnAdmin().explain(ctx, "clone in", err)
	}
	options := " TEMPLATE " + quoted(db.Name) + " ALLOW_CONNECTIONS false"
	if db.Owner != self {
		options += " OWNER " + quoted(db.Owner)
	}
	if version >= strategySince {
		options += " STRATEGY FILE_COPY"
	}
	stop := s.watchClone(ctx, db)
	begin := time.Now()
	name := s.cloneName(id)
	m := s.newMark(roleClone, db.Name, id)
	err = s.create(ctx, conn, name, options, m)
	stop()
	if state(err) == stateInUse {
		if others, cerr := clients(ctx, conn, db.Name); cerr == nil && len(others) > 0 {
			return errors.Join(s.inUse("clone database", db.Name, others), err)
		}
	}
	if err == nil {
		err = s.sealClone(ctx, conn, name, m)
	}
	if err != nil {
		return s.server.OnAdmin().explain(ctx, "clone "+db.Name+" in", err)
	}
	s.o.Observe("snapshot", db.Size, db.Size)
	s.o.Log.Info("database cloned", "source", s.o.Name, "database", db.Name, "clone", name, "bytes", db.Size, "took", time.Since(begin))
	return nil
}

// sealClone closes the clone to all but its owner and superusers, for the time when it is open, and says that it is
// complete: in one transaction.
func (s *Source) sealClone(ctx context.Context, conn *pgx.Conn, name string, m mark) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := formatted(ctx, tx, "REVOKE ALL ON DATABASE %I FROM PUBLIC", name); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, "SELECT now()").Scan(&m.MadeAt); err != nil {
			return err
		}
		m.Complete = true
		return comment(ctx, tx, name, m)
	})
}

// watchClone ends the sessions that may be ended while a clone waits for them, and shows how far it is where the server's
// files can be seen. The returned function ends it.
func (s *Source) watchClone(ctx context.Context, db manifest.Database) (stop func()) {
	var g *growth
	return s.keepClear(ctx, db.Name, func(ctx context.Context, conn *pgx.Conn) {
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

// endOrphans ends what an earlier process of ours began and the server hasn't noticed the end of: the creation of the
// database of that name. Only ours can be: nobody else makes such names.
func (s *Source) endOrphans(ctx context.Context, conn *pgx.Conn, name string) error {
	for {
		var left int
		err := conn.QueryRow(ctx, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE pid <> pg_backend_pid() AND application_name = $1 AND state = 'active' AND starts_with(query, $2)`,
			AppName, "CREATE DATABASE "+quoted(name)+" ").Scan(&left)
		if err != nil || left == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(look):
		}
	}
}

// dropClone removes the database of ours with that name, if there is one. Done twice it is no error.
func (s *Source) dropClone(ctx context.Context, name string) error {
	conn, err := s.server.Admin(ctx)
	if err != nil {
		return err
	}
	defer s.close(conn)
	err = s.endOrphans(ctx, conn, name)
	var o *owned
	if err == nil {
		o, err = s.find(ctx, conn, name)
	}
	if err == nil && o != nil {
		err = s.drop(ctx, conn, *o)
	}
	return s.server.OnAdmin().explain(ctx, "drop clone "+name+" in", err)
}

// openClone lets sessions into a clone, for the time of a dump; shut keeps them out again. Two may read it at a time (its
// archive is made, and a template): the last one shuts it, which the lock tells. After a crash in between it stays open to
// its owner and to superusers, and is shut by the next one.
func (s *Source) openClone(ctx context.Context, name string) (shut func(), err error) {
	const locked = "(hashtextextended($1, 1))" // 0 is that of a creation
	set := func(ctx context.Context, conn *pgx.Conn, allow bool) error {
		o, err := s.find(ctx, conn, name)
		if err == nil && o == nil {
			return hint.New("open clone", name, "there is no such database of ours", "supervisor snapshot list")
		}
		if err == nil {
			err = formatted(ctx, conn, fmt.Sprintf("ALTER DATABASE %%I ALLOW_CONNECTIONS %t", allow), name)
		}
		return s.server.OnAdmin().explainUnlessHinted(ctx, "open clone "+name+" in", err)
	}
	conn, err := s.server.Admin(ctx)
	if err != nil {
		return nil, err
	}
	if _, err = conn.Exec(ctx, "SELECT pg_advisory_lock_shared"+locked, name); err == nil {
		err = set(ctx, conn, true)
	}
	if err != nil {
		s.close(conn)
		return nil, s.server.OnAdmin().explainUnlessHinted(ctx, "open clone "+name+" in", err)
	}
	return func() {
		defer s.close(conn)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		last := false
		_, err := conn.Exec(ctx, "SELECT pg_advisory_unlock_shared"+locked, name)
		if err == nil {
			err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock"+locked, name).Scan(&last)
		}
		if err == nil && last {
			err = set(ctx, conn, false)
		}
		if err != nil {
			s.o.Log.Warn("clone left open", "source", s.o.Name, "clone", name, "error", err)
		}
	}, nil
}
