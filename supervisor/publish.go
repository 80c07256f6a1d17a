package supervisor

import (
	"fmt"
	"os"
	"time"

	"nodevisor/supervisor/metrics"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// publish makes the status of this moment readable for every goroutine. The loop calls it before it waits. Whoever reads
// it does so at any later time: it points to nothing that is changed in place.
func (s *Supervisor) publish() {
	v := status.View{
		Journal: s.journal, Schedule: s.schedule, Tracker: s.tracker, Current: s.version, Ready: s.readiness.of, Last: s.last,
		Layout: s.o.Layout, Pace: s.height.pace.per,
	}
	st := v.Document(time.Now())
	pid := os.Getpid()
	st.Supervisor = status.Identity{Version: s.o.Version, PID: &pid, Home: s.o.Layout.Home}
	if s.o.ConfigFile != "" {
		st.Supervisor.Config = &s.o.ConfigFile
	}
	st.State, st.Restarts, st.CrashLoop, st.LastExit = s.state, s.restarts, s.crashLoop(), s.lastExit
	st.Snapshots, st.Disk, st.Progress = s.store.snapshots, s.store.disk, s.progress
	s.tellOfSnapshots(st)
	if h := st.Halt; h != nil && h.Height != nil && s.ownHalt == *h.Height {
		h.Exact = true // the node itself halts there
	}
	if s.child != nil {
		st.PID, st.StartedAt = new(s.child.Pid()), new(s.child.StartedAt().UTC())
	}
	if s.height.from != "" && s.child != nil {
		st.HeightSource, st.HeightAge = new(s.height.from), new(time.Since(s.height.at).Milliseconds())
	}
	st.Message = s.message(st)
	s.sample.Store(&metrics.Sample{
		Document: st, Tally: s.tally, InFlight: s.journal.Upgrade, Since: s.since, HeightAt: s.height.at, Told: s.o.Told,
		Polled: s.file.watcher != nil && s.file.watcher.Fallback() != "",
	})
	s.tell(st)
}

// message is the one line that says what goes on.
func (s *Supervisor) message(st *status.Document) string {
	u := st.Upgrade
	switch {
	case st.Hold != nil:
		return "HELD: " + st.Hold.Reason
	case s.restore != nil && s.child != nil:
		return "the node restores its state, up " + time.Since(s.child.StartedAt()).Round(time.Second).String()
	case s.state == status.WaitingForBinary && s.due != nil:
		return fmt.Sprintf("the height of %s has come; waiting: %s", s.due.plan.Name, s.readiness.problem)
	case s.state == status.Running && s.child != nil && u != nil && u.Phase == upgrade.OnProbation:
		return s.trialText(u.Name)
	case s.state == status.Upgrading && u != nil:
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
