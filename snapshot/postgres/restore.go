package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/datadir"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/archive"
	"nodevisor/snapshot/postgres/dump"
	"nodevisor/snapshot/postgres/server"
)

// previewTimeout bounds what is asked of a server before a restore.
const previewTimeout = 30 * time.Second

// Preview refuses what Stage would refuse, without changing anything: a server that is away, roles that are missing,
// slots and subscriptions that a swap would leave behind. The signer's state is none of a database's.
func (s *Source) Preview(r manifest.Restore) ([]manifest.Signer, error) {
	if r.Elsewhere {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), previewTimeout)
	defer cancel()
	admin, err := s.Server.Admin(ctx)
	if err != nil {
		return nil, err
	}
	defer server.Close(admin)
	if r.Record.Database == nil {
		return nil, fmt.Errorf("cannot restore source %s: its record describes no database", s.o.Name)
	}
	if err := s.missingRoles(ctx, admin, r); err != nil {
		return nil, err
	}
	live, err := s.Live()
	if err != nil {
		return nil, err
	}
	return nil, s.CheckBound(ctx, admin, live)
}

// missingRoles names the roles without which the objects would come back as another's.
func (s *Source) missingRoles(ctx context.Context, admin server.Session, r manifest.Restore) error {
	db := r.Record.Database
	want := []string{db.Owner}
	for _, set := range db.Settings {
		want = append(want, set.Role)
	}
	for _, item := range db.Grants {
		if role, _, err := server.GrantRole(item); err == nil {
			want = append(want, role)
		}
	}
	if r.Record.Frozen == nil {
		a, err := archive.Open(r.From)
		if err != nil {
			return &hint.Error{Op: "restore snapshot", Path: r.ID, Err: err, Hint: "supervisor snapshot verify " + r.ID}
		}
		want = append(want, a.Roles...)
	}
	slices.Sort(want)
	want = slices.DeleteFunc(slices.Compact(want), func(role string) bool { return role == "" || !utf8.ValidString(role) })
	rows, err := admin.Query(ctx, "SELECT r FROM unnest($1::text[]) r WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r)", want)
	if err != nil {
		return s.Server.OnAdmin().Explain(ctx, "look for roles on", err)
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return s.Server.OnAdmin().Explain(ctx, "look for roles on", err)
	}
	if len(missing) == 0 {
		return nil
	}
	var create []string
	for _, role := range missing {
		create = append(create, "CREATE ROLE "+server.Quote(role)+";")
	}
	return &hint.Error{
		Op: "restore snapshot", Path: r.ID, Err: fmt.Errorf("roles that own its objects, or have rights on them, aren't there: %s", strings.Join(missing, ", ")),
		Hint: strings.Join(create, " "),
	}
}

// Stage makes the replacement inside the server and compares it with its record; nothing live is touched. Commit and Swap
// put it in place, Abort removes it, also after an error or a crash.
//
// A clone that was kept is the replacement itself, and used up, where the snapshot's archive is intact beside it. Where
// there is no such archive a copy of the clone is. Without a clone a fresh database is filled from the archive.
func (s *Source) Stage(ctx context.Context, r manifest.Restore) error {
	if err := s.Unfinished(); err != nil {
		return err
	}
	r.Elsewhere = false
	if _, err := s.Preview(r); err != nil {
		return err
	}
	admin, err := s.Server.Admin(ctx)
	if err != nil {
		return err
	}
	defer server.Close(admin)
	live, err := s.Live()
	if err != nil {
		return err
	}
	if err := s.Free(ctx, admin, live); err != nil {
		return err
	}
	intact, err := s.intact(ctx, &r)
	if err != nil {
		return err
	}
	clone, err := s.keptClone(ctx, admin, r)
	if err != nil {
		return err
	}
	switch {
	case clone != nil && intact == nil && r.Record.Frozen == nil:
		_, err := s.Begin(r.ID, live, *r.Record.Database, clone)
		return err
	case clone == nil && intact != nil:
		return intact
	}
	stage, err := s.Begin(r.ID, live, *r.Record.Database, nil) // first: the name is found by it after a crash
	if err != nil {
		return err
	}
	oid, err := s.replacement(ctx, admin, stage, live, r, clone)
	if err != nil {
		return err
	}
	return s.Staged(oid)
}

