package supervisor

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/alert"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

const (
	// recheck is how often a missing binary is looked for, where no event tells of it.
	recheck = 300 * time.Millisecond
	// readyEvery is how often the binaries of plans to come are looked at again.
	readyEvery = 30 * time.Second
	// A download that failed is tried again after fetchPause, which doubles up to fetchPauseMax: a server is not to be
	// hammered. A binary that is put there by hand is found at once all the same.
	fetchPause, fetchPauseMax = 30 * time.Second, 10 * time.Minute
)

// trigger is a plan whose height has come, until it is carried out.
type trigger struct {
	plan      plan.Plan
	evidence  plan.Evidence
	stood     int64     // the height that is known
	announced bool      // it is in the journal: nothing makes it forgotten
	problem   string    // what was said last of why it can't begin
	fetchFrom time.Time // no download is tried before
	pause     time.Duration
	unfetched version.Readiness // what the last download failed of; ready = none did
}

// readiness is what is known of the versions of plans to come.
type readiness struct {
	of       map[version.Version]version.Readiness
	timer    *time.Timer // of the next look
	checking bool        // one is under way, beside the loop
	problem  string      // what was last said of the next plan
}

// trigger begins an upgrade whose height has come.
func (s *Supervisor) trigger(p plan.Plan, ev plan.Evidence) {
	s.due = &trigger{plan: p, evidence: ev, stood: s.tracker.Known()}
	s.prepare()
}

// verified is what preparing a version found.
type verified struct {
	ready   version.Readiness
	absent  bool // there is no binary at all
	fetched bool // a download was tried
}

// prepare makes sure that the upgrade can be carried out, and only then touches the node. A missing or bad binary, or
// too little room, leaves the node as it is: the version's directory is watched, and the upgrade goes on by itself.
func (s *Supervisor) prepare() {
	due := s.due
	if due == nil || s.stopping {
		return
	}
	if s.job != nil {
		s.readiness.timer.Reset(recheck)
		return
	}
	to, announced, runs := s.versionDue(), due.announced, s.child != nil
	running := s.version
	fetch := !time.Now().Before(due.fetchFrom)
	var found verified
	s.do("prepare", s.afterTidying(func(ctx context.Context) error {
		found = s.makeReady(ctx, due.plan, to, fetch)
		if runs {
			if err := s.o.Engine.Anchor(running, to); err != nil {
				return err
			}
		}
		switch {
		case found.ready.Ready():
			return s.o.Engine.Begin(due.plan, due.evidence, found.ready, due.stood)
		case announced:
			return nil
		}
		return s.o.Engine.Announce(due.plan, due.evidence, due.stood)
	}), func(err error) {
		ready := found.ready
		if err != nil {
			ready.Problems, ready.Hint = []string{unwritten(err)}, hint.Of(err)
		}
		s.readiness.of[to] = ready
		due.announced = due.announced || err == nil
		if found.fetched {
			due.pause = min(max(fetchPause, 2*due.pause), fetchPauseMax)
			due.fetchFrom, due.unfetched = time.Now().Add(due.pause), found.ready
		}
		switch {
		case s.stopping || s.due != due:
		case err != nil:
			s.awaitReady(ready, recordPause)
		case !ready.Ready():
			if found.absent && s.o.Fetch == nil && due.problem == "" {
				s.log.Error("binary not present, downloading disabled", "plan", due.plan.Name, "binary", s.o.Layout.Binary(to))
			}
			s.awaitReady(ready, recheck)
		default:
			s.due = nil
			s.stopForUpgrade()
		}
	})
}

// unwritten says why the upgrade can't be recorded, in words that stay the same from one try to the next.
func unwritten(err error) string {
	if cause := syscall.Errno(0); errors.As(err, &cause) {
		return "it can't be recorded: " + cause.Error()
	}
	return err.Error()
}

// versionDue is the version that the waiting plan leads to.
func (s *Supervisor) versionDue() version.Version {
	if u := s.journal.Upgrade; u != nil {
		return u.To
	}
	return s.due.plan.To()
}

