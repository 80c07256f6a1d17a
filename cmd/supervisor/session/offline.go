package session

import (
	"context"
	"errors"

	"nodevisor/internal/atomicfile"
	"nodevisor/supervisor/home"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// Offline is what a command works with where no supervisor runs: the engine, under the home lock.
type Offline struct {
	*Session
	Engine  *upgrade.Engine
	Checker *version.Checker
	Store   *Snapshots
	lock    *home.Lock
	Broken  error // why the journal can't be trusted; nil = it can
}

// UnderLock takes the home lock, loads the engine's state and lets work use it. In a tree that only Cosmovisor knew it makes the
// directory of the state, as `run` does: an upgrade may be staged there before the first start.
func (s *Session) UnderLock(ctx context.Context, work func(*Offline) error) error {
	if s.bad != nil {
		return s.bad // the supervisor that answered has ended meanwhile
	}
	if err := atomicfile.MkdirAll(s.Layout.State(), 0o750); err != nil {
		return err
	}
	lock, err := home.AcquireLock(s.Layout.LockPath())
	if err != nil {
		return err
	}
	defer lock.Close()
	store, err := s.Store(nil)
	if err != nil {
		return err
	}
	if store != nil {
		if err := store.Recover(ctx); err != nil {
			return err
		}
	}
	o := &Offline{Session: s, Checker: s.Checker(), Store: store, lock: lock}
	o.Engine = s.Engine(lock, store, o.Checker, nil)
	loadErr := o.Engine.Load()
	if loadErr != nil && !errors.Is(loadErr, state.ErrUntrusted) {
		return loadErr
	}
	o.Broken = loadErr
	return work(o)
}

// AtRest makes sure that no node runs where no supervisor does: the lock is free, but a node that another tool started, or
// left behind, holds none of ours. The data of a running node is never copied, replaced or handed to another version.
func (o *Offline) AtRest(ctx context.Context) error {
	return home.WaitNoForeign(ctx, o.Layout.Root, o.Layout.DataDir(), 0)
}

// KnownHeight is the best lower bound of the node's height without asking it.
func (o *Offline) KnownHeight() int64 {
	if t := o.Tracker(); t != nil {
		return t.Known()
	}
	return plan.UnknownHeight
}

// Tracker is fileTracker with the engine's schedule.
func (o *Offline) Tracker() *plan.Tracker { return o.FileTracker(o.Engine.Schedule()) }
