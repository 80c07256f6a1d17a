package upgrade

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/source"
)

// Cosmovisor (1.7) keeps the upgrades that its operator scheduled in one JSON array beside the node's plan file, in the
// form in which x/upgrade writes one plan. Here it becomes part of our schedule, and our schedule becomes such a file
// again, so that a home can go both ways.

// BatchPath is where Cosmovisor keeps what add-batch-upgrade scheduled; "" where no plan file is configured.
func (l Layout) BatchPath() string {
	if l.Plan == "" {
		return ""
	}
	return l.Plan + ".batch"
}

// batch is one reading of Cosmovisor's file.
type batch struct {
	digest  string // of the content; "" = there is no file
	entries []entry
}

// entry is one element of the array. What can't be used is kept as it is: it isn't ours to drop.
type entry struct {
	number int // in the file, from 1
	raw    json.RawMessage
	plan   Plan
	err    error
}

func readBatch(path string, recase bool) (batch, error) {
	if path == "" {
		return batch{}, nil
	}
	data, err := readState(path)
	if errors.Is(err, fs.ErrNotExist) {
		return batch{}, nil
	}
	var b batch
	if err == nil {
		b, err = parseBatch(data, recase)
	}
	if err != nil {
		return batch{}, &hint.Error{
			Op: "read Cosmovisor's batch", Path: path, Err: err,
			Hint: "mend " + path + " (a JSON array of plans), or move it away",
		}
	}
	return b, nil
}

func parseBatch(data []byte, recase bool) (batch, error) {
	sum := sha256.Sum256(data)
	b := batch{digest: hex.EncodeToString(sum[:])}
	if len(bytes.TrimSpace(data)) == 0 {
		return b, nil // Cosmovisor makes the file before it fills it
	}
	var raws []json.RawMessage
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&raws); err != nil {
		return b, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return b, errors.New("something follows the JSON array")
	}
	for i, raw := range raws {
		p, err := ParsePlan(raw, recase)
		p.Source = FromOperator
		b.entries = append(b.entries, entry{number: i + 1, raw: raw, plan: p, err: err})
	}
	return b, nil
}

// Import is what a batch of Cosmovisor's means for this home.
type Import struct {
	Plans    []Plan  // to be scheduled, lowest height first
	Rejected []error // *hint.Error, one for each entry that is passed over
	digest   string
}

// BatchImport tells what ImportBatch would do, and changes nothing. A batch that was imported before, or doesn't exist,
// is empty.
func (e *Engine) BatchImport() (Import, error) {
	b, err := readBatch(e.Layout.BatchPath(), e.Config.Recase)
	if err != nil || b.digest == "" || e.s.Imported[e.batchKey()] == b.digest {
		return Import{}, err
	}
	in := Import{digest: b.digest}
	// In the order of heights, so that of two entries with one name the nearer one counts.
	slices.SortStableFunc(b.entries, func(x, y entry) int { return byHeight(x.plan, y.plan) })
	known := e.floorHeight()
	next := e.Schedule()
	for _, en := range b.entries {
		p := en.plan
		switch why := e.reject(en, known, next); {
		case why != "":
			in.Rejected = append(in.Rejected, rejection(en, why))
		case slices.ContainsFunc(next.Plans, func(have Plan) bool { return have.Key() == p.Key() }):
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
func (e *Engine) ImportBatch() (imported []Plan, err error) {
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
func (e *Engine) reject(en entry, known int64, next Schedule) string {
	p := en.plan
	if en.err != nil {
		return en.err.Error()
	}
	current, _ := e.Layout.Current() // a damaged link is not this function's matter
	if current == VersionOf(p.Name) {
		return "it is done: current is this version"
	}
	if u := e.j.Upgrade; u != nil && u.Plan.Name == p.Name {
		return "it is in flight"
	}
	if known != Unknown && p.Height <= known {
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

func rejection(en entry, why string) *hint.Error {
	if en.err != nil {
		return &hint.Error{
			Op: "import entry", Path: fmt.Sprintf("%d of Cosmovisor's batch", en.number), Err: en.err,
			Hint: "supervisor upgrade add NAME BINARY --height N",
		}
	}
	return hint.New("import plan", fmt.Sprintf("%s at %d", en.plan.Name, en.plan.Height), why,
		fmt.Sprintf("where it is still wanted: supervisor upgrade add %s BINARY --height N --force", en.plan.Name))
}

// floorHeight is what is known of the data's height without the node, or Unknown: the highest of the recorded one, the
// signer's, and the one that current was switched to for. It decides only what is not imported: too high a figure (data
// that was restored by hand) costs a command, too low a one would switch to an old version.
func (e *Engine) floorHeight() int64 {
	known := Unknown
	if r, ok, err := source.LoadRecord(e.Layout.HeightPath()); err == nil && ok {
		known = max(known, r.Height)
	}
	if h, ok, err := source.SignerHeight(e.Layout.Home); err == nil && ok && h > 0 {
		known = max(known, h)
	}
	if v, err := e.Layout.Current(); err == nil {
		if p, ok := e.Layout.InstalledPlan(v, e.Config.Recase); ok {
			known = max(known, p.Height)
		}
	}
	return known
}

// Leaving is what a return to Cosmovisor hands over.
type Leaving struct {
	Plans    []Plan   // pending, and written to Cosmovisor's batch
	Homeless []string // what Cosmovisor has no place for; it is dropped, because it would act at a later return
	Dropped  []Plan   // entries of the batch that we had imported, and that are done, cancelled or passed over since
	document []byte   // the new content of the batch; nil = it stays as it is
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
	b, err := readBatch(e.Layout.BatchPath(), e.Config.Recase)
	if err != nil {
		return l, err
	}
	l.document, l.Dropped, err = e.merged(b, l.Plans)
	return l, err
}

// merged renders the batch with plans in it. Of a file that we have imported, the schedule is the newer state: what is no
// longer in it was carried out, cancelled or passed over, and must not come back. Any other entry stays.
func (e *Engine) merged(b batch, plans []Plan) (document []byte, dropped []Plan, err error) {
	ours := b.digest != "" && e.s.Imported[e.batchKey()] == b.digest
	var kept []entry
	for _, en := range b.entries {
		pending := slices.ContainsFunc(plans, func(p Plan) bool { return p.Key() == en.plan.Key() })
		if en.err == nil && ours && !pending {
			dropped = append(dropped, en.plan)
			continue
		}
		kept = append(kept, en)
	}
	changed := len(dropped) > 0
	for _, p := range plans {
		if slices.ContainsFunc(kept, func(en entry) bool { return en.err == nil && en.plan.Key() == p.Key() }) {
			continue
		}
		raw, err := planDocument(p, p.Name)
		if err != nil {
			return nil, nil, err
		}
		kept = append(kept, entry{raw: raw, plan: p})
		changed = true
	}
	if !changed {
		return nil, dropped, nil
	}
	slices.SortStableFunc(kept, func(x, y entry) int { return byHeight(x.plan, y.plan) })
	raws := []json.RawMessage{}
	for _, en := range kept {
		raws = append(raws, en.raw)
	}
	document, err = json.MarshalIndent(raws, "", " ")
	return document, dropped, err
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
	next := Schedule{Schema: journalSchema, Skip: e.s.Skip}
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
	e.j = Journal{Schema: journalSchema}
	return nil
}
