package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
	"nodevisor/snapshot"
	"nodevisor/supervisor/home"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/source"
	"nodevisor/upgrade/version"
)

// runEnv hands a runConfig to the helper "run".
const runEnv = "SUPERVISOR_TEST_RUN"

// runConfig is what the tests' `run` is configured with. It is a program of its own in most tests, because signals and
// kills are for processes.
type runConfig struct {
	Home       string
	Node       Config
	Upgrade    upgrade.Config
	Height     source.Config
	Args, Env  []string
	EnvOf      map[string][]string     // more for a version, by its name
	SnapshotOn []string                // nil: no store at all
	Sources    []snapshot.SourceConfig // nil: the data directory
	TemplateOn []string
	Templates  string // a program that makes a template of a snapshot: its id and height are the arguments
	Restoring  bool   // the file "restoring" in the home is the marker of a root that restores
	Systemd    systemdConfig
}

// helperRun is main of `run`: what the composition root does, without the configuration's languages.
func helperRun([]string) int {
	var c runConfig
	if err := json.Unmarshal([]byte(os.Getenv(runEnv)), &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return ExitConfig
	}
	if err := proc.BecomeSubreaper(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s, closeAll, err := c.open(slog.New(slog.NewTextHandler(os.Stderr, nil)), os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintf(os.Stderr, "Error: %v\nHint: %s\n", err, hint.Of(err))
		if errors.Is(err, home.ErrLocked) {
			return ExitLocked
		}
		return ExitConfig
	}
	defer closeAll()
	return s.Run(context.Background())
}

// open takes the lock, puts in order what an earlier life left, and makes a supervisor.
func (c runConfig) open(log *slog.Logger, stdin, stdout, stderr *os.File) (_ *Supervisor, closeAll func(), err error) {
	l := c.layout()
	if err := atomicfile.MkdirAll(l.State(), 0o750); err != nil {
		return nil, nil, err
	}
	lock, err := home.AcquireLock(l.LockPath())
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := errors.Join(atomicfile.RemoveTemps(l.State()), atomicfile.RemoveTemps(l.Root)); err != nil {
		return nil, nil, err
	}
	recorder, err := source.OpenRecorder(l.HeightPath())
	if err != nil {
		log.Warn("the last height is not known", "error", err)
	}
	lines, err := source.NewLines(c.Height.Log)
	if err != nil {
		return nil, nil, err
	}
	sources := source.Options{Home: c.Home, Env: c.Env}
	if c.Height.Log != "" {
		sources.Lines = lines
	}
	heights := source.NewHeights(c.Height, sources)
	checker := version.NewChecker(l, c.Upgrade.Probe, c.Env, func(string) error { return nil }, log)
	var s *Supervisor
	engine := upgrade.Options{
		Layout: l, Config: c.Upgrade, Checker: checker, Log: log, Observe: func(u upgrade.Upgrade) { s.ObservePhase(u) },
		Env:         c.env,
		NewSnapshot: func(label string, height int64) string { return snapshot.NewID(time.Now(), label, max(0, height)) },
	}
	o := Options{
		Reloadable: Reloadable{
			Upgrade: c.Upgrade, PlanFile: l.Plan, Checker: checker, Heights: heights, LinesFor: c.Height.Log != "",
			Socket: filepath.Join(l.State(), "control.sock"), SocketMode: 0o600, SocketGroup: -1,
		},
		Config: c.Node, Layout: l, Lines: lines, Recorder: recorder, Lock: lock,
		Command: func(v version.Version) (args, env []string) { return c.Args, c.env(v) },
		Log:     log, Version: "test", Stdin: stdin, Stdout: stdout, Stderr: stderr,
	}
	if c.SnapshotOn != nil {
		store, err := c.store(log)
		if err != nil {
			return nil, nil, err
		}
		o.Snapshots, o.SnapshotOn = store, c.snapshotOn
		if c.snapshotOn("upgrade") {
			engine.Snapshots, o.Room = store, store.Room
		}
	}
	if c.TemplateOn != nil {
		o.Templates, o.DescribeTemplate = testTemplates(c), testTemplates(c).describe
		o.TemplateOn = func(event string) bool { return slices.Contains(c.TemplateOn, event) }
		if o.TemplateOn("upgrade") {
			engine.Templates = o.Templates
		}
	}
	if c.Restoring {
		o.Restoring = c.restoring(log)
	}
	o.Engine = upgrade.NewEngine(engine)
	join := c.joinSystemd(&o)
	s = New(o)
	leave := join(s)
	return s, func() { leave(); heights.Close(); lock.Close() }, nil
}

func (c runConfig) env(v version.Version) []string { return slices.Concat(c.Env, c.EnvOf[v.Name()]) }

func (c runConfig) layout() version.Layout {
	return version.Layout{
		Home: c.Home, Root: filepath.Join(c.Home, "cosmovisor"), Node: "simd", Plan: filepath.Join(c.Home, "data", "upgrade-info.json"),
	}
}

func (c runConfig) snapshotOn(event string) bool { return slices.Contains(c.SnapshotOn, event) }

// testStore joins the store of snapshots to what the supervisor and the engine ask for.
type testStore struct{ *snapshot.Store }

func (c runConfig) store(log *slog.Logger) (*testStore, error) {
	protect := func() []string {
		j, err := upgrade.LoadJournal(c.layout().JournalPath())
		if err != nil || j.Upgrade == nil {
			return nil
		}
		return []string{j.Upgrade.Snapshot}
	}
	config := snapshot.DefaultConfig()
	config.MinFree, config.Sources = "0", c.Sources
	store, err := snapshot.Open(snapshot.Options{Config: config, Home: c.Home, Log: log, Protect: protect})
	if err != nil {
		return nil, err
	}
	return &testStore{store}, store.Recover(context.Background())
}

func (s *testStore) Create(ctx context.Context, id, label string, height int64, ready func() error) error {
	return s.CreateWhen(ctx, id, label, height, ready)
}

// Room announces how the snapshot will be taken; there is room for it.
func (s *testStore) Room(ctx context.Context) error {
	_, err := s.Forecast(ctx)
	return err
}

func (s *testStore) Restore(ctx context.Context, id, once string) error {
	_, err := s.Store.Restore(ctx, id, snapshot.RestoreOptions{Once: once})
	return err
}

func (s *testStore) Summary(context.Context) (status.Snapshots, status.Disk, error) {
	all, err := s.List()
	return status.Snapshots{Count: len(all)}, status.Disk{}, err
}

func (s *testStore) Tidy(ctx context.Context, _ string) error {
	all, err := s.List()
	for _, i := range all {
		if i.State == "sealed" {
			err = errors.Join(err, s.Complete(ctx, i.ID))
		}
	}
	return err
}

func (s *testStore) Do(ctx context.Context, raw json.RawMessage, atRest bool) (any, error) {
	var r struct {
		Op, ID, Label string
		Height        int64
		DryRun        bool `json:"dry_run"`
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, err
	}
	switch {
	case r.Op == "restore" && (atRest || r.DryRun):
		return s.Store.Restore(ctx, r.ID, snapshot.RestoreOptions{DryRun: r.DryRun})
	case r.Op == "create" && r.DryRun:
		if _, err := os.Stat(filepath.Join(filepath.Dir(s.Dir()), "refused")); err == nil {
			return nil, errors.New("it would be refused")
		}
		return nil, nil
	case r.Op == "create" && atRest:
		id := r.ID
		if id == "" {
			id = snapshot.NewID(time.Now(), r.Label, r.Height)
		}
		err := s.Store.Create(ctx, id, r.Label, r.Height)
		if ctx.Err() != nil {
			err = errors.Join(err, s.Abandon(id))
		}
		return id, err
	}
	return nil, fmt.Errorf("cannot %s a snapshot: not now", r.Op)
}
