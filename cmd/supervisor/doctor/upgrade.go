package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/console"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/fetch"
	"nodevisor/internal/hint"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/source"
	"nodevisor/upgrade/version"
)

// maxPlans is how many pending plans are looked at: the trial run of each takes up to ten seconds.
const maxPlans = 20

// plans says of each plan that is to come whether its binary is ready.
func (x *examination) plans(ctx context.Context) {
	if err := upgrade.CheckScript(x.Layout, x.Config.Upgrade); err != nil {
		x.failErr("custom script", err)
	}
	pending := x.tracker.Pending()
	if len(pending) == 0 {
		x.ok("plan", "none is pending")
	}
	for _, p := range pending[:min(len(pending), maxPlans)] {
		x.plan(ctx, p)
	}
	if more := len(pending) - maxPlans; more > 0 {
		x.unknown("plan", "supervisor upgrade list", "%d more plans were not looked at", more)
	}
}

func (x *examination) plan(ctx context.Context, p plan.Plan) {
	v := version.Of(p.Name)
	what := fmt.Sprintf("%s at %s (%s)", p.Name, p.When(), p.Source)
	fix := "supervisor upgrade add " + hint.Quote(p.Name) + " BINARY"
	if !x.Layout.HasBinary(v) && x.Layout.Similar(v) == "" && x.Config.Upgrade.AllowDownload && strings.TrimSpace(p.Info) != "" {
		x.unknown("plan", fix, "%s: its binary is downloaded when its height has come, which costs time then", what)
		return
	}
	r, judged := x.tryBinary(ctx, v)
	switch {
	case !judged:
		x.unknown("plan", x.tryFix(v), "%s: %s", what, x.untried(v))
	case r.Ready():
		x.ok("plan", "%s is ready (sha256 %.16s…)%s", what, r.SHA256, x.trialNote())
	default:
		if x.Layout.HasBinary(v) {
			fix += " --force"
		}
		x.fail("plan", fix, "%s is not ready: %s", what, strings.Join(r.Problems, "; "))
	}
}

// chain asks the chain's own plan once. A binary that is staged under another name than the plan's would not be found.
func (x *examination) chain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, session.ChainTimeout)
	defer cancel()
	p, err := x.ChainPlan(ctx)
	switch {
	case err != nil:
		x.unknown("chain plan", hint.Of(err), "%v", err)
		return
	case p == nil:
		x.ok("chain plan", "the chain has none")
		return
	}
	v := version.Of(p.Name)
	what := fmt.Sprintf("%s at %s", p.Name, p.When())
	fix := "supervisor upgrade add " + hint.Quote(p.Name) + " BINARY"
	similar := x.Layout.Similar(v)
	switch {
	case x.tracker.Skips(*p):
		x.ok("chain plan", "%s, which is on the skip list", what)
	case x.tracker.Current == v || slices.ContainsFunc(x.tracker.Pending(), func(q plan.Plan) bool { return q.Name == p.Name }):
		x.ok("chain plan", "%s", what)
	case x.Layout.HasBinary(v):
		x.plan(ctx, *p)
		x.ok("chain plan", "%s, and a version of exactly that name is staged", what)
	case similar != "":
		x.fail("chain plan", fix, "%s: no version has that exact name; there is %q", what, similar)
	case x.Config.Upgrade.AllowDownload && strings.TrimSpace(p.Info) != "":
		x.ok("chain plan", "%s: its binary is downloaded when its height has come", what)
	default:
		x.warn("chain plan", fix, "%s: no version of that name is staged", what)
	}
}

