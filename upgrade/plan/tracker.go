package plan

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"nodevisor/upgrade/version"
)

// UnknownHeight stands for a height that nobody could read. It is not zero.
const UnknownHeight int64 = -1

// Evidence says why a plan's height has come.
type Evidence string

// The kinds of evidence (any one suffices).
const (
	ByHeight   Evidence = "height"   // a height of at least the plan's was read
	BySigner   Evidence = "signer"   // the signer's state is at exactly the plan's height
	ByFile     Evidence = "file"     // the node wrote its plan file while we watched
	ByLog      Evidence = "log"      // the node's own line: UPGRADE "<name>" NEEDED at height: H
	ByTime     Evidence = "time"     // the time of a timed plan
	ByOperator Evidence = "operator" // upgrade apply
	None       Evidence = ""
)

// Verdict says what the end of the node means.
type Verdict int

// The verdicts.
const (
	Crash   Verdict = iota // a crash is a crash: the restart policy decides
	Due                    // a plan's height has come
	Unclear                // a plan is pending, and nothing says whether its height has come: hold, never switch
)

// Tracker holds what is known of plans and heights and says which plan is next, whether its height has come, and what
// the node's end means. It is pure: no I/O, no clock, no goroutine. The rules are in docs/architecture.md, "Plans".
type Tracker struct {
	Current   version.Version
	Installed Key  // the plan that current was switched to for, by its upgrade-info.json
	HasPlan   bool // whether Installed is known

	file     File
	seenFile bool
	last     Plan      // the last plan that the file held; kept while the file is torn or missing
	since    time.Time // when it came to be there
	appeared bool      // the file's content came while our node ran, and no height has contradicted it since
	unjudged bool      // it changed while no node ran, and the end of the last one hasn't been judged yet
	schedule Schedule
	chain    *Plan
	record   int64     // the last height read in an earlier life of ours; UnknownHeight = none
	recorded time.Time // when

	height  int64          // the last height read since the node's last start; UnknownHeight = none
	before  int64          // the last height read before height became UnknownHeight again; UnknownHeight = none
	highest int64          // the highest since the file appeared, in this life of the data
	fresh   bool           // the node's first height of this start is still to come
	stale   bool           // no height was read since the file appeared
	failed  int            // how often none could be read since then, in a row
	line    *Key           // what the node's own line named
	unsafe  map[int64]bool // heights that the node itself is told to pass over (--unsafe-skip-upgrades)
}

// NewTracker makes a tracker. record is the recorded height and its time (UnknownHeight where there is none).
func NewTracker(record int64, at time.Time) *Tracker {
	return &Tracker{record: record, recorded: at, height: UnknownHeight, before: UnknownHeight, highest: UnknownHeight, fresh: true}
}

// SetSchedule replaces what operators want.
func (t *Tracker) SetSchedule(s Schedule) { t.schedule = s }

// SetSkipHeights takes the heights of --unsafe-skip-upgrades: the node passes such a plan over, and so do we.
func (t *Tracker) SetSkipHeights(heights map[int64]bool) { t.unsafe = heights }

// PassOver makes plans at that height be passed over as long as the tracker lives.
func (t *Tracker) PassOver(height int64) {
	unsafe := map[int64]bool{height: true}
	maps.Copy(unsafe, t.unsafe)
	t.unsafe = unsafe
}

// Skips tells whether p is passed over, by an operator's list or by the node's own arguments.
func (t *Tracker) Skips(p Plan) bool {
	return t.schedule.Skips(p) || (p.Height > 0 && t.unsafe[p.Height])
}

// SetChain replaces what the chain itself said of its plan; nil = it has none, or wasn't asked.
func (t *Tracker) SetChain(p *Plan) { t.chain = p }

// SetCurrent tells which version current names, and what it was switched to for.
func (t *Tracker) SetCurrent(v version.Version, installed Plan, ok bool) {
	t.Current, t.Installed, t.HasPlan = v, installed.Key(), ok
}

