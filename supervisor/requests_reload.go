package supervisor

import (
	"context"
	"errors"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/control"
	"nodevisor/upgrade/plan"
)

// reloaded is what a reload made before anything was changed.
type reloaded struct {
	Reloadable
	server *control.Server // at another path; nil: the one that is there stays
	file   plan.File       // the first look at another plan file
	now    currentVersion  // read by the same rules
}

// opReload takes all of a new configuration over, or nothing: whatever may fail comes before the first change.
func (s *Supervisor) opReload(r request) {
	if s.o.Reload == nil {
		finishRequest(r, errors.New("cannot reload: there is no configuration file"), "")
		return
	}
	inFlight := s.journal.Upgrade != nil
	var fresh reloaded
	s.do("reload", s.afterTidying(func(context.Context) error {
		made, takeEffect, err := s.o.Reload(inFlight)
		if err != nil {
			return err
		}
		fresh.Reloadable = made
		if fresh.server, err = s.share(made); err != nil {
			return err
		}
		fresh.file, fresh.now = plan.LookAt(made.PlanFile, made.Upgrade.Recase), s.readCurrent(made.Upgrade.Recase)
		e := s.o.Engine
		e.Config, e.Checker, e.Fetch, e.Snapshots, e.Templates = made.Upgrade, made.Checker, made.Fetch, made.OnUpgrade, made.ExportOnUpgrade
		e.Layout.Plan = made.PlanFile
		takeEffect()
		return nil
	}), func(err error) {
		if err == nil {
			s.takeOver(fresh)
		}
		s.store.again = true // a tidying made way for it
		finishRequest(r, err, "reloaded; [node] is read at the next start of run")
	})
}

// listen makes the control socket of a configuration.
func (s *Supervisor) listen(o Reloadable) (*control.Server, error) {
	return control.Listen(control.Options{
		Path: o.Socket, Mode: o.SocketMode, Group: o.SocketGroup, Status: s.Status, Operate: s.operate, Log: s.log,
	})
}

// share makes the control socket what a configuration says: another one, where it is at another path, else the same with its
// mode and group.
func (s *Supervisor) share(o Reloadable) (another *control.Server, err error) {
	if s.server != nil && o.Socket == s.o.Socket {
		return nil, s.server.Share(o.SocketMode, o.SocketGroup)
	}
	if another, err = s.listen(o); err != nil {
		err = &hint.Error{Op: "reload", Path: "[control] socket", Err: err, Hint: "name another path, or take the change back"}
	}
	return another, err
}

func (s *Supervisor) takeOver(fresh reloaded) {
	was := s.o.Reloadable
	s.o.Reloadable = fresh.Reloadable
	if was.Heights != fresh.Heights {
		s.spawn(was.Heights.Close) // it waits for the question that is under way
		s.height.from = ""
	}
	if fresh.server != nil {
		if s.server != nil {
			s.server.Retire() // whoever asked there gets its answer there
		}
		s.server = fresh.server
	}
	another := was.PlanFile != fresh.PlanFile || was.Upgrade.Recase != fresh.Upgrade.Recase
	if another || was.Upgrade.Poll != fresh.Upgrade.Poll {
		s.newWatcher()
		s.watchFile()
	}
	if another {
		s.setCurrent(fresh.now)
		s.followAnother(fresh.file)
	}
	s.observeAt(s.o.Metrics)
	s.log.Info("configuration reloaded")
	s.checkReadiness()
	s.summarize()
	s.readHeight()
}
