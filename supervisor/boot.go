package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

// boot loads what earlier lives left and begins accordingly: a hold stays, an interrupted upgrade goes on, and only
// then the node is started.
func (s *Supervisor) boot() {
	s.newWatcher()
	var unproven []plan.Plan
	s.do("load", func(context.Context) error {
		if err := s.o.Layout.Tidy(); err != nil {
			s.log.Warn("cannot remove what an interrupted write left", "error", err)
		}
		if err := s.o.Engine.Load(); err != nil {
			return err
		}
		if err := s.firstLink(); err != nil {
			return err
		}
		imported, err := s.o.Engine.ImportBatch()
		if err != nil {
			s.log.Error("cannot import Cosmovisor's schedule", "error", err, "hint", hint.Of(err))
		}
		if _, known := s.o.Recorder.Last(); !known {
			unproven = imported
		}
		return nil
	}, func(err error) {
		s.file.unproven = unproven
		s.watchFile()
		switch {
		case errors.Is(err, errNoGenesis):
			s.log.Error(err.Error(), "hint", hint.Of(err))
			s.finish(ExitConfig)
		case errors.Is(err, errFirstLink):
			s.log.Error(err.Error(), "hint", hint.Of(err))
			s.finish(1)
		case err != nil:
			s.holdFor(err)
		case s.journal.Hold != nil && s.undoneByHand():
			s.rolledBackByHand() // whose end came between the hold and the record of the rollback
		case s.journal.Hold != nil:
			s.held()
		default:
			s.firstLook()
		}
	})
}

// undoneByHand tells whether all that is left of an operator's rollback is to record it.
func (s *Supervisor) undoneByHand() bool {
	u := s.journal.Upgrade
	return u != nil && u.Phase == upgrade.RolledBack && !s.byPolicy(u)
}

var errNoGenesis = errors.New("there is no binary to run")

// errFirstLink ends this life and is no hold: a journal is a trace of a past, and the next start would take the missing
// link for damage.
var errFirstLink = errors.New("the first link could not be made")

// firstLink makes `current` on a home that never saw an upgrade. Anywhere else a missing link is damage.
func (s *Supervisor) firstLink() error {
	l := s.o.Layout
	_, err := l.Current()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, version.ErrNoLink) && !upgrade.Seen(l):
		if _, err := os.Stat(l.Binary(version.Genesis)); err != nil {
			return &hint.Error{Op: "start", Path: l.Binary(version.Genesis), Err: errNoGenesis, Hint: "supervisor init BINARY"}
		}
		s.log.Info("linking the first version", "current", version.Genesis)
		if err := l.SwitchTo(version.Genesis); err != nil {
			return &hint.Error{Op: "start", Path: l.Link(), Err: fmt.Errorf("%w: %w", errFirstLink, err), Hint: "mend the cause; the next start tries again"}
		}
		return nil
	}
	return &hint.Error{
		Op: "tell which version is to run", Path: l.Link(), Err: err,
		Hint: "supervisor doctor --fix-link, or: supervisor upgrade use VERSION",
	}
}

// firstLook reads the plan file and the signer's state before the node runs, then goes on with what is in flight. It is
// a job: nothing may come between the look and what follows from it.
func (s *Supervisor) firstLook() {
	s.state = status.Stopped
	look := s.lookAtFile()
	var file plan.File
	var now currentVersion
	var own int64
	signer, first, recase := plan.UnknownHeight, !s.began, s.o.Upgrade.Recase
	s.do("look", func(context.Context) error {
		file, now, signer = look(), s.readCurrent(recase), s.signer()
		own = s.readOwnHalt(now.version)
		if last, back := upgrade.WentBack(s.o.Layout, recase); back && first {
			s.log.Warn("current names an older version than the last upgrade led to; was the link changed by hand?", "current", now.version,
				"last", last.To, "hint", "where that wasn't meant: stop run, then: supervisor upgrade use "+hint.Argument(last.To.Name()))
		}
		return nil
	}, func(error) {
		s.ownHalt = own
		s.setCurrent(now)
		s.sawFile(file, false)
		s.begin(signer)
	})
}

// begin decides what the first thing is that this life does, or what follows an operation that left the node stopped.
func (s *Supervisor) begin(signer int64) {
	s.checkReadiness()
	s.summarize()
	if s.stopping || s.due != nil {
		return
	}
	if s.journal.Upgrade != nil {
		s.recoverUpgrade()
		return
	}
	if s.schedule.HaltDue(s.tracker.Known(), time.Now()) {
		s.halt(nil)
		return
	}
	if p, ev, verdict := s.tracker.Ended(time.Now(), signer, false); verdict == plan.Due {
		s.log.Info("the height of a plan has come while no node ran", "plan", p.Name, "height", p.Height, "evidence", ev)
		s.trigger(p, ev)
		return
	}
	s.logPending()
	s.start()
}

// currentVersion is what the link says, and what is told beside it.
type currentVersion struct {
	version version.Version
	plan    plan.Plan // that it was switched to for
	known   bool      // whether that is recorded
	last    *status.LastUpgrade
}

// readCurrent does file I/O: not for the loop.
func (s *Supervisor) readCurrent(recase bool) currentVersion {
	c := currentVersion{}
	if all, err := upgrade.LoadHistory(s.o.Layout.HistoryDir()); err == nil && len(all) > 0 {
		c.last = new(status.DescribeFinished(all[0]))
	}
	version, err := s.o.Layout.Current()
	if err != nil {
		return c
	}
	c.version = version
	c.plan, c.known = plan.Installed(s.o.Layout, version, recase)
	return c
}

func (s *Supervisor) setCurrent(c currentVersion) {
	s.last = c.last
	s.tally = s.tally.Finished(c.last)
	s.tracker.SetCurrent(c.version, c.plan, c.known)
	if s.child == nil { // a rollback or a switch by hand changed what would run; a running node stays what it is
		s.version = c.version
	}
}

// refreshCurrent tells the tracker which version current names now.
func (s *Supervisor) refreshCurrent() {
	recase := s.o.Upgrade.Recase
	s.ask(func(context.Context) func() {
		now := s.readCurrent(recase)
		return func() { s.setCurrent(now) }
	})
}
