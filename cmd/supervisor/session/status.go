package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/home"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/source"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// Status asks the running supervisor; where none runs it says what the files say.
func (s *Session) Status(ctx context.Context) (*status.Document, error) {
	raw, err := client.New(s.Socket()).Status(ctx)
	if errors.Is(err, client.ErrNotRunning) {
		if s.bad != nil {
			return nil, s.bad
		}
		return s.statusOfFiles(ctx)
	}
	if err != nil {
		return nil, err
	}
	st := &status.Document{}
	if err := json.Unmarshal(raw, st); err != nil {
		return nil, fmt.Errorf("cannot read the supervisor's answer: %w", err)
	}
	s.addChainPlan(ctx, st)
	s.warnOfIdle(st)
	s.warnOfDamaged(st)
	s.addressStatus(st)
	return st, nil
}

// addChainPlan asks the chain's own plan once, where its gRPC answers and nothing nearer is scheduled: the running
// supervisor asks it only now and then.
func (s *Session) addChainPlan(ctx context.Context, st *status.Document) {
	if st.PID == nil || st.Plan != nil || st.Upgrade != nil || s.bad != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, ChainTimeout)
	defer cancel()
	p, err := s.ChainPlan(ctx)
	if err != nil || p == nil || (st.Version != nil && *st.Version == p.Name) {
		return
	}
	height := plan.UnknownHeight
	if st.Height != nil {
		height = *st.Height
	}
	ready := s.readiness(ctx, s.Checker(), version.Of(p.Name))
	st.Plan = new(status.DescribePlan(*p, false, ready, height, 0, time.Now()))
}

// View reads everything that a status is made of. It takes no lock: it only reads.
func (s *Session) View() (status.View, error) {
	v := status.View{Layout: s.Layout, Ready: map[version.Version]version.Readiness{}}
	engine := upgrade.NewEngine(upgrade.Options{Layout: s.Layout, Config: s.Config.Upgrade, Log: s.Log})
	loadErr := engine.Load()
	if loadErr != nil && !errors.Is(loadErr, state.ErrUntrusted) {
		return v, loadErr
	}
	v.Journal, v.Schedule = engine.Journal(), engine.Schedule()
	if loadErr != nil && v.Journal.Hold == nil {
		v.Journal.Hold = HoldOf(loadErr)
	}
	if in, err := engine.BatchImport(); err == nil && loadErr == nil { // what the next start takes over from Cosmovisor
		for _, p := range in.Plans {
			v.Schedule.Add(p)
		}
	}
	v.Tracker = s.FileTracker(v.Schedule)
	v.Current, _ = s.Layout.Current() // a link that is damaged is doctor's matter; the version is then unknown
	all, err := upgrade.LoadHistory(s.Layout.HistoryDir())
	if err == nil && len(all) > 0 {
		v.Last = new(status.DescribeFinished(all[0]))
	}
	return v, err
}

// readiness is what a running supervisor knows of a version long before its height: its binary, and the script of its switch.
func (s *Session) readiness(ctx context.Context, checker *version.Checker, to version.Version) version.Readiness {
	r := checker.Check(ctx, to)
	if err := upgrade.CheckScript(s.Layout, s.Config.Upgrade); err != nil && r.Ready() {
		r.Problems, r.Hint = []string{err.Error()}, hint.Of(err)
	}
	return r
}

// statusOfFiles is the status where no supervisor runs.
func (s *Session) statusOfFiles(ctx context.Context) (*status.Document, error) {
	v, err := s.View()
	if err != nil {
		return nil, err
	}
	checker := s.Checker()
	for _, to := range append(v.Tracker.PendingVersions(), v.Current) {
		if to != "" {
			v.Ready[to] = s.readiness(ctx, checker, to)
		}
	}
	st := v.Document(time.Now())
	st.Supervisor = status.Identity{Version: s.Release, Home: s.Config.Node.Home}
	if s.Origin.File != "" {
		st.Supervisor.Config = &s.Origin.File
	}
	st.Message = "no supervisor is running"
	if st.Hold != nil {
		st.State, st.Message = status.Held, "HELD: "+st.Hold.Reason
	}
	s.Quiet()
	if store, err := s.Store(nil); err == nil && store != nil {
		if st.Snapshots, st.Disk, err = store.Summary(ctx); err != nil {
			st.Warnings = append(st.Warnings, err.Error())
		}
	}
	s.askLock(st)
	if warning := s.linkWarning(); warning != "" {
		st.Warnings = append(st.Warnings, warning)
	}
	s.warnOfIdle(st)
	s.warnOfDamaged(st)
	s.addressStatus(st)
	return st, nil
}

