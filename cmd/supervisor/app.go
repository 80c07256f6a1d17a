package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"nodevisor/cmd/supervisor/config"
	"nodevisor/cmd/supervisor/console"
	"nodevisor/cmd/supervisor/host"
	"nodevisor/internal/hint"
	"nodevisor/internal/progress"
	"nodevisor/snapshot"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/home"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/source"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// app is one command line: what it was given, and what it printed to.
type app struct {
	args    []string
	environ []string
	stdin   *os.File
	stdout  *os.File
	stderr  *os.File
	flags   globalFlags
	running bool           // the command is `run`: its exit codes are its own
	meter   *console.Meter // shows how far a long command is; nil = none
}

// globalFlags stand before the command's own arguments.
type globalFlags struct {
	home, config, unit, cosmovisorConfig string
	json, takeover                       bool
}

func newApp(args, environ []string, stdin, stdout, stderr *os.File) *app {
	return &app{args: args, environ: environ, stdin: stdin, stdout: stdout, stderr: stderr}
}

// say prints what is meant for people, and isn't data.
func (a *app) say(format string, args ...any) {
	if !a.flags.json {
		fmt.Fprintf(a.stderr, format+"\n", args...)
	}
}

// load composes the configuration for this command line: that of the flags, of the unit that --unit names, or of the one
// `run` of this host.
func (a *app) load(ctx context.Context, skipDirs bool) (*session, error) {
	o, cfg, origin, err := a.compose(ctx, skipDirs)
	if err != nil {
		return &session{app: a, cfg: cfg, origin: origin}, err
	}
	s := &session{app: a, cfg: cfg, origin: origin, environ: o.Environ, unitArgs: o.unit.NodeArgs()}
	s.log, s.level = console.NewLogger(cfg.Log, cfg.Cosmovisor, a.stderr, a.environ)
	if !a.running {
		a.meter = console.NewMeter(a.stderr, a.environ, s.log)
		s.log, s.progress = a.meter.Logger(s.log), a.meter.Observe
	}
	for _, w := range origin.Warnings {
		s.log.Warn(w)
	}
	s.layout = version.Layout{Home: cfg.Node.Home, Root: cfg.RootDir(), Node: cfg.Node.Name}
	if cfg.Upgrade.PlanFile != "" {
		s.layout.Plan = cfg.UnderHome(cfg.Upgrade.PlanFile)
	}
	return s, nil
}

// composed is what a configuration was composed of.
type composed struct {
	config.Options
	unit host.Unit
}

// compose finds out where the configuration is and reads it. What is said of the whole holds for an error, too.
func (a *app) compose(ctx context.Context, skipDirs bool) (composed, config.Config, config.Origin, error) {
	o := config.Options{Environ: a.environ}
	var unit host.Unit
	if a.flags.unit != "" {
		var err error
		if unit, err = host.ReadUnit(ctx, a.flags.unit); err != nil {
			return composed{}, config.Config{}, config.Origin{}, err
		}
		o = unit.Options(a.environ)
	} else if err := a.loneRun(&o); err != nil {
		return composed{}, config.Config{}, config.Origin{}, err
	}
	if a.flags.home != "" {
		o.HomeFlag = a.flags.home
	}
	if a.flags.config != "" {
		o.ConfigFlag = a.flags.config
	}
	if a.flags.cosmovisorConfig != "" {
		o.CosmovisorConfig = a.flags.cosmovisorConfig
	}
	o.SkipDirs = skipDirs
	cfg, origin, err := config.Load(o)
	return composed{o, unit}, cfg, origin, err
}

