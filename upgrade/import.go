package upgrade

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/source"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// Cosmovisor's batch of plans becomes part of our schedule, and our schedule becomes such a file again, so that a home can
// go both ways.

// Import is what a batch of Cosmovisor's means for this home.
type Import struct {
	Plans    []plan.Plan // to be scheduled, lowest height first
	Rejected []error     // *hint.Error, one for each entry that is passed over
	digest   string
}

// BatchImport tells what ImportBatch would do, and changes nothing. A batch that was imported before, or doesn't exist,
// is empty.
func (e *Engine) BatchImport() (Import, error) {
	b, err := plan.ReadBatch(e.Layout.BatchPath(), e.Config.Recase)
	if err != nil || b.Digest == "" || e.s.Imported[e.batchKey()] == b.Digest {
		return Import{}, err
	}
	in := Import{digest: b.Digest}
	known := e.floorHeight()
	next := e.Schedule()
	for _, en := range b.Entries { // by height: of two entries with one name the nearer one counts
		p := en.Plan
		switch why := e.reject(en, known, next); {
		case why != "":
			in.Rejected = append(in.Rejected, en.Rejection(why))
		case slices.ContainsFunc(next.Plans, func(have plan.Plan) bool { return have.Key() == p.Key() }):
		default:
			next.Add(p)
			in.Plans = append(in.Plans, p)
		}
	}
	return in, nil
}

// ImportBatch takes Cosmovisor's pending plans over into the schedule. The file stays where it is, and is not imported
// again until its content changes. What is passed over is logged, entry by entry: an unusable one, one that is done or on
// the skip list, one whose name an operator scheduled otherwise, and one at or below the height that the data is known
// to have reached, because an operator's plan that is past would be carried out at once.
//
// The error is a *hint.Error where the file can't be read or the schedule can't be written; nothing was imported then.
func (e *Engine) ImportBatch() (imported []plan.Plan, err error) {
	in, err := e.BatchImport()
	if err != nil || in.digest == "" {
		return nil, err
	}
	next := e.Schedule()
	next.Imported = maps.Clone(next.Imported)
	if next.Imported == nil {
		next.Imported = map[string]string{}
	}
	next.Imported[e.batchKey()] = in.digest
	for _, p := range in.Plans {
		next.Add(p)
	}
	if err := next.Save(e.Layout.SchedulePath()); err != nil {
		return nil, &hint.Error{
			Op: "import Cosmovisor's batch", Path: e.Layout.BatchPath(), Err: err,
			Hint: "free some space or mend the disk; it is imported at the next start",
		}
	}
	e.s = next
	for _, p := range in.Plans {
		e.Log.Info("plan of Cosmovisor's batch scheduled", "plan", p.Name, "height", p.Height, "file", e.Layout.BatchPath())
	}
	for _, r := range in.Rejected {
		e.Log.Warn("entry of Cosmovisor's batch passed over", "error", r, "hint", hint.Of(r))
	}
	return in.Plans, nil
}

// batchKey names the batch in the schedule, also after the home was moved.
func (e *Engine) batchKey() string {
	if rel, err := filepath.Rel(e.Layout.Home, e.Layout.BatchPath()); err == nil {
		return rel
	}
	return e.Layout.BatchPath()
}

// reject says why an entry is not scheduled; "" = nothing speaks against it.
func (e *Engine) reject(en plan.Entry, known int64, next plan.Schedule) string {
	p := en.Plan
	if en.Err != nil {
		return en.Err.Error()
	}
	current, _ := e.Layout.Current() // a damaged link is not this function's matter
	if current == version.Of(p.Name) {
		return "it is done: current is this version"
	}
	if u := e.j.Upgrade; u != nil && u.Plan.Name == p.Name {
		return "it is in flight"
	}
	if known != plan.UnknownHeight && p.Height <= known {
		return fmt.Sprintf("its height is past: the data is known to be at %d", known)
	}
	if next.Skips(p) {
		return "it is on the skip list"
	}
	for _, have := range next.Plans {
		if have.Name == p.Name && have.Key() != p.Key() {
			return "the same name is scheduled at " + have.When() + " already"
		}
	}
	return ""
}