// SawFile takes one look at the plan file. running tells whether our node ran when the content changed. It returns
// whether the content is news.
func (t *Tracker) SawFile(f File, running bool) bool {
	first := !t.seenFile
	if !first && f.id == t.file.id && (f.Err == nil) == (t.file.Err == nil) {
		// A look that was asked for while the node ran may be answered after its end: the node wrote it all the same.
		if running && t.unjudged {
			t.unjudged, t.appeared = false, f.Err == nil && !t.scheduled(f.Plan)
		}
		return false
	}
	known := !first && f.Err == nil && f.Plan == t.last
	recorded := known && t.Done(f.Plan) // before this look is taken in
	t.seenFile, t.file, t.unjudged = true, f, !first && !running
	if f.Err != nil {
		t.appeared = false
		return true // torn, or gone for a moment: what is known of the plan that it held stays known
	}
	if t.last, t.since = f.Plan, f.at; known && t.Done(f.Plan) {
		t.unjudged = false
		return false // touched, copied over itself: a plan that is done isn't undone by that
	}
	t.highest, t.stale, t.failed = UnknownHeight, true, 0
	if running {
		t.highest = t.height // a height only rises while a node runs
	}
	// A plan that the record has passed and that is written once more is no news of the node's alone: a tool may have copied
	// the stale file over itself under a version that was put in by hand. Without a height that is unclear, never due.
	t.appeared = !first && running && !t.scheduled(f.Plan) && !recorded
	return true
}

// ForgetFile forgets the plan file: the next look is a first one, at another file, or by other rules.
func (t *Tracker) ForgetFile() {
	t.file, t.seenFile, t.last, t.since = File{}, false, Plan{}, time.Time{}
	t.appeared, t.unjudged, t.stale = false, false, false
}

// scheduled tells whether an operator's schedule holds the plan: then the file isn't the node's own word.
func (t *Tracker) scheduled(p Plan) bool {
	return slices.ContainsFunc(t.schedule.Plans, func(s Plan) bool { return s.Key() == p.Key() })
}

// SawHeight takes a height that the running node answered.
func (t *Tracker) SawHeight(h int64) {
	if h < t.record {
		t.record, t.recorded = h, time.Time{} // a new life of the data: restored, resynced, wiped
	}
	if t.fresh { // within one start of the node a lower answer is another source's
		t.highest = min(t.highest, h)
	}
	t.height, t.stale, t.fresh, t.failed = h, false, false, 0
	t.highest = max(t.highest, h)
	if t.ahead(t.file.Plan) {
		t.appeared = false // another tool's schedule: also once the node ends, or no height is known any more
	}
}

// SawLine takes the node's own line that an upgrade is needed.
func (t *Tracker) SawLine(name string, height int64) { t.line = &Key{Name: name, Height: height} }

// NodeStarted forgets what only the node's last life could know.
func (t *Tracker) NodeStarted() {
	t.forgetHeight()
	t.line, t.fresh, t.unjudged = nil, true, false
}

// maxFailed is how many reads of the height may fail in a row before the last one stops to contradict the node's file:
// a busy node misses one; one whose RPC is gone misses all.
const maxFailed = 5

// HeightFailed tells that no height could be read. Done often enough, what was read before contradicts nothing any more.
func (t *Tracker) HeightFailed() {
	if t.failed++; t.stale && t.failed >= maxFailed {
		t.forgetHeight()
	}
}

func (t *Tracker) forgetHeight() {
	if t.height != UnknownHeight {
		t.before, t.height = t.height, UnknownHeight
	}
}

// Height is the last height read in this life of the node, or UnknownHeight.
func (t *Tracker) Height() int64 { return t.height }

// Known is the best lower bound of the data's height: this start's, else that of the start before it, else the record's.
func (t *Tracker) Known() int64 {
	for _, h := range []int64{t.height, t.before} {
		if h != UnknownHeight {
			return h
		}
	}
	return t.record
}

// FileError says what is wrong with the plan file; nil where it is missing or fine.
func (t *Tracker) FileError() error {
	if t.file.Err == nil || t.file.Err == ErrMissing { //nolint:errorlint // ReadFile returns it bare
		return nil
	}
	return t.file.Err
}

