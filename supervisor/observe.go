package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"nodevisor/upgrade"
)

const (
	// firstHeight is when a freshly started node is first asked for its height.
	firstHeight = 200 * time.Millisecond
	// At rest a height is read this often: often enough for the status, too seldom to be measured.
	idleHeight = 2 * time.Second
	// Where something waits for a height it is read within these bounds, by the pace of the blocks.
	fastHeight, slowHeight = 200 * time.Millisecond, 2 * time.Second
	// chainEvery is how often the chain is asked for its plan; readyEvery how often binaries are looked at again.
	chainEvery, readyEvery = time.Minute, 30 * time.Second
	// unreadableFor is how long a plan file may be unusable before an operator is told.
	unreadableFor = 30 * time.Second
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

// look reads the plan file again. A look that is asked for while one is under way follows it.
func (s *Supervisor) look() {
	if s.looking {
		s.lookAgain = true
		return
	}
	s.looking = true
	s.ask(func(context.Context) func() {
		file := upgrade.LookAtPlanFile(s.o.Layout.Plan, s.o.Upgrade.Recase)
		return func() { s.looked(file) }
	})
}

func (s *Supervisor) looked(file upgrade.PlanFile) {
	s.looking = false
	if s.lookAgain {
		s.lookAgain = false
		s.look()
	}
	// Our own writes come while the node is at rest; whatever changes while it runs is the node's, or another tool's.
	if !s.tracker.SawFile(file, s.child != nil) {
		return
	}
	if err := s.tracker.FileError(); err != nil {
		s.log.Warn("the plan file can't be used yet; looking again", "file", s.o.Layout.Plan, "error", err)
		time.AfterFunc(unreadableFor, func() { s.post(s.stillUnreadable) })
		return
	}
	s.logPending()
	s.checkReadiness()
	if s.tracker.NeedsHeight() {
		s.readHeight()
	}
}

func (s *Supervisor) stillUnreadable() {
	if err := s.tracker.FileError(); err != nil && !s.done {
		s.log.Error("the plan file is still unusable", "file", s.o.Layout.Plan, "error", err,
			"hint", "look at what writes it; the node is left running")
		s.o.Event("not ready", "the plan file can't be read: "+err.Error())
	}
}

// logPending says once what is scheduled, and what is passed over.
func (s *Supervisor) logPending() {
	p, err := s.tracker.NextPlan()
	switch {
	case err != nil:
		s.log.Info("the plan is passed over", "reason", err)
	case p != nil:
		s.log.Info("a plan is pending", "plan", p.Name, "at", p.When(), "source", p.Source)
	}
}

// readHeight asks the node for its height, at most one question at a time.
func (s *Supervisor) readHeight() {
	if s.reading || s.child == nil {
		return
	}
	s.reading = true
	pid := s.child.Pid()
	s.ask(func(ctx context.Context) func() {
		r, err := s.o.Heights.Read(ctx)
		if err == nil {
			if rerr := s.o.Recorder.Note(r.Height); rerr != nil {
				s.log.Warn("cannot record the height", "error", rerr)
			}
		}
		return func() {
			s.reading = false
			if s.child == nil || s.child.Pid() != pid {
				return // the answer of a node that is gone
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

func (s *Supervisor) sawHeight(h int64, from string, at time.Time) {
	s.heightAt, s.heightFrom = at, from
	s.pace.saw(h, at)
	s.tracker.SawHeight(h)
	if p, far := s.tracker.FarAhead(); far && !s.tracker.Scheduled(p) && s.job == nil {
		s.importPlan(p, h)
	}
}

// importPlan takes a future plan that another tool wrote into the node's file over into the schedule: the node itself
// says that its height is far ahead.
func (s *Supervisor) importPlan(p upgrade.Plan, height int64) {
	s.log.Info("the plan file holds a plan whose height is still to come; it is kept as scheduled", "plan", p.Name,
		"at", p.Height, "height", height)
	p.Source = upgrade.FromOperator
	s.do("import", func(ctx context.Context) error {
		return s.o.Engine.AddPlan(ctx, p, height, false)
	}, func(err error) {
		if err != nil {
			s.log.Warn("cannot take the plan over", "plan", p.Name, "error", err)
		}
	})
}

// nextHeight says when to ask again: soon where something waits for it, seldom at rest, slower while nobody answers.
func (s *Supervisor) nextHeight() time.Duration {
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
	if !waits {
		return idleHeight
	}
	if s.pace.failed > 0 {
		return min(fastHeight<<min(s.pace.failed, 4), slowHeight)
	}
	left := time.Duration(max(0, target-s.tracker.Height())) * s.pace.per
	return min(max(fastHeight, left/4), slowHeight)
}

// askChain asks the chain for its plan: then a governance upgrade is staged long before its height.
func (s *Supervisor) askChain() {
	if s.o.ChainPlan == nil || s.child == nil {
		return
	}
	s.ask(func(ctx context.Context) func() {
		p, err := s.o.ChainPlan(ctx)
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

// checkReadiness verifies the binaries of the plans that are to come, long before they are needed. What is missing is
// said once, while there is time.
func (s *Supervisor) checkReadiness() {
	if s.due != nil {
		s.prepare()
		return
	}
	if s.done {
		return
	}
	versions := s.tracker.PendingVersions()
	s.ask(func(ctx context.Context) func() {
		checked := map[upgrade.Version]upgrade.Readiness{}
		for _, v := range append(versions, s.o.Layout.Versions()...) {
			if _, twice := checked[v]; !twice {
				checked[v] = s.o.Checker.Check(ctx, v)
			}
		}
		return func() {
			s.readTimer.Reset(readyEvery)
			s.ready = checked
			s.sayReadiness(versions)
		}
	})
}

func (s *Supervisor) sayReadiness(versions []upgrade.Version) {
	problem := ""
	if len(versions) > 0 {
		if r := s.ready[versions[0]]; !r.Ready() {
			problem = versions[0].Name() + ": " + r.Problems[0]
		}
	}
	if problem != "" && problem != s.notReady {
		s.log.Warn("the next upgrade is not ready", "plan", versions[0].Name(), "problem", problem,
			"hint", "supervisor upgrade add "+versions[0].Name()+" BINARY")
		s.o.Event("not ready", problem)
	}
	s.notReady = problem
}

// refreshCurrent tells the tracker which version current names now.
func (s *Supervisor) refreshCurrent() {
	s.ask(func(context.Context) func() {
		current, installed, ok := s.readCurrent()
		last := s.readHistory()
		return func() {
			s.last = last
			s.tracker.SetCurrent(current, installed, ok)
		}
	})
}

// readCurrent does file I/O: not for the loop.
func (s *Supervisor) readCurrent() (upgrade.Version, upgrade.Plan, bool) {
	current, err := s.o.Layout.Current()
	if err != nil {
		return "", upgrade.Plan{}, false
	}
	p, ok := s.o.Layout.InstalledPlan(current, s.o.Upgrade.Recase)
	return current, p, ok
}

// readHistory does file I/O: not for the loop.
func (s *Supervisor) readHistory() *LastUpgrade {
	all, err := upgrade.LoadHistory(s.o.Layout.HistoryDir())
	if err != nil || len(all) == 0 {
		return nil
	}
	return new(DescribeFinished(all[0]))
}

// summarize refreshes what the status shows of the snapshots, and completes them where the node runs.
func (s *Supervisor) summarize() {
	if s.o.Snapshots == nil {
		return
	}
	s.ask(func(ctx context.Context) func() {
		snaps, disk, err := s.o.Snapshots.Summary(ctx)
		return func() {
			if err != nil {
				s.log.Warn("cannot read the snapshots", "error", err)
				return
			}
			s.snapshots, s.disk = snaps, disk
		}
	})
}

// tidy completes sealed snapshots and prunes old ones in the background, while the node runs.
func (s *Supervisor) tidy() {
	if s.o.Snapshots == nil || s.tidying != nil || s.child == nil {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	s.tidying = cancel
	keep := ""
	if u := s.journal.Upgrade; u != nil {
		keep = u.Snapshot
	}
	go func() {
		err := s.o.Snapshots.Tidy(ctx, keep)
		s.post(func() {
			cancel()
			s.tidying, s.progress = nil, nil
			if err != nil && !errors.Is(err, context.Canceled) {
				s.log.Warn("cannot complete the snapshots", "error", err)
			}
			s.summarize()
		})
	}()
}

// snapshotAt takes a snapshot where the configuration asks for one at that event. It is for a job: the node is at rest.
func (s *Supervisor) snapshotAt(ctx context.Context, event string) error {
	if s.o.Snapshots == nil || s.o.SnapshotOn == nil || !s.o.SnapshotOn(event) {
		return nil
	}
	request, err := json.Marshal(map[string]any{"op": "create", "label": event, "height": max(0, s.lastKnown())})
	if err != nil {
		return err
	}
	_, err = s.o.Snapshots.Do(ctx, request, true)
	return err
}

// lastKnown is the recorder's height: safe outside of the loop.
func (s *Supervisor) lastKnown() int64 {
	if r, ok := s.o.Recorder.Last(); ok {
		return r.Height
	}
	return upgrade.Unknown
}

// reached is the highest block that the new version is known to have made, for the question whether it can be undone.
func (s *Supervisor) reached(signer int64) int64 {
	reached := max(0, s.tracker.Height())
	if u := s.journal.Upgrade; u != nil && signer > u.Floor()+1 {
		reached = max(reached, signer-1) // it signs the block after the last one that it committed
	}
	return reached
}