// loneRun fills in the home of the one registered `run`, where nothing on the command line or in the environment says
// which home is meant. With several they are listed.
func (a *app) loneRun(o *config.Options) error {
	env := config.Variables(a.environ)
	if a.running || a.flags.home != "" || a.flags.config != "" || a.flags.cosmovisorConfig != "" {
		return nil
	}
	for _, name := range []string{"DAEMON_HOME", "SUPERVISOR_NODE_HOME", "SUPERVISOR_CONFIG"} {
		if env[name] != "" {
			return nil
		}
	}
	runs := host.Registered(a.environ)
	switch len(runs) {
	case 0:
		return nil
	case 1:
		o.HomeFlag, o.ConfigFlag = runs[0].Home, runs[0].Config
		o.Environ = append(o.Environ, host.Environ(runs[0].Pid)...)
		if int(runs[0].UID) != os.Geteuid() { // what another user registered is shown before it is acted upon
			a.say("for --home %s, which user %d runs", runs[0].Home, runs[0].UID)
		}
		return nil
	}
	list, again := "", "supervisor --home DIR"
	for _, r := range runs {
		list += "\n  --home " + r.Home
	}
	for _, word := range a.args {
		again += " " + shellQuote(word)
	}
	return &usageError{advised{
		fmt.Errorf("several supervisors run on this host; say which one is meant:%s", list), again,
	}}
}

// session is a loaded configuration with what is made from it.
type session struct {
	*app
	cfg      config.Config
	origin   config.Origin
	environ  []string
	unitArgs []string
	layout   version.Layout
	log      *slog.Logger
	level    *slog.LevelVar // of log
	args     []string       // the node's, of this `run`; nil = [node] args
	progress progress.Observer
}

// checker verifies binaries.
func (s *session) checker() *version.Checker {
	_, env := s.command(version.Genesis)
	return version.NewChecker(s.layout, s.cfg.Upgrade.Probe, env, s.log)
}

// quiet is for commands that only report: what the packages narrate at info would stand beside the report itself.
func (s *session) quiet() {
	if s.level != nil && s.level.Level() == slog.LevelInfo {
		s.level.Set(slog.LevelWarn)
	}
}

// store opens the snapshots; nil where there is nothing to snapshot.
func (s *session) store(observe func(phase string, done, total int64)) (*snapshots, error) {
	return openSnapshots(s, observe)
}

// engine makes the upgrade engine over store, which may be nil.
func (s *session) engine(store *snapshots, checker *version.Checker, observe func(upgrade.Upgrade)) *upgrade.Engine {
	o := upgrade.Options{
		Layout: s.layout, Config: s.cfg.Upgrade, Checker: checker, Fetch: s.fetcher(), Log: s.log, Observe: observe,
		Env:         func(v version.Version) []string { _, env := s.command(v); return env },
		NewSnapshot: func(label string, height int64) string { return snapshot.NewID(time.Now(), label, max(0, height)) },
	}
	if store != nil && s.snapshotOn("upgrade") {
		o.Snapshots = store
		if s.templateOn("upgrade") {
			o.Templates = newExporter(s, store)
		}
	}
	return upgrade.NewEngine(o)
}

// snapshotOn tells whether the configuration asks for a snapshot at an event.
func (s *session) snapshotOn(event string) bool {
	if event == "upgrade" && s.cfg.Snapshot.Skip {
		return false
	}
	for _, on := range s.cfg.Snapshot.On {
		if on == event {
			return true
		}
	}
	return false
}

// offline is what a command works with where no supervisor runs: the engine, under the home lock.
type offline struct {
	*session
	engine  *upgrade.Engine
	checker *version.Checker
	store   *snapshots
	lock    *home.Lock
	broken  error // why the journal can't be trusted; nil = it can
}

// underLock takes the home lock, loads the engine's state and lets work use it.
func (s *session) underLock(ctx context.Context, work func(*offline) error) error {
	lock, err := home.AcquireLock(s.layout.LockPath())
	if err != nil {
		return err
	}
	defer lock.Close()
	store, err := s.store(nil)
	if err != nil {
		return err
	}
	if store != nil {
		if err := store.Recover(ctx); err != nil {
			return err
		}
	}
	o := &offline{session: s, checker: s.checker(), store: store, lock: lock}
	o.engine = s.engine(store, o.checker, nil)
	loadErr := o.engine.Load()
	if loadErr != nil && !errors.Is(loadErr, state.ErrUntrusted) {
		return loadErr
	}
	o.broken = loadErr
	return work(o)
}

// atRest makes sure that no node runs where no supervisor does: the lock is free, but a node that another tool started, or
// left behind, holds none of ours. The data of a running node is never copied, replaced or handed to another version.
func (o *offline) atRest(ctx context.Context) error {
	return home.WaitNoForeign(ctx, o.layout.Root, o.layout.DataDir(), 0)
}

