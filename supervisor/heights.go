package supervisor

import (
	"context"
	"time"
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
)

// heightReading is the asking for the node's height: at most one question at a time.
type heightReading struct {
	timer   *time.Timer // of the next question
	reading bool
	at      time.Time // when the height that is known was true; of the node that runs
	from    string    // which source said so; "" = none since the start
	pace    pace
}

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

// readHeight asks the node for its height, at most one question at a time. The question ends with the node's life.
func (s *Supervisor) readHeight() {
	if s.height.reading || s.child == nil || s.onExit != nil {
		return
	}
	s.height.reading = true
	asked, life, heights := s.child, s.life, s.o.Heights
	s.ask(func(context.Context) func() {
		r, err := heights.Read(life)
		if err == nil && life.Err() == nil {
			if rerr := s.o.Recorder.Note(r.Height); rerr != nil {
				s.log.Warn("cannot record the height", "error", rerr)
			}
		}
		return func() {
			s.height.reading = false
			if s.child != asked { // the answer of a node that is gone
				s.height.timer.Reset(fastHeight)
				return
			}
			s.takeLines()
			if err != nil {
				s.height.pace.failed++
				s.tracker.HeightFailed()
			} else {
				s.sawHeight(r.Height, r.Source, r.At)
			}
			s.height.timer.Reset(s.nextHeight())
		}
	})
}

func (s *Supervisor) sawHeight(h int64, from string, at time.Time) {
	s.height.at, s.height.from = at, from
	s.becameHealthy()
	s.height.pace.saw(h, at)
	s.tracker.SawHeight(h)
	if s.file.pendingSaid != "" {
		s.logPending() // a height may show that it is past
	}
	if s.dropPast(h) {
		return
	}
	p, far := s.tracker.FarAhead()
	if far && !s.tracker.Scheduled(p) && p.Key() != s.file.imported && s.job == nil && s.onExit == nil && !s.stopping && s.due == nil {
		s.importPlan(p, h)
	}
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
	case s.height.pace.failed > 0 && (waits || s.height.from == ""): // a node that was just started answers soon
		return min(fastHeight<<min(s.height.pace.failed, 4), slowHeight)
	case !waits:
		return idleHeight
	}
	left := time.Duration(max(0, target-s.tracker.Height())) * s.height.pace.per
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
