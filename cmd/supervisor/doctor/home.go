package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/host"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
	"nodevisor/supervisor/home"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

// lock says who holds the home. It doesn't try the lock: for that moment a start beside us would be refused.
func (x *examination) lock() {
	info, err := home.ReadLock(x.Layout.LockPath())
	if err != nil {
		x.failErr("lock", err)
		x.hidden, x.holders = true, x.told()
		return
	}
	x.holders = info
	takeover := home.Takeover(info.Args)
	taker, held := home.FlockedBy(x.Layout.LockPath())
	beginner, atWork := home.FlockedBy(home.ProgramLock(x.Layout.LockPath()))
	switch {
	case info.Supervisor != nil && x.live != nil:
		node := ""
		if info.Node != nil {
			node = fmt.Sprintf(", with its node, process %d", info.Node.Pid)
		}
		x.ok("lock", "held by the running supervisor, process %d%s", info.Supervisor.Pid, node)
	case info.Supervisor != nil:
		x.refuse("supervisor status", "process %d holds the home's lock", info.Supervisor.Pid)
		x.unknown("lock", "supervisor status", "held by process %d: another command at work, or a run whose socket doesn't answer", info.Supervisor.Pid)
	case info.Node != nil:
		x.refuse(takeover, "node pid %d of an earlier supervisor still runs", info.Node.Pid)
		x.fail("lock", takeover, "node pid %d of an earlier supervisor still runs", info.Node.Pid)
	case atWork:
		x.fail("lock", "let it end; where it hangs: "+takeover, "held by a program that process %d, an earlier supervisor, ran for the upgrade; run waits for its end", beginner)
	case held:
		x.refuse(takeover, "a process that an earlier node left behind holds the home's lock")
		x.fail("lock", takeover, "held by a process that an earlier node left behind; process %d had taken it", taker)
	default:
		x.ok("lock", "free")
	}
}

// told is who holds the home by the word of the running supervisor: whoever may read its status need not be one who may read
// the lock.
func (x *examination) told() (info home.LockInfo) {
	if x.live == nil {
		return info
	}
	identify := func(pid *int) *proc.Identity {
		if pid == nil {
			return nil
		}
		id, err := proc.Identify(*pid)
		if err != nil {
			return nil
		}
		return &id
	}
	return home.LockInfo{Supervisor: identify(x.live.Supervisor.PID), Node: identify(x.live.PID)}
}

// foreign looks for nodes that no supervisor of ours owns. One below Cosmovisor is what a takeover begins with.
func (x *examination) foreign() {
	found, err := home.FindForeign(x.Layout.Root, x.Layout.DataDir())
	if err != nil {
		x.failErr("foreign node", err)
		return
	}
	none, takeover := true, home.Takeover(x.holders.Args)
	for _, f := range found {
		if x.owns(f.Pid) {
			continue
		}
		none = false
		what := fmt.Sprintf("process %d (%s) %s", f.Pid, f.Name(), f.Why)
		if boss := cosmovisorAbove(f.Pid); boss != 0 {
			x.boss = boss
			x.warn("foreign node", "before the first start: "+host.StopCommand(boss), "%s, under Cosmovisor, process %d", what, boss)
			continue
		}
		if x.hidden && x.live == nil {
			x.unknown("foreign node", cli.AsRightUser, "%s; whether it is a supervisor's can't be seen from here", what)
			continue
		}
		x.refuse(takeover, "%s", what)
		x.fail("foreign node", takeover, "%s", what)
	}
	if none {
		x.ok("foreign node", "none")
	}
}

// owns tells whether a process belongs to the running supervisor: its node, what that started, or a probe.
func (x *examination) owns(pid int) bool {
	if x.holders.Supervisor == nil && x.holders.Node == nil {
		return false
	}
	for range 32 {
		st, err := proc.ReadStat(pid)
		if err != nil || pid <= 1 {
			return false
		}
		for _, id := range []*proc.Identity{x.holders.Supervisor, x.holders.Node} {
			if id != nil && (pid == id.Pid || st.Group == id.Pid) {
				return true
			}
		}
		pid = st.Parent
	}
	return false
}