// operate does one operation: through the running supervisor where there is one, else by itself under the lock.
func (s *session) operate(ctx context.Context, op string, req client.Request, alone func(*offline) (client.Reply, error)) error {
	reply, err := s.ask(ctx, op, req)
	live := !errors.Is(err, client.ErrNotRunning)
	if !live {
		err = s.underLock(ctx, func(o *offline) error {
			reply, err = alone(o)
			return err
		})
	}
	if err != nil {
		return err
	}
	return s.printReply(reply, live)
}

// ask has the running supervisor do an operation, and shows how far it is.
func (s *session) ask(ctx context.Context, op string, r client.Request) (client.Reply, error) {
	c := client.New(host.ControlSocket(s.cfg, s.environ))
	if s.meter != nil {
		defer follow(ctx, c, s.progress)()
	}
	return c.Do(ctx, op, r)
}

// pollInterval lies between two questions to a running supervisor.
const pollInterval = 500 * time.Millisecond

// follow observes what a running supervisor is at, until stop is called. A question that isn't answered is asked again.
func follow(ctx context.Context, c *client.Client, observe progress.Observer) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pollInterval):
			}
			raw, err := c.Status(ctx)
			var st struct{ Progress *status.Progress }
			if err == nil && json.Unmarshal(raw, &st) == nil && st.Progress != nil {
				observe(progress.Event{Phase: st.Progress.Phase, Done: st.Progress.Done, Total: st.Progress.Total})
			}
		}
	}()
	return func() {
		cancel()
		<-over
	}
}

func (s *session) printReply(reply client.Reply, live bool) error {
	if s.flags.json {
		if reply.Result != nil {
			return writeJSON(s.stdout, reply.Result)
		}
		return writeJSON(s.stdout, map[string]any{"message": reply.Message, "live": live})
	}
	how := "no supervisor is running; the next one finds it so"
	if live {
		how = "done by the running supervisor"
	}
	s.say("%s (%s)", reply.Message, how)
	return nil
}

// heights are the sources of the node's height.
func (s *session) heights(lines *source.Lines, current func() string) *source.Heights {
	args, env := s.command(version.Genesis)
	o := source.Options{
		Home: s.cfg.Node.Home, Binary: current, Args: func() []string { return args }, Env: env, Log: s.log,
	}
	if s.cfg.Height.Log != "" {
		o.Lines = lines
	}
	return source.NewHeights(s.cfg.Height, o)
}

// chainPlan asks the chain for its plan; nil where it isn't asked.
func (s *session) chainPlan(ctx context.Context) (*plan.Plan, error) {
	addr := source.GRPCAddress(s.cfg.Height, s.cfg.Node.Home, s.args)
	if addr == "" {
		return nil, errors.New("no gRPC address is configured")
	}
	p, err := source.CurrentPlan(ctx, addr)
	if err != nil || p == nil {
		return nil, err
	}
	name, err := version.NormaliseName(p.Name, s.cfg.Upgrade.Recase)
	if err != nil {
		return nil, err
	}
	return &plan.Plan{Name: name, Height: p.Height, Time: p.Time, Info: p.Info, Source: plan.FromChain}, nil
}

// confirm asks before what can't be undone, on a terminal; elsewhere --yes is needed.
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if !console.IsTerminal(a.stdin) || !console.IsTerminal(a.stderr) {
		return &usageError{hint.New("go on", "", "this can't be undone and nobody can be asked", "add --yes")}
	}
	fmt.Fprintf(a.stderr, "%s [y/N] ", question)
	var word string
	if _, err := fmt.Fscanln(a.stdin, &word); err != nil && !errors.Is(err, io.EOF) && err.Error() != "unexpected newline" {
		return err
	}
	if word != "y" && word != "Y" && word != "yes" {
		return &hint.Error{Op: "go on", Err: errors.New("not confirmed; nothing was changed"), Hint: "answer y, or add --yes"}
	}
	return nil
}

func notRunning(err error) bool { return errors.Is(err, client.ErrNotRunning) }

// rawJSON makes a value a request's raw part; it can't fail for what the commands send.
func rawJSON(v any) json.RawMessage {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}
