package snapshot

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/datadir"
	"nodevisor/snapshot/manifest"
)

// Info is one line of `snapshot list`.
type Info struct {
	ID             string       `json:"id"`
	Label          string       `json:"label"`
	Height         *int64       `json:"height"`
	CreatedAt      time.Time    `json:"created_at"`
	Bytes          int64        `json:"bytes"`
	ExclusiveBytes *int64       `json:"exclusive_bytes"` // what deleting it would free; nil where clones make it unknowable
	DurationMS     int64        `json:"duration_ms"`
	State          string       `json:"state"` // sealed, verified; damaged: see Error
	VerifiedAt     *time.Time   `json:"verified_at"`
	Pinned         bool         `json:"pinned"`
	Sources        []SourceInfo `json:"sources"`
	Error          *string      `json:"error"` // of a damaged one: what was found, or why its manifest can't be trusted
	seq            int64
	lost           bool // its manifest can't be trusted: not even that it is of this home
}

// SourceInfo is one source of an Info.
type SourceInfo struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"`
	Method string `json:"method"`
	Bytes  int64  `json:"bytes"`
	Files  int    `json:"files"`
}

// List reads every snapshot of this home, the newest first: by their numbers, the clock isn't trusted. A damaged one is
// listed as such; one whose manifest can't be trusted is never pruned.
func (s *Store) List() ([]Info, error) {
	ids, err := s.ids("")
	if err != nil {
		return nil, err
	}
	all := []Info{}
	for _, id := range ids {
		m, err := manifest.Read(filepath.Join(s.dir, id))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // no snapshot
		case err != nil:
			all = append(all, s.lost(id, err))
		case s.ours(m):
			all = append(all, s.info(m))
		}
	}
	slices.SortFunc(all, func(a, b Info) int { return cmp.Or(cmp.Compare(b.seq, a.seq), cmp.Compare(b.ID, a.ID)) })
	return all, nil
}

// ours tells whether a snapshot belongs to this home. A directory within the home holds no others', also after the home
// was moved.
func (s *Store) ours(m *manifest.Manifest) bool {
	return m.Home == s.real || inside(s.real, s.dir)
}

func (s *Store) info(m *manifest.Manifest) Info {
	i := Info{
		ID: m.ID, Label: m.Label, Height: m.Height, CreatedAt: m.CreatedAt, Bytes: m.Bytes, DurationMS: m.DurationMS,
		State: m.State, VerifiedAt: m.VerifiedAt, Pinned: m.Pinned, Sources: []SourceInfo{}, seq: m.Seq,
	}
	exclusive, known := int64(0), true
	for _, rec := range m.Sources {
		i.Sources = append(i.Sources, SourceInfo{rec.Name, rec.Kind, rec.Method, rec.Bytes, rec.Files})
		at := filepath.Join(s.dir, m.ID, rec.Name)
		if rec.Frozen != nil {
			at = *rec.Frozen
		}
		n, ok := datadir.Exclusive(at, rec)
		exclusive, known = exclusive+n, known && ok
	}
	if known {
		i.ExclusiveBytes = &exclusive
	}
	if err := damageOf(filepath.Join(s.dir, m.ID)); err != nil { // that it was verified once says nothing any more
		i.State, i.VerifiedAt, i.Error = manifest.Damaged, nil, new(err.Error())
	}
	return i
}

// lost is what can be said of a snapshot whose manifest can't be trusted.
func (s *Store) lost(id string, err error) Info {
	text := err.Error()
	i := Info{ID: id, State: manifest.Damaged, Sources: []SourceInfo{}, Error: &text, lost: true}
	i.CreatedAt, _ = time.Parse("20060102T150405Z", id[:16])
	i.seq, _ = manifest.PeekSeq(filepath.Join(s.dir, id))
	return i
}

// Get reads the manifest of a snapshot, given by id or by the path of its directory, and says of a damaged one what is wrong.
func (s *Store) Get(id string) (manifest.Manifest, error) {
	dir, m, err := s.find(id)
	if err != nil {
		return manifest.Manifest{}, err
	}
	if err := damageOf(dir); err != nil {
		m.State, m.VerifiedAt, m.Error = manifest.Damaged, nil, new(err.Error())
	}
	return *m, nil
}

// find resolves an id or a path.
func (s *Store) find(ref string) (dir string, m *manifest.Manifest, err error) {
	if isID(ref) {
		dir = filepath.Join(s.dir, ref)
	} else if dir, err = filepath.Abs(ref); err != nil {
		return "", nil, err
	}
	m, err = manifest.Read(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return dir, nil, &hint.Error{Op: "find snapshot", Path: ref, Err: fs.ErrNotExist, Hint: "supervisor snapshot list"}
	case err != nil:
		return dir, nil, &hint.Error{Op: "use snapshot", Path: ref, Err: err, Hint: "supervisor snapshot verify " + ref}
	case isID(ref) && m.ID != ref:
		return dir, nil, &hint.Error{Op: "use snapshot", Path: ref, Err: fmt.Errorf("its manifest is that of %s", m.ID), Hint: "supervisor snapshot verify " + ref}
	}
	return dir, m, nil
}

// update changes a manifest in one step for all in this process.
func (s *Store) update(id string, change func(*manifest.Manifest)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.pathOf(id); err != nil {
		return err
	}
	dir, m, err := s.find(id)
	if err != nil {
		return err
	}
	change(m)
	return manifest.Write(dir, m)
}

// Pin keeps a snapshot from being pruned; Unpin ends that.
func (s *Store) Pin(id string) error {
	return s.update(id, func(m *manifest.Manifest) { m.Pinned = true })
}

// Unpin lets a snapshot be pruned again.
func (s *Store) Unpin(id string) error {
	return s.update(id, func(m *manifest.Manifest) { m.Pinned = false })
}
