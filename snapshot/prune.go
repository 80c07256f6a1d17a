package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
)

// Delete removes a snapshot. A pinned one and the upgrade in flight's are refused.
func (s *Store) Delete(id string) error {
	dir, err := s.pathOf(id)
	if err != nil {
		return err
	}
	m, err := manifest.Read(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return &hint.Error{Op: "delete snapshot", Path: id, Err: os.ErrNotExist, Hint: "supervisor snapshot list"}
	case err == nil && m.Pinned:
		return &hint.Error{Op: "delete snapshot", Path: id, Err: errors.New("it is pinned"), Hint: "supervisor snapshot unpin " + id}
	case slices.Contains(s.protect(), id):
		return &hint.Error{Op: "delete snapshot", Path: id, Err: errors.New("the upgrade in flight may need it"), Hint: "supervisor status"}
	}
	return s.delete(id)
}

// delete takes the snapshot's name away in one step; what is left is a .partial, which Recover removes too. The manifest
// goes before the data: not even under its old name would the rest be taken for a snapshot.
func (s *Store) delete(id string) error {
	release, err := s.acquire(id)
	if err != nil {
		return err
	}
	defer release()
	dir := filepath.Join(s.dir, id)
	if err := s.reclaim(id); err != nil {
		return err
	}
	if err := atomicfile.Rename(dir, dir+partialSuffix); err != nil {
		return fmt.Errorf("cannot delete snapshot: %w", err)
	}
	if err := atomicfile.Remove(filepath.Join(dir+partialSuffix, manifest.Name)); err != nil {
		return fmt.Errorf("cannot delete snapshot: %w", err)
	}
	return s.discard(id)
}

// Prune deletes what retention doesn't keep, and says which: verified snapshots beyond the newest Keep, sealed and damaged
// ones that are older than these, and, while the free space is below min_free, the oldest, a damaged one before any other.
// Never the newest verified one and what is newer, a pinned one, or one of protect and Options.Protect. dryRun only says:
// there, what a deletion frees is an estimate.
func (s *Store) Prune(ctx context.Context, dryRun bool, protect ...string) ([]string, error) {
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	safe := map[string]bool{}
	for _, id := range slices.Concat(protect, s.protect()) {
		safe[id] = true
	}
	beyond, spare := s.retention(all, safe)
	gone := []string{}
	freed := int64(0)
	for i, c := range slices.Concat(beyond, spare) {
		if err := manifest.Interrupted(ctx, "pruning"); err != nil {
			return gone, err
		}
		if i >= len(beyond) {
			if low, err := s.low(freed); err != nil || !low {
				return gone, err
			}
		}
		if !dryRun {
			if err := s.delete(c.ID); err != nil {
				return gone, err
			}
		} else if c.ExclusiveBytes != nil {
			freed += *c.ExclusiveBytes
		}
		gone = append(gone, c.ID)
	}
	if low, err := s.low(freed); err == nil && low {
		s.log.Warn("free space is below min_free, and no snapshot is left to prune", "path", s.dir)
	}
	return gone, nil
}

// retention gives what must be deleted, being beyond keep, and what may be for its room, each in the order in which it goes:
// the oldest first, and of what may be spared the damaged ones before the good. Only verified ones count for keep, and no
// pinned ones. What is newer than the newest verified one stays: a sealed one is on its way to become that, and of a damaged
// one more may be of use than nothing.
func (s *Store) retention(all []Info, safe map[string]bool) (beyond, spare []Info) {
	kept, newest := 0, true
	var damaged []Info
	for _, i := range all {
		verified := i.State == manifest.Verified
		switch {
		case i.Pinned || safe[i.ID] || i.lost || newest || s.isBusy(i.ID):
		case kept >= s.cfg.Keep:
			beyond = append(beyond, i)
		case i.State == manifest.Damaged:
			damaged = append(damaged, i)
		default:
			spare = append(spare, i)
		}
		if verified && !i.Pinned {
			kept++
		}
		newest = newest && !verified
	}
	spare = append(spare, damaged...)
	slices.Reverse(beyond) // all is newest first
	slices.Reverse(spare)
	return beyond, spare
}

func (s *Store) isBusy(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy[id]
}

// low tells whether the store's file system is below min_free, with freed bytes more.
func (s *Store) low(freed int64) (bool, error) {
	_, r, err := s.room(s.dir)
	return r.Free+freed < r.MinFree, err
}

// DropFrozen removes every frozen copy beside the sources, with the snapshots that consist of them; those whose data
// lies in the store's own directory stay. It is for giving the home back.
func (s *Store) DropFrozen(ctx context.Context) error {
	ids, err := s.ids("")
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := manifest.Interrupted(ctx, "removal of frozen copies"); err != nil {
			return err
		}
		m, err := manifest.Read(filepath.Join(s.dir, id))
		if err == nil && s.ours(m) && slices.ContainsFunc(m.Sources, func(r manifest.Source) bool { return r.Frozen != nil }) {
			if err := s.delete(id); err != nil {
				return err
			}
		}
	}
	return s.eachFrozen(func(src source, id string) error { return src.Drop(id) })
}

// eachFrozen calls f for each frozen copy that has the name of a snapshot.
func (s *Store) eachFrozen(f func(source, string) error) error {
	for _, sl := range s.slots {
		src := s.source(sl)
		ids, err := src.FrozenIDs()
		if errors.Is(err, manifest.ErrAway) { // found again by its name when the server is back
			s.log.Warn("frozen copies not looked for", "source", src.Name(), "error", err)
			continue
		}
		if err != nil {
			return err
		}
		for _, id := range ids {
			if !isID(id) {
				continue
			}
			if err := f(src, id); errors.Is(err, manifest.ErrAway) {
				s.log.Warn("frozen copy left alone", "source", src.Name(), "path", src.FrozenAt(id), "error", err)
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}
