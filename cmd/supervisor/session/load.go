package session

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/config"
	"nodevisor/cmd/supervisor/console"
	"nodevisor/cmd/supervisor/host"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/version"
)

// Load composes the configuration for this command line: that of the flags, of the unit that --unit names, or of the one
// `run` of this host. Where the configuration has mistakes (*config.Error) the session is what can be made of the rest, and
// silent: the doctor examines such a home, too.
func Load(ctx context.Context, a *cli.App, skipDirs bool) (*Session, error) {
	if a.Flags.Takeover && !a.Running {
		return nil, cli.Usagef("--takeover is for run alone")
	}
	o, cfg, origin, err := compose(ctx, a, skipDirs)
	s := &Session{App: a, Config: cfg, Origin: origin, Environ: a.Environ, Log: slog.New(slog.DiscardHandler)}
	s.locate()
	if o.Environ != nil {
		s.Environ, s.UnitArgs = o.Environ, o.unit.NodeArgs()
	}
	if err != nil && a.Running {
		err = s.withSources(err)
	}
	if err != nil {
		return s, err
	}
	s.Log, s.Live = console.NewLogger(cfg.Log, cfg.Cosmovisor, a.Stderr, a.Environ)
	s.Log = a.Advising(s.Log)
	if !a.Running {
		a.Meter = console.NewMeter(a.Stderr, a.Environ, s.Log)
		s.Log, s.Progress = a.Meter.Logger(s.Log), a.Meter.Observe
	}
	for _, w := range origin.Warnings {
		s.Log.Warn(w)
	}
	return s, nil
}

// Renewed is the session with a configuration that was read again.
func (s *Session) Renewed(cfg config.Config, origin config.Origin) *Session {
	fresh := *s
	fresh.Config, fresh.Origin = cfg, origin
	fresh.locate()
	return &fresh
}

// locate derives the places of the tree from the configuration.
func (s *Session) locate() {
	s.Layout = version.Layout{Home: s.Config.Node.Home, Root: s.Config.RootDir(), Node: s.Config.Node.Name}
	if s.Config.Upgrade.PlanFile != "" {
		s.Layout.Plan = s.Config.UnderHome(s.Config.Upgrade.PlanFile)
	}
}

// composed is what a configuration was composed of.
type composed struct {
	config.Options
	unit host.Unit
}

// Reread reads the configuration again as it is now. The session stays what it was.
func (s *Session) Reread(ctx context.Context) (config.Config, config.Origin, error) {
	_, cfg, origin, err := compose(ctx, s.App, false)
	return cfg, origin, err
}

// compose finds out where the configuration is and reads it. What is said of the whole holds for an error, too.
func compose(ctx context.Context, a *cli.App, skipDirs bool) (composed, config.Config, config.Origin, error) {
	o := config.Options{Environ: a.Environ}
	var unit host.Unit
	if a.Flags.Unit != "" {
		var err error
		if unit, err = host.ReadUnit(ctx, a.Flags.Unit); err != nil {
			return composed{}, config.Config{}, config.Origin{}, err
		}
		o = unit.Options(a.Environ)
	} else if err := loneRun(a, &o); err != nil {
		return composed{}, config.Config{}, config.Origin{}, err
	}
	if a.Flags.Home != "" {
		o.HomeFlag = a.Flags.Home
	}
	if a.Flags.Config != "" {
		o.ConfigFlag = a.Flags.Config
	}
	if a.Flags.CosmovisorConfig != "" {
		o.CosmovisorConfig = a.Flags.CosmovisorConfig
	}
	o.SkipDirs = skipDirs
	cfg, origin, err := config.Load(o)
	return composed{o, unit}, cfg, origin, err
}

// loneRun fills in the home of the one registered `run`, where nothing on the command line or in the environment says
// which home is meant. With several they are listed.
func loneRun(a *cli.App, o *config.Options) error {
	env := config.Variables(a.Environ)
	if a.Running || a.Founds || a.Flags.Home != "" || a.Flags.Config != "" || a.Flags.CosmovisorConfig != "" {
		return nil
	}
	for _, name := range []string{"DAEMON_HOME", "SUPERVISOR_NODE_HOME", "SUPERVISOR_CONFIG"} {
		if env[name] != "" {
			return nil
		}
	}
	runs := host.Registered(a.Environ)
	switch len(runs) {
	case 0:
		return nil
	case 1:
		o.HomeFlag, o.ConfigFlag = runs[0].Home, runs[0].Config
		o.Environ = append(o.Environ, host.Environ(runs[0].Pid)...)
		if int(runs[0].UID) != os.Geteuid() { // what another user registered is shown before it is acted upon
			a.Say("for --home %s, which user %d runs", hint.Quote(runs[0].Home), runs[0].UID)
		}
		return nil
	}
	list, again := "", "supervisor --home DIR"
	for _, r := range runs {
		list += "\n  --home " + hint.Quote(r.Home)
	}
	for _, word := range a.Args {
		again += " " + hint.Quote(word)
	}
	return &cli.UsageError{Err: cli.Advise(fmt.Errorf("several supervisors run on this host; say which one is meant:%s", list), again)}
}