// cosmovisorAbove finds the Cosmovisor that runs a process, by its name; 0 = none.
func cosmovisorAbove(pid int) int {
	for range 32 {
		st, err := proc.ReadStat(pid)
		if err != nil || pid <= 1 {
			return 0
		}
		if strings.HasPrefix(st.Name, "cosmovisor") {
			return pid
		}
		pid = st.Parent
	}
	return 0
}

// state loads journal and schedule, and compares them with the link.
func (x *examination) state() {
	x.engine = upgrade.NewEngine(upgrade.Options{Layout: x.Layout, Config: x.Config.Upgrade, Log: x.Log})
	x.broken = x.engine.Load()
	if x.broken != nil && x.live != nil { // between two writes of the running supervisor they needn't agree
		time.Sleep(200 * time.Millisecond)
		x.broken = x.engine.Load()
	}
	j, u := x.engine.Journal(), x.engine.InFlight()
	switch {
	case x.broken != nil:
		x.failErr("journal", x.broken)
	case u != nil:
		x.ok("journal", "the upgrade %s is in flight, at %s", u.Plan.Name, u.Phase)
	default:
		x.ok("journal", "no upgrade is in flight")
	}
	if h := x.hold(); h != nil && (j.Hold != nil || x.live != nil) {
		x.fail("hold", h.Hint, "held since %s: %s", h.Since.Format("2006-01-02 15:04:05 MST"), h.Reason)
	}
}

// schedule is what operators want, with what the next start takes over from Cosmovisor.
func (x *examination) schedule() plan.Schedule {
	s := x.engine.Schedule()
	for _, p := range x.batch.Plans {
		s.Add(p)
	}
	return s
}

// track brings together what is known of plans and heights.
func (x *examination) track() {
	x.tracker = x.FileTracker(x.schedule())
	if x.seen != plan.UnknownHeight {
		x.tracker.SawHeight(x.seen)
	}
}

func (x *examination) currentLink() {
	l := x.Layout
	v, err := l.Current()
	target, _ := os.Readlink(l.Link())
	info, lerr := os.Lstat(l.Link())
	const fix = "supervisor doctor --fix-link"
	last, back := upgrade.WentBack(l, x.Config.Upgrade.Recase)
	switch {
	case err == nil && back && x.live == nil:
		x.unknown("current", "supervisor upgrade use "+hint.Argument(last.To.Name())+" (where that wasn't meant)",
			"names %s, an older version than the last upgrade led to: %s", v.Name(), last.To.Name())
	case errors.Is(lerr, fs.ErrPermission):
		x.failErr("current", lerr)
	case err == nil && filepath.IsAbs(target):
		x.ok("current", "names %s (by an absolute link, which is fine; the next switch makes it a relative one)", v.Name())
	case err == nil:
		x.ok("current", "names %s", v.Name())
	case lerr == nil && info.Mode()&fs.ModeSymlink == 0:
		x.fail("current", fmt.Sprintf("mv %s %s.aside, then: %s", hint.Quote(l.Link()), hint.Quote(l.Link()), fix), "%s is no link", l.Link())
	case !errors.Is(err, version.ErrNoLink), upgrade.Seen(l):
		x.fail("current", fix, "%v, and a start never guesses", err)
	case l.HasBinary(version.Genesis):
		x.ok("current", "missing; the first start links genesis")
	default:
		x.fail("current", "supervisor init BINARY", "missing, and there is no binary %s", l.Binary(version.Genesis))
	}
}

// version is what a start would run, "" where that can't be told.
func (x *examination) version() version.Version {
	v, err := x.Layout.Current()
	if err != nil && errors.Is(err, version.ErrNoLink) && !upgrade.Seen(x.Layout) && x.Layout.HasBinary(version.Genesis) {
		return version.Genesis
	}
	return v
}

