package doctor

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodevisor/cmd/supervisor/host"
	"nodevisor/snapshot"
	"nodevisor/systemd"
)

// service is what doctor reads of a systemd unit.
type service struct {
	mainPID                 int
	kind, access            string // Type=, NotifyAccess=; "" = not known
	killMode, restart       string
	preventCodes            []string
	stopTimeout             time.Duration
	stopKnown, stopInfinite bool
}

// unit compares the unit's settings with what a start, a stop and an upgrade need.
func (x *examination) unit(ctx context.Context) {
	name, pid, why := x.whichUnit(ctx)
	if name == "" {
		x.unknown("unit", "supervisor --unit NAME doctor", "%s", why)
		return
	}
	s, err := readService(ctx, name)
	switch {
	case err != nil:
		x.unknown("unit", "", "%s: %v", name, err)
		return
	case pid != 0 && s.mainPID != pid:
		x.unknown("unit", "supervisor --unit NAME doctor", "the running supervisor is not the main process of %s", name)
		return
	}
	x.judgeService(name, s)
}

// whichUnit finds the unit that is meant: --unit's, else that of the running supervisor (or Cosmovisor), else the one whose
// command or environment names this home. pid is the process by which it was found, 0 where it wasn't by one.
func (x *examination) whichUnit(ctx context.Context) (name string, pid int, why string) {
	if x.Flags.Unit != "" {
		return x.Flags.Unit, 0, ""
	}
	if x.holders.Supervisor != nil {
		pid = x.holders.Supervisor.Pid
	}
	if pid != 0 {
		return host.UnitOfProcess(pid), pid, "the running supervisor belongs to no unit of systemd's"
	}
	switch found := host.UnitsOfHome(ctx, x.Layout.Home, x.Origin.File); len(found) {
	case 0:
		return "", 0, "no unit was named, no supervisor runs whose unit could be looked up, and no unit names this home"
	case 1:
		return found[0], 0, ""
	default:
		return "", 0, "several units name this home: " + strings.Join(found, ", ")
	}
}

// atStop is how long a stop takes: the node's time, and, where [snapshot] on has "stop", a snapshot like the last one. The
// latter doesn't count where systemd is notified: the supervisor asks for that time then.
func (x *examination) atStop(notified bool) (need time.Duration, what string) {
	need = x.Config.Node.StopTimeout
	what = fmt.Sprintf("the node may take %s (stop_timeout)", need)
	if notified || !x.SnapshotOn("stop") {
		return need, what
	}
	store, err := x.Store(nil)
	if err != nil {
		return need, what // it is said by the check of the snapshots
	}
	all, err := store.List()
	if err != nil || len(all) == 0 {
		return need, what
	}
	newest := slices.MaxFunc(all, func(a, b snapshot.Info) int { return a.CreatedAt.Compare(b.CreatedAt) })
	took := time.Duration(newest.DurationMS) * time.Millisecond
	return need + took, fmt.Sprintf("%s, and the snapshot at a stop took %s last time", what, took.Round(time.Millisecond))
}

func (x *examination) judgeService(name string, s service) {
	before := len(x.checks)
	edit := func(line string) string { return fmt.Sprintf("systemctl edit %s, [Service] %s", name, line) }
	notified := s.kind == "" || (strings.HasPrefix(s.kind, "notify") && s.access != "none")
	need, what := x.atStop(notified)
	switch {
	case !s.stopKnown:
		x.unknown("unit", "", "%s: TimeoutStopSec can't be read", name)
	case !s.stopInfinite && s.stopTimeout <= need:
		x.fail("unit", edit(fmt.Sprintf("TimeoutStopSec=%ds", int((need+30*time.Second).Seconds()))),
			"%s: TimeoutStopSec is %s, and %s: systemd would kill it before", name, s.stopTimeout, what)
	}
	switch s.killMode {
	case "none":
		x.fail("unit", edit("KillMode=mixed"), "%s: with KillMode=none the node survives a stop", name)
	case "process":
		x.warn("unit", edit("KillMode=mixed"), "%s: with KillMode=process the node outlives a supervisor that was killed; the next start is refused then", name)
	case "control-group":
		x.warn("unit", edit("KillMode=mixed"), "%s: KillMode=control-group signals the node behind the supervisor's back", name)
	}
	switch {
	case !notified:
		x.warn("unit", edit("Type=notify"), "%s: with Type=%s systemd hears of no readiness and no status, and can't be asked for more time in a long phase", name, s.kind)
	case s.access == "all" || s.access == "exec":
		x.warn("unit", edit("NotifyAccess=main"), "%s: with NotifyAccess=%s other processes of the unit can speak for the supervisor", name, s.access)
	}
	if s.restart == "no" {
		x.warn("unit", edit("Restart=on-failure"), "%s: with Restart=no nobody starts a supervisor again that was killed", name)
	}
	codes := []string{"78", "79"}
	if s.restart != "" && s.restart != "no" && s.restart != "on-abnormal" && s.restart != "on-abort" && s.restart != "on-watchdog" &&
		slices.ContainsFunc(codes, func(c string) bool { return !slices.Contains(s.preventCodes, c) }) {
		x.warn("unit", edit("RestartPreventExitStatus=78 79"), "%s: Restart=%s starts again and again what is held or configured wrongly", name, s.restart)
	}
	if len(x.checks) == before {
		x.ok("unit", "%s: TimeoutStopSec, KillMode and Restart fit", name)
	}
}

func readService(ctx context.Context, name string) (service, error) {
	out, err := host.Systemctl(ctx, "show", "--no-pager", "-p", "MainPID", "-p", "Type", "-p", "NotifyAccess", "-p", "KillMode", "-p", "Restart",
		"-p", "RestartPreventExitStatus", "-p", "TimeoutStopUSec", "--", name)
	if err != nil {
		return service{}, fmt.Errorf("cannot ask systemd: %w", err)
	}
	return parseService(out), nil
}

func parseService(text string) service {
	var s service
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "MainPID":
			s.mainPID, _ = strconv.Atoi(value) // 0 where it doesn't run
		case "Type":
			s.kind = value
		case "NotifyAccess":
			s.access = value
		case "KillMode":
			s.killMode = value
		case "Restart":
			s.restart = value
		case "RestartPreventExitStatus":
			s.preventCodes = strings.Fields(value)
		case "TimeoutStopUSec":
			s.stopInfinite = value == "infinity"
			s.stopTimeout, s.stopKnown = systemd.Timespan(value)
			s.stopKnown = s.stopKnown || s.stopInfinite
		}
	}
	return s
}
