package postgres

import (
	"context"
	"errors"
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
	"nodevisor/snapshot/swap"
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
	admin, err := s.server.Admin(ctx)
	if err != nil {
		return nil, err
	}
	defer s.close(admin)
	if r.Record.Database == nil {
		return nil, fmt.Errorf("cannot restore source %s: its record describes no database", s.o.Name)
	}
	if err := s.missingRoles(ctx, admin, r); err != nil {
		return nil, err
	}
	live, err := s.liveName()
	if err != nil {
		return nil, err
	}
	return nil, s.bound(ctx, admin, live)
}

// liveName is the database that a restore replaces.
func (s *Source) liveName() (string, error) {
	cfg, err := s.server.config("")
	if err != nil {
		return "", err
	}
	return cfg.Database, nil
}

// missingRoles names the roles without which the objects would come back as another's.
func (s *Source) missingRoles(ctx context.Context, admin session, r manifest.Restore) error {
	db := r.Record.Database
	want := []string{db.Owner}
	for _, set := range db.Settings {
		want = append(want, set.Role)
	}
	for _, item := range db.Grants {
		if role, _, err := aclRole(item); err == nil {
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
		return s.server.OnAdmin().explain(ctx, "look for roles on", err)
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return s.server.OnAdmin().explain(ctx, "look for roles on", err)
	}
	if len(missing) == 0 {
		return nil
	}
	var create []string
	for _, role := range missing {
		create = append(create, "CREATE ROLE "+quoted(role)+";")
	}
	return &hint.Error{
		Op: "restore snapshot", Path: r.ID, Err: fmt.Errorf("roles that own its objects, or have rights on them, aren't there: %s", strings.Join(missing, ", ")),
		Hint: strings.Join(create, " "),
	}
}

// bound refuses a database that something outlasting sessions is bound to by its oid: after a swap it would go on with the
// data of before.
func (s *Source) bound(ctx context.Context, admin session, live string) error {
	found, err := subscriptions(ctx, admin, live)
	if err != nil {
		return s.server.OnAdmin().explain(ctx, "look for slots on", err)
	}
	if len(found) == 0 {
		return nil
	}
	return &hint.Error{
		Op: "replace database", Path: live, Err: fmt.Errorf("it would go on with the data of before: %s", strings.Join(found, ", ")),
		Hint: "drop it first: SELECT pg_drop_replication_slot('…'), or DROP SUBSCRIPTION …",
	}
}

// free refuses a live database that can't be renamed, and says what is in the way. Sessions that may be ended are.
func (s *Source) free(ctx context.Context, admin *pgx.Conn, live string) error {
	if err := s.bound(ctx, admin, live); err != nil {
		return err
	}
	if err := s.noPrepared(ctx, admin, live); err != nil {
		return s.server.OnAdmin().explainUnlessHinted(ctx, "look for prepared transactions on", err)
	}
	others, err := s.clear(ctx, admin, live)
	if err != nil {
		return s.server.OnAdmin().explainUnlessHinted(ctx, "look for sessions on", err)
	}
	if len(others) > 0 {
		return s.inUse("replace database", live, others)
	}
	return nil
}

// Stage makes the replacement inside the server and compares it with its record; nothing live is touched. Commit and Swap
// put it in place, Abort removes it, also after an error or a crash.
//
// A clone that was kept is the replacement itself, and used up, where the snapshot's archive is intact beside it. Where
// there is no such archive a copy of the clone is. Without a clone a fresh database is filled from the archive.
func (s *Source) Stage(ctx context.Context, r manifest.Restore) error {
	if phase, err := s.Pending(); err != nil || phase != "" {
		return errors.Join(err, s.unfinished(phase))
	}
	r.Elsewhere = false
	if _, err := s.Preview(r); err != nil {
		return err
	}
	admin, err := s.server.Admin(ctx)
	if err != nil {
		return err
	}
	defer s.close(admin)
	live, err := s.liveName()
	if err != nil {
		return err
	}
	if err := s.free(ctx, admin, live); err != nil {
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
	db := *r.Record.Database
	db.Tables = nil
	j := &journal{Schema: journalSchema, Phase: swap.Staging, Snapshot: r.ID, Live: live, Before: s.freshName(), Database: db}
	switch {
	case clone != nil && intact == nil && r.Record.Frozen == nil:
		j.Stage, j.StageOID, j.Clone = clone.Name, clone.OID, true
		return s.writeJournal(j)
	case clone == nil && intact != nil:
		return intact
	}
	j.Stage = s.freshName()
	if err := s.writeJournal(j); err != nil { // first: the name is found by it after a crash
		return err
	}
	if clone != nil {
		err = s.copyClone(ctx, admin, j, clone)
	} else {
		err = s.fill(ctx, admin, j, r)
	}
	if err != nil {
		return err
	}
	return s.writeJournal(j)
}

func (s *Source) unfinished(phase string) error {
	if phase == "" {
		return nil
	}
	return &hint.Error{Op: "restore", Path: s.Where(), Err: errors.New("another restore is not finished"), Hint: "supervisor doctor"}
}

// intact compares the archive with its digests; the first error is what an archive that can't be used says. A sealed dump
// has no digests yet: its content is read, so that what is restored can be compared with it.
func (s *Source) intact(ctx context.Context, r *manifest.Restore) (damage, err error) {
	if r.Record.Frozen != nil {
		return &hint.Error{
			Op: "restore snapshot", Path: r.ID, Err: fmt.Errorf("its clone %s is gone, and an archive was not made yet", *r.Record.Frozen),
			Hint: "supervisor snapshot list (restore another one)",
		}, nil
	}
	faults, err := datadir.Verify(ctx, r.From, r.Record, r.Verified, s.o.Observe)
	if err != nil {
		return nil, err
	}
	if len(faults) > 0 {
		return &hint.Error{Op: "restore snapshot", Path: r.ID, Err: faults[0], Hint: "supervisor snapshot verify " + r.ID}, nil
	}
	if r.Record.Database.Tables == nil {
		db := *r.Record.Database
		if db.Tables, err = contentOf(ctx, r.From, r.Record.Bytes, s.o.Observe); err != nil {
			return &hint.Error{Op: "restore snapshot", Path: r.ID, Err: err, Hint: "supervisor snapshot verify " + r.ID}, nil
		}
		r.Record.Database = &db
	}
	return nil, nil
}

// keptClone is the snapshot's clone, if the server still has it, whole.
func (s *Source) keptClone(ctx context.Context, admin session, r manifest.Restore) (*owned, error) {
	db := r.Record.Database
	if db.Clone == nil || db.CloneOID == nil {
		return nil, nil
	}
	o, err := s.find(ctx, admin, *db.Clone)
	if err != nil {
		return nil, s.server.OnAdmin().explain(ctx, "look for clones on", err)
	}
	if o == nil || o.OID != *db.CloneOID || o.Mark == nil || !o.Mark.Complete || o.Mark.Role != roleClone || o.Mark.Snapshot != r.ID {
		return nil, nil
	}
	return o, nil
}

// copyClone makes the replacement from a clone that must stay.
func (s *Source) copyClone(ctx context.Context, admin *pgx.Conn, j *journal, clone *owned) error {
	options := " TEMPLATE " + quoted(clone.Name) + " OWNER " + quoted(j.Database.Owner)
	if major(j.Database.ServerVersion) >= 15 {
		options += " STRATEGY FILE_COPY"
	}
	return s.make(ctx, admin, j, options)
}

// make creates the replacement and keeps its oid.
func (s *Source) make(ctx context.Context, admin *pgx.Conn, j *journal, options string) error {
	err := s.create(ctx, admin, j.Stage, options, s.newMark(roleStaged, j.Live, j.Snapshot))
	if err == nil {
		err = admin.QueryRow(ctx, "SELECT oid FROM pg_database WHERE datname = $1", j.Stage).Scan(&j.StageOID)
	}
	return s.server.OnAdmin().explain(ctx, "create a database on", err)
}

// fill makes the replacement from the archive.
func (s *Source) fill(ctx context.Context, admin *pgx.Conn, j *journal, r manifest.Restore) error {
	if err := s.make(ctx, admin, j, freshOptions(r.Record.Database)+" OWNER "+quoted(j.Database.Owner)); err != nil {
		return err
	}
	faults, err := s.load(ctx, s.server, j.Stage, r.From, r.Record, false)
	if err != nil {
		return err
	}
	if len(faults) > 0 {
		return &hint.Error{Op: "restore snapshot", Path: r.ID, Err: fmt.Errorf("the restored database differs: %w", faults[0]), Hint: "supervisor snapshot verify --deep " + r.ID}
	}
	return nil
}

// freshOptions makes an empty database with the encoding and the locale of the recorded one.
func freshOptions(db *manifest.Database) string {
	b := " TEMPLATE template0"
	for _, o := range []struct{ word, value string }{
		{"ENCODING", db.Encoding}, {"LC_COLLATE", db.Locale["collate"]}, {"LC_CTYPE", db.Locale["ctype"]},
	} {
		if o.value != "" {
			b += " " + o.word + " " + literal(o.value)
		}
	}
	loc := db.Locale["locale"]
	switch provider := db.Locale["provider"]; {
	case loc == "":
	case provider == "icu":
		b += " LOCALE_PROVIDER icu ICU_LOCALE " + literal(loc)
	case provider == "builtin":
		b += " LOCALE_PROVIDER builtin BUILTIN_LOCALE " + literal(loc)
	}
	if rules := db.Locale["icu_rules"]; rules != "" {
		b += " ICU_RULES " + literal(rules)
	}
	return b
}

// literal is a string in SQL, whatever standard_conforming_strings says.
func literal(text string) string {
	text = strings.ReplaceAll(text, "'", "''")
	if strings.Contains(text, `\`) {
		return ` E'` + strings.ReplaceAll(text, `\`, `\\`) + `'`
	}
	return "'" + text + "'"
}

// load fills an empty database from the archive at and compares the two. Nothing that pg_restore complains of is passed
// over, and what it didn't notice, the comparison does. beside says that the node runs.
func (s *Source) load(ctx context.Context, v *Server, database, at string, rec manifest.Source, beside bool, args ...string) ([]manifest.Fault, error) {
	conn, err := v.Connect(ctx, database)
	if err != nil {
		return nil, err
	}
	defer s.close(conn)
	var version string
	if err := conn.QueryRow(ctx, "SELECT current_setting('server_version')").Scan(&version); err != nil {
		return nil, v.explain(ctx, "restore into", err)
	}
	needed := version
	if major(rec.Database.ClientVersion) > major(version) {
		needed = rec.Database.ClientVersion // the archive's form is pg_dump's
	}
	client, err := v.CheckClient(ctx, "pg_restore", needed)
	if err != nil {
		return nil, err
	}
	older, whole := stumbles(client, version), slices.Contains(args, "--single-transaction")
	if !whole {
		args = append(args, fmt.Sprintf("--jobs=%d", jobs(beside)))
	}
	if !older {
		args = append(args, "--exit-on-error")
	}
	args = append(args, "--format=directory", "--no-password")
	c := &clientRun{server: v, log: s.o.Log, op: "restore into", program: "pg_restore", database: database, version: version, beside: beside, observe: s.o.Observe, phase: "restore", total: rec.Database.Size}
	if older && whole {
		err = v.loadText(ctx, database, append(slices.DeleteFunc(args, func(a string) bool { return a == "--single-transaction" }), at)...)
	} else {
		err = c.run(ctx, append(args, "--dbname="+conninfo(database), at)...)
	}
	if err != nil && (!older || !onlyStumbled(err)) {
		return nil, err
	}
	faults, err := v.compareContent(ctx, database, at, rec, beside, s.o.Observe)
	if err != nil || len(faults) > 0 {
		return faults, err
	}
	_, err = conn.Exec(ctx, "ANALYZE") // without it the first queries are planned blindly
	return nil, v.explain(ctx, "analyse", err)
}

// conninfo names a database so that no character of its name makes it anything else (a name with = in it would be a
// connection string).
func conninfo(database string) string {
	return "dbname='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(database) + "'"
}