// replacement makes the replacement of live: from a clone that must stay, else from the archive. It gives its oid.
func (s *Source) replacement(ctx context.Context, admin *pgx.Conn, name, live string, r manifest.Restore, clone *server.Owned) (oid uint32, err error) {
	db := r.Record.Database
	options, err := s.freshOptions(ctx, admin, db)
	if clone != nil {
		options, err = copyOf(admin, clone.Name), nil
	}
	if err != nil {
		return 0, s.Server.OnAdmin().Explain(ctx, "create a database on", err)
	}
	err = s.Owner.Create(ctx, admin, name, options+" OWNER "+server.Quote(db.Owner), s.Owner.NewMark(server.RoleStaged, live, r.ID))
	if err == nil {
		err = admin.QueryRow(ctx, "SELECT oid FROM pg_database WHERE datname = $1", name).Scan(&oid)
	}
	if err != nil || clone != nil {
		return oid, s.Server.OnAdmin().Explain(ctx, "create a database on", err)
	}
	faults, err := s.tools(s.Server).Load(ctx, name, r.From, r.Record, false)
	if err == nil && len(faults) > 0 {
		err = &hint.Error{Op: "restore snapshot", Path: r.ID, Err: fmt.Errorf("the restored database differs: %w", faults[0]), Hint: "supervisor snapshot verify --deep " + r.ID}
	}
	return oid, err
}

// freshOptions are those of a database that is filled from an archive: in the tablespace where the recorded one lay.
func (s *Source) freshOptions(ctx context.Context, admin server.Session, db *manifest.Database) (string, error) {
	space, err := server.TablespaceOption(ctx, admin, db)
	if space == "" && err == nil && db.Tablespace != "" && db.Tablespace != "pg_default" {
		s.o.Log.Warn("the tablespace can't be used, the database goes to the server's default one", "source", s.o.Name, "tablespace", db.Tablespace,
			"hint", "GRANT CREATE ON TABLESPACE "+server.Quote(db.Tablespace)+" TO "+server.Quote(s.adminRole())+", or ALTER DATABASE … SET TABLESPACE afterwards")
	}
	return server.FreshOptions(db) + space, err
}

// intact compares the archive with its digests; the first error is what an archive that can't be used says. A sealed dump
// has no digests yet: its content is read, so that what is restored can be compared with it.
func (s *Source) intact(ctx context.Context, r *manifest.Restore) (damage, err error) {
	if r.Record.Frozen != nil {
		return &hint.Error{
			Op: "restore snapshot", Path: r.ID, Err: fmt.Errorf("its clone %s is gone, and an archive was not made yet", *r.Record.Frozen),
			Hint: "supervisor snapshot list    # restore another one",
		}, nil
	}
	faults, err := datadir.Verify(ctx, r.From, r.Record, r.Verified, s.o.Observe)
	if err != nil {
		return nil, err
	}
	if len(faults) > 0 {
		return &hint.Error{Op: "restore snapshot", Path: r.ID, Err: manifest.Refusal(faults), Hint: "supervisor snapshot verify " + r.ID}, nil
	}
	if r.Record.Database.Tables == nil {
		db := *r.Record.Database
		if db.Tables, err = dump.Content(ctx, r.From, r.Record.Bytes, s.o.Observe); err != nil {
			return &hint.Error{Op: "restore snapshot", Path: r.ID, Err: err, Hint: "supervisor snapshot verify " + r.ID}, nil
		}
		r.Record.Database = &db
	}
	return nil, nil
}

// keptClone is the snapshot's clone, if the server still has it, whole.
func (s *Source) keptClone(ctx context.Context, admin server.Session, r manifest.Restore) (*server.Owned, error) {
	db := r.Record.Database
	if db.Clone == nil || db.CloneOID == nil {
		return nil, nil
	}
	o, err := s.Owner.Find(ctx, admin, *db.Clone)
	if err != nil {
		return nil, s.Server.OnAdmin().Explain(ctx, "look for clones on", err)
	}
	if o == nil || o.OID != *db.CloneOID || o.Mark == nil || !o.Mark.Complete || o.Mark.Role != server.RoleClone || o.Mark.Snapshot != r.ID {
		return nil, nil
	}
	return o, nil
}
