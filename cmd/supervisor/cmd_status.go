package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/host"
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

func newStatus(a *app) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "status", GroupID: "node", Short: "Running? Which version? What is scheduled? What must I do?", Args: exactArgs(0, "no arguments"),
		Long: "Asks the running supervisor, or reads the files where none runs. Exit code 3 while held, else 0.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			if watch {
				return s.watchStatus(cmd.Context())
			}
			st, err := s.status(cmd.Context())
			if err != nil {
				return err
			}
			if a.flags.json {
				err = writeJSON(a.stdout, st)
			} else {
				err = printStatus(a.stdout, st, time.Now())
			}
			if err == nil && st.Hold != nil {
				return exitError{exitHeld}
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show every change until Ctrl-C; on a terminal a picture that is redrawn")
	return cmd
}

// status asks the running supervisor; where none runs it says what the files say.
func (s *session) status(ctx context.Context) (*status.Document, error) {
	raw, err := client.New(host.ControlSocket(s.cfg, s.environ)).Status(ctx)
	if errors.Is(err, client.ErrNotRunning) {
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
	return st, nil
}

// addChainPlan asks the chain's own plan once, where its gRPC answers and nothing nearer is scheduled: the running
// supervisor asks it only now and then.
func (s *session) addChainPlan(ctx context.Context, st *status.Document) {
	if st.PID == nil || st.Plan != nil || st.Upgrade != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, chainTimeout)
	defer cancel()
	p, err := s.chainPlan(ctx)
	if err != nil || p == nil || (st.Version != nil && *st.Version == p.Name) {
		return
	}
	height := plan.UnknownHeight
	if st.Height != nil {
		height = *st.Height
	}
	ready := s.checker().Check(ctx, version.Of(p.Name))
	st.Plan = new(status.DescribePlan(*p, false, ready, height, 0, time.Now()))
}

// view reads everything that a status is made of. It takes no lock: it only reads.
func (s *session) view() (status.View, error) {
	v := status.View{Layout: s.layout, Ready: map[version.Version]version.Readiness{}}
	engine := upgrade.NewEngine(upgrade.Options{Layout: s.layout, Config: s.cfg.Upgrade, Log: s.log})
	loadErr := engine.Load()
	if loadErr != nil && !errors.Is(loadErr, state.ErrUntrusted) {
		return v, loadErr
	}
	v.Journal, v.Schedule = engine.Journal(), engine.Schedule()
	if loadErr != nil && v.Journal.Hold == nil {
		v.Journal.Hold = holdOf(loadErr)
	}
	v.Tracker = s.fileTracker(v.Schedule)
	v.Current, _ = s.layout.Current() // a link that is damaged is doctor's matter; the version is then unknown
	all, err := upgrade.LoadHistory(s.layout.HistoryDir())
	if err == nil && len(all) > 0 {
		v.Last = new(status.DescribeFinished(all[0]))
	}
	return v, err
}

// statusOfFiles is the status where no supervisor runs.
func (s *session) statusOfFiles(ctx context.Context) (*status.Document, error) {
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	checker := s.checker()
	for _, to := range append(v.Tracker.PendingVersions(), v.Current) {
		if to != "" {
			v.Ready[to] = checker.Check(ctx, to)
		}
	}
	st := v.Document(time.Now())
	st.Supervisor = status.Identity{Version: release, Home: s.cfg.Node.Home}
	if s.origin.File != "" {
		st.Supervisor.Config = &s.origin.File
	}
	st.Message = "no supervisor is running"
	if st.Hold != nil {
		st.State, st.Message = status.Held, "HELD: "+st.Hold.Reason
	}
	s.quiet()
	if store, err := s.store(nil); err == nil && store != nil {
		if st.Snapshots, st.Disk, err = store.Summary(ctx); err != nil {
			st.Warnings = append(st.Warnings, err.Error())
		}
	}
	if info, err := home.ReadLock(s.layout.LockPath()); err == nil && info.Node != nil && info.Node.Alive() {
		st.PID = &info.Node.Pid
		st.Warnings = append(st.Warnings, fmt.Sprintf("node pid %d of an earlier supervisor still runs: supervisor --takeover run", info.Node.Pid))
	}
	return st, nil
}

// fileTracker knows what the files say of plans and heights.
func (s *session) fileTracker(schedule plan.Schedule) *plan.Tracker {
	t := plan.NewTracker(plan.UnknownHeight, time.Time{})
	if r, ok, err := source.LoadRecord(s.layout.HeightPath()); err == nil && ok {
		t = plan.NewTracker(r.Height, r.At)
	}
	t.SetSchedule(schedule)
	if v, err := s.layout.Current(); err == nil {
		p, ok := plan.Installed(s.layout, v, s.cfg.Upgrade.Recase)
		t.SetCurrent(v, p, ok)
	}
	t.SawFile(plan.LookAt(s.layout.Plan, s.cfg.Upgrade.Recase), false)
	return t
}