// askLock says who holds the home although no supervisor answers: one whose socket is gone, a command at work, or the node
// or a migration of an earlier supervisor.
func (s *Session) askLock(st *status.Document) {
	info, err := home.ReadLock(s.Layout.LockPath())
	if err != nil {
		return
	}
	node := info.Node != nil && info.Node.Alive()
	if node {
		st.PID = &info.Node.Pid
	}
	switch sv := info.Supervisor; {
	case sv != nil && sv.Alive():
		st.Supervisor.PID = &sv.Pid
		st.Message = fmt.Sprintf("process %d has the home's lock, and nobody answers at %s", sv.Pid, s.Socket())
		st.Warnings = append(st.Warnings, fmt.Sprintf("process %d is a run whose socket was removed, which makes it again within seconds, "+
			"or one that listens elsewhere ([control] socket was changed since its start: change it back, or restart it), or a command at work: ps -fp %d; SIGTERM stops a run with its node", sv.Pid, sv.Pid))
	case node:
		st.Warnings = append(st.Warnings, fmt.Sprintf("node pid %d of an earlier supervisor still runs: %s", info.Node.Pid, home.Takeover(info.Args)))
	}
	if pid, atWork := home.FlockedBy(home.ProgramLock(s.Layout.LockPath())); atWork {
		st.Warnings = append(st.Warnings, fmt.Sprintf("a program that process %d, an earlier supervisor, ran for the upgrade is still at work; run waits for its end; "+
			"where it hangs: %s", pid, home.Takeover(info.Args)))
	}
}

// linkWarning says why the next start finds no version to run; "" where it finds one.
func (s *Session) linkWarning() string {
	_, err := s.Layout.Current()
	switch {
	case err == nil, errors.Is(err, version.ErrNoLink) && !upgrade.Seen(s.Layout) && s.Layout.HasBinary(version.Genesis):
		return ""
	case errors.Is(err, version.ErrNoLink) && !upgrade.Seen(s.Layout):
		return "no binary is installed: supervisor init BINARY"
	}
	return fmt.Sprintf("%v, and a start never guesses: supervisor doctor --fix-link", err)
}

// FileTracker knows what the files say of plans and heights.
func (s *Session) FileTracker(schedule plan.Schedule) *plan.Tracker {
	t := plan.NewTracker(plan.UnknownHeight, time.Time{})
	if r, ok, err := source.LoadRecord(s.Layout.HeightPath()); err == nil && ok {
		t = plan.NewTracker(r.Height, r.At)
	}
	t.SetSchedule(schedule)
	if v, err := s.Layout.Current(); err == nil {
		p, ok := plan.Installed(s.Layout, v, s.Config.Upgrade.Recase)
		t.SetCurrent(v, p, ok)
	}
	t.SawFile(plan.LookAt(s.Layout.Plan, s.Config.Upgrade.Recase), false)
	return t
}

// Plans lists what is to come; with the chain's own plan, which is asked once where gRPC answers.
func (s *Session) Plans(ctx context.Context) ([]status.Plan, error) {
	if _, err := plan.LoadSchedule(s.Layout.SchedulePath()); err != nil {
		return nil, err // an empty list would say that nothing is planned
	}
	v, err := s.View()
	if err != nil {
		return nil, err
	}
	chain, cancel := context.WithTimeout(ctx, ChainTimeout)
	defer cancel()
	if p, err := s.ChainPlan(chain); err == nil {
		v.Tracker.SetChain(p)
	}
	st, err := s.Status(ctx)
	switch {
	case errors.Is(err, client.ErrNoAnswer):
		return nil, err
	case err == nil && st.Height != nil && st.HeightSource != nil:
		v.Tracker.SawHeight(*st.Height)
	}
	checker := s.Checker()
	for _, to := range v.Tracker.PendingVersions() {
		v.Ready[to] = s.readiness(ctx, checker, to)
	}
	return v.Plans(time.Now()), nil
}

// HoldOf is the hold that an error is: of a journal that can't be trusted.
func HoldOf(err error) *upgrade.Hold {
	return &upgrade.Hold{Reason: err.Error(), Hint: hint.Of(err), Since: time.Now().UTC()}
}
