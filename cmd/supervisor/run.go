package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/config"
	"nodevisor/cmd/supervisor/host"
	"nodevisor/internal/atomicfile"
	"nodevisor/internal/fetch"
	"nodevisor/internal/proc"
	"nodevisor/internal/progress"
	"nodevisor/supervisor"
	"nodevisor/supervisor/child"
	"nodevisor/supervisor/home"
	"nodevisor/systemd"
	"nodevisor/upgrade"
	"nodevisor/upgrade/source"
	"nodevisor/upgrade/version"
)

func newRun(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "run [ARGS...]", GroupID: "node", Short: "Supervise the node: what ExecStart calls",
		Long: `Starts the node and keeps it: restarts it when it crashes, and carries its upgrades out.

Everything after "run" is the node's, but --cosmovisor-config PATH. Without arguments the node gets [node] args.
"supervisor --takeover run" first stops, gracefully, a node that an earlier supervisor left behind.

The node's streams stay its own; the supervisor's log goes to stderr. Exit codes: the node's own, 128+n for a signal;
0 after a requested stop (1 where the node had to be killed); 78 configuration or usage; 79 held; 75 locked.`,
		Example:            "  supervisor run start --home /var/lib/simd",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			a.running = true
			rest, err := a.takeConfigFlag(args)
			if err != nil {
				return err
			}
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			if len(rest) > 0 {
				s.args = rest
			}
			code, err := s.run(cmd.Context())
			if err != nil || code == 0 {
				return err
			}
			return exitError{code}
		},
	}
}

// takeConfigFlag takes the one flag that is ours out of the node's arguments, as Cosmovisor does: the flag as a word of its
// own, in any case, and the word after it.
func (a *app) takeConfigFlag(args []string) (rest []string, err error) {
	for i := 0; i < len(args); i++ {
		if !strings.EqualFold(args[i], "--cosmovisor-config") && !strings.EqualFold(args[i], "-cosmovisor-config") {
			rest = append(rest, args[i])
			continue
		}
		if i+1 >= len(args) {
			return nil, usagef("failed to parse cosmovisor config: --cosmovisor-config requires an argument")
		}
		i++
		a.flags.cosmovisorConfig = args[i]
	}
	return rest, nil
}

// command is what a version is started with: arguments and environment, the version's own over [node].
func (s *session) command(v version.Version) (args, env []string) {
	args = s.args
	if args == nil {
		args = s.cfg.Node.Args
	}
	env = append(env, s.environ...)
	for k, value := range s.cfg.Node.Env {
		env = append(env, k+"="+value)
	}
	if own, ok := s.cfg.Versions[v.Name()]; ok {
		if own.Args != nil && s.args == nil {
			args = *own.Args
		}
		for k, value := range own.Env {
			env = append(env, k+"="+value)
		}
	}
	return args, env
}

// run takes the lock, puts in order what an earlier life left, and supervises until the end.
func (s *session) run(ctx context.Context) (int, error) {
	if s.args == nil && len(s.cfg.Node.Args) == 0 && len(s.cfg.Versions) == 0 {
		s.log.Warn("the node is started without arguments", "hint", "supervisor run start, or [node] args")
	}
	// No program that is started here speaks for us, after a reload neither.
	s.environ, s.app.environ = systemd.Environ(s.environ), systemd.Environ(s.app.environ)
	if err := s.checkPermissions(); err != nil {
		return 0, err
	}
	if err := atomicfile.MkdirAll(s.layout.State(), 0o750); err != nil {
		return 0, err
	}
	if err := proc.BecomeSubreaper(); err != nil {
		s.log.Warn("orphans of the node can't be adopted", "error", err)
	}
	lock, err := s.takeLock(ctx)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	if err := fetch.RemoveStale(filepath.Join(s.layout.Root, "upgrades")); err != nil {
		s.log.Warn("cannot remove left-overs", "error", err)
	}
	sup, closeAll, err := s.assemble(ctx, lock)
	if err != nil {
		return 0, err
	}
	socket := host.ControlSocket(s.cfg, s.environ)
	release, err := host.Register(s.environ, s.cfg.Node.Home, s.origin.File, os.Getpid(), socket)
	if err != nil {
		s.log.Debug("cannot register this run", "error", err)
	}
	defer release()
	code := sup.Run(ctx)
	closeAll(code)
	return code, nil
}

// checkPermissions refuses what others may change: whoever can write to the tree decides what runs beside the keys.
func (s *session) checkPermissions() error {
	problems, warnings := config.CheckPermissions(s.cfg.Node.Home, s.cfg.GuardedPaths(s.origin.File), s.cfg.Security.AllowWritable)
	for _, w := range warnings {
		s.log.Warn(w)
	}
	if len(problems) > 0 {
		return &config.Error{Problems: problems}
	}
	return nil
}

