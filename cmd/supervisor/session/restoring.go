package session

import (
	"context"
	"errors"
	"fmt"

	"nodevisor/genesis"
	"nodevisor/internal/hint"
	"nodevisor/snapshot/postgres/kwildb"
	"nodevisor/supervisor"
	"nodevisor/upgrade/source"
)

// maxRestores is how often a node that restores is started before a person has to look: a restore that fails three times
// fails for a reason that the database isn't.
const maxRestores = 3

// Restoring joins the marker of `genesis init` to the run loop.
func (s *Session) Restoring(recorder *source.Recorder) *supervisor.Restoring {
	root := s.Config.Node.Home
	return &supervisor.Restoring{
		Begin: func(ctx context.Context) (bool, error) { return s.beginRestore(ctx, recorder) },
		Done:  func() error { return genesis.RemoveMarker(root) },
	}
}

// beginRestore tells whether the start that follows restores. What an interrupted one left is dropped first: kwild looks
// only whether its schemas are there, and would run on half of the state.
func (s *Session) beginRestore(ctx context.Context, recorder *source.Recorder) (bool, error) {
	root := s.Config.Node.Home
	m, err := genesis.ReadMarker(root)
	if err != nil || m == nil {
		return false, err
	}
	if m.Phase == genesis.Preparing {
		return false, hint.New("start the node in", root, "setting it up was interrupted", "supervisor genesis init, with the same arguments as before")
	}
	if last, known := recorder.Last(); known && last.At.After(m.At) {
		// The node has been beyond its restore, and only the marker couldn't be removed then. Its database is not ours to drop.
		return false, genesis.RemoveMarker(root)
	}
	if m.Starts >= maxRestores {
		tried := m.Starts
		m.Starts = 1 // resumed, it is tried as often again
		return false, errors.Join(&hint.Error{
			Op: "start the node in", Path: root,
			Err:  fmt.Errorf("it ended %d times before its state was restored", tried),
			Hint: "look at the node's own log and mend the cause, then: supervisor resume (makes the database anew and tries again)",
		}, m.Write(root))
	}
	again, err := m.BeginStart(root)
	if err != nil || !again {
		return err == nil, err
	}
	if m.Database == nil {
		return false, errors.Join(hint.New("start the node in", root, "its restore was interrupted, and which database it is isn't known",
			"drop the node's database and make it anew, then: supervisor resume"), forgetStarts(m, root))
	}
	s.Log.Warn("the node's restore was interrupted; its database is made anew", "start", m.Starts)
	target := kwildb.NewTarget(root, m.Database.DSN, m.Database.PasswordFile, s.Config.Snapshot.PgBin)
	return true, target.Recreate(ctx)
}

// forgetStarts lets the next start count as the first: the operator has made the database anew.
func forgetStarts(m *genesis.Marker, root string) error {
	m.Starts = 0
	return m.Write(root)
}