// tracker is fileTracker with the engine's schedule.
func (o *offline) tracker() *plan.Tracker { return o.fileTracker(o.engine.Schedule()) }

// plans lists what is to come; with the chain's own plan, which is asked once where gRPC answers.
func (s *session) plans(ctx context.Context) ([]status.Plan, error) {
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	chain, cancel := context.WithTimeout(ctx, chainTimeout)
	defer cancel()
	if p, err := s.chainPlan(chain); err == nil {
		v.Tracker.SetChain(p)
	}
	if st, err := s.status(ctx); err == nil && st.Height != nil && st.HeightSource != nil {
		v.Tracker.SawHeight(*st.Height)
	}
	checker := s.checker()
	for _, to := range v.Tracker.PendingVersions() {
		v.Ready[to] = checker.Check(ctx, to)
	}
	return v.Plans(time.Now()), nil
}

// printStatus answers five questions on one screen.
func printStatus(w io.Writer, st *status.Document, clock time.Time) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s "+format+"\n", append([]any{name}, args...)...)
	}
	line("state", "%s", st.State)
	if st.Message != "" && st.Message != string(st.State) {
		line("", "%s", st.Message)
	}
	if st.PID != nil && st.StartedAt != nil {
		line("node", "pid %d, up %s, %d restarts", *st.PID, clock.Sub(*st.StartedAt).Round(time.Second), st.Restarts)
	}
	if st.Version != nil {
		line("version", "%s", *st.Version)
	}
	if st.Height != nil {
		from := "last known"
		if st.HeightSource != nil {
			from = "by " + *st.HeightSource
		}
		line("height", "%d (%s)", *st.Height, from)
	}
	if e := st.LastExit; e != nil {
		line("last exit", "%s at %s (%s)", exitText(e), e.At.Format(time.RFC3339), e.Version)
	}
	if p := st.Plan; p != nil {
		line("plan", "%s at %s, from %s%s", p.Name, at(*p), p.Source, planDetail(p, clock))
		for _, problem := range p.Problems {
			line("", "not ready: %s", problem)
		}
		if !p.Ready && st.Hold == nil { // a hold names its own command
			line("next", "supervisor upgrade add %s BINARY", p.Name)
		}
	}
	if u := st.Upgrade; u != nil && st.Plan == nil {
		line("upgrade", "%s, %s, %d attempts", u.Name, u.Phase, u.Attempts)
	}
	if u := st.Upgrade; u != nil && u.Error != nil && (st.Hold == nil || *u.Error != st.Hold.Reason) {
		line("", "last error: %s", *u.Error)
	}
	if h := st.Halt; h != nil {
		when := orDash(h.Height)
		if h.Time != nil {
			when = h.Time.Format(time.RFC3339)
		}
		line("halt", "at %s", when)
	}
	printPast(line, st)
	for _, warning := range st.Warnings {
		line("warning", "%s", warning)
	}
	if st.Hold != nil {
		line("HELD", "%s (since %s)", st.Hold.Reason, st.Hold.Since.Format(time.RFC3339))
		line("next", "%s", st.Hold.Hint)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func printPast(line func(name, format string, args ...any), st *status.Document) {
	if l := st.LastUpgrade; l != nil {
		line("last", "%s -> %s %s at %s, downtime %s ms", l.From, l.To, l.Result, l.At.Format(time.RFC3339), orDash(l.DowntimeMS))
	}
	if l := st.Snapshots.Last; l != nil {
		state := "sealed"
		if l.VerifiedAt != nil {
			state = "verified"
		}
		line("snapshots", "%d, the last one %s at height %d, %s", st.Snapshots.Count, l.ID, l.Height, state)
	} else {
		line("snapshots", "none")
	}
	if st.Rollback.Possible {
		line("rollback", "possible: supervisor rollback")
	} else if st.Rollback.Reason != nil && (st.Upgrade != nil || st.LastUpgrade != nil) {
		line("rollback", "not possible: %s", *st.Rollback.Reason)
	}
}

func exitText(e *status.Exit) string {
	if e.Signal != nil {
		return "signal: " + *e.Signal
	}
	return fmt.Sprintf("exit code %d", *e.Code)
}

func planDetail(p *status.Plan, clock time.Time) string {
	var parts []string
	if p.BlocksLeft != nil {
		parts = append(parts, fmt.Sprintf("%d blocks left", *p.BlocksLeft))
	}
	if p.ETA != nil {
		parts = append(parts, "in "+p.ETA.Sub(clock).Round(time.Second).String())
	}
	if !p.Exact {
		parts = append(parts, "the stop comes a little late")
	}
	if p.Ready {
		parts = append(parts, "ready")
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

func holdOf(err error) *upgrade.Hold {
	return &upgrade.Hold{Reason: err.Error(), Hint: hint.Of(err), Since: time.Now().UTC()}
}
