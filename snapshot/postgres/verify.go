package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/server"
)

// tidyTimeout bounds what is asked of a server at a start that isn't needed for it.
const tidyTimeout = 3 * time.Second

// VerifyDeep restores the archive at into a scratch database, compares every table, sequence and large object with the
// manifest, and drops it again. The archive's files were compared with their digests before. Owners, rights and
// the tablespaces of tables are left out: the content is what is proven, and another server may have other ones.
func (s *Source) VerifyDeep(ctx context.Context, at string, rec manifest.Source) (faults []manifest.Fault, err error) {
	if rec.Database == nil || rec.Database.Tables == nil {
		return nil, fmt.Errorf("cannot verify source %s: its record holds no content to compare with", rec.Name)
	}
	admin, err := s.Server.Scratch(ctx)
	if err != nil {
		return nil, err
	}
	defer server.Close(admin)
	way := s.Server.OnScratch()
	name := s.Owner.FreshName()
	if err := holdScratch(ctx, admin, name); err != nil {
		return nil, way.Explain(ctx, "verify on", err)
	}
	// Also where the creation failed halfway, or ctx has ended: what was made is taken away.
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, way.Explain(ctx, "drop scratch database on", s.dropByName(ctx, name)))
	}()
	space, err := server.TablespaceOption(ctx, admin, rec.Database)
	if err != nil {
		return nil, way.Explain(ctx, "create a scratch database on", err)
	}
	if err := s.Owner.Create(ctx, admin, name, server.FreshOptions(rec.Database)+space, s.Owner.NewMark(server.RoleScratch, rec.Database.Name, "")); err != nil {
		return nil, way.Explain(ctx, "create a scratch database on", err)
	}
	return s.tools(way).Load(ctx, name, at, rec, true, "--no-owner", "--no-privileges", "--no-tablespaces", "--no-publications", "--no-subscriptions")
}

// holdScratch tells others that the scratch database is in use: until this session ends.
func holdScratch(ctx context.Context, admin *pgx.Conn, name string) error {
	_, err := admin.Exec(ctx, "SELECT pg_advisory_lock(hashtextextended($1, 0))", name)
	return err
}

// dropByName drops a scratch database on a session of its own: that of its maker may be broken.
func (s *Source) dropByName(ctx context.Context, name string) error {
	admin, err := s.Server.Scratch(ctx)
	if err != nil {
		return err
	}
	defer server.Close(admin)
	o, err := s.Owner.Find(ctx, admin, name)
	if err != nil || o == nil {
		return err
	}
	return s.Owner.Drop(ctx, admin, *o)
}

// dropScratch removes scratch databases whose maker died. One in use is left alone.
func (s *Source) dropScratch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tidyTimeout)
	defer cancel()
	admin, err := s.Server.Scratch(ctx)
	if err != nil {
		return err
	}
	defer server.Close(admin)
	all, err := s.Owner.List(ctx, admin)
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.Mark != nil && o.Mark.Role != server.RoleScratch { // without a mark its maker died as soon as it was made
			continue
		}
		var free bool
		if err := admin.QueryRow(ctx, "SELECT pg_try_advisory_lock(hashtextextended($1, 0))", o.Name).Scan(&free); err != nil {
			return err
		}
		if !free {
			continue
		}
		if err := s.Owner.Drop(ctx, admin, o); err != nil {
			return err
		}
		s.o.Log.Info("scratch database of an interrupted verification dropped", "database", o.Name)
	}
	return nil
}

// Abort ends a restore that was not committed, as rename.Place does. Where there is none, it removes what verifications
// left that were interrupted; a server that is away keeps it until the next time.
func (s *Source) Abort() error {
	if phase, err := s.Pending(); err != nil || phase != "" {
		return s.Place.Abort()
	}
	if err := s.dropScratch(context.Background()); err != nil {
		s.o.Log.Debug("scratch databases not looked for", "source", s.o.Name, "error", err)
	}
	return nil
}