// FilePlan returns the plan of the node's file, where it is one that isn't done and isn't skipped.
func (t *Tracker) FilePlan() (Plan, bool) {
	if !t.seenFile || t.file.Err != nil || t.Done(t.file.Plan) || t.Skips(t.file.Plan) {
		return Plan{}, false
	}
	return t.file.Plan, true
}

// Done tells whether p needs nothing any more: current is its version, or was switched to for it, or the node itself,
// on this data and since the file appeared, showed a height above the plan's. History alone never makes a plan done.
func (t *Tracker) Done(p Plan) bool {
	if t.installed(p) {
		return true
	}
	if p.Source == FromOperator || p.Height == 0 {
		return false // an operator's height may well be passed: the stop is a little late
	}
	if max(t.highest, t.height) > p.Height {
		return true
	}
	return !t.appeared && t.record > p.Height && t.recorded.After(t.since)
}

// installed tells whether current is p's version, or was switched to for p.
func (t *Tracker) installed(p Plan) bool {
	return t.Current == version.Of(p.Name) || (t.HasPlan && t.Installed == p.Key())
}

// Pending lists the plans that are not done and not skipped, the next one first. The same plan from several sources is
// one: its source and info come from the file, then the chain, then the operator.
func (t *Tracker) Pending() []Plan {
	var all []Plan
	add := func(p Plan) {
		if t.Done(p) || t.Skips(p) {
			return
		}
		for i := range all {
			if all[i].Key() == p.Key() {
				all[i] = all[i].Merge(p)
				return
			}
		}
		all = append(all, p)
	}
	if t.seenFile && t.file.Err == nil {
		add(t.file.Plan)
	}
	if t.chain != nil {
		add(*t.chain)
	}
	for _, p := range t.schedule.Plans {
		if !t.superseded(p) {
			add(p)
		}
	}
	slices.SortStableFunc(all, byTurn) // stable: of two plans at one height the node's own comes first
	return all
}

// superseded tells whether p was taken over from the node's file, which says something else of that name now.
func (t *Tracker) superseded(p Plan) bool {
	return p.Name == t.schedule.FromFile && t.seenFile && t.file.Err == nil && t.file.Plan.Name == p.Name && t.file.Plan.Key() != p.Key()
}

// FileGone tells whether there is no plan file any more that a plan of the schedule was taken over from.
func (t *Tracker) FileGone() bool {
	return t.schedule.FromFile != "" && t.seenFile && t.file.Err == ErrMissing //nolint:errorlint // ReadFile returns it bare
}

// Replaced tells whether the node's file holds another plan than that one by now.
func (t *Tracker) Replaced(k Key) bool {
	return t.seenFile && t.file.Err == nil && t.file.Plan.Key() != k
}

// NextPlan is the plan that comes next; an error says that the node's file holds one that nothing is done for, and why.
func (t *Tracker) NextPlan() (*Plan, error) {
	if all := t.Pending(); len(all) > 0 {
		return &all[0], nil
	}
	p := t.file.Plan
	switch {
	case !t.seenFile || t.file.Err != nil:
	case t.installed(p):
		return nil, fmt.Errorf("%s at %s is done: current is its version", p.Name, p.When())
	case t.Skips(p):
		return nil, fmt.Errorf("%s at %s is on the skip list", p.Name, p.When())
	case t.Done(p):
		return nil, fmt.Errorf("%s at %s is past: the node went on with another version", p.Name, p.When())
	}
	return nil, nil //nolint:nilnil // nothing is scheduled, and nothing is wrong
}

// PendingVersions lists the versions of the pending plans, the next one first.
func (t *Tracker) PendingVersions() []version.Version {
	var all []version.Version
	for _, p := range t.Pending() {
		all = append(all, version.Of(p.Name))
	}
	return all
}

// Scheduled tells whether p's trigger is ours alone: no node halts for it by itself.
func (t *Tracker) Scheduled(p Plan) bool { return p.Source == FromOperator || t.scheduled(p) }

