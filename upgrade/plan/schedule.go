package plan

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// Schedule is <home>/supervisor/schedule.json: what operators want, and what they want passed over. It is kept whole:
// nothing of a batch is lost by a restart.
type Schedule struct {
	Schema int    `json:"schema"`
	Plans  []Plan `json:"plans"`
	Skip   []Skip `json:"skip"`
	Halt   *Halt  `json:"halt"`
	// FromFile names the plan that another tool wrote into the node's plan file ahead of its height. It follows the file: one
	// that takes its place there takes it here, too.
	FromFile string `json:"from_file,omitempty"`
	// Imported names the files of Cosmovisor's that were taken over, with the digest of their content, so that each is
	// imported once.
	Imported map[string]string `json:"imported,omitempty"`
}

// Skip is a plan that is passed over.
type Skip struct {
	Name   string    `json:"name"`
	Height int64     `json:"height,omitempty"` // 0 = at any height
	Since  time.Time `json:"since"`
	Why    string    `json:"why,omitempty"`
}

// Halt is where the node is to stop for good, until an operator resumes it.
type Halt struct {
	Height int64     `json:"height,omitempty"`
	Time   time.Time `json:"time,omitzero"`
	// Snapshot is the id of what is taken there, chosen before it is made: a halt that a crash interrupted makes no second one.
	Snapshot string `json:"snapshot,omitempty"`
}

// When renders the halt's height or time.
func (h Halt) When() string { return Plan{Height: h.Height, Time: h.Time}.When() }

// HaltDue tells whether the scheduled halt has come.
func (s Schedule) HaltDue(height int64, clock time.Time) bool {
	switch h := s.Halt; {
	case h == nil:
		return false
	case !h.Time.IsZero():
		return !clock.Before(h.Time)
	default:
		return height != UnknownHeight && height >= h.Height
	}
}

// LoadSchedule reads the schedule; a missing file is an empty one. An unusable one is state.ErrUntrusted: plans of an operator
// that can't be read are no reason to go on without them.
func LoadSchedule(path string) (Schedule, error) {
	s := Schedule{Schema: state.Schema}
	data, err := state.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		s.Schema = 0 // the document's own
		err = json.Unmarshal(data, &s)
	}
	if err == nil {
		err = s.check()
	}
	for i := range s.Plans {
		s.Plans[i].Source = FromOperator // whatever a hand wrote there
	}
	if err != nil {
		return s, &hint.Error{
			Op: "read the schedule", Path: path, Err: fmt.Errorf("it %w: %w", state.ErrUntrusted, err),
			Hint: "mend or move away " + path + ", then schedule again with: supervisor upgrade add",
		}
	}
	return s, nil
}

// check refuses what another version of the program wrote, and what people and requests may bring: a name that could leave
// the tree, a plan or a halt without a height, which would be due at once.
func (s Schedule) check() error {
	if s.Schema != state.Schema {
		return fmt.Errorf("its schema is %d, this program knows %d", s.Schema, state.Schema)
	}
	for _, p := range s.Plans {
		if _, err := version.NormaliseName(p.Name, false); err != nil {
			return err
		}
		if raw, err := version.NormaliseName(p.Title(), true); err != nil || p.RawName != "" && raw != p.Name {
			return fmt.Errorf("the plan %s has another name in raw_name: %.64q", p.Name, p.RawName)
		}
		if p.Height < 0 || p.Height == 0 && p.Time.IsZero() {
			return fmt.Errorf("the plan %s has neither a height nor a time: height %d", p.Name, p.Height)
		}
	}
	for _, k := range s.Skip {
		if _, err := version.NormaliseName(k.Name, false); err != nil || k.Height < 0 {
			return fmt.Errorf("the skip list holds no plan's name and height: %.64q, %d", k.Name, k.Height)
		}
	}
	if h := s.Halt; h != nil && (h.Height < 0 || h.Height == 0 && h.Time.IsZero()) {
		return fmt.Errorf("the halt has neither a height nor a time: height %d", h.Height)
	}
	return nil
}

// Save writes the schedule durably. One that could not be read again isn't written.
func (s Schedule) Save(path string) error {
	s.Schema = state.Schema
	if err := s.check(); err != nil {
		return fmt.Errorf("cannot write the schedule: %w", err)
	}
	data, err := state.Encode(s)
	if err != nil {
		return err
	}
	if err := atomicfile.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	return atomicfile.WriteFile(path, data, 0o600)
}

// byHeight orders plans by their turn, then by name.
func byHeight(a, b Plan) int { return cmp.Or(byTurn(a, b), cmp.Compare(a.Name, b.Name)) }

// byTurn orders plans by when they come: heights first, lowest first, then times.
func byTurn(a, b Plan) int {
	if a.Time.IsZero() != b.Time.IsZero() {
		if a.Time.IsZero() {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(a.Height, b.Height), a.Time.Compare(b.Time))
}

// Add puts p on the schedule, replacing a plan of the same name.
func (s *Schedule) Add(p Plan) {
	s.Cancel(p.Name)
	s.Plans = append(s.Plans, p)
	slices.SortStableFunc(s.Plans, byHeight)
}

// Has tells whether a plan of that name is scheduled.
func (s Schedule) Has(name string) bool {
	return slices.ContainsFunc(s.Plans, func(p Plan) bool { return p.Name == name })
}

// Follow puts p, which the plan file holds, in the place of the plan that was taken over from it before; nil = it holds none.
func (s *Schedule) Follow(p *Plan) {
	if s.FromFile != "" {
		s.Cancel(s.FromFile)
	}
	if p != nil {
		s.Add(*p)
		s.FromFile = p.Name
	}
}

// Cancel takes the plan of that name off, and tells whether there was one.
func (s *Schedule) Cancel(name string) bool {
	if s.FromFile == name {
		s.FromFile = ""
	}
	before := len(s.Plans)
	s.Plans = slices.DeleteFunc(s.Plans, func(p Plan) bool { return p.Name == name })
	return len(s.Plans) != before
}

// Skips tells whether p is to be passed over.
func (s Schedule) Skips(p Plan) bool {
	return slices.ContainsFunc(s.Skip, func(k Skip) bool {
		return k.Name == p.Name && (k.Height == 0 || p.Height == 0 || k.Height == p.Height)
	})
}

// AddSkip puts a plan on the durable skip list.
func (s *Schedule) AddSkip(k Skip) {
	s.Unskip(k.Name)
	s.Skip = append(s.Skip, k)
}

// Unskip takes a plan off the skip list.
func (s *Schedule) Unskip(name string) {
	s.Skip = slices.DeleteFunc(s.Skip, func(k Skip) bool { return k.Name == name })
}
