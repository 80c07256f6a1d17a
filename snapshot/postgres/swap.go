package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/swap"
)

const (
	// swapTimeout bounds what a swap, or a step around it, asks of the server.
	swapTimeout = time.Minute
	// swapTries is how often a swap is begun anew where a session slipped in: the server itself waits 5 s for each.
	swapTries = 3
)

// Commit records what the live database and its replacement are, and with that the decision: from here a crash leads on
// to the swap. It refuses while anybody is connected who may not be disconnected. It does nothing in the phase swap.
func (s *Source) Commit() error {
	j, err := s.pending()
	if err != nil || j == nil || j.Phase == swap.Swapping {
		return err
	}
	return s.onAdmin(func(ctx context.Context, admin *pgx.Conn) error {
		if err := s.free(ctx, admin, j.Live); err != nil {
			return err
		}
		names, err := s.namesOf(ctx, admin, j)
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
		return s.writeJournal(j)
	})
}

// onAdmin runs f on a session that may create and rename databases.
func (s *Source) onAdmin(f func(ctx context.Context, admin *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), swapTimeout)
	defer cancel()
	admin, err := s.server.Admin(ctx)
	if err != nil {
		return err
	}
	defer s.close(admin)
	return s.server.OnAdmin().explainUnlessHinted(ctx, "replace a database on", f(ctx, admin))
}

// explainUnlessHinted is explain for what may have an explanation already.
func (v *Server) explainUnlessHinted(ctx context.Context, op string, err error) error {
	if err == nil || hint.Of(err) != "" || state(err) == "" && !isAway(err) {
		return err
	}
	return v.explain(ctx, op, err)
}

