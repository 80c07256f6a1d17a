package snapshot

import (
	"cmp"
	"errors"
	"path/filepath"
	"slices"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
)

// damageOf is what is known to be wrong with the snapshot in dir; nil: nothing is.
func damageOf(dir string) error {
	d, err := manifest.ReadDamage(dir)
	if d != nil {
		return d
	}
	return err
}

// inStore tells whether dir is one of the snapshots in the store's directory: no others are listed, so nothing is recorded there.
func (s *Store) inStore(dir string) bool { return filepath.Dir(settled(dir)) == s.dir }

// record keeps with a snapshot what it was proved to lack: from then on it counts as no good one, until a comparison finds it
// right. The error is of a snapshot that was completed or deleted meanwhile: what was found is of neither state. That nothing
// can be written is logged alone: whoever asked is told what was found.
func (s *Store) record(dir string, m *manifest.Manifest, d *manifest.Damage) error {
	if now, err := manifest.Read(dir); err != nil || now.State != m.State {
		return &hint.Error{
			Op: "compare snapshot", Path: m.ID, Err: errors.Join(errors.New("it was changed meanwhile"), err),
			Hint: "supervisor snapshot verify " + m.ID,
		}
	}
	if !s.inStore(dir) {
		return nil
	}
	if known, err := manifest.ReadDamage(dir); err == nil && known != nil {
		if d.FoundAt, d.Deep = known.FoundAt, d.Deep || known.Deep; d.Error() == known.Error() {
			return nil
		}
	}
	if err := manifest.WriteDamage(dir, d); err != nil {
		s.unrecorded(m.ID, err)
	}
	return nil
}

// clear takes back what was recorded of a snapshot that a comparison found right. One of files alone says nothing of a
// database that differs once it is restored.
func (s *Store) clear(dir, id string, deep bool) {
	known, err := manifest.ReadDamage(dir)
	if err == nil && (known == nil || known.Deep && !deep) || !s.inStore(dir) {
		return
	}
	if err := manifest.ClearDamage(dir); err != nil {
		s.unrecorded(id, err)
		return
	}
	s.log.Info("snapshot is no longer damaged", "snapshot", id)
}

func (s *Store) unrecorded(id string, err error) {
	s.log.Warn("cannot record what was found of a snapshot", "snapshot", id, "error", err,
		"hint", "supervisor snapshot verify "+id+", as a user who may write to its directory")
}

// Damaged lists the snapshots of this home of which damage is recorded, the newest last. Unlike List it reads no manifest of
// another.
func (s *Store) Damaged() ([]Info, error) {
	ids, err := s.ids("")
	if err != nil {
		return nil, err
	}
	var all []Info
	for _, id := range ids {
		dir := filepath.Join(s.dir, id)
		if damageOf(dir) == nil {
			continue
		}
		if m, err := manifest.Read(dir); err == nil && s.ours(m) {
			all = append(all, s.info(m))
		}
	}
	slices.SortFunc(all, func(a, b Info) int { return cmp.Compare(a.seq, b.seq) })
	return all, nil
}
