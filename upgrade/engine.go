package upgrade

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"syscall"
	"time"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// maxCrashes caps how often the effect of one phase is begun again after a crash of the supervisor or the host.
const maxCrashes = 5

// Snapshotter takes and gives back what the node's data was. Package snapshot satisfies it.
type Snapshotter interface {
	// Create seals a snapshot of the data at rest, once ready returned nil: it is asked when all data is copied. The same id
	// again is the same snapshot.
	Create(ctx context.Context, id, label string, height int64, ready func() error) error
	// Complete makes a sealed snapshot a verified one, while the node runs.
	Complete(ctx context.Context, id string) error
	// Restore puts the snapshot in the place of the data. The node is at rest. Signer state is never taken back.
	// once names this way back: called again with it, after a crash, a restore that was done is not done twice.
	Restore(ctx context.Context, id, once string) error
	// Room tells, cheaply and before the node is stopped, whether a snapshot can be taken.
	Room(ctx context.Context) error
}

// Exporter makes genesis templates. Package main satisfies it.
type Exporter interface {
	// Export makes the template that belongs to a sealed snapshot, and makes it durable. The node is at rest, on the data
	// that the snapshot has; height is that of its last block, or UnknownHeight. The same snapshot again is the same template.
	Export(ctx context.Context, snapshot string, height int64) error
}

// Fetcher places a plan's binary into the version's directory from the addresses in its info.
type Fetcher func(ctx context.Context, p plan.Plan, to version.Version) error

// ProgramLock makes a lock that a program inherits, so that nobody takes it for ended while it or what it started lives. release
// is told whether its end was seen.
type ProgramLock func() (lock *os.File, release func(ended bool), err error)

// Options is what an Engine is made of.
type Options struct {
	Layout      version.Layout
	Config      Config
	Snapshots   Snapshotter // nil: upgrades take no snapshot
	Templates   Exporter    // nil: upgrades make no genesis template
	NewSnapshot func(label string, height int64) string
	Checker     *version.Checker
	Fetch       Fetcher                          // nil: downloads are off
	Env         func(v version.Version) []string // the environment of the version's programs
	ProgramLock ProgramLock                      // before each script and pre-upgrade; nil: nothing
	RunAs       *syscall.Credential              // whom its scripts and pre-upgrade run as; nil = as this user
	Log         *slog.Logger
	Observe     func(Upgrade) // told after each phase
}

// Engine carries upgrades out and owns the journal. It is not safe for concurrent use: the run loop has at most one
// long job, and only that job touches the engine; a command without a running supervisor has it alone under the lock.
type Engine struct {
	Options
	j    Journal
	s    plan.Schedule
	mark time.Time // when the last phase ended; monotonic

	kept fs.FileInfo // the node's file, as it was last made durable

	behind *record // the record of the last phase, while it is being written
}

// NewEngine makes an engine; Load reads its state.
func NewEngine(o Options) *Engine {
	if o.Observe == nil {
		o.Observe = func(Upgrade) {}
	}
	if o.Env == nil {
		o.Env = func(version.Version) []string { return nil }
	}
	return &Engine{Options: o}
}

// Load reads journal and schedule and checks them against the link. Anything that doesn't fit is state.ErrUntrusted.
func (e *Engine) Load() error {
	var jerr, serr error
	e.j, jerr = LoadJournal(e.Layout.JournalPath())
	e.s, serr = plan.LoadSchedule(e.Layout.SchedulePath())
	if err := errors.Join(jerr, serr); err != nil {
		return err
	}
	return e.checkLink()
}