// namesOf reads which database has which of the names, or of the oids, of a journal.
func (s *Source) namesOf(ctx context.Context, conn session, j *journal) (map[uint32]string, error) {
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
func (s *Source) Swap() (before string, signers []manifest.Signer, err error) {
	j, err := s.pending()
	if err == nil && (j == nil || j.Phase != swap.Swapping) {
		err = fmt.Errorf("cannot swap %s: no restore is staged", s.Where())
	}
	if err != nil {
		return "", nil, err
	}
	for try := 1; ; try++ {
		err = s.onAdmin(func(ctx context.Context, admin *pgx.Conn) error { return s.swapOnce(ctx, admin, j) })
		if state(err) != stateInUse || try == swapTries {
			break
		}
	}
	if state(err) == stateInUse {
		err = s.onAdmin(func(ctx context.Context, admin *pgx.Conn) error { return s.blamed(ctx, admin, j, err) })
	}
	if err == nil && j.LiveOID != 0 {
		before = j.Before
	}
	return before, nil, err
}

// blamed names who is in the way.
func (s *Source) blamed(ctx context.Context, admin *pgx.Conn, j *journal, cause error) error {
	for _, name := range []string{j.Live, j.Stage} {
		if others, err := clients(ctx, admin, name); err == nil && len(others) > 0 {
			return s.inUse("replace database", name, others)
		}
	}
	return cause
}

// swapOnce does the transaction, if it wasn't done. While the rename waits for sessions to go, another session of ours
// ends those that may be ended: new ones wait at the lock that the rename holds, so that an exporter that comes back at
// once can't keep it from happening.
func (s *Source) swapOnce(ctx context.Context, admin *pgx.Conn, j *journal) error {
	names, err := s.namesOf(ctx, admin, j)
	if err != nil {
		return err
	}
	switch j.state(names) {
	case swapped:
		return nil
	case strange:
		return s.strange(j)
	}
	if err := s.bound(ctx, admin, j.Live); err != nil {
		return err
	}
	if err := s.noPrepared(ctx, admin, j.Live); err != nil {
		return err
	}
	stop := s.keepClear(ctx, j.Live, nil)
	defer stop()
	tx, err := admin.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // after a commit it does nothing
	if j.LiveOID != 0 {
		if err := formatted(ctx, tx, "ALTER DATABASE %I RENAME TO %I", j.Live, j.Before); err != nil {
			return err
		}
		m := s.newMark(roleBefore, j.Live, j.Snapshot)
		m.MadeAt, m.Complete = time.Now(), true
		if err := comment(ctx, tx, j.Before, m); err != nil {
			return err
		}
	}
	if err := formatted(ctx, tx, "ALTER DATABASE %I RENAME TO %I", j.Stage, j.Live); err != nil {
		return err
	}
	if err := bestow(ctx, tx, j.Live, j.Database); err != nil {
		return err
	}
	// The names were read before the locks were taken: what is renamed must be what the journal knows.
	if names, err = s.namesOf(ctx, tx, j); err != nil {
		return err
	}
	if j.state(names) != swapped || j.LiveOID != 0 && names[j.LiveOID] != j.Before {
		return s.strange(j)
	}
	return tx.Commit(ctx)
}

// strange refuses to touch what is neither the live database nor its replacement as the journal knows them.
func (s *Source) strange(j *journal) error {
	return &hint.Error{
		Op: "finish restore", Path: j.Live, Err: errors.New("the databases are neither as before the swap nor as after it"),
		Hint: fmt.Sprintf("the restored data: oid %d, %s; the data of before: oid %d, %s; give the right one the name (ALTER DATABASE … RENAME TO …), then remove %s",
			j.StageOID, j.Stage, j.LiveOID, j.Before, s.journalPath()),
	}
}

// Undo takes back the decision for a swap that was not done. After it the phase is staging again, and Abort removes the
// rest.
func (s *Source) Undo() error {
	j, err := s.pending()
	if err != nil || j == nil || j.Phase != swap.Swapping {
		return err
	}
	return s.onAdmin(func(ctx context.Context, admin *pgx.Conn) error {
		names, err := s.namesOf(ctx, admin, j)
		if err != nil {
			return err
		}
		switch j.state(names) {
		case swapped:
			return errors.New("cannot undo the swap: it is done already")
		case strange:
			return s.strange(j)
		}
		j.Phase, j.LiveOID = swap.Staging, 0
		return s.writeJournal(j)
	})
}

// Done ends a restore whose swap is done: the journal goes.
func (s *Source) Done() error {
	j, err := s.pending()
	if err != nil || j == nil {
		return err
	}
	return s.onAdmin(func(ctx context.Context, admin *pgx.Conn) error {
		names, err := s.namesOf(ctx, admin, j)
		if err != nil {
			return err
		}
		if j.Phase != swap.Swapping || j.state(names) != swapped {
			return fmt.Errorf("cannot end the restore of %s: it is not swapped in", j.Live)
		}
		return s.removeJournal()
	})
}

// Abort ends a restore that was not committed: the replacement goes, unless it is the snapshot's clone, then the journal.
// Where there is none, it removes what verifications left that were interrupted; a server that is away keeps it until
// the next time.
func (s *Source) Abort() error {
	j, err := s.pending()
	if err != nil {
		return err
	}
	if j == nil {
		if err := s.dropScratch(context.Background()); err != nil {
			s.o.Log.Debug("scratch databases not looked for", "source", s.o.Name, "error", err)
		}
		return nil
	}
	if j.Phase == swap.Swapping {
		return fmt.Errorf("cannot abort the restore of %s: it is committed", j.Live)
	}
	if j.Clone {
		return s.removeJournal()
	}
	return s.onAdmin(func(ctx context.Context, admin *pgx.Conn) error {
		o, err := s.find(ctx, admin, j.Stage)
		if err != nil {
			return err
		}
		if o != nil && (o.Mark == nil || o.Mark.Role == roleStaged) {
			if err := s.drop(ctx, admin, *o); err != nil {
				return err
			}
		}
		return s.removeJournal()
	})
}
