package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/datadir"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres"
)

// Complete makes a sealed snapshot a verified one while the node runs: what was frozen elsewhere is fetched, each file
// is hashed and recorded. Then older ones are pruned; that they can't be is logged, not returned. It can be done again
// after any interruption.
func (s *Store) Complete(ctx context.Context, id string) error {
	release, err := s.acquire(id)
	if err != nil {
		return err
	}
	err = s.complete(ctx, id)
	release()
	if err != nil {
		return fmt.Errorf("cannot complete snapshot %s: %w", id, err)
	}
	if gone, err := s.Prune(ctx, false, id); err != nil {
		s.log.Warn("cannot prune snapshots", "error", err, "hint", hint.Of(err))
	} else if len(gone) > 0 {
		s.log.Info("snapshots pruned", "snapshots", gone)
	}
	return nil
}

func (s *Store) complete(ctx context.Context, id string) error {
	if _, err := s.pathOf(id); err != nil {
		return err
	}
	dir, m, err := s.find(id)
	if err != nil {
		return err
	}
	begin := time.Now()
	if m.State != manifest.Verified {
		done := slices.Clone(m.Sources)
		for i, rec := range m.Sources {
			src, err := s.sourceOf(rec)
			if err != nil {
				return err
			}
			if done[i], err = src.Finish(ctx, dir, rec); err != nil {
				return err
			}
		}
		now := begin.UTC().Truncate(time.Millisecond)
		err := s.update(id, func(m *manifest.Manifest) {
			m.Sources, m.State, m.VerifiedAt, m.Bytes = done, manifest.Verified, &now, 0
			for _, rec := range done { // an archive has another size than the clone that it was made of
				m.Bytes += rec.Bytes
			}
		})
		if err != nil {
			return err
		}
		s.log.Info("snapshot verified", "snapshot", id, "bytes", m.Bytes, "took", time.Since(begin))
	}
	for _, sl := range s.slots { // the manifest doesn't name them any more
		if err := s.source(sl).Retire(id); errors.Is(err, manifest.ErrAway) {
			s.log.Warn("frozen copy left for the next start", "source", sl.cfg.Name, "snapshot", id, "error", err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// sourceOf finds the configured source of a record.
func (s *Store) sourceOf(rec manifest.Source) (source, error) {
	for _, sl := range s.slots {
		if src := s.source(sl); sl.cfg.Name == rec.Name && src.Kind() == rec.Kind {
			return src, nil
		}
	}
	return nil, &hint.Error{
		Op: "use source " + rec.Name, Path: rec.Path, Err: fmt.Errorf("no source of kind %s is called so", rec.Kind),
		Hint: "add it as [[snapshot.source]]",
	}
}

// placeOf is where a record's copy lies. What a manifest names outside of its directory is believed only where a
// configured source would have put it.
func (s *Store) placeOf(dir string, m *manifest.Manifest, rec manifest.Source) (string, error) {
	if rec.Frozen == nil {
		return filepath.Join(dir, rec.Name), nil
	}
	src, err := s.sourceOf(rec)
	if err != nil {
		return "", err
	}
	if at := src.FrozenAt(m.ID); at != *rec.Frozen {
		return "", &hint.Error{
			Op: "use snapshot", Path: m.ID, Err: fmt.Errorf("its frozen copy is at %s, source %s has them at %s", *rec.Frozen, rec.Name, at),
			Hint: "set the path of the source to what it was when the snapshot was taken",
		}
	}
	return *rec.Frozen, nil
}

// Report is what a verification found.
type Report struct {
	ID     string           `json:"id"`
	OK     bool             `json:"ok"`
	Deep   bool             `json:"deep"`
	Hashed bool             `json:"hashed"` // false: sealed, there are no digests yet; names, sizes and modes were compared
	Errors []manifest.Fault `json:"errors"`
}

// Verify compares a snapshot, given by id or path, with its manifest, and every byte with the digests that Complete
// recorded. Damage is in the report, and what of it is proven is recorded with the snapshot (see record); an error means that
// it couldn't be told. deep is for sources that can be restored into a scratch place: a directory is compared whole either way.
func (s *Store) Verify(ctx context.Context, id string, deep bool) (Report, error) {
	r := Report{ID: id, Deep: deep, Errors: []manifest.Fault{}}
	dir, m, err := s.find(id)
	switch {
	case errors.Is(err, manifest.ErrDamaged):
		r.Errors = append(r.Errors, manifest.Fault{Path: manifest.Name, Want: "an intact manifest", Got: err.Error()})
		return r, nil
	case err != nil && m == nil && !isHere(dir):
		return r, err
	case err != nil:
		r.Errors = append(r.Errors, manifest.Fault{Path: manifest.Name, Want: "the manifest of " + id, Got: err.Error()})
		return r, nil
	}
	release, err := s.acquire(m.ID)
	if err != nil {
		return r, err
	}
	defer release()
	r.ID, r.Hashed = m.ID, m.State == manifest.Verified
	if r.Errors, err = s.faults(ctx, dir, m, r.Hashed); err != nil {
		return r, fmt.Errorf("cannot verify snapshot %s: %w", m.ID, err)
	}
	restored := deep && r.Hashed && len(r.Errors) == 0 // a damaged archive isn't fed to a server
	if restored {
		if r.Errors, err = s.deepFaults(ctx, dir, m); err != nil {
			return r, fmt.Errorf("cannot verify snapshot %s: %w", m.ID, err)
		}
	}
	if r.OK = len(r.Errors) == 0; r.OK {
		s.clear(dir, m.ID, restored)
	} else if d := manifest.NewDamage(r.Errors, restored); d != nil {
		err = s.record(dir, m, d)
	}
	return r, err
}

func isHere(dir string) bool {
	_, err := os.Lstat(dir)
	return err == nil
}

// faults compares all of a snapshot, and what lies beside its folders.
func (s *Store) faults(ctx context.Context, dir string, m *manifest.Manifest, hashes bool) ([]manifest.Fault, error) {
	all := []manifest.Fault{}
	known := map[string]bool{manifest.Name: true, manifest.DamageName: true}
	for _, rec := range m.Sources {
		known[rec.Name] = true
		at, err := s.placeOf(dir, m, rec)
		if err != nil {
			return nil, err
		}
		found, err := s.compare(ctx, at, rec, hashes)
		if err != nil {
			return nil, err
		}
		for i := range found { // the disk of a copy that lies elsewhere may not be mounted
			found[i].Unproven = found[i].Unproven || rec.Frozen != nil
		}
		all = append(all, found...)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !known[e.Name()] {
			underWay := strings.HasPrefix(e.Name(), ".") // or left by a write that was interrupted, which Recover removes
			all = append(all, manifest.Fault{Path: e.Name(), Want: "nothing", Got: kindOf(e), Unproven: underWay})
		}
	}
	return all, nil
}

// compare compares one source's copy with its record. What lies in a directory is compared as one, whatever it holds.
func (s *Store) compare(ctx context.Context, at string, rec manifest.Source, hashes bool) ([]manifest.Fault, error) {
	if rec.Kind != postgres.Kind || rec.Frozen == nil {
		return datadir.Verify(ctx, at, rec, hashes, s.observeBytes)
	}
	src, err := s.sourceOf(rec)
	if err != nil {
		return nil, err
	}
	return src.(*postgres.Source).VerifyClone(ctx, rec)
}

// deepFaults restores each archive of a database into a scratch one, compares that with the manifest, and drops it.
func (s *Store) deepFaults(ctx context.Context, dir string, m *manifest.Manifest) ([]manifest.Fault, error) {
	all := []manifest.Fault{}
	for _, rec := range m.Sources {
		if rec.Kind != postgres.Kind {
			continue
		}
		src, err := s.sourceOf(rec)
		if err != nil {
			return nil, err
		}
		found, err := src.(*postgres.Source).VerifyDeep(ctx, filepath.Join(dir, rec.Name), rec)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

func kindOf(e os.DirEntry) string {
	switch {
	case e.IsDir():
		return manifest.Dir
	case e.Type().IsRegular():
		return manifest.File
	}
	return "special file"
}
