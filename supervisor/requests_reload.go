package supervisor

import (
	"context"
	"errors"
)

// opReload takes all of a new configuration over, or nothing: whatever may fail comes before the first change.
func (s *Supervisor) opReload(r request) {
	if s.o.Reload == nil {
		finishRequest(r, errors.New("cannot reload: there is no configuration file"), "")
		return
	}
	inFlight := s.journal.Upgrade != nil
	var fresh Reloadable
	s.do("reload", s.afterTidying(func(context.Context) error {
		made, takeEffect, err := s.o.Reload(inFlight)
		if err != nil {
			return err
		}
		if s.server != nil {
			if err := s.server.Share(made.SocketMode, made.SocketGroup); err != nil {
				return err
			}
		}
		fresh = made
		e := s.o.Engine
		e.Config, e.Checker, e.Fetch, e.Snapshots, e.Templates = made.Upgrade, made.Checker, made.Fetch, made.OnUpgrade, made.ExportOnUpgrade
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

func (s *Supervisor) takeOver(fresh Reloadable) {
	if s.o.Heights != fresh.Heights {
		s.spawn(s.o.Heights.Close) // it waits for the question that is under way
		s.height.from = ""
	}
	s.o.Reloadable = fresh
	s.observeAt(s.o.Metrics)
	s.log.Info("configuration reloaded")
	s.checkReadiness()
	s.summarize()
	s.readHeight()
}