// checkLink compares the journal with the link: a link that moved behind the journal's back is nobody's choice.
func (e *Engine) checkLink() error {
	u := e.j.Upgrade
	if u == nil {
		return nil
	}
	current, err := e.Layout.Current()
	if err != nil {
		return &hint.Error{
			Op: "go on with the upgrade", Path: u.Plan.Name, Err: fmt.Errorf("the journal %w: %w", state.ErrUntrusted, err),
			Hint: "supervisor doctor --fix-link",
		}
	}
	fits := current == u.From || current == u.To
	switch u.Phase {
	case Planned, Staged, Stopped, RolledBack:
		fits = current == u.From
	case Switched, Migrated, OnProbation, Committed:
		fits = current == u.To
	}
	if fits {
		return nil
	}
	want := u.From
	if u.Phase.OnNew() {
		want = u.To
	}
	return &hint.Error{
		Op: "go on with the upgrade", Path: u.Plan.Name,
		Err:  fmt.Errorf("the journal %w: it is at %s from %s to %s, but current names %s", state.ErrUntrusted, u.Phase, u.From, u.To, current),
		Hint: "supervisor upgrade use " + want.Name() + " --force, or: supervisor doctor --fix-link",
	}
}

// Anchor sees to it, before an upgrade of a running node is recorded, that current names the version that runs: a roll-back
// leads to what it named. A link that is gone is made again, and one that was set to the next version ahead of its height is
// put back until then. One that names a third version is refused: what its maker wanted to happen at the height, nobody
// knows. Nothing is done for an upgrade that is in flight.
func (e *Engine) Anchor(running, to version.Version) error {
	if u := e.j.Upgrade; u != nil && u.Phase != Planned {
		return nil
	}
	current, err := e.Layout.Current()
	if err == nil && current == running {
		return nil
	}
	if err == nil && current != to {
		err = fmt.Errorf("current names %s", current)
	}
	if err != nil && !errors.Is(err, version.ErrNoLink) {
		return &hint.Error{
			Op: "begin the upgrade", Path: to.Name(), Err: fmt.Errorf("%w, but %s runs", err, running),
			Hint: "ln -sfT " + hint.Quote(string(running)) + " " + hint.Quote(e.Layout.Link()) + " (then it goes on)",
		}
	}
	if err := e.Layout.SwitchTo(running); err != nil {
		return err
	}
	e.Log.Warn("current didn't name the version that runs; it does again", "named", current, "version", running)
	return nil
}

// Journal returns a copy of the journal.
func (e *Engine) Journal() Journal {
	j := e.j
	if j.Upgrade != nil {
		u := *j.Upgrade
		j.Upgrade = &u
	}
	return j
}

// Schedule returns a copy of the schedule.
func (e *Engine) Schedule() plan.Schedule {
	s := e.s
	s.Plans = append([]plan.Plan(nil), s.Plans...)
	s.Skip = append([]plan.Skip(nil), s.Skip...)
	s.Imported = maps.Clone(s.Imported)
	return s
}

// reschedule changes the schedule on disk, then in memory: what can't be written hasn't happened.
func (e *Engine) reschedule(change func(*plan.Schedule)) error {
	s := e.Schedule()
	change(&s)
	if err := s.Save(e.Layout.SchedulePath()); err != nil {
		return err
	}
	e.s = s
	return nil
}

// InFlight returns the upgrade being carried out, or nil.
func (e *Engine) InFlight() *Upgrade { return e.j.Upgrade }

// Hold records why the supervisor stopped acting. The first reason stays: what follows from it is noise.
func (e *Engine) Hold(reason, next string) error {
	if e.j.Hold != nil {
		return nil
	}
	e.j.Hold = &Hold{Reason: reason, Hint: next, Since: now()}
	return e.save(atomicfile.Full)
}

// HoldFor turns an error into a hold, with the error's own hint or a general one.
func (e *Engine) HoldFor(err error) error {
	next := hint.Of(err)
	if next == "" {
		next = "mend the cause, then: supervisor resume"
	}
	if u := e.j.Upgrade; u != nil {
		u.Error = err.Error()
	}
	return e.Hold(err.Error(), next)
}

// Release takes the hold away.
func (e *Engine) Release() error {
	if e.j.Hold == nil {
		return nil
	}
	return e.change(atomicfile.Full, func() { e.j.Hold = nil })
}