// makeReady runs in a job: it verifies the binary, fetches a missing one where that is allowed, and asks for room.
func (s *Supervisor) makeReady(ctx context.Context, p plan.Plan, to version.Version, fetch bool) verified {
	v := verified{ready: s.o.Checker.Check(ctx, to)}
	v.absent = !v.ready.Ready() && !s.o.Layout.HasBinary(to)
	if v.absent && fetch && s.o.Fetch != nil && p.Info != "" {
		v.fetched = true
		s.log.Info("no upgrade binary found, beginning to download it", "plan", p.Name)
		if err := s.o.Fetch(ctx, p, to); err != nil {
			v.ready = unready(v.ready, err)
			return v
		}
		s.log.Info("downloading binary complete", "plan", p.Name)
		v.ready = s.o.Checker.Check(ctx, to)
		v.ready.Downloaded = true
	}
	if v.ready.Ready() {
		v.ready = unready(v.ready, upgrade.CheckScript(s.o.Layout, s.o.Engine.Config))
	}
	if v.ready.Ready() && s.o.Room != nil {
		v.ready = unready(v.ready, s.o.Room(ctx))
	}
	return v
}

// unready adds to what is known of a version what else stands in its way; nil = nothing.
func unready(r version.Readiness, err error) version.Readiness {
	if err != nil {
		r.Problems, r.Hint = []string{err.Error()}, hint.Of(err)
	}
	return r
}

// awaitReady waits for what the upgrade lacks, and says it once.
func (s *Supervisor) awaitReady(r version.Readiness, again time.Duration) {
	due, problem, next := s.due, r.Problems[0], r.Next()
	if due.problem != problem {
		s.log.Error("the height of a plan has come and it is not ready; waiting", "plan", due.plan.Name,
			"height", due.plan.Height, "problem", problem, "hint", next)
		s.o.Event(alert.NotReady, due.plan.Name+": "+problem)
	}
	due.problem, s.readiness.problem = problem, problem
	s.settleApply(hint.New("apply", due.plan.Name, problem, next))
	s.state = status.WaitingForBinary
	s.readiness.timer.Reset(again)
}

// recheckDue looks whether the waiting plan's binary is there by now. It is no job, so that an operator's command, which
// may be the one that mends it, finds the engine free.
func (s *Supervisor) recheckDue() {
	due, to := s.due, s.versionDue()
	if !due.announced || !time.Now().Before(due.fetchFrom) && s.o.Fetch != nil && due.plan.Info != "" {
		s.prepare()
		return
	}
	if s.readiness.checking {
		s.readiness.timer.Reset(recheck)
		return
	}
	s.readiness.checking = true
	checker, layout := s.o.Checker, s.o.Layout
	s.ask(func(ctx context.Context) func() {
		ready := checker.Check(ctx, to)
		absent := !ready.Ready() && !layout.HasBinary(to)
		return func() {
			s.readiness.checking = false
			if absent && len(due.unfetched.Problems) > 0 { // why it isn't there says more than that it isn't
				ready = due.unfetched
			}
			switch {
			case s.due != due:
			case !ready.Ready():
				s.readiness.of[to] = ready
				s.awaitReady(ready, recheck)
			default:
				s.prepare()
			}
		}
	})
}

// checkReadiness verifies the binaries of the plans that are to come, long before they are needed. What is missing is
// said once, while there is time.
func (s *Supervisor) checkReadiness() {
	switch {
	case s.done:
		return
	case s.due != nil:
		s.recheckDue()
		return
	case s.readiness.checking:
		s.readiness.timer.Reset(recheck)
		return
	}
	s.readiness.checking = true
	versions, checker, layout, config := s.tracker.PendingVersions(), s.o.Checker, s.o.Layout, s.o.Upgrade
	s.ask(func(ctx context.Context) func() {
		checked := map[version.Version]version.Readiness{}
		for _, v := range slices.Concat(versions, layout.Versions()) {
			if _, twice := checked[v]; !twice {
				checked[v] = checker.Check(ctx, v)
			}
		}
		script := upgrade.CheckScript(layout, config)
		for _, v := range versions {
			if checked[v].Ready() {
				checked[v] = unready(checked[v], script)
			}
		}
		return func() {
			s.readiness.checking = false
			was := s.readiness.of
			s.readiness.of = checked
			s.readiness.timer.Reset(readyEvery)
			if s.due != nil {
				if r, ok := was[s.versionDue()]; ok { // what it waits for is more than this look knows of
					checked[s.versionDue()] = r
				}
				s.readiness.timer.Reset(recheck)
				return
			}
			s.sayReadiness(versions)
		}
	})
}

func (s *Supervisor) sayReadiness(versions []version.Version) {
	problem, next := "", ""
	if len(versions) > 0 {
		if r := s.readiness.of[versions[0]]; !r.Ready() {
			problem, next = versions[0].Name()+": "+r.Problems[0], r.Next()
		}
	}
	if problem != "" && problem != s.readiness.problem {
		s.log.Warn("the next upgrade is not ready", "plan", versions[0].Name(), "problem", problem, "hint", next)
		s.o.Event(alert.NotReady, problem)
	}
	s.readiness.problem = problem
}
