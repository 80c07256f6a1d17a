package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/dump"
	"nodevisor/snapshot/postgres/server"
)

// askTimeout bounds all questions to a server together, in Forecast and before a clone.
const askTimeout = 30 * time.Second

// choice is how a database will be taken, decided while the node still runs.
type choice struct {
	method string // manifest.Clone or manifest.Dump
	why    string
	size   int64 // pg_database_size
	needs  []manifest.Need
}

// Forecast tells what a snapshot in dir would take, and decides the method: the Freeze that follows keeps to it. In mode
// auto a clone is made only where rights and room are proven. The node may run.
func (s *Source) Forecast(ctx context.Context, dir string) (manifest.Estimate, error) {
	p, err := s.decide(ctx, dir)
	if err != nil {
		return manifest.Estimate{}, err
	}
	s.mu.Lock()
	before := s.choice
	s.choice = &p
	s.mu.Unlock()
	if before == nil || before.method != p.method || before.why != p.why {
		s.o.Log.Info("database will be taken by "+p.method, "source", s.o.Name, "method", p.method, "why", p.why, "bytes", p.size)
	}
	return manifest.Estimate{Method: p.method, Bytes: p.size, Needs: p.needs}, nil
}

// chosen gives what Forecast decided, or decides now: after a crash in the window nobody asked for a forecast.
func (s *Source) chosen(ctx context.Context, dir string) (choice, error) {
	s.mu.Lock()
	p := s.choice
	s.mu.Unlock()
	if p != nil {
		return *p, nil
	}
	return s.decide(ctx, dir)
}

// decide asks for size, rights and room, and picks the method.
func (s *Source) decide(ctx context.Context, dir string) (choice, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := s.Server.Connect(ctx, "")
	if err != nil {
		return choice{}, err
	}
	defer server.Close(conn)
	p := choice{}
	if err := conn.QueryRow(ctx, "SELECT pg_database_size(current_database())").Scan(&p.size); err != nil {
		return p, s.Server.Explain(ctx, "measure", err)
	}
	archive := manifest.Need{Path: dir, Bytes: dump.Size(p.size)}
	p.method, p.why, p.needs = manifest.Dump, `mode is "dump"`, []manifest.Need{archive}
	if s.o.Mode == ModeDump {
		return p, nil
	}
	lack, err := s.lackOfRights(ctx, conn.Config().Database)
	if err != nil {
		lack = fmt.Sprintf("databases can't be created: %v", err)
	}
	if lack == "" {
		r, err := s.roomFor(ctx, conn, p.size, dir)
		if err != nil {
			return p, s.Server.Explain(ctx, "measure", err)
		}
		switch {
		case r.missing != "":
			lack = r.missing
		case r.unseen != "" && s.o.Mode == ModeAuto:
			lack = "the room on the server isn't known: " + r.unseen
		default:
			p.method, p.why, p.needs = manifest.Clone, "rights and room are there", append(r.needs, archive)
			if r.unseen != "" {
				p.why = `mode is "clone"; the room on the server isn't known`
			}
			return p, nil
		}
	}
	if s.o.Mode == ModeClone && s.o.Fallback != "dump" {
		return p, &hint.Error{Op: "clone", Path: s.Where(), Err: errors.New(lack), Hint: `supervisor doctor; or set fallback = "dump"`}
	}
	p.why = lack
	return p, nil
}

// lackOfRights says what the role of admin_dsn may not, of what a clone needs; "" where it may.
func (s *Source) lackOfRights(ctx context.Context, database string) (string, error) {
	conn, err := s.Server.Admin(ctx)
	if err != nil {
		return "", err
	}
	defer server.Close(conn)
	var role, owner string
	var super, createDB, owns bool
	err = conn.QueryRow(ctx, `SELECT r.rolname::text, r.rolsuper, r.rolcreatedb, pg_get_userbyid(d.datdba)::text, pg_has_role(r.oid, d.datdba, 'USAGE')
		FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = $1`, database).Scan(&role, &super, &createDB, &owner, &owns)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "admin_dsn leads to another server: there is no database " + database, nil
	case err != nil:
		return "", s.Server.OnAdmin().Explain(ctx, "read rights in", err)
	case !super && !createDB:
		return fmt.Sprintf("role %s lacks CREATEDB", role), nil
	case !super && !owns:
		return fmt.Sprintf("role %s is no member of %s, the owner", role, owner), nil
	}
	return "", nil
}

// Freeze takes the database: by a clone, which is fast, or by a dump. The node is at rest, but for job.Live. A clone that
// fails is followed by a dump, where the configuration says so.
func (s *Source) Freeze(ctx context.Context, job manifest.Job) (manifest.Source, error) {
	if job.Live {
		return s.dump(ctx, job, "")
	}
	database, err := s.atRest(ctx)
	if err != nil {
		return manifest.Source{}, err
	}
	p, err := s.chosen(ctx, job.Dir)
	if err != nil {
		return manifest.Source{}, err
	}
	s.mu.Lock()
	s.choice = nil // what it rests on is over with this stop
	s.mu.Unlock()
	if p.method == manifest.Dump {
		return s.dump(ctx, job, database)
	}
	rec, err := s.clone(ctx, job, database, p)
	switch {
	case err == nil:
		return rec, nil
	case ctx.Err() != nil, errors.Is(err, manifest.ErrAway), errors.Is(err, server.ErrPrepared):
		return manifest.Source{}, err
	case s.o.Fallback != "dump":
		return manifest.Source{}, &hint.Error{Op: "clone", Path: s.Where(), Err: err, Hint: cmp.Or(hint.Of(err), "supervisor doctor") + `; or set fallback = "dump"`}
	}
	s.o.Log.Warn("clone failed, the database is dumped instead", "source", s.o.Name, "error", err, "hint", hint.Of(err))
	return s.dump(ctx, job, database)
}

// atRest gives the database's real name, and refuses one that a copy would be incomplete of.
func (s *Source) atRest(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := s.Server.Connect(ctx, "")
	if err != nil {
		return "", err
	}
	defer server.Close(conn)
	database := conn.Config().Database
	err = server.NoPrepared(ctx, conn, database)
	if err != nil && !errors.Is(err, server.ErrPrepared) {
		err = s.Server.Explain(ctx, "look for prepared transactions in", err)
	}
	return database, err
}