func (x *examination) binary(ctx context.Context) {
	v := x.version()
	if v == "" {
		x.unknown("binary", "", "it isn't known which version would run")
		return
	}
	r, judged := x.tryBinary(ctx, v)
	switch {
	case !judged:
		x.unknown("binary", x.tryFix(v), "%s: %s", v.Name(), x.untried(v))
	case r.Ready():
		x.ok("binary", "%s runs here (sha256 %.16s…)%s", v.Name(), r.SHA256, x.trialNote())
	default:
		x.fail("binary", session.StageAgain(v), "%s", strings.Join(r.Problems, "; "))
	}
}

// tryBinary verifies a version without changing anything: a binary that lacks its executable bits would get them from the
// checker, so it isn't judged. As root, another user's binary is looked at, and not executed.
func (x *examination) tryBinary(ctx context.Context, v version.Version) (r version.Readiness, judged bool) {
	if x.checker == nil {
		probe := x.Config.Upgrade.Probe
		if x.distrust {
			probe = nil
		}
		trust := x.Config.TrustBinary
		if x.other {
			trust = func(string) error { return nil } // it was said that rights can't be judged
		}
		_, env := x.Command(v)
		x.checker = version.NewChecker(x.Layout, probe, env, trust, x.Log)
	}
	info, err := os.Stat(x.Layout.Binary(v))
	if errors.Is(err, fs.ErrPermission) || (err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0o111) {
		return r, false
	}
	return x.checker.Check(ctx, v), true
}

func (x *examination) untried(v version.Version) string {
	info, err := os.Stat(x.Layout.Binary(v))
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("not tried: its mode is %#o, the first use makes it executable for everyone", info.Mode().Perm())
}

func (x *examination) tryFix(v version.Version) string {
	if _, err := os.Stat(x.Layout.Binary(v)); err != nil {
		return cli.AsRightUser
	}
	return "chmod a+x " + hint.Quote(x.Layout.Binary(v))
}

func (x *examination) trialNote() string {
	if x.distrust {
		return ", but was not tried as root"
	}
	return ""
}

// planFile says what the node's announcement means: it may be half-written, done, or pending.
func (x *examination) planFile() {
	if x.Layout.Plan == "" {
		x.ok("plan file", "none is configured")
		return
	}
	p, _, err := plan.ReadFile(x.Layout.Plan, x.Config.Upgrade.Recase)
	switch {
	case errors.Is(err, plan.ErrMissing):
		x.ok("plan file", "there is none: nothing is announced")
	case errors.Is(err, fs.ErrPermission):
		x.failErr("plan file", err)
	case err != nil:
		x.fail("plan file", "look at "+hint.Quote(x.Layout.Plan)+": the node rewrites it when its plan comes; else move it away",
			"%s: %v; if the node ends with it, the supervisor holds", x.Layout.Plan, err)
	case x.tracker.Done(p):
		x.ok("plan file", "%s at %s, which is done", p.Name, p.When())
	case x.tracker.Skips(p):
		x.ok("plan file", "%s at %s, which is on the skip list", p.Name, p.When())
	default:
		x.ok("plan file", "%s at %s is pending", p.Name, p.When())
	}
}

// batchFile shows what the first start takes over from Cosmovisor, and adds it to what is to come.
func (x *examination) batchFile() {
	if x.broken != nil || x.Layout.BatchPath() == "" {
		return
	}
	var err error
	if x.batch, err = x.engine.BatchImport(); err != nil {
		x.failErr("batch", err)
		return
	}
	for _, r := range x.batch.Rejected {
		x.warn("batch", hint.Of(r), "%v", r)
	}
	for _, p := range x.batch.Plans {
		x.ok("batch", "%s at %d is taken over from Cosmovisor at the next start", p.Name, p.Height)
	}
}
