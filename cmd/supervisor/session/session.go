// Package session is what commands work with: a configuration that was loaded for one command line, and everything that is
// made from it. It stands between the commands and the machinery: it opens the store of snapshots, makes the engine, the
// checker and the sources of heights, and asks the running supervisor, or does the same by itself, under the home's lock,
// where none runs (Operate). It has no commands of its own.
package session

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/config"
	"nodevisor/cmd/supervisor/console"
	"nodevisor/internal/progress"
	"nodevisor/snapshot"
	"nodevisor/supervisor/home"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/source"
	"nodevisor/upgrade/version"
)

// Session is a loaded configuration with what is made from it.
type Session struct {
	*cli.App
	Config   config.Config
	Origin   config.Origin // where Config comes from
	Environ  []string      // in place of the App's: a unit's or a run's own, where the configuration is theirs
	UnitArgs []string      // the node's, of the unit that --unit names
	Layout   version.Layout
	Log      *slog.Logger
	Live     *console.Live // of Log
	Args     []string      // the node's, of this `run`; nil = [node] args
	Progress progress.Observer
	bad      *config.Error // the configuration's mistakes, where a running supervisor is asked all the same; see Reach
	joined   string        // the control socket that such a supervisor registered; "" = see host.ControlSocket
}

// Checker verifies binaries.
func (s *Session) Checker() *version.Checker {
	env, as := s.Beside(version.Genesis)
	return version.NewChecker(s.Layout, s.Config.Upgrade.Probe, env, s.Config.TrustBinary, s.Log).RunAs(as)
}

// Quiet is for commands that only report: what the packages narrate at info would stand beside the report itself.
func (s *Session) Quiet() {
	if s.Live != nil {
		s.Live.Quiet()
	}
}

// Store opens the snapshots; nil where there is nothing to snapshot.
func (s *Session) Store(observe func(phase string, done, total int64)) (*Snapshots, error) {
	return openSnapshots(s, observe)
}

// Engine makes the upgrade engine over store, which may be nil, for who has the lock.
func (s *Session) Engine(lock *home.Lock, store *Snapshots, checker *version.Checker, observe func(upgrade.Upgrade)) *upgrade.Engine {
	o := upgrade.Options{
		Layout: s.Layout, Config: s.Config.Upgrade, Checker: checker, Fetch: s.Fetcher(), ProgramLock: lock.BeginProgram, Log: s.Log, Observe: observe,
		Env:         func(v version.Version) []string { env, _ := s.Beside(v); return env },
		NewSnapshot: func(label string, height int64) string { return snapshot.NewID(time.Now(), label, max(0, height)) },
	}
	_, o.RunAs = s.Beside(version.Genesis)
	o.Snapshots, o.Templates = s.OnUpgrade(store)
	return upgrade.NewEngine(o)
}

// OnUpgrade is what takes the snapshots of upgrades and makes their templates; nil where the configuration wants none.
func (s *Session) OnUpgrade(store *Snapshots) (upgrade.Snapshotter, upgrade.Exporter) {
	switch {
	case store == nil || !s.SnapshotOn("upgrade"):
		return nil, nil
	case !s.TemplateOn("upgrade"):
		return store, nil
	}
	return store, NewExporter(s, store)
}

// SnapshotOn tells whether the configuration asks for a snapshot at an event.
func (s *Session) SnapshotOn(event string) bool {
	if event == "upgrade" && s.Config.Snapshot.Skip {
		return false
	}
	for _, on := range s.Config.Snapshot.On {
		if on == event {
			return true
		}
	}
	return false
}

// Heights are the sources of the node's height.
func (s *Session) Heights(lines *source.Lines, current func() string) *source.Heights {
	args, _ := s.Command(version.Genesis)
	env, as := s.Beside(version.Genesis)
	o := source.Options{
		Home: s.Config.Node.Home, Binary: current, Args: func() []string { return args }, Env: env, RunAs: as, Log: s.Log,
	}
	if s.Config.Height.Log != "" {
		o.Lines = lines
	}
	return source.NewHeights(s.Config.Height, o)
}

// ChainPlan asks the chain for its plan; nil where it has none.
func (s *Session) ChainPlan(ctx context.Context) (*plan.Plan, error) {
	addr, err := s.ChainAddress()
	if err != nil {
		return nil, fmt.Errorf("cannot ask the chain for its plan: %w", err)
	}
	return s.ChainPlanAt(ctx, addr)
}

// ChainAddress is where the node's gRPC is; the error is source.ErrNoAppConfig where nothing says it.
func (s *Session) ChainAddress() (string, error) {
	args, _ := s.Command(version.Genesis)
	return source.GRPCAddress(s.Config.Height, s.Config.Node.Home, args)
}

// ChainPlanAt is ChainPlan at an address.
func (s *Session) ChainPlanAt(ctx context.Context, addr string) (*plan.Plan, error) {
	p, err := source.CurrentPlan(ctx, addr)
	if err != nil || p == nil {
		return nil, err
	}
	name, err := version.NormaliseName(p.Name, s.Config.Upgrade.Recase)
	if err != nil {
		return nil, err
	}
	return &plan.Plan{Name: name, Height: p.Height, Time: p.Time, Info: p.Info, Source: plan.FromChain}, nil
}

// ChainTimeout bounds the question for the chain's plan on the way of another command.
const ChainTimeout = 2 * time.Second

// Command is what a version is started with: arguments and environment, the version's own over [node].
func (s *Session) Command(v version.Version) (args, env []string) {
	args = s.Args
	if args == nil {
		args = s.Config.Node.Args
	}
	env = append(env, s.Environ...)
	for k, value := range s.Config.Node.Env {
		env = append(env, k+"="+value)
	}
	if own, ok := s.Config.Versions[v.Name()]; ok {
		if own.Args != nil && s.Args == nil {
			args = *own.Args
		}
		for k, value := range own.Env {
			env = append(env, k+"="+value)
		}
	}
	return args, env
}

// CheckPermissions refuses what others may change: whoever can write to the tree decides what runs beside the keys.
func (s *Session) CheckPermissions() error {
	problems, warnings := config.CheckPermissions(s.Config.Node.Home, s.Config.GuardedPaths(s.Origin.File), s.Config.Security.AllowWritable)
	for _, w := range warnings {
		s.Log.Warn(w)
	}
	if len(problems) > 0 {
		return &config.Error{Problems: problems}
	}
	return nil
}

// CurrentBinary is asked anew each time: an upgrade changes it.
func (s *Session) CurrentBinary() string {
	v, err := s.Layout.Current()
	if err != nil {
		return ""
	}
	return s.Layout.Binary(v)
}

// inFlightSnapshots are the ids that no pruning may touch.
func (s *Session) inFlightSnapshots() []string {
	j, err := upgrade.LoadJournal(s.Layout.JournalPath())
	if err != nil || j.Upgrade == nil || j.Upgrade.Snapshot == "" {
		return nil
	}
	return []string{j.Upgrade.Snapshot}
}