// height finds out whether and where the node's height can be read, and whether the recorded one can.
func (x *examination) height(ctx context.Context) {
	record, known, err := source.LoadRecord(x.Layout.HeightPath())
	if err != nil {
		x.warn("height", hint.Of(err), "%v", err)
	}
	last := ""
	if known {
		last = fmt.Sprintf("; the last one was %d at %s", record.Height, record.At.UTC().Format(time.RFC3339))
	}
	if x.live != nil {
		if x.live.Height != nil && x.live.HeightSource != nil {
			x.seen = *x.live.Height
			x.ok("height", "%d, by %s", x.seen, *x.live.HeightSource)
			return
		}
		x.unknown("height", "set [height] url or grpc to where this node tells it", "the running supervisor reads none now%s", last)
		return
	}
	heights := x.Heights(nil, func() string {
		if x.distrust {
			return "" // the source "status" would execute it
		}
		return x.CurrentBinary()
	})
	defer heights.Close()
	r, err := heights.Read(ctx)
	if err != nil {
		x.unknown("height", "start the node, and ask again; or set [height]", "%v%s", err, last)
		return
	}
	x.ok("height", "%d, by %s", r.Height, r.Source)
	x.seen = r.Height
}

// signerState looks at what guards a validator against signing twice: that it can be read, and that no restore takes
// it back.
func (x *examination) signerState() {
	h, found, err := source.SignerHeight(x.Layout.Home)
	switch {
	case err != nil:
		x.failErr("signer", err)
		return
	case !found:
		x.ok("signer", "no signer's state in this home")
	default:
		x.signer = h
		x.ok("signer", "its state is readable, at height %d", h)
	}
	const name = "priv_validator_state.json"
	for _, src := range x.Config.Snapshot.Sources {
		if src.NeverRestoreOlder != nil && !slices.Contains(src.NeverRestoreOlder, name) {
			x.fail("signer", fmt.Sprintf("never_restore_older = [%q] in [[snapshot.source]] %q", name, src.Name),
				"a restore of the source %q could take the signer's state back, and the validator would sign twice", src.Name)
		}
	}
}

// snapshots tells whether the next snapshot can be taken, how, and whether there is room.
func (x *examination) snapshots(ctx context.Context) {
	if !x.SnapshotOn("upgrade") {
		x.warn("snapshots", `take [snapshot] skip out, and have "upgrade" in [snapshot] on`, "upgrades take none: they can't be undone")
	}
	store, err := x.Store(nil)
	if err != nil {
		x.refuse(hint.Of(err), "the snapshots can't be opened")
		x.failErr("snapshots", err)
		return
	}
	x.unfinished(store)
	if err := store.Check(); err != nil {
		if !x.missing {
			x.unknown("snapshots", "", "%v, until the next start ends the restore that was interrupted", err)
		}
		return // it was said of the configuration
	}
	if !x.databases(ctx, store.Store) {
		return // the forecast would say the same again
	}
	x.template(ctx, store)
	f, err := store.Forecast(ctx)
	if err != nil {
		x.failErr("snapshots", err)
		return
	}
	if err := f.Err(); err != nil {
		if gone, perr := store.Prune(ctx, true); perr == nil && len(gone) > 0 {
			x.unknown("snapshots", hint.Of(err), "%v; %d older snapshots would be pruned first", err, len(gone))
			return
		}
		x.failErr("snapshots", err)
		return
	}
	what := fmt.Sprintf("%d files, %s, by %s, in %s; %s are free", f.Files, console.Size(f.Bytes), f.Method, store.Dir(), console.Size(f.Free))
	if f.Files == 0 && f.Bytes == 0 { // a database has no files
		what = fmt.Sprintf("nothing to take yet; they go to %s; %s are free", store.Dir(), console.Size(f.Free))
	}
	if f.CrossDevice {
		what += "; another disk than the data's, so the copy lies beside the data first and is fetched after the restart"
	}
	x.ok("snapshots", "%s", what)
}

func (x *examination) downloader() {
	if !x.Config.Upgrade.AllowDownload {
		x.ok("downloader", "not needed: downloads are off")
		return
	}
	path, err := fetch.Program()
	if err != nil {
		x.failErr("downloader", err)
		return
	}
	x.ok("downloader", "%s", path)
}

