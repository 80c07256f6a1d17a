package supervisor

import (
	"context"
	"errors"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/alert"
	"nodevisor/upgrade/plan"
)

const (
	// firstHeight is when a freshly started node is first asked for its height.
	firstHeight = 200 * time.Millisecond
	// At rest a height is read this often: often enough for the status, too seldom to be measured.
	idleHeight = 5 * time.Second
	// Where something waits for a height it is read within these bounds, by the pace of the blocks.
	fastHeight, slowHeight = 200 * time.Millisecond, 2 * time.Second
	// chainEvery is how often the chain is asked for its plan.
	chainEvery = time.Minute
	// A plan file that is being written may be unusable for a moment; after unreadableSoon the log says so, and after
	// unreadableFor an operator is told.
	unreadableSoon, unreadableFor = time.Second, 30 * time.Second
)

// pace estimates the time between blocks from the heights that were read.
type pace struct {
	from   int64
	since  time.Time
	per    time.Duration
	failed int
}

func (p *pace) saw(h int64, at time.Time) {
	p.failed = 0
	if p.since.IsZero() || h < p.from {
		p.from, p.since = h, at
		return
	}
	if blocks := h - p.from; blocks > 0 {
		p.per = at.Sub(p.since) / time.Duration(blocks)
	}
	if h-p.from > 200 { // forget the distant past: the pace changes
		p.from, p.since = h, at
	}
}

// lookAtFile returns what reads the plan file. The result does file I/O: not for the loop.
func (s *Supervisor) lookAtFile() func() plan.File {
	path, recase := s.o.Layout.Plan, s.recase
	return func() plan.File { return plan.LookAt(path, recase) }
}

// look reads the plan file again. A look that is asked for while one is under way follows it.
func (s *Supervisor) look() {
	if s.looking {
		s.lookAgain = true
		return
	}
	s.looking = true
	look := s.lookAtFile()
	s.ask(func(context.Context) func() {
		file := look()
		return func() { s.looked(file) }
	})
}

func (s *Supervisor) looked(file plan.File) {
	s.looking = false
	if s.lookAgain {
		s.lookAgain = false
		s.look()
	}
	// Our own writes come while the node is at rest; whatever changes while it runs is the node's, or another tool's.
	if !s.sawFile(file, s.child != nil) {
		return
	}
	s.logPending()
	s.checkReadiness()
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
		s.unreadable, s.unreadableWas = time.Time{}, ""
	case s.unreadable.IsZero():
		s.unreadable = time.Now()
	}
	return news && err == nil
}

// sayUnreadable says in the log, and later to an operator, that the plan file can't be used.
func (s *Supervisor) sayUnreadable() {
	err := s.tracker.FileError()
	if err == nil || s.unreadable.IsZero() {
		return
	}
	switch since := time.Since(s.unreadable); {
	case since >= unreadableFor:
		s.unreadable = time.Now().Add(time.Hour) // once an hour
		s.log.Error("the plan file is still unusable", "file", s.o.Layout.Plan, "error", err,
			"hint", "look at what writes it; the node is left running")
		s.o.Event(alert.NotReady, "the plan file can't be read: "+err.Error())
	case since >= unreadableSoon && s.unreadableWas != err.Error():
		s.unreadableWas = err.Error()
		s.log.Warn("the plan file can't be used; looking again", "file", s.o.Layout.Plan, "error", err)
	}
}

// logPending says what is scheduled, or passed over: once, however often the file is written.
func (s *Supervisor) logPending() {
	p, err := s.tracker.NextPlan()
	was := s.pendingWas
	s.pendingWas = ""
	switch {
	case err != nil:
		if s.pendingWas = err.Error(); s.pendingWas != was {
			s.log.Info("the plan is passed over", "reason", err)
		}
	case p != nil:
		if s.pendingWas = p.Name + " at " + p.When() + " by " + string(p.Source); s.pendingWas != was {
			s.log.Info("a plan is pending", "plan", p.Name, "at", p.When(), "source", p.Source)
		}
	}
}

// readHeight asks the node for its height, at most one question at a time. The question ends with the node's life.
func (s *Supervisor) readHeight() {
	if s.reading || s.child == nil || s.onExit != nil {
		return
	}
	s.reading = true
	asked, life, heights := s.child, s.life, s.o.Heights
	s.ask(func(context.Context) func() {
		s.keepSocket()
		r, err := heights.Read(life)
		if err == nil && life.Err() == nil {
			if rerr := s.o.Recorder.Note(r.Height); rerr != nil {
				s.log.Warn("cannot record the height", "error", rerr)
			}
		}
		return func() {
			s.reading = false
			if s.child != asked { // the answer of a node that is gone
				s.heightTimer.Reset(fastHeight)
				return
			}
			s.takeLines()
			if err != nil {
				s.pace.failed++
				s.tracker.HeightFailed()
			} else {
				s.sawHeight(r.Height, r.Source, r.At)
			}
			s.heightTimer.Reset(s.nextHeight())
		}
	})
}

