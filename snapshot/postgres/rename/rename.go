// Package rename puts a restored database in the place of a live one, by giving both other names in one transaction, so
// that after a crash at any instruction it is either done or undone.
//
// The replacement is staged as a database of ours in the same server. A journal records what the two databases are by
// their oids: done twice, a swap doesn't swap back. What package swap is for directories, this is for databases.
package rename

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/server"
	"nodevisor/snapshot/swap"
)

const (
	// swapTimeout bounds what a swap, or a step around it, asks of the server.
	swapTimeout = time.Minute
	// swapTries is how often a swap is begun anew where a session slipped in: the server itself waits 5 s for each.
	swapTries = 3
)

// A Place is a live database that may be replaced.
type Place struct {
	Server   *server.Server
	Owner    server.Owner
	Sessions server.Sessions
	State    string // where the journal of a restore is kept: a directory of this home alone
}

// Begin writes the journal of a restore of that snapshot, and says how the replacement of the live database is to be
// called. db is what it gets beyond its content. A clone that is to be used up is the replacement itself, and staged with
// that; else it is to be made under the name, and then Staged.
func (p *Place) Begin(snapshot, live string, db manifest.Database, clone *server.Owned) (stage string, err error) {
	if err := p.Unfinished(); err != nil {
		return "", err
	}
	db.Tables = nil
	j := &journal{Schema: journalSchema, Phase: swap.Staging, Snapshot: snapshot, Live: live, Before: p.Owner.FreshName(), Database: db}
	if clone != nil {
		j.Stage, j.StageOID, j.Clone = clone.Name, clone.OID, true
	} else {
		j.Stage = p.Owner.FreshName()
	}
	if err := atomicfile.MkdirAll(p.State, 0o700); err != nil {
		return "", fmt.Errorf("cannot write restore journal: %w", err)
	}
	return j.Stage, p.record().Write(j)
}

// Unfinished refuses where another restore is under way.
func (p *Place) Unfinished() error {
	phase, err := p.Pending()
	if err != nil || phase == "" {
		return err
	}
	return &hint.Error{Op: "restore", Path: p.Server.Where(), Err: errors.New("another restore is not finished"), Hint: "supervisor doctor"}
}

// Staged tells that the replacement is complete: the database of that oid.
func (p *Place) Staged(oid uint32) error {
	j, err := p.record().Read()
	if err == nil && (j == nil || j.Phase != swap.Staging) {
		err = fmt.Errorf("cannot stage a replacement of %s: no restore has begun", p.Server.Where())
	}
	if err != nil {
		return err
	}
	j.StageOID = oid
	return p.record().Write(j)
}

// Commit records what the live database and its replacement are, and with that the decision: from here a crash leads on
// to the swap. It refuses while anybody is connected who may not be disconnected. It does nothing in the phase swap.
func (p *Place) Commit() error {
	j, err := p.record().Read()
	if err != nil || j == nil || j.Phase == swap.Swapping {
		return err
	}
	return p.onAdmin(func(ctx context.Context, admin *pgx.Conn) error {
		if err := p.Free(ctx, admin, j.Live); err != nil {
			return err
		}
		names, err := p.namesOf(ctx, admin, j)
		if err != nil {
			return err
		}
		if j.StageOID == 0 || names[j.StageOID] != j.Stage {
			return fmt.Errorf("cannot prepare the swap: the replacement %s isn't there", j.Stage)
		}
		for oid, name := range names {
			if name == j.Live {
				j.LiveOID = oid
			}
		}
		j.Phase = swap.Swapping
		return p.record().Write(j)
	})
}

// onAdmin runs f on a session that may create and rename databases.
func (p *Place) onAdmin(f func(ctx context.Context, admin *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), swapTimeout)
	defer cancel()
	admin, err := p.Server.Admin(ctx)
	if err != nil {
		return err
	}
	defer server.Close(admin)
	return p.Server.OnAdmin().ExplainUnlessHinted(ctx, "replace a database on", f(ctx, admin))
}

// namesOf reads which database has which of the names, or of the oids, of a journal.
func (p *Place) namesOf(ctx context.Context, conn server.Session, j *journal) (map[uint32]string, error) {
	rows, err := conn.Query(ctx, "SELECT oid, datname::text FROM pg_database WHERE oid IN ($1, $2) OR datname IN ($3, $4, $5)",
		j.LiveOID, j.StageOID, j.Live, j.Stage, j.Before)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	names := map[uint32]string{}
	for rows.Next() {
		var oid uint32
		var name string
		if err := rows.Scan(&oid, &name); err != nil {
			return nil, err
		}
		names[oid] = name
	}
	return names, rows.Err()
}

// The states of a swap: both renames are one transaction, so there is nothing in between.
const (
	notSwapped = iota
	swapped
	strange // neither: somebody else has renamed or dropped
)

func (j *journal) state(names map[uint32]string) int {
	taken := func(name string) bool {
		for _, n := range names {
			if n == name {
				return true
			}
		}
		return false
	}
	stage, live := names[j.StageOID], names[j.LiveOID]
	switch {
	case stage == j.Live && (j.LiveOID == 0 || live != j.Live):
		return swapped // also where the data of before was dropped since
	case stage == j.Stage && !taken(j.Before) && (j.LiveOID != 0 && live == j.Live || j.LiveOID == 0 && !taken(j.Live)):
		return notSwapped
	}
	return strange
}