// Announce records that a plan's height has come: from now on the upgrade goes on, whatever ends the supervisor or the
// node. Its binary may still be missing. stood is the node's height at this moment, or UnknownHeight.
func (e *Engine) Announce(p plan.Plan, evidence plan.Evidence, stood int64) error {
	before := e.Journal()
	if err := e.announce(p, evidence, stood); err != nil || before.Upgrade != nil {
		return err // announced before: asked again and again while its binary is awaited
	}
	if err := e.saveFull(); err != nil {
		e.j = before
		return err
	}
	return nil
}

func (e *Engine) announce(p plan.Plan, evidence plan.Evidence, stood int64) error {
	if u := e.j.Upgrade; u != nil {
		if u.Plan.Key() == p.Key() {
			return nil
		}
		return hint.New("begin the upgrade", p.Name, "the upgrade "+u.Plan.Name+" is still in flight", "supervisor status")
	}
	from, err := e.Layout.Current()
	if err != nil {
		return err
	}
	switch evidence {
	case plan.ByFile, plan.ByLog, plan.BySigner:
		// A node that says itself that it waits for the plan stands at its height. What else is known may be of older data.
		stood = min(stood, p.Height)
	}
	u := &Upgrade{Plan: p, From: from, To: p.To(), Phase: Planned, Evidence: evidence, Begun: now(), Stood: max(0, stood)}
	if p.Source == plan.FromOperator && p.Height > 0 && stood >= p.Height {
		u.Overshot = stood - (p.Height - 1)
		e.Log.Warn("the node was past the plan's last block when it was seen", "plan", p.Name, "height", stood, "overshoot", u.Overshot)
	}
	if e.Snapshots != nil {
		u.Snapshot = e.NewSnapshot(p.Name, u.Floor())
	}
	if there, _, err := plan.ReadFile(e.Layout.Plan, e.Config.Recase); err == nil && there.Key() == p.Key() {
		if err := e.keepPlanFile(); err != nil {
			return err
		}
		u.Announced = true
	}
	e.j.Upgrade = u
	e.mark = time.Now()
	e.Observe(*u)
	return nil
}

// Begin records that an announced plan is carried out from now on. The binary was verified by the caller; its digest is
// what the link will be allowed to lead to.
func (e *Engine) Begin(p plan.Plan, evidence plan.Evidence, ready version.Readiness, stood int64) error {
	before := e.Journal()
	if err := e.announce(p, evidence, stood); err != nil {
		return err
	}
	u := e.j.Upgrade
	if u.Phase != Planned {
		return nil
	}
	u.SHA256, u.Downloaded = ready.SHA256, ready.Downloaded
	err := e.Layout.SyncBinary(u.To)
	if err == nil {
		err = e.advanceFull(Staged)
	}
	if err != nil {
		e.j = before // one that can't be recorded is not begun
	}
	return err
}

// Recover prepares an interrupted upgrade to be gone on with: it counts the crash, and refuses when there were too many.
func (e *Engine) Recover() error {
	if err := e.Layout.Tidy(); err != nil {
		e.Log.Warn("cannot remove what an interrupted write left", "error", err)
	}
	u := e.j.Upgrade
	if u == nil || e.j.Hold != nil {
		return nil
	}
	e.mark = time.Now()
	if u.Phase == Planned || u.Phase == OnProbation {
		return nil // nothing was begun yet; or the attempts are counted apart
	}
	u.Tries++
	u.Crashes++
	if u.Crashes > maxCrashes {
		return hint.New("go on with the upgrade", u.Plan.Name,
			fmt.Sprintf("it was interrupted %d times in a row after the phase %s", u.Crashes-1, u.Phase), "supervisor resume")
	}
	e.Log.Warn("going on with an interrupted upgrade", "plan", u.Plan.Name, "phase", u.Phase, "attempt", u.Tries)
	return e.save(atomicfile.Full)
}

// now is the wall clock, in UTC: what is recorded. Durations are measured with the monotonic clock.
func now() time.Time { return time.Now().UTC() }
