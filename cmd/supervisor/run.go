package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/host"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/atomicfile"
	"nodevisor/internal/fetch"
	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
	"nodevisor/internal/progress"
	"nodevisor/supervisor"
	"nodevisor/supervisor/child"
	"nodevisor/supervisor/home"
	"nodevisor/systemd"
	"nodevisor/upgrade"
	"nodevisor/upgrade/source"
)

func newRun(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "run [ARGS...]", GroupID: "node", Short: "Supervise the node: what ExecStart calls",
		Long: `Starts the node and keeps it: restarts it when it crashes, and carries its upgrades out.

Everything after "run" is the node's, but --cosmovisor-config PATH. Without arguments the node gets [node] args.
"supervisor --takeover run" first stops, gracefully, a node or a migration that an earlier supervisor left behind.

The node's streams stay its own; the supervisor's log goes to stderr. Exit codes: the node's own, 128+n for a signal;
0 after a requested stop (1 where the node had to be killed); 78 configuration or usage; 79 held; 75 locked.`,
		Example:            "  supervisor run start --home /var/lib/simd",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			a.Running = true
			rest, err := takeConfigFlag(a, args)
			if err != nil {
				return err
			}
			s, err := session.Load(cmd.Context(), a, false)
			if s != nil {
				err = host.Mistakes(s.Config.Control, err)
			}
			if err != nil {
				return err
			}
			if len(rest) > 0 {
				s.Args = rest
			}
			code, err := run(cmd.Context(), s)
			if err != nil || code == 0 {
				return err
			}
			return cli.ExitError(code)
		},
	}
}

// takeConfigFlag takes the one flag that is ours out of the node's arguments, as Cosmovisor does: the flag as a word of its
// own, in any case, and the word after it.
func takeConfigFlag(a *cli.App, args []string) (rest []string, err error) {
	for i := 0; i < len(args); i++ {
		if !strings.EqualFold(args[i], "--cosmovisor-config") && !strings.EqualFold(args[i], "-cosmovisor-config") {
			rest = append(rest, args[i])
			continue
		}
		if i+1 >= len(args) {
			return nil, cli.Usagef("failed to parse cosmovisor config: --cosmovisor-config requires an argument")
		}
		i++
		a.Flags.CosmovisorConfig = args[i]
	}
	return rest, nil
}

// run takes the lock, puts in order what an earlier life left, and supervises until the end.
func run(ctx context.Context, s *session.Session) (int, error) {
	if s.Args == nil && len(s.Config.Node.Args) == 0 && len(s.Config.Versions) == 0 {
		s.Log.Warn("the node is started without arguments", "hint", "supervisor run start, or [node] args")
	}
	// No program that is started here speaks for us, after a reload neither.
	s.Environ, s.App.Environ = proc.Environ(s.Environ), proc.Environ(s.App.Environ)
	if err := s.CheckPermissions(); err != nil {
		return 0, err
	}
	warnOfRoot(s)
	if err := atomicfile.MkdirAll(s.Layout.State(), 0o750); err != nil {
		return 0, err
	}
	if err := proc.BecomeSubreaper(); err != nil {
		s.Log.Warn("orphans of the node can't be adopted", "error", err)
	}
	lock, err := takeLock(ctx, s)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	if err := lock.SetArgs(s.Args); err != nil {
		return 0, err
	}
	if err := fetch.RemoveStale(filepath.Join(s.Layout.Root, "upgrades")); err != nil {
		s.Log.Warn("cannot remove left-overs", "error", err)
	}
	sup, closeAll, err := assemble(ctx, s, lock)
	if err != nil {
		return 0, err
	}
	defer register(s, host.OwnSocket(s.Config, s.Environ))()
	code := sup.Run(ctx)
	closeAll(code)
	return code, nil
}

// register makes this run known on the host, and returns what ends that.
func register(s *session.Session, socket string) (release func()) {
	release, err := host.Register(s.Environ, s.Config.Node.Home, s.Origin.File, os.Getpid(), socket)
	if err != nil {
		s.Log.Debug("cannot register this run", "error", err)
	}
	return release
}