// floorHeight is what is known of the data's height without the node, or UnknownHeight: the highest of the recorded one, the
// signer's, and the one that current was switched to for. It decides only what is not imported: too high a figure (data
// that was restored by hand) costs a command, too low a one would switch to an old version.
func (e *Engine) floorHeight() int64 {
	known := plan.UnknownHeight
	if r, ok, err := source.LoadRecord(e.Layout.HeightPath()); err == nil && ok {
		known = max(known, r.Height)
	}
	if h, ok, err := source.SignerHeight(e.Layout.Home); err == nil && ok && h > 0 {
		known = max(known, h)
	}
	if v, err := e.Layout.Current(); err == nil {
		if p, ok := plan.Installed(e.Layout, v, e.Config.Recase); ok {
			known = max(known, p.Height)
		}
	}
	return known
}

// Leaving is what a return to Cosmovisor hands over.
type Leaving struct {
	Plans    []plan.Plan // pending, and written to Cosmovisor's batch
	Homeless []string    // what Cosmovisor has no place for; it is dropped, because it would act at a later return
	Dropped  []plan.Plan // entries of the batch that we had imported, and that are done, cancelled or passed over since
	document []byte      // the new content of the batch; nil = it stays as it is
}

// Leave tells what Left would do, and changes nothing. It refuses while an upgrade is in flight.
func (e *Engine) Leave() (Leaving, error) {
	if u := e.j.Upgrade; u != nil {
		return Leaving{}, hint.New("go back to Cosmovisor", "", fmt.Sprintf("the upgrade %s is in flight, at %s", u.Plan.Name, u.Phase),
			"supervisor run (to finish it), or supervisor rollback, or supervisor upgrade skip "+u.Plan.Name)
	}
	var l Leaving
	for _, p := range e.s.Plans {
		if p.Height > 0 && p.Time.IsZero() {
			l.Plans = append(l.Plans, p)
			continue
		}
		l.Homeless = append(l.Homeless, fmt.Sprintf("the plan %s at %s", p.Name, p.When()))
	}
	if h := e.s.Halt; h != nil {
		l.Homeless = append(l.Homeless, "the halt at "+h.When())
	}
	if len(l.Plans) > 0 && e.Layout.Plan == "" {
		return l, hint.New("go back to Cosmovisor", "", "[upgrade] plan_file is empty, so its batch has no place",
			`set plan_file = "data/upgrade-info.json", or: supervisor upgrade cancel NAME`)
	}
	b, err := plan.ReadBatch(e.Layout.BatchPath(), e.Config.Recase)
	if err != nil {
		return l, err
	}
	l.document, l.Dropped, err = b.Merge(l.Plans, b.Digest != "" && e.s.Imported[e.batchKey()] == b.Digest)
	return l, err
}

// Left hands the plans of l over to Cosmovisor and forgets what would act at a later return: plans, a halt, a hold, the
// recorded height, which falls behind while another supervisor runs the node. The skip list and the history stay.
// The batch comes first: interrupted at any point and called again, nothing is lost. The caller guarantees that no node
// of ours runs.
func (e *Engine) Left(l Leaving) error {
	if e.j.Upgrade != nil {
		return errors.New("cannot go back to Cosmovisor: an upgrade is in flight")
	}
	if l.document != nil {
		if err := atomicfile.WriteFile(e.Layout.BatchPath(), append(l.document, '\n'), 0o600); err != nil {
			return err
		}
	}
	next := plan.Schedule{Schema: state.Schema, Skip: e.s.Skip}
	if len(next.Skip) > 0 {
		if err := next.Save(e.Layout.SchedulePath()); err != nil {
			return err
		}
	} else if err := atomicfile.Remove(e.Layout.SchedulePath()); err != nil {
		return err
	}
	e.s = next
	if err := errors.Join(atomicfile.Remove(e.Layout.JournalPath()), atomicfile.Remove(e.Layout.HeightPath())); err != nil {
		return err
	}
	e.j = Journal{Schema: state.Schema}
	return nil
}
