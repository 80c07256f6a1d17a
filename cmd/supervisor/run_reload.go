package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"nodevisor/cmd/supervisor/config"
	"nodevisor/cmd/supervisor/host"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/hint"
	"nodevisor/supervisor"
	"nodevisor/supervisor/alert"
	"nodevisor/systemd"
	"nodevisor/upgrade/source"
)

// live is what a running `run` is made of and a reload replaces. The session's own configuration is never changed: what was
// made from it may be in use in any goroutine. Only the reload's job touches live, and whoever ends `run`.
type live struct {
	*session.Session                                       // as it was at the start: [node], arguments, streams
	Config           config.Config                         // what holds now, before the session's
	made             supervisor.Reloadable                 // and what was made of it
	lines            *source.Lines                         // of the node's output
	observe          func(phase string, done, total int64) // of long phases
	alerts           *alert.Sender
	link             systemdLink
	nodeSaid         func(pid int, ready bool, status string)
}

// reloadable are the keys that a reload makes effective, atRest those of them that stay while an upgrade is in flight, and
// startOnly those that it leaves to the next start of `run`. A change of any other key refuses the reload: what a running
// supervisor can't do must not look as if it were done.
var (
	reloadable = []string{
		"upgrade.", "height.", "snapshot.", "genesis.", "control.", "log.", "metrics.", "notify.", "systemd.", "unit", "security.",
	}
	atRest    = []string{"upgrade.plan_file", "upgrade.recase", "snapshot."}
	startOnly = []string{"node.", "version"}
)

// reload reads the configuration again and makes everything that follows from it, or changes nothing; takeEffect makes what
// isn't the loop's effective: it is called last, and can't fail.
func (l *live) reload(inFlight bool) (made supervisor.Reloadable, takeEffect func(), err error) {
	cfg, origin, err := l.Reread(context.Background())
	if err != nil {
		return made, nil, err
	}
	cfg.Node, cfg.Versions = l.Session.Config.Node, l.Session.Config.Versions
	changed := config.Changed(l.Config, cfg)
	if err := refuseFixed(changed, inFlight); err != nil {
		return made, nil, err
	}
	fresh := l.Renewed(cfg, origin)
	if err := fresh.CheckPermissions(); err != nil {
		return made, nil, err
	}
	for _, w := range origin.Warnings {
		l.Log.Warn(w)
	}
	if made, err = l.make(fresh, changed); err != nil {
		return made, nil, err
	}
	if err := fresh.CheckSources(made.Snapshots.(*session.Snapshots)); err != nil { //nolint:errcheck // make made it
		return made, nil, err
	}
	lines, err := source.NewLines(cfg.Height.Log)
	if err != nil {
		return made, nil, err
	}
	if slices.Contains(changed, "systemd.node_notify") { // where it failed at the start that was said, and refuses no reload
		if made.NodeSocket, err = l.link.nodeSocket(fresh); err != nil {
			return made, nil, err
		}
	}
	return made, func() {
		l.link.serve(l.nodeSaid)
		if made.Socket != l.made.Socket {
			register(fresh, made.Socket)
		}
		l.Config, l.made = cfg, made
		l.Live.Configure(cfg.Log, cfg.Cosmovisor)
		l.lines.Adopt(lines)
		l.alerts.Configure(alertConfig(cfg.Notify))
	}, nil
}

// make makes what the loop works with. What needn't be made anew stays, with all that it remembers.
func (l *live) make(s *session.Session, changed []string) (supervisor.Reloadable, error) {
	made := l.made
	made.Upgrade, made.SnapshotOn, made.ChainPlan, made.Fetch = s.Config.Upgrade, s.SnapshotOn, s.ChainPlan, s.Fetcher()
	made.PlanFile = s.Layout.Plan
	made.Metrics, made.LinesFor, made.Socket = s.Config.Metrics.Listen, s.Config.Height.Log != "", host.OwnSocket(s.Config, s.Environ)
	made.ReadyWhen, made.Units = supervisor.ReadyWhen(s.Config.Systemd.Ready), unitActions(s.Config.Units, systemd.Units{}.Act)
	if made.Checker == nil || slices.Contains(changed, "upgrade.probe") {
		made.Checker = s.Checker()
	}
	if made.Heights == nil || touches(changed, "height.") {
		made.Heights = s.Heights(l.lines, s.CurrentBinary)
	}
	if made.Snapshots == nil || touches(changed, "snapshot.") {
		store, err := s.Store(l.observe)
		if err != nil {
			return made, err
		}
		made.Snapshots = store
	}
	store := made.Snapshots.(*session.Snapshots) //nolint:errcheck // it is what Store makes
	made.OnUpgrade, made.ExportOnUpgrade = s.OnUpgrade(store)
	made.Room = nil
	if made.OnUpgrade != nil {
		made.Room = store.Room
	}
	made.Templates, made.TemplateOn, made.DescribeTemplate = nil, s.TemplateOn, nil
	if x := session.NewExporter(s, store); x != nil {
		made.Templates, made.DescribeTemplate = x, x.Describe
	}
	made.SocketMode, made.SocketGroup = 0o600, -1
	if s.Config.Control.Group != "" {
		gid, err := s.Config.Control.GroupID()
		if err != nil {
			return made, err
		}
		made.SocketMode, made.SocketGroup = 0o660, gid
	}
	return made, nil
}

func touches(changed []string, prefix string) bool {
	return slices.ContainsFunc(changed, func(key string) bool { return strings.HasPrefix(key, prefix) })
}

// refuseFixed names every changed key that can't take effect now. The snapshots of an upgrade in flight must be found again
// where they were put, and its plan in the file that it came from.
func refuseFixed(changed []string, inFlight bool) error {
	var problems []error
	for _, key := range changed {
		begins := func(prefix string) bool { return strings.HasPrefix(key, prefix) }
		var why, next string
		switch {
		case slices.ContainsFunc(startOnly, begins):
			continue
		case !slices.ContainsFunc(reloadable, begins):
			why, next = "can't change while run lives", "stop run and start it again; or take the change back"
		case inFlight && slices.ContainsFunc(atRest, begins):
			why, next = "can't change while an upgrade is in flight", "supervisor status; reload when it is committed"
		default:
			continue
		}
		table, name := "", key
		if i := strings.LastIndex(key, "."); i >= 0 {
			table, name = "["+key[:i]+"] ", key[i+1:]
		}
		problems = append(problems, &hint.Error{Op: "reload", Path: table + name, Err: errors.New(why), Hint: next})
	}
	return errors.Join(problems...)
}

// notifiedFile remembers in <home>/supervisor what an operator was told, so that a supervisor that is started again and
// again tells it once.
const notifiedFile = "notified.json"

// The end of `run` waits this long for notifications: one that is held has something to say and no node to delay, and any
// other end is a restart that is waited for.
const heldGrace, endGrace = 5 * time.Second, time.Second

// newAlerts makes what tells an operator.
func newAlerts(s *session.Session) *alert.Sender {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	return alert.New(alert.Options{
		Config: alertConfig(s.Config.Notify), Node: s.Config.Node.Name, Home: s.Config.Node.Home, Host: host,
		Record: fmt.Sprintf("%s/%s", s.Layout.State(), notifiedFile), Log: s.Log,
	})
}

func alertConfig(c config.Notify) alert.Config {
	return alert.Config{Command: c.Command, Webhook: c.Webhook}
}