// warnOfRoot says that root runs what another user owns: the node works, and what it writes is root's when the service that
// runs it as its user starts next.
func warnOfRoot(s *session.Session) {
	info, err := os.Stat(s.Layout.Home)
	if err != nil || os.Geteuid() != 0 {
		return // a start that finds no home says so itself
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 {
		return
	}
	s.Log.Warn("root runs the node of another user, as root: what it writes into the home will be root's", "home", s.Layout.Home,
		"owner", st.Uid, "hint", fmt.Sprintf("User= in the unit, or: setpriv --reuid=%d --regid=%d --clear-groups supervisor run", st.Uid, st.Gid))
}

// lockPatience is how long `run` waits for a command that has the home's lock: one that was given a moment before.
const lockPatience, lockPause = 3 * time.Second, 20 * time.Millisecond

// A program that is waited for is looked at every programPause, and named in the log every programTold.
const programPause, programTold = 250 * time.Millisecond, time.Minute

// takeLock takes the home lock. Where a script or a pre-upgrade is at work that an earlier supervisor ran, its end is waited for,
// however long that takes: it works on the data, and is run again afterwards.
func takeLock(ctx context.Context, s *session.Session) (*home.Lock, error) {
	if s.Flags.Takeover {
		return takeOver(ctx, s)
	}
	told, deadline := time.Time{}, time.Now().Add(lockPatience)
	for {
		lock, err := home.AcquireLock(s.Layout.LockPath())
		locked := (*home.LockedError)(nil)
		switch {
		case errors.As(err, &locked) && locked.Role == home.RoleProgram && ctx.Err() == nil:
			if time.Since(told) > programTold {
				told = time.Now()
				s.Log.Warn("waiting for the end of a program that an earlier supervisor ran for the upgrade", "pid", locked.Holder.Pid,
					"command", locked.Holder.Cmdline, "hint", hint.Of(err))
			}
			deadline = time.Now().Add(lockPatience) // commands come and go meanwhile, each refused, with the lock for a moment
			time.Sleep(programPause)
		case passing(ctx, s, err) && time.Now().Before(deadline):
			time.Sleep(lockPause)
		default:
			return lock, err
		}
	}
}

// takeOver takes the home lock after what an earlier supervisor left behind was stopped; a living supervisor is not.
func takeOver(ctx context.Context, s *session.Session) (*home.Lock, error) {
	lock, err := home.AcquireLock(s.Layout.LockPath())
	deadline := time.Now().Add(5 * time.Second) // for descriptors that outlive their process by a moment
	for locked := (*home.LockedError)(nil); errors.As(err, &locked) && time.Now().Before(deadline); {
		if locked.Role == home.RoleSupervisor && !passing(ctx, s, err) { // a run that waits has it for moments
			return nil, err
		}
		if locked.Left() {
			if err := stopForeign(ctx, s, locked.Holder); err != nil {
				return nil, err
			}
			deadline = time.Now().Add(5 * time.Second)
		}
		time.Sleep(lockPause)
		lock, err = home.AcquireLock(s.Layout.LockPath())
	}
	if err != nil {
		return nil, err
	}
	found, err := home.FindForeign(s.Layout.Root, s.Layout.DataDir())
	for _, f := range found {
		err = errors.Join(err, stopForeign(ctx, s, f))
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// passing tells of a failed attempt whether it is worth another one: a command's lock is free again soon. That of another
// `run` isn't, at whose socket somebody listens, nor that of a node which was left behind.
func passing(ctx context.Context, s *session.Session, err error) bool {
	locked := (*home.LockedError)(nil)
	if !errors.As(err, &locked) || locked.Left() || ctx.Err() != nil {
		return false
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", s.Socket())
	if err == nil {
		err = conn.Close()
	}
	return err != nil
}

func stopForeign(ctx context.Context, s *session.Session, f home.Foreign) error {
	sig, err := child.ParseSignal(s.Config.Node.StopSignal)
	if err != nil {
		return err
	}
	s.Log.Warn("stopping what an earlier supervisor left behind", "pid", f.Pid, "binary", f.Exe, "why", f.Why)
	forced, err := home.StopForeign(ctx, f, sig, s.Config.Node.StopTimeout)
	if err == nil {
		s.Log.Info("it is gone", "pid", f.Pid, "forced", forced)
	}
	return err
}

// assemble makes the supervisor out of everything.
func assemble(ctx context.Context, s *session.Session, lock *home.Lock) (*supervisor.Supervisor, func(code int), error) {
	var sup *supervisor.Supervisor
	observe := func(phase string, done, total int64) {
		sup.Observe(progress.Event{Phase: phase, Done: done, Total: total})
	}
	s.Progress = func(e progress.Event) { sup.Observe(e) }
	lines, err := source.NewLines(s.Config.Height.Log)
	if err != nil {
		return nil, nil, err
	}
	recorder, err := source.OpenRecorder(s.Layout.HeightPath())
	if err != nil {
		s.Log.Warn("the last height is not known", "error", err)
	}
	l := &live{Session: s, Config: s.Config, lines: lines, observe: observe}
	if l.made, err = l.make(s, nil); err != nil {
		return nil, nil, err
	}
	if l.made.NodeSocket, err = l.link.nodeSocket(s); err != nil {
		s.Log.Warn("the node's own READY=1 is not waited for", "error", err)
	}
	store := l.made.Snapshots.(*session.Snapshots) //nolint:errcheck // make made it
	if err := store.Recover(ctx); err != nil {
		return nil, nil, err
	}
	if err := s.CheckSources(store); err != nil { // not before: an interrupted restore may be what puts one back
		return nil, nil, err
	}
	l.alerts = newAlerts(s)
	o := supervisor.Options{
		Reloadable: l.made, Config: s.Config.Node, Layout: s.Layout,
		Engine: s.Engine(lock, store, l.made.Checker, func(u upgrade.Upgrade) { sup.ObservePhase(u) }),
		Lines:  lines, Recorder: recorder, Lock: lock, Command: s.Command, Reload: l.reload, Event: l.alerts.Event, Told: l.alerts.Counts,
		Log: s.Log, Version: s.Release, ConfigFile: s.Origin.File, Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr,
	}
	o.Restoring = s.Restoring(recorder)
	if l.link.notifier = systemd.New(); l.link.notifier != nil {
		o.Notify, o.NotifyEvery = l.link.notifier, l.link.notifier.Every()
	}
	sup = supervisor.New(o)
	l.nodeSaid = sup.NodeSaid
	l.link.serve(l.nodeSaid)
	return sup, func(code int) {
		defer l.link.close()
		l.made.Heights.Close()
		grace := endGrace
		if code == supervisor.ExitHeld {
			grace = heldGrace
		}
		l.alerts.Close(grace)
	}, nil
}