// nextStart says in one sentence what the next `run` does first: what run and its boot do, in their order.
func (x *examination) nextStart() {
	const name = "next start"
	if x.live != nil && len(x.mistakes) > 0 {
		x.fail(name, x.remedy, "none is due, a supervisor is running, state %s; but the next one refuses: %s", x.live.State, x.refused)
		return
	}
	if x.live != nil {
		x.ok(name, "none is due: a supervisor is running, state %s", x.live.State)
		return
	}
	if x.refused != "" {
		x.fail(name, x.remedy, "refuses: %s", x.refused)
		return
	}
	if _, err := os.Lstat(x.Layout.Link()); x.silent != nil || errors.Is(err, fs.ErrPermission) || (x.broken != nil && x.hold() == nil) {
		x.unknown(name, cli.AsRightUser, "its state can't be read")
		return
	}
	if h := x.hold(); h != nil {
		x.fail(name, h.Hint, "holds: %s", h.Reason)
		return
	}
	v := x.version()
	_, err := x.Layout.Current()
	switch {
	case v == "" && errors.Is(err, version.ErrNoLink) && !upgrade.Seen(x.Layout):
		x.fail(name, "supervisor init BINARY", "refuses: there is no binary to run")
		return
	case v == "":
		x.fail(name, "supervisor doctor --fix-link", "holds: %v", err)
		return
	}
	if u := x.engine.InFlight(); u != nil {
		x.resumption(name, u)
		return
	}
	x.firstAct(name, v)
}

// resumption says how an upgrade in flight goes on.
func (x *examination) resumption(name string, u *upgrade.Upgrade) {
	switch u.Phase {
	case upgrade.Planned:
		x.ok(name, "verifies the binary of %s, whose height has come, and carries the upgrade out", u.To.Name())
	case upgrade.OnProbation:
		left := x.Config.Upgrade.Probation.Attempts - u.Attempts
		if left <= 0 && x.Config.Upgrade.OnFailure == upgrade.OnFailureHold {
			x.fail(name, "supervisor upgrade resume", "holds: %s has no attempt left (%s)", u.To.Name(), u.Error)
			return
		}
		x.ok(name, "starts %s on probation, %d attempts left", u.To.Name(), max(0, left))
	case upgrade.RollingBack, upgrade.RolledBack:
		x.ok(name, "goes on with the rollback of %s to %s", u.Plan.Name, u.From.Name())
	case upgrade.Committed:
		x.ok(name, "starts %s, whose upgrade is committed", u.To.Name())
	default:
		x.ok(name, "goes on with the upgrade %s at the phase %s", u.Plan.Name, u.Phase)
	}
}

// firstAct is what a start does where nothing is in flight.
func (x *examination) firstAct(name string, v version.Version) {
	t := x.FileTracker(x.schedule()) // without the height that only a running node tells
	if x.engine.Schedule().HaltDue(t.Known(), time.Now()) {
		x.ok(name, "%shalts at once: the scheduled halt has come", x.once())
		return
	}
	p, evidence, verdict := t.Ended(time.Now(), x.signer, false)
	if verdict == plan.Due {
		why := map[plan.Evidence]string{
			plan.ByHeight: "the node is known to be at that height", plan.BySigner: "the signer's state is at exactly that height",
			plan.ByTime: "its time has come",
		}[evidence]
		if why == "" {
			why = string(evidence)
		}
		x.ok(name, "%supgrades to %s (%s) at once, because %s", x.once(), p.Name, p.When(), why)
		return
	}
	does := "starts " + v.Name()
	if _, err := x.Layout.Current(); err != nil {
		does = "links genesis and starts it"
	}
	if pending := t.Pending(); len(pending) > 0 {
		does += fmt.Sprintf("; the plan %s at %s is to come", pending[0].Name, pending[0].When())
	}
	x.ok(name, "%s%s", x.once(), does)
}

// once says what must come before a first start beside Cosmovisor.
func (x *examination) once() string {
	if x.boss == 0 {
		return ""
	}
	return fmt.Sprintf("once Cosmovisor (process %d) is stopped: ", x.boss)
}
