package supervisor

import (
	"context"
	"errors"
	"os"

	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/source"
	"nodevisor/upgrade/version"
)

// Reloaded is what a reload puts in the place of the Options of the same names. It is made of a new configuration as a
// whole; what can't change while `run` lives was refused before. Nothing that the old values share is changed in place:
// whatever still works with them goes on so.
type Reloaded struct {
	Upgrade     upgrade.Config
	Checker     *version.Checker
	Heights     *source.Heights
	Snapshots   Snapshots
	OnUpgrade   upgrade.Snapshotter // nil: upgrades take no snapshot
	SnapshotOn  func(event string) bool
	Room        func(ctx context.Context) error
	Fetch       upgrade.Fetcher
	ChainPlan   func(ctx context.Context) (*plan.Plan, error)
	Metrics     string
	SocketMode  os.FileMode
	SocketGroup int
	// Apply makes what isn't the loop's take effect: the log's level, the notifications. It is called last, and can't fail.
	Apply func()
}

// opReload takes all of a new configuration over, or nothing: whatever may fail comes before the first change.
func (s *Supervisor) opReload(r request) {
	if s.o.Reload == nil {
		finishRequest(r, errors.New("cannot reload: there is no configuration file"), "")
		return
	}
	inFlight := s.journal.Upgrade != nil
	var fresh Reloaded
	s.do("reload", s.afterTidying(func(context.Context) (err error) {
		if fresh, err = s.o.Reload(inFlight); err != nil {
			return err
		}
		if s.server != nil {
			if err := s.server.Share(fresh.SocketMode, fresh.SocketGroup); err != nil {
				return err
			}
		}
		e := s.o.Engine
		e.Config, e.Checker, e.Fetch, e.Snapshots = fresh.Upgrade, fresh.Checker, fresh.Fetch, fresh.OnUpgrade
		fresh.Apply()
		return nil
	}), func(err error) {
		if err == nil {
			s.takeOver(fresh)
		}
		s.store.again = true // a tidying made way for it
		finishRequest(r, err, "reloaded; [node] is read at the next start of run")
	})
}

func (s *Supervisor) takeOver(fresh Reloaded) {
	o := &s.o
	if o.Heights != fresh.Heights {
		s.spawn(o.Heights.Close) // it waits for the question that is under way
		s.height.from = ""
	}
	o.Upgrade, o.Checker, o.Heights, o.Snapshots = fresh.Upgrade, fresh.Checker, fresh.Heights, fresh.Snapshots
	o.SnapshotOn, o.Room, o.Fetch, o.ChainPlan = fresh.SnapshotOn, fresh.Room, fresh.Fetch, fresh.ChainPlan
	o.Metrics = fresh.Metrics
	s.observeAt(o.Metrics)
	s.log.Info("configuration reloaded")
	s.checkReadiness()
	s.summarize()
	s.readHeight()
}
