package supervisor

import (
	"fmt"
	"os"
	"time"

	"nodevisor/upgrade"
)

// publish makes the status of this moment readable for every goroutine. The loop calls it before it waits. Whoever reads
// it does so at any later time: it points to nothing that is changed in place.
func (s *Supervisor) publish() {
	s.settleState()
	v := View{
		Journal: s.journal, Schedule: s.schedule, Tracker: s.tracker, Current: s.version, Ready: s.ready, Last: s.last,
		Layout: s.o.Layout, Config: s.o.Upgrade, Pace: s.pace.per,
	}
	st := v.Status(time.Now())
	pid := os.Getpid()
	st.Supervisor = Identity{Version: s.o.Version, PID: &pid, Home: s.o.Layout.Home}
	if s.o.ConfigFile != "" {
		st.Supervisor.Config = &s.o.ConfigFile
	}
	st.State, st.Restarts, st.CrashLoop, st.LastExit = s.state, s.restarts, s.crashLoop(), s.lastExit
	st.Snapshots, st.Disk, st.Progress = s.snapshots, s.disk, s.progress
	s.tellOfSnapshots(st)
	if s.child != nil {
		st.PID, st.StartedAt = new(s.child.Pid()), new(s.child.StartedAt().UTC())
	}
	if s.heightFrom != "" && s.child != nil {
		st.HeightSource, st.HeightAge = new(s.heightFrom), new(time.Since(s.heightAt).Milliseconds())
	}
	st.Message = s.message(st)
	st.inner = inner{tally: s.tally, flight: s.journal.Upgrade, since: s.since, told: s.o.Told}
	st.inner.fallback = s.watcher != nil && s.watcher.Fallback() != ""
	s.status.Store(st)
	s.tell(st)
}

// settleState turns starting into running, and begins what waits for a running node.
func (s *Supervisor) settleState() {
	switch {
	case s.state == Held && s.untidy && s.job == nil:
		s.tidy()
	case s.child == nil:
	case s.state == Starting && time.Since(s.child.StartedAt()) >= okayAfter:
		s.state = Running
		s.spawn(dropProgram) // the start is over
		if s.tidyPause == 0 { // else its timer does it: a node that is started again is no reason to try sooner
			s.tidy()
		}
	case s.state == Running && s.untidy && s.job == nil && s.onExit == nil:
		s.tidy()
	}
}

// message is the one line that says what goes on.
func (s *Supervisor) message(st *Status) string {
	u := st.Upgrade
	switch {
	case st.Hold != nil:
		return "HELD: " + st.Hold.Reason
	case s.restore != nil && s.child != nil:
		return "the node restores its state, up " + time.Since(s.child.StartedAt()).Round(time.Second).String()
	case s.state == WaitingForBinary && s.due != nil:
		return fmt.Sprintf("the height of %s has come; waiting: %s", s.due.plan.Name, s.notReady)
	case s.state == Running && s.child != nil && u != nil && u.Phase == upgrade.OnProbation:
		return s.trialText(u.Name)
	case s.state == Upgrading && u != nil:
		return fmt.Sprintf("upgrading to %s: %s reached", u.Name, u.Phase)
	case st.CrashLoop:
		return "crash loop: the node ends again and again"
	case st.Plan != nil && !st.Plan.Ready:
		return fmt.Sprintf("%s; the plan %s is not ready", s.state, st.Plan.Name)
	}
	return string(s.state)
}

// trialText says what a version on probation is waiting for: blocks, else only time.
func (s *Supervisor) trialText(name string) string {
	up, need := time.Since(s.child.StartedAt()), s.o.Upgrade.Probation
	if u := s.journal.Upgrade; need.HeightAbovePlan && (u == nil || s.tracker.Height() <= u.Floor()) {
		return fmt.Sprintf("%s is on probation: waiting for the network, up %s", name, up.Round(time.Second))
	}
	return fmt.Sprintf("%s is on probation: up %s of %s", name, up.Round(time.Second), need.Up)
}

// View is everything that a status is made of and that lies in files: `status` shows the same with and without a
// running supervisor.
type View struct {
	Journal  upgrade.Journal
	Schedule upgrade.Schedule
	Tracker  *upgrade.Tracker // nil: nothing could be read
	Current  upgrade.Version
	Ready    map[upgrade.Version]upgrade.Readiness
	Last     *LastUpgrade
	Layout   upgrade.Layout
	Config   upgrade.Config
	Pace     time.Duration // between two blocks; 0 = not known
}

// Status renders what the files say.
func (v View) Status(clock time.Time) *Status {
	st := &Status{Schema: StatusSchema, State: Stopped, Hold: v.Journal.Hold, LastUpgrade: v.Last, Warnings: []string{}}
	if v.Current != "" {
		st.Version = new(v.Current.Name())
		st.Binary = &BinaryStatus{Path: v.Layout.Binary(v.Current)}
		if r, ok := v.Ready[v.Current]; ok && r.SHA256 != "" {
			st.Binary.SHA256 = &r.SHA256
		}
	}
	if h := v.Schedule.Halt; h != nil {
		st.Halt = &HaltStatus{Exact: !h.Time.IsZero()}
		if h.Height > 0 {
			st.Halt.Height = &h.Height
		} else {
			st.Halt.Time = &h.Time
		}
	}
	height := upgrade.Unknown
	if v.Tracker != nil {
		if height = v.Tracker.Known(); height != upgrade.Unknown {
			st.Height = &height
		}
		if err := v.Tracker.FileError(); err != nil {
			st.Warnings = append(st.Warnings, "the plan file can't be used: "+err.Error())
		}
		if plans := v.Plans(clock); len(plans) > 0 {
			st.Plan = &plans[0]
		}
	}
	st.Upgrade = v.upgrade(st.Plan)
	st.Rollback = v.rollback(height)
	return st
}

// Plans lists what is to come, the next one first.
func (v View) Plans(clock time.Time) []PlanStatus {
	all := []PlanStatus{}
	for _, p := range v.Tracker.Pending() {
		to := upgrade.VersionOf(p.Name)
		ready, ok := v.Ready[to]
		if !ok {
			ready.Problems = []string{"not looked at yet"}
		}
		all = append(all, DescribePlan(p, v.Tracker.Scheduled(p), ready, v.Tracker.Known(), v.Pace, clock))
	}
	return all
}

// upgrade is the one in flight; else the next plan's preparation: planned, or staged once its binary was verified.
func (v View) upgrade(next *PlanStatus) *UpgradeStatus {
	if u := v.Journal.Upgrade; u != nil {
		st := &UpgradeStatus{Name: u.Plan.Name, Phase: u.Phase, Attempts: u.Attempts}
		if u.Error != "" {
			st.Error = &u.Error
		}
		return st
	}
	if next == nil {
		return nil
	}
	st := &UpgradeStatus{Name: next.Name, Phase: upgrade.Planned}
	if next.Ready {
		st.Phase = upgrade.Staged
	}
	return st
}

func (v View) rollback(height int64) RollbackStatus {
	err := upgrade.CanRollBack(v.Journal.Upgrade, height, false)
	if v.Journal.Upgrade == nil && v.Last != nil && v.Last.Result == upgrade.ResultCommitted && v.Last.Height != nil {
		err = fmt.Errorf("%s is committed", v.Last.Name)
		if height > *v.Last.Height {
			err = fmt.Errorf("block %d committed", height)
		}
	}
	if err == nil {
		return RollbackStatus{Possible: true}
	}
	return RollbackStatus{Reason: new(err.Error())}
}
