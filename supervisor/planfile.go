package supervisor

import (
	"context"
	"errors"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/alert"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/source"
)

// A plan file that is being written may be unusable for a moment: after unusableSoon the log says so, and after unusableFor
// an operator is told, and again each unusableAgain.
const unusableSoon, unusableFor, unusableAgain = time.Second, 30 * time.Second, time.Hour

// planFile is what is known of the node's plan file besides its plan, which the tracker has.
type planFile struct {
	watcher     *source.Watcher
	endWatch    func()
	seen        <-chan struct{} // it may have changed
	looking     bool
	lookAgain   bool        // it was asked for another look meanwhile
	unusable    time.Time   // since when it can't be used; zero = it can
	tellAt      time.Time   // when an operator is told of that
	warned      string      // what the log said of it last
	pendingSaid string      // what the log said last of the plan that comes next
	imported    plan.Key    // the plan that was last tried to be taken over into the schedule
	unproven    []plan.Plan // taken over from Cosmovisor's schedule without a known height
}

// lookAtFile returns what reads the plan file. The result does file I/O: not for the loop.
func (s *Supervisor) lookAtFile() func() plan.File {
	path, recase := s.o.PlanFile, s.o.Upgrade.Recase
	return func() plan.File { return plan.LookAt(path, recase) }
}

// newWatcher makes what tells of changes, in the place of an earlier one.
func (s *Supervisor) newWatcher() {
	if s.file.endWatch != nil {
		s.file.endWatch()
	}
	var ctx context.Context
	ctx, s.file.endWatch = context.WithCancel(s.ctx)
	s.file.watcher = source.NewWatcher(ctx, s.o.Upgrade.Poll, s.log)
}

// watchFile begins to watch the plan file, if there is to be one.
func (s *Supervisor) watchFile() {
	if s.file.seen = nil; s.o.PlanFile != "" {
		s.file.seen = s.file.watcher.Watch(s.o.PlanFile).C()
	}
}

// followAnother follows the plan file that a reload names, or names its plans by other rules: file is the first look at it,
// and as that of a start it is evidence of nothing. What was taken over from the one before stays scheduled.
func (s *Supervisor) followAnother(file plan.File) {
	s.tracker.ForgetFile()
	s.file.unusable, s.file.warned, s.file.imported = time.Time{}, "", plan.Key{}
	s.sawFile(file, s.child != nil)
	s.logPending()
}

// look reads the plan file again. A look that is asked for while one is under way follows it.
func (s *Supervisor) look() {
	if s.file.looking {
		s.file.lookAgain = true
		return
	}
	s.file.looking = true
	look, watcher := s.lookAtFile(), s.file.watcher
	s.ask(func(context.Context) func() {
		file := look()
		runs := s.forked() // it may have written the file before the loop has heard of its start
		return func() { s.looked(file, watcher, runs) }
	})
}

// looked takes the answer of a look; runs tells whether there was a node's process at its end. One that was asked for before a
// reload may be another file's.
func (s *Supervisor) looked(file plan.File, by *source.Watcher, runs bool) {
	s.file.looking = false
	if s.file.lookAgain {
		s.file.lookAgain = false
		s.look()
	}
	if by != s.file.watcher {
		return
	}
	// Our own writes come while the node is at rest; whatever changes while it runs is the node's, or another tool's.
	if !s.sawFile(file, runs) {
		return
	}
	s.logPending()
	s.checkReadiness()
	s.dropReplaced()
	s.dropGone()
	if s.tracker.NeedsHeight() {
		s.readHeight()
	}
}

// sawFile hands a look at the plan file to the tracker, and tells whether it is news that can be used. A file that can't
// be used is no reason to touch the node: it may be half-written. That it stays so is said once more.
func (s *Supervisor) sawFile(file plan.File, running bool) bool {
	news := s.tracker.SawFile(file, running)
	err := s.tracker.FileError()
	switch {
	case err == nil:
		s.file.unusable, s.file.warned = time.Time{}, ""
	case s.file.unusable.IsZero():
		s.file.unusable = time.Now()
		s.file.tellAt = s.file.unusable.Add(unusableFor)
	}
	return news && err == nil
}

// sayUnusable says in the log, and later to an operator, that the plan file can't be used.
func (s *Supervisor) sayUnusable() {
	err := s.tracker.FileError()
	if err == nil || s.file.unusable.IsZero() {
		return
	}
	switch now := time.Now(); {
	case !now.Before(s.file.tellAt):
		s.file.tellAt = now.Add(unusableAgain)
		s.log.Error("the plan file is still unusable", "file", s.o.PlanFile, "error", err,
			"hint", "look at what writes it; the node is left running")
		s.o.Event(alert.NotReady, "the plan file can't be read: "+err.Error())
	case now.Sub(s.file.unusable) >= unusableSoon && s.file.warned != err.Error():
		s.file.warned = err.Error()
		s.log.Warn("the plan file can't be used; looking again", "file", s.o.PlanFile, "error", err)
	}
}