// NeedsHeight tells whether a fresh height must be read before the file's appearance counts: the file may have been
// written by hand, far ahead of its height, and a node whose height can be read can contradict it.
func (t *Tracker) NeedsHeight() bool {
	p, ok := t.FilePlan()
	return ok && t.appeared && t.stale && t.below(p)
}

// ahead tells whether the node itself contradicts the file: its height is still well below the plan's.
func (t *Tracker) ahead(p Plan) bool { return !t.stale && t.below(p) }

// below tells whether the height that was read last is well below the plan's. One block of slack: some nodes answer with
// the last block that was applied, and that one is below the plan's.
func (t *Tracker) below(p Plan) bool { return t.height != UnknownHeight && t.height < p.Height-1 }

// FarAhead returns the file's plan where the running node's height contradicts it: then it is an operator's schedule
// that another tool wrote there, not the node's word.
func (t *Tracker) FarAhead() (Plan, bool) {
	p, ok := t.FilePlan()
	return p, ok && t.ahead(p)
}

// Due returns the plan whose height has come, while the node runs. Never early: what is only pending stays so.
func (t *Tracker) Due(clock time.Time) (Plan, Evidence, bool) {
	for _, p := range t.Pending() {
		if ev := t.evidence(p, clock); ev != None {
			return p, ev, true
		}
	}
	return Plan{}, None, false
}

func (t *Tracker) evidence(p Plan, clock time.Time) Evidence {
	switch {
	case !p.Time.IsZero():
		if !clock.Before(p.Time) {
			return ByTime
		}
		return None
	case t.line != nil && *t.line == p.Key() && !t.ahead(p):
		return ByLog // not against the node's own height: what peers and users send can end up in a log
	case p.Source == FromFile && t.appeared && !t.scheduled(p) && !t.ahead(p) && !t.NeedsHeight():
		return ByFile
	case t.height != UnknownHeight && t.height >= p.Height && p.Source != FromChain:
		return ByHeight
	case t.height == UnknownHeight && t.before == UnknownHeight && t.record == p.Height && !t.recorded.IsZero():
		return ByHeight
	}
	return None
}

// nearBlocks is how far below the plan a height may be that was read before the node wrote its file: heights are read every
// five seconds at rest, and some chains make dozens of blocks in that time. A plan that another tool wrote lies further ahead.
const nearBlocks = 100

// Ended says what the end of the node means, or what is known before its first start: signer is the height in the
// signer's state (UnknownHeight where there is none).
func (t *Tracker) Ended(clock time.Time, signer int64, started bool) (Plan, Evidence, Verdict) {
	if p, ok := t.FilePlan(); ok && started && t.appeared && t.stale && !t.scheduled(p) && t.height != UnknownHeight && p.Height-t.height <= nearBlocks {
		return p, ByFile, Due // it wrote the plan and was gone: the height that was read before is older than the file
	}
	t.stale, t.unjudged = false, false // nobody can be asked for a fresh height any more: what was read last stands
	if p, ev, ok := t.Due(clock); ok {
		return p, ev, Due
	}
	for _, p := range t.Pending() {
		// The signer's state outlives data that was wiped or restored, so the node's own height may contradict it, unless
		// the node has just written the plan.
		written := p.Source == FromFile && t.appeared
		if p.Height > 0 && signer == p.Height && (written || !t.below(p)) {
			return p, BySigner, Due
		}
	}
	p, ok := t.FilePlan()
	if ok && t.below(p) {
		t.appeared = false // contradicted for good: the next start begins without a height, and must not switch on that
	}
	switch {
	case t.FileError() != nil && started:
		return Plan{}, None, Unclear
	case !ok, !started, t.Scheduled(p), t.height != UnknownHeight && t.height < p.Height:
		return Plan{}, None, Crash
	}
	return p, None, Unclear
}

// Describe says why the end of the node is unclear.
func (t *Tracker) Describe() string {
	if err := t.FileError(); err != nil {
		return fmt.Sprintf("the node ended, and its plan file can't be read (%v)", err)
	}
	return fmt.Sprintf("the node ended with the plan %s at %s in its file, and nothing says whether that height has come",
		t.file.Plan.Name, t.file.Plan.When())
}