// takeLock takes the home lock. With --takeover a node that an earlier supervisor left behind is stopped first; a living
// supervisor is not.
func (s *session) takeLock(ctx context.Context) (*home.Lock, error) {
	lock, err := home.AcquireLock(s.layout.LockPath())
	if !s.flags.takeover {
		return lock, err
	}
	deadline := time.Now().Add(5 * time.Second) // for descriptors that outlive their process by a moment
	for locked := (*home.LockedError)(nil); errors.As(err, &locked) && time.Now().Before(deadline); {
		if locked.Role == home.RoleSupervisor {
			return nil, err
		}
		if locked.Left() {
			if err := s.stopForeign(ctx, locked.Holder); err != nil {
				return nil, err
			}
			deadline = time.Now().Add(5 * time.Second)
		}
		time.Sleep(20 * time.Millisecond)
		lock, err = home.AcquireLock(s.layout.LockPath())
	}
	if err != nil {
		return nil, err
	}
	found, err := home.FindForeign(s.layout.Root, s.layout.DataDir())
	for _, f := range found {
		err = errors.Join(err, s.stopForeign(ctx, f))
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

func (s *session) stopForeign(ctx context.Context, f home.Foreign) error {
	sig, err := child.ParseSignal(s.cfg.Node.StopSignal)
	if err != nil {
		return err
	}
	s.log.Warn("stopping a node that an earlier supervisor left behind", "pid", f.Pid, "binary", f.Exe, "why", f.Why)
	forced, err := home.StopForeign(ctx, f, sig, s.cfg.Node.StopTimeout)
	if err == nil {
		s.log.Info("it is gone", "pid", f.Pid, "forced", forced)
	}
	return err
}

// assemble makes the supervisor out of everything.
func (s *session) assemble(ctx context.Context, lock *home.Lock) (*supervisor.Supervisor, func(code int), error) {
	var sup *supervisor.Supervisor
	observe := func(phase string, done, total int64) {
		sup.Observe(progress.Event{Phase: phase, Done: done, Total: total})
	}
	s.progress = func(e progress.Event) { sup.Observe(e) }
	lines, err := source.NewLines(s.cfg.Height.Log)
	if err != nil {
		return nil, nil, err
	}
	recorder, err := source.OpenRecorder(s.layout.HeightPath())
	if err != nil {
		return nil, nil, err
	}
	l := &live{session: s, cfg: s.cfg, lines: lines, observe: observe}
	if l.made, err = l.make(s, nil); err != nil {
		return nil, nil, err
	}
	store := l.made.Snapshots.(*snapshots) //nolint:errcheck // make made it
	if err := store.Recover(ctx); err != nil {
		return nil, nil, err
	}
	l.alerts = s.newAlerts()
	o := supervisor.Options{
		Config: s.cfg.Node, Layout: s.layout, Upgrade: s.cfg.Upgrade, Checker: l.made.Checker, Heights: l.made.Heights,
		Engine: s.engine(store, l.made.Checker, func(u upgrade.Upgrade) { sup.ObservePhase(u) }),
		Lines:  lines, LinesFor: s.cfg.Height.Log != "", Recorder: recorder, Lock: lock, Snapshots: store,
		SnapshotOn: s.snapshotOn, Room: l.made.Room, Fetch: l.made.Fetch, ChainPlan: s.chainPlan, Command: s.command,
		Reload: l.reload, Event: l.alerts.Event, Told: l.alerts.Counts, Metrics: s.cfg.Metrics.Listen, Log: s.log,
		Socket: host.ControlSocket(s.cfg, s.environ), SocketMode: l.made.SocketMode, SocketGroup: l.made.SocketGroup,
		Version: release, ConfigFile: s.origin.File, Stdin: s.stdin, Stdout: s.stdout, Stderr: s.stderr,
	}
	if x := newExporter(s, store); x != nil {
		o.Templates, o.TemplateOn, o.DescribeTemplate = x, s.templateOn, x.describe
	}
	o.Restoring = s.restoring(recorder)
	link := s.joinSystemd(&o)
	sup = supervisor.New(o)
	link.serve(sup.NodeSaid)
	return sup, func(code int) {
		defer link.close()
		l.made.Heights.Close()
		grace := endGrace
		if code == supervisor.ExitHeld {
			grace = heldGrace
		}
		l.alerts.Close(grace)
	}, nil
}

func groupID(name string) (int, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return -1, &config.Error{Problems: []error{fmt.Errorf("[control] group: %w", err)}}
	}
	return strconv.Atoi(g.Gid)
}

// currentBinary is asked anew each time: an upgrade changes it.
func (s *session) currentBinary() string {
	v, err := s.layout.Current()
	if err != nil {
		return ""
	}
	return s.layout.Binary(v)
}

// inFlightSnapshots are the ids that no pruning may touch.
func (s *session) inFlightSnapshots() []string {
	j, err := upgrade.LoadJournal(s.layout.JournalPath())
	if err != nil || j.Upgrade == nil || j.Upgrade.Snapshot == "" {
		return nil
	}
	return []string{j.Upgrade.Snapshot}
}