// logPending says what is scheduled, or passed over: once, however often the file is written. What is done is still to be proven
// while its upgrade is in flight.
func (s *Supervisor) logPending() {
	if s.tracker.Current == "" {
		return // the watch was quicker than the first look: what is done can't be told yet
	}
	p, err := s.tracker.NextPlan()
	was := s.file.pendingSaid
	s.file.pendingSaid = ""
	switch {
	case err != nil && s.journal.Upgrade == nil:
		if s.file.pendingSaid = err.Error(); s.file.pendingSaid != was {
			s.log.Info("the plan is passed over", "reason", err)
		}
	case p != nil:
		if s.file.pendingSaid = p.Name + " at " + p.When() + " by " + string(p.Source); s.file.pendingSaid != was {
			s.log.Info("a plan is pending", "plan", p.Name, "at", p.When(), "source", p.Source)
		}
	}
}

// dropPast takes plans of Cosmovisor's schedule off again that turn out, at the first height of a node without a record, to
// be past: carried out now, they would put an old version under newer data.
func (s *Supervisor) dropPast(h int64) bool {
	var past []string
	for _, p := range s.file.unproven {
		if p.Height <= h {
			past = append(past, p.Name)
			s.tracker.PassOver(p.Height)
			s.log.Warn("an imported plan is past, and is taken off", "plan", p.Name, "at", p.Height, "height", h)
		}
	}
	if s.file.unproven = nil; len(past) == 0 {
		return false
	}
	s.whenIdle(func() {
		s.do("import", func(context.Context) error {
			var errs []error
			for _, name := range past {
				errs = append(errs, s.o.Engine.CancelPlan(name))
			}
			return errors.Join(errs...)
		}, func(err error) {
			if err != nil {
				s.log.Warn("cannot take an imported plan off; it is passed over all the same", "error", err, "hint", hint.Of(err))
			}
		})
	})
	return true
}

// importPlan takes a future plan that another tool wrote into the node's file over into the schedule, so that a plan of the
// chain's, which the node writes into the same file, doesn't displace it: the node itself says that its height is far ahead.
// From then on it follows the file. What can't be taken over is said once.
func (s *Supervisor) importPlan(p plan.Plan, height int64) {
	s.log.Info("the plan file holds a plan whose height is still to come; it is kept as scheduled", "plan", p.Name,
		"at", p.Height, "height", height)
	s.file.imported = p.Key()
	p.Source = plan.FromOperator
	s.do("import", func(context.Context) error { return s.o.Engine.FollowFile(&p) }, func(err error) {
		if err != nil {
			s.log.Warn("cannot take the plan over", "plan", p.Name, "error", err, "hint", hint.Of(err))
		}
	})
}

// dropGone takes the plan that came from the plan file off the schedule when the file is removed beside the running node:
// somebody took it back. While no node runs data may have been restored, or wiped, and the plan with it: then it stays.
func (s *Supervisor) dropGone() {
	gone := func() bool {
		return s.child != nil && s.journal.Upgrade == nil && s.due == nil && s.tracker.FileGone()
	}
	s.whenStill(gone, func() {
		name := s.schedule.FromFile
		s.file.imported = plan.Key{}
		s.do("import", func(context.Context) error { return s.o.Engine.FollowFile(nil) }, func(err error) {
			if err != nil {
				s.log.Error("cannot take a plan off whose plan file was removed", "plan", name, "error", err, "hint", "supervisor upgrade cancel "+name)
				return
			}
			s.log.Warn("the plan file was removed, and with it the plan that came from it", "plan", name,
				"hint", "where it is still wanted: supervisor upgrade add "+hint.Argument(name)+" BINARY --height N")
		})
	})
}

// dropReplaced gives up the wait for a plan's binary when another plan takes its place in the node's file. Nothing was done
// for it yet; what is done next is the other plan's to say.
func (s *Supervisor) dropReplaced() {
	replaced := func() bool {
		u := s.journal.Upgrade
		return s.due != nil && u != nil && u.Phase == upgrade.Planned && u.Announced && s.tracker.Replaced(u.Plan.Key())
	}
	s.whenStill(replaced, func() {
		name := s.due.plan.Name
		s.do("cancel", func(context.Context) error { return s.o.Engine.CancelPlan(name) }, func(err error) {
			if err != nil {
				s.log.Error("cannot give up a plan that another one took the place of", "plan", name, "error", err, "hint", hint.Of(err))
				return
			}
			s.log.Warn("the plan that was waited for is not in the plan file any more", "plan", name)
			s.afterOperation(nil, name)
		})
	})
}