// Swap gives the replacement the live database's name, with its settings, grants and limit, and the live one a name of
// ours, in one transaction. It says what that name is ("" where there was no database). Done again it does what is left
// to do: it goes by oids alone, and never swaps back.
func (p *Place) Swap() (before string, signers []manifest.Signer, err error) {
	j, err := p.record().Read()
	if err == nil && (j == nil || j.Phase != swap.Swapping) {
		err = fmt.Errorf("cannot swap %s: no restore is staged", p.Server.Where())
	}
	if err != nil {
		return "", nil, err
	}
	for try := 1; ; try++ {
		err = p.onAdmin(func(ctx context.Context, admin *pgx.Conn) error { return p.swapOnce(ctx, admin, j) })
		if server.State(err) != server.StateInUse || try == swapTries {
			break
		}
	}
	if server.State(err) == server.StateInUse {
		err = p.onAdmin(func(ctx context.Context, admin *pgx.Conn) error { return p.blamed(ctx, admin, j, err) })
	}
	if err == nil && j.LiveOID != 0 {
		before = j.Before
	}
	return before, nil, err
}

// blamed names who is in the way.
func (p *Place) blamed(ctx context.Context, admin *pgx.Conn, j *journal, cause error) error {
	for _, name := range []string{j.Live, j.Stage} {
		if others, err := server.Clients(ctx, admin, name); err == nil && len(others) > 0 {
			return p.Sessions.InUse("replace database", name, others)
		}
	}
	return cause
}

// swapOnce does the transaction, if it wasn't done. While the rename waits for sessions to go, another session of ours
// ends those that may be ended: new ones wait at the lock that the rename holds, so that an exporter that comes back at
// once can't keep it from happening.
func (p *Place) swapOnce(ctx context.Context, admin *pgx.Conn, j *journal) error {
	names, err := p.namesOf(ctx, admin, j)
	if err != nil {
		return err
	}
	switch j.state(names) {
	case swapped:
		return nil
	case strange:
		return p.strange(j)
	}
	if err := p.CheckBound(ctx, admin, j.Live); err != nil {
		return err
	}
	if err := server.NoPrepared(ctx, admin, j.Live); err != nil {
		return err
	}
	stop := p.Sessions.KeepClear(ctx, j.Live, nil)
	defer stop()
	tx, err := admin.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // after a commit it does nothing
	if j.LiveOID != 0 {
		if err := server.Formatted(ctx, tx, "ALTER DATABASE %I RENAME TO %I", j.Live, j.Before); err != nil {
			return err
		}
		m := p.Owner.NewMark(server.RoleBefore, j.Live, j.Snapshot)
		m.MadeAt, m.Complete = time.Now(), true
		if err := server.Comment(ctx, tx, j.Before, m); err != nil {
			return err
		}
	}
	if err := server.Formatted(ctx, tx, "ALTER DATABASE %I RENAME TO %I", j.Stage, j.Live); err != nil {
		return err
	}
	if err := server.Bestow(ctx, tx, j.Live, j.Database); err != nil {
		return err
	}
	// The names were read before the locks were taken: what is renamed must be what the journal knows.
	if names, err = p.namesOf(ctx, tx, j); err != nil {
		return err
	}
	if j.state(names) != swapped || j.LiveOID != 0 && names[j.LiveOID] != j.Before {
		return p.strange(j)
	}
	return tx.Commit(ctx)
}

// strange refuses to touch what is neither the live database nor its replacement as the journal knows them.
func (p *Place) strange(j *journal) error {
	return &hint.Error{
		Op: "finish restore", Path: j.Live, Err: errors.New("the databases are neither as before the swap nor as after it"),
		Hint: fmt.Sprintf("the restored data: oid %d, %s; the data of before: oid %d, %s; give the right one the name (ALTER DATABASE … RENAME TO …), then remove %s",
			j.StageOID, j.Stage, j.LiveOID, j.Before, p.record().Path),
	}
}

// Undo takes back the decision for a swap that was not done. After it the phase is staging again, and Abort removes the
// rest.
func (p *Place) Undo() error {
	j, err := p.record().Read()
	if err != nil || j == nil || j.Phase != swap.Swapping {
		return err
	}
	return p.onAdmin(func(ctx context.Context, admin *pgx.Conn) error {
		names, err := p.namesOf(ctx, admin, j)
		if err != nil {
			return err
		}
		switch j.state(names) {
		case swapped:
			return errors.New("cannot undo the swap: it is done already")
		case strange:
			return p.strange(j)
		}
		j.Phase, j.LiveOID = swap.Staging, 0
		return p.record().Write(j)
	})
}

// Done ends a restore whose swap is done: the journal goes.
func (p *Place) Done() error {
	j, err := p.record().Read()
	if err != nil || j == nil {
		return err
	}
	return p.onAdmin(func(ctx context.Context, admin *pgx.Conn) error {
		names, err := p.namesOf(ctx, admin, j)
		if err != nil {
			return err
		}
		if j.Phase != swap.Swapping || j.state(names) != swapped {
			return fmt.Errorf("cannot end the restore of %s: it is not swapped in", j.Live)
		}
		return p.record().Remove()
	})
}

// Abort ends a restore that was not committed: the replacement goes, unless it is the snapshot's clone, then the journal.
func (p *Place) Abort() error {
	j, err := p.record().Read()
	if err != nil {
		return err
	}
	if j == nil {
		return nil
	}
	if j.Phase == swap.Swapping {
		return fmt.Errorf("cannot abort the restore of %s: it is committed", j.Live)
	}
	if j.Clone {
		return p.record().Remove()
	}
	return p.onAdmin(func(ctx context.Context, admin *pgx.Conn) error {
		o, err := p.Owner.Find(ctx, admin, j.Stage)
		if err != nil {
			return err
		}
		if o != nil && (o.Mark == nil || o.Mark.Role == server.RoleStaged) {
			if err := p.Owner.Drop(ctx, admin, *o); err != nil {
				return err
			}
		}
		return p.record().Remove()
	})
}