// keepSocket has the control socket made again where somebody removed it. It rides on what looks at the disk anyway: every
// few seconds beside a node that runs, every few minutes while none does.
func (s *Supervisor) keepSocket() {
	if s.server != nil {
		s.server.Keep()
	}
}

func (s *Supervisor) sawHeight(h int64, from string, at time.Time) {
	s.heightAt, s.heightFrom = at, from
	s.becameHealthy()
	s.pace.saw(h, at)
	s.tracker.SawHeight(h)
	if s.dropPast(h) {
		return
	}
	p, far := s.tracker.FarAhead()
	if far && !s.tracker.Scheduled(p) && p.Key() != s.imported && s.job == nil && s.onExit == nil && !s.stopping && s.due == nil {
		s.importPlan(p, h)
	}
}

// dropPast takes plans of Cosmovisor's schedule off again that turn out, at the first height of a node without a record, to
// be past: carried out now, they would put an old version under newer data.
func (s *Supervisor) dropPast(h int64) bool {
	var past []string
	for _, p := range s.unproven {
		if p.Height <= h {
			past = append(past, p.Name)
			s.tracker.PassOver(p.Height)
			s.log.Warn("an imported plan is past, and is taken off", "plan", p.Name, "at", p.Height, "height", h)
		}
	}
	if s.unproven = nil; len(past) == 0 {
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

// importPlan takes a future plan that another tool wrote into the node's file over into the schedule: the node itself
// says that its height is far ahead. What can't be taken over is said once.
func (s *Supervisor) importPlan(p plan.Plan, height int64) {
	s.log.Info("the plan file holds a plan whose height is still to come; it is kept as scheduled", "plan", p.Name,
		"at", p.Height, "height", height)
	s.imported = p.Key()
	p.Source = plan.FromOperator
	s.do("import", func(ctx context.Context) error {
		return s.o.Engine.AddPlan(ctx, p, height, false)
	}, func(err error) {
		if err != nil {
			s.log.Warn("cannot take the plan over", "plan", p.Name, "error", err, "hint", hint.Of(err))
		}
	})
}

// nextHeight says when to ask again: soon where something waits for it, seldom at rest, slower while nobody answers.
func (s *Supervisor) nextHeight() time.Duration {
	if u := s.journal.Upgrade; u != nil && s.child != nil && time.Since(s.child.StartedAt()) > s.o.Upgrade.Probation.Up+time.Minute {
		return slowHeight // the network may need hours
	}
	waits := s.journal.Upgrade != nil || (s.schedule.Halt != nil && s.schedule.Halt.Height > 0)
	target := int64(0)
	if h := s.schedule.Halt; h != nil {
		target = h.Height
	}
	if p, err := s.tracker.NextPlan(); err == nil && p != nil && p.Height > 0 {
		waits = true
		if target == 0 || p.Height < target {
			target = p.Height
		}
	}
	switch {
	case s.pace.failed > 0 && (waits || s.heightFrom == ""): // a node that was just started answers soon
		return min(fastHeight<<min(s.pace.failed, 4), slowHeight)
	case !waits:
		return idleHeight
	}
	left := time.Duration(max(0, target-s.tracker.Height())) * s.pace.per
	return min(max(fastHeight, left/4), slowHeight)
}

// askChain asks the chain for its plan: then a governance upgrade is staged long before its height.
func (s *Supervisor) askChain() {
	if s.o.ChainPlan == nil || s.child == nil {
		return
	}
	life, ask := s.life, s.o.ChainPlan
	s.ask(func(context.Context) func() {
		p, err := ask(life)
		return func() {
			s.chainTimer.Reset(chainEvery)
			if err != nil {
				return // the node has no gRPC, or not yet: the file tells, too
			}
			s.tracker.SetChain(p)
			s.checkReadiness()
		}
	})
}

// reached is the highest block that the new version is known to have made, for the question whether it can be undone.
func (s *Supervisor) reached(signer int64) int64 {
	reached := max(0, s.tracker.Height())
	if u := s.journal.Upgrade; u != nil && signer > u.Floor()+1 {
		reached = max(reached, signer-1) // it signs the block after the last one that it committed
	}
	return reached
}
