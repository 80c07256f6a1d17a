package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/server"
)

// listTimeout bounds the question which clones there are: it is asked before a node starts, and can be put off.
const listTimeout = 3 * time.Second

// putOff is an error of tidying: whatever it is, it can wait until the server can be asked.
type putOff struct{ error }

func (e putOff) Unwrap() error        { return e.error }
func (e putOff) Is(target error) bool { return target == manifest.ErrAway }

// FrozenAt is the name of the clone that a snapshot of this source has, or would have.
func (s *Source) FrozenAt(id string) string { return s.Owner.CloneName(id) }

// FrozenIDs lists the snapshots that have a clone, also one that isn't complete. It takes 3 s at most; a server that
// can't be asked is manifest.ErrAway.
func (s *Source) FrozenIDs() ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	clones, err := s.clones(ctx)
	var ids []string
	for _, c := range clones {
		if c.Name == s.Owner.CloneName(c.Mark.Snapshot) {
			ids = append(ids, c.Mark.Snapshot)
		}
	}
	return ids, err
}

// clones lists this source's clones, the oldest first. Their list can be read from any database of the server.
func (s *Source) clones(ctx context.Context) ([]server.Owned, error) {
	conn, err := s.Server.Admin(ctx)
	if err != nil { // the role may have no business in the database postgres: then it has made no clone
		if conn, err = s.Server.Connect(ctx, ""); err != nil {
			return nil, putOff{err}
		}
	}
	defer server.Close(conn)
	all, err := s.Owner.List(ctx, conn)
	if err != nil {
		return nil, putOff{s.Server.Explain(ctx, "list clones in", err)}
	}
	return slices.DeleteFunc(all, func(o server.Owned) bool { return o.Mark == nil || o.Mark.Role != server.RoleClone }), nil
}

// Drop removes the clone of a snapshot, if there is one, whatever state it is in.
func (s *Source) Drop(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	err := s.dropClone(ctx, s.Owner.CloneName(id))
	if err == nil {
		return nil
	}
	if clones, lerr := s.clones(ctx); lerr == nil && !slices.ContainsFunc(clones, func(o server.Owned) bool { return o.Mark.Snapshot == id }) {
		return nil // no right to drop, and nothing to drop
	}
	return putOff{err}
}

// Retire is told that the snapshot's archive is verified. The newest keep_clones of such clones stay, for a rollback
// without a restore; all others of them go.
func (s *Source) Retire(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	clones, err := s.clones(ctx)
	if err != nil {
		return err
	}
	conn, err := s.Server.Admin(ctx)
	if err != nil && len(clones) == 0 {
		return nil // a role without business there has made nothing
	}
	if err != nil {
		return putOff{err}
	}
	defer server.Close(conn)
	if err := s.Owner.Sweep(ctx, conn); err != nil {
		return putOff{s.Server.OnAdmin().Explain(ctx, "drop left-overs in", err)}
	}
	archived := slices.DeleteFunc(clones, func(c server.Owned) bool { return !c.Mark.Archived && c.Mark.Snapshot != id })
	slices.SortStableFunc(archived, func(a, b server.Owned) int { return b.Mark.MadeAt.Compare(a.Mark.MadeAt) })
	for i, c := range archived {
		switch {
		case i >= s.o.KeepClones:
			err = s.Owner.Drop(ctx, conn, c)
			if err == nil {
				s.o.Log.Info("clone dropped", "source", s.o.Name, "clone", c.Name, "snapshot", c.Mark.Snapshot)
			}
		case !c.Mark.Archived:
			c.Mark.Archived = true
			err = server.Comment(ctx, conn, c.Name, *c.Mark)
		}
		if err != nil {
			return putOff{s.Server.OnAdmin().Explain(ctx, "drop clones in", err)}
		}
	}
	return nil
}

// VerifyClone compares the clone that a record names with what the server has.
func (s *Source) VerifyClone(ctx context.Context, rec manifest.Source) ([]manifest.Fault, error) {
	if rec.Database == nil || rec.Database.Clone == nil || rec.Database.CloneOID == nil {
		return []manifest.Fault{{Path: rec.Name, Want: "a clone", Got: "a record without one"}}, nil
	}
	name, oid := *rec.Database.Clone, *rec.Database.CloneOID
	conn, err := s.Server.Admin(ctx)
	if err != nil {
		return nil, err
	}
	defer server.Close(conn)
	o, err := s.Owner.Find(ctx, conn, name)
	if err != nil {
		return nil, s.Server.OnAdmin().Explain(ctx, "look for clone "+name+" in", err)
	}
	fault := func(want, got string) ([]manifest.Fault, error) {
		return []manifest.Fault{{Path: rec.Name + "/" + name, Want: want, Got: got}}, nil
	}
	switch {
	case o == nil:
		return fault("the database "+name, "no such database of ours")
	case o.OID != oid:
		return fault(fmt.Sprintf("oid %d", oid), fmt.Sprintf("oid %d", o.OID))
	case o.Mark == nil || o.Mark.Role != server.RoleClone || !o.Mark.Complete:
		return fault("a complete clone", "an unfinished one")
	case s.Owner.CloneName(o.Mark.Snapshot) != name || o.Mark.Name != rec.Database.Name:
		return fault("the clone of "+rec.Database.Name, "one of "+o.Mark.Name+", of snapshot "+o.Mark.Snapshot)
	}
	return nil, nil
}

// checkClone is VerifyClone as a refusal, for who is about to use the clone.
func (s *Source) checkClone(ctx context.Context, rec manifest.Source) error {
	faults, err := s.VerifyClone(ctx, rec)
	if err == nil && len(faults) > 0 {
		err = &hint.Error{Op: "use clone", Path: rec.Name, Err: faults[0], Hint: "supervisor snapshot list; a verified snapshot can be restored without its clone"}
	}
	return err
}

// growth watches the directory of a database that is being created: base/<oid>, of which the catalog knows nothing yet.
type growth struct {
	base  string // "" = not seen from here
	known map[string]bool
}

func (s *Source) growth(ctx context.Context, conn *pgx.Conn) growth {
	var data string
	if conn.QueryRow(ctx, "SELECT current_setting('data_directory')").Scan(&data) != nil {
		return growth{}
	}
	if is, err := byPidFile(ctx, conn, data); err != nil || !is {
		return growth{}
	}
	g := growth{base: filepath.Join(data, "base"), known: map[string]bool{}}
	rows, err := conn.Query(ctx, "SELECT oid::text FROM pg_database")
	if err != nil {
		return growth{}
	}
	oids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, oid := range oids {
		g.known[oid] = true
	}
	if err != nil {
		return growth{}
	}
	return g
}

// bytes is how much the new database has, or 0.
func (g growth) bytes() (sum int64) {
	if g.base == "" {
		return 0
	}
	dirs, err := os.ReadDir(g.base)
	if err != nil {
		return 0
	}
	for _, d := range dirs {
		if _, err := strconv.ParseUint(d.Name(), 10, 32); err != nil || g.known[d.Name()] {
			continue
		}
		files, err := os.ReadDir(filepath.Join(g.base, d.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		for _, f := range files {
			if info, err := f.Info(); err == nil {
				sum += info.Size()
			}
		}
	}
	return sum
}
