package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"nodevisor/internal/atomicfile"
	"nodevisor/snapshot/datadir"
	"nodevisor/snapshot/manifest"
)

// Recover ends what a crash interrupted, at the start and under the home's lock, before the node runs: a restore's swap
// is finished or undone, unfinished snapshots go, with what was frozen for them. Done again it finds nothing to do.
func (s *Store) Recover(ctx context.Context) error {
	if err := s.recoverRestore(); err != nil {
		return fmt.Errorf("cannot end an interrupted restore: %w", err)
	}
	if err := atomicfile.RemoveTemps(s.state()); err != nil {
		return fmt.Errorf("cannot tidy up after a restore: %w", err)
	}
	partial, err := s.ids(partialSuffix)
	if err != nil {
		return err
	}
	for _, id := range partial {
		if err := manifest.Interrupted(ctx, "recovery of snapshots"); err != nil {
			return err
		}
		switch err := s.reclaim(id); {
		case errors.Is(err, errLocked):
			s.log.Warn("unfinished snapshot left alone: another process is at it", "snapshot", id)
		case errors.Is(err, manifest.ErrAway):
			s.log.Warn("unfinished snapshot left for the next start", "snapshot", id, "error", err)
		case err != nil:
			return err
		default:
			s.log.Info("unfinished snapshot removed", "snapshot", id)
		}
	}
	finished, err := s.ids("")
	if err != nil {
		return err
	}
	for _, id := range finished {
		if err := s.tidy(id); err != nil {
			return fmt.Errorf("cannot tidy snapshot %s: %w", id, err)
		}
	}
	return s.eachFrozen(s.dropFetched)
}

// tidy removes what an interrupted Complete left in a snapshot: a temporary manifest, a copy that was being fetched.
func (s *Store) tidy(id string) error {
	dir := filepath.Join(s.dir, id)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	hidden := false
	for _, e := range entries {
		hidden = hidden || strings.HasPrefix(e.Name(), ".")
	}
	if !hidden { // the normal case reads no manifest
		return nil
	}
	m, err := manifest.Read(dir)
	if err != nil || !s.ours(m) {
		return nil //nolint:nilerr // no snapshot, or one that is verify's to report: nothing in it is touched
	}
	for _, rec := range m.Sources {
		if err := atomicfile.RemoveTree(datadir.Partial(dir, rec.Name)); err != nil {
			return err
		}
	}
	return atomicfile.RemoveTemps(dir)
}

// dropFetched removes a frozen copy that its manifest no longer names. One without a manifest stays: the disk with the
// store may not be mounted.
func (s *Store) dropFetched(src source, id string) error {
	m, err := manifest.Read(filepath.Join(s.dir, id))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("frozen copy belongs to no snapshot that is here", "path", src.FrozenAt(id))
		}
		return nil
	}
	for _, rec := range m.Sources {
		if rec.Name == src.Name() && rec.Frozen != nil {
			return nil
		}
	}
	return src.Retire(id)
}
