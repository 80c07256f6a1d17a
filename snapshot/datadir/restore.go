package datadir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
)

// Preview tells which signer states a restore would leave, and refuses what Stage would refuse, without changing
// anything.
func (s *Source) Preview(r manifest.Restore) ([]manifest.Signer, error) {
	return s.Place.Preview(r.ID, r.From, s.signers(r.Record), r.SignerFromSnapshot)
}

// Stage makes the replacement beside the source: a full copy (or clones; never links, the snapshot must outlive it)
// that is on the disk, compared with its record, and holds the winning signer states. Nothing live is touched. Commit
// and Swap put it in place, Abort removes it, also after an error or a crash.
func (s *Source) Stage(ctx context.Context, r manifest.Restore) error {
	if _, err := s.Preview(r); err != nil {
		return err
	}
	stage, err := s.Begin(r.ID, s.signers(r.Record), r.SignerFromSnapshot)
	if err != nil {
		return err
	}
	if err := s.unpack(ctx, r, stage); err != nil {
		return err
	}
	return s.Staged()
}

// Extract writes a snapshot's copy of the source to the directory to, which isn't there or is empty. The signer states
// in it are the winners against the live source: a copy is soon run.
func (s *Source) Extract(ctx context.Context, r manifest.Restore, to string) ([]manifest.Signer, error) {
	if entries, err := os.ReadDir(to); len(entries) > 0 || (err != nil && !errors.Is(err, os.ErrNotExist)) {
		return nil, &hint.Error{Op: "restore to", Path: to, Err: errors.Join(err, errors.New("it is not an empty directory")), Hint: "name another directory"}
	}
	if _, err := s.Preview(r); err != nil {
		return nil, err
	}
	if err := atomicfile.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return nil, fmt.Errorf("cannot restore: %w", err)
	}
	partial := Partial(filepath.Dir(to), filepath.Base(to))
	if err := atomicfile.RemoveTree(partial); err != nil {
		return nil, fmt.Errorf("cannot restore: %w", err)
	}
	err := s.unpack(ctx, r, partial)
	var signers []manifest.Signer
	if err == nil {
		signers, err = s.Carry(r.ID, partial, s.signers(r.Record), r.SignerFromSnapshot)
	}
	if err == nil {
		os.Remove(to) // an empty directory; one that isn't fails the rename
		err = atomicfile.Rename(partial, to)
	}
	if err != nil {
		return nil, errors.Join(err, atomicfile.RemoveTree(partial))
	}
	return signers, nil
}

// signers are the signers' states that a snapshot holds.
func (s *Source) signers(rec manifest.Source) (all []string) {
	for i := range rec.Entries {
		if e := &rec.Entries[i]; e.Type == manifest.File && (e.Signer || s.isSigner(e.Path)) {
			all = append(all, e.Path)
		}
	}
	return all
}

// unpack copies a snapshot's tree to dst and compares what came there with the record. What damage there is in the
// snapshot shows here: the copy is what would run.
func (s *Source) unpack(ctx context.Context, r manifest.Restore, dst string) error {
	entries := append([]manifest.Entry{}, r.Record.Entries...)
	work := units(r.From, entries)
	if err := s.roomFor(work, entries, filepath.Dir(dst), r.Record.Bytes); err != nil {
		return err
	}
	c := &copier{
		ctx: ctx, entries: entries, units: work, dst: dst, method: "auto", workers: workers(),
		report: s.progress("restore", r.Record.Bytes),
	}
	if err := c.run(); err != nil {
		return err
	}
	faults, err := verify(ctx, dst, r.Record, true, s.progress("restore verify", r.Record.Bytes))
	if err != nil {
		return err
	}
	if len(faults) > 0 {
		return explain(ctx, r, faults)
	}
	return nil
}

// explain tells a damaged snapshot from a copy of it that went wrong: the files that differ are read again where they came from.
func explain(ctx context.Context, r manifest.Restore, copied []manifest.Fault) error {
	differs := make(map[string]bool, len(copied))
	for _, f := range copied {
		differs[f.Path] = true
	}
	rec := r.Record
	rec.Entries = append([]manifest.Entry{}, rec.Entries...)
	for i := range rec.Entries {
		if e := &rec.Entries[i]; !differs[path.Join(rec.Name, e.Path)] {
			e.SHA256 = "" // not read
		}
	}
	found, err := verify(ctx, r.From, rec, true, func(int64) {})
	switch {
	case err != nil:
		return err
	case len(found) == 0:
		return &hint.Error{
			Op: "restore snapshot", Path: r.ID, Err: fmt.Errorf("the snapshot is right, the copy that was made of it isn't: %w", copied[0]),
			Hint: "look at the disk and the memory of this host (journalctl -k), then restore again",
		}
	}
	return &hint.Error{Op: "restore snapshot", Path: r.ID, Err: manifest.Refusal(found), Hint: "supervisor snapshot verify " + r.ID}
}

// firstFile is the path of a file with content: one stands for all, they lie on one file system.
func firstFile(work []unit, entries []manifest.Entry) string {
	for _, u := range work {
		for _, it := range u.items {
			if entries[it.entry].Size > 0 {
				return filepath.Join(u.root, u.sub, it.src)
			}
		}
	}
	return ""
}

// roomFor refuses a copy that can't end, before it fills the disk. Clones take nothing.
func (s *Source) roomFor(work []unit, entries []manifest.Entry, dir string, bytes int64) error {
	if sample := firstFile(work, entries); sample != "" && canClone(sample, dir) {
		return nil
	}
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(dir, &st) }); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if free := int64(st.Bavail) * st.Frsize; free < bytes {
		return &hint.Error{
			Op: "restore to", Path: dir, Err: fmt.Errorf("%d bytes are needed, %d are free", bytes, free),
			Hint: "make room there, or restore elsewhere with --to",
		}
	}
	return nil
}
