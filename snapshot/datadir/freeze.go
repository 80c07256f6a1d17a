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

// linkNote is what the manifest says of hard links.
const linkNote = "hard links share their blocks with the live store: they guard against an upgrade, not against the disk"

// Freeze copies the source, which is at rest, into job.Dir/<name>, or to FrozenAt where job.Dir lies on another file
// system. All data is on the disk when it returns. What an interrupted Freeze left is the caller's to remove, with Drop
// and with job.Dir.
func (s *Source) Freeze(ctx context.Context, job manifest.Job) (manifest.Source, error) {
	var rec manifest.Source
	frozen, err := s.freezesBeside(job.Dir)
	if err != nil {
		return rec, fmt.Errorf("cannot freeze source %s: %w", s.name, err)
	}
	dst := filepath.Join(job.Dir, s.name)
	if frozen {
		dst = s.FrozenAt(job.ID)
		rec.Frozen = &dst
		// Before the listing: in a source that is a mount point it changes the listed directory.
		if err := atomicfile.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
			return rec, fmt.Errorf("cannot make frozen copy: %w", err)
		}
	}
	t, err := s.scan(ctx)
	if err != nil {
		return rec, err
	}
	if err := job.Room(s.needs(t, job.Dir, frozen)...); err != nil {
		return rec, err
	}
	peers, err := s.peers(job)
	if err != nil {
		return rec, err
	}
	c := &copier{
		ctx: ctx, entries: t.entries, units: t.units, dst: dst, method: s.method, peers: peers, rest: true, workers: workers(),
		report: func(done int64) { s.observe("snapshot", done, t.bytes) },
	}
	c.syncAll = t.files-t.tables > syncEach
	if err := c.run(); err != nil {
		return rec, err
	}
	if frozen {
		if err := atomicfile.SyncDir(filepath.Dir(dst)); err != nil {
			return rec, fmt.Errorf("cannot make frozen copy: %w", err)
		}
	}
	if err := t.unchanged(); err != nil {
		return rec, err
	}
	s.record(&rec, t)
	return rec, nil
}

// needs is what Forecast says too. The frozen copy's room is counted without clones: they are not known yet, and with
// them nothing runs out.
func (s *Source) needs(t *tree, dir string, frozen bool) []manifest.Need {
	needs := []manifest.Need{{Path: dir, Bytes: t.space}}
	if frozen {
		needs = append(needs, manifest.Need{Path: s.Path, Bytes: s.frozenSpace(t, s.clones(t, s.Side(), false))})
	}
	return needs
}

// peers are the earlier copies of this source that may hold links of ours.
func (s *Source) peers(job manifest.Job) ([]string, error) {
	ids, err := s.FrozenIDs()
	peers := append([]string{}, job.Peers...)
	for _, id := range ids {
		if id != job.ID {
			peers = append(peers, s.FrozenAt(id))
		}
	}
	return peers, err
}

func (s *Source) record(rec *manifest.Source, t *tree) {
	rec.Name, rec.Kind, rec.Path = s.name, Kind, s.Path
	rec.Bytes, rec.Files = t.bytes, t.files
	rec.Followed, rec.Mounts, rec.Skipped, rec.Entries = t.followed, t.mounts, t.skipped, t.entries
	summarize(rec)
}

// summarize sets what follows from the entries: the source's method and the note on it.
func summarize(rec *manifest.Source) {
	seen := map[string]bool{}
	for i := range rec.Entries {
		seen[rec.Entries[i].Method] = true
	}
	rec.Method, rec.Note = manifest.Copy, nil
	switch {
	case seen[manifest.Hardlink]:
		note := linkNote
		rec.Method, rec.Note = manifest.Hardlink, &note
	case seen[manifest.Reflink]:
		rec.Method = manifest.Reflink
	}
}

// unchanged fails if a listed directory got or lost a name since.
func (t *tree) unchanged() error {
	for _, d := range t.dirs {
		fd, err := openBeneath(d.root, d.sub)
		if err == nil {
			var st unix.Stat_t
			if err = unix.Fstat(fd, &st); err == nil && (st.Ino != d.ino || st.Mtim != d.mtim) {
				err = errChanged
			}
			unix.Close(fd)
		}
		if err != nil {
			return &hint.Error{Op: "freeze source", Path: filepath.Join(d.root, d.sub), Err: err, Hint: "supervisor status"}
		}
	}
	return nil
}

// clones tries on a nameless file whether a copy in dir can share blocks with the source. What can't be tried is no.
func (s *Source) clones(t *tree, dir string, frozen bool) bool {
	if frozen {
		dir = s.Side()
	}
	for {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err == nil || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	for i := range t.units {
		u := &t.units[i]
		for _, it := range u.items {
			if u.root == s.Path && t.entries[it.entry].Size > 0 {
				return canClone(path.Join(u.root, u.sub, it.src), dir)
			}
		}
	}
	return false
}

func canClone(file, dir string) bool {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	w, err := os.OpenFile(dir, os.O_WRONLY|unix.O_TMPFILE, 0o600)
	if err != nil {
		return false
	}
	defer w.Close()
	return retry(func() error { return unix.IoctlFileClone(int(w.Fd()), int(f.Fd())) }) == nil
}

// Finish brings a sealed copy to its end while the node runs: each file is hashed, and a frozen copy is fetched into
// dir, where its digests are compared. It uses one worker, the disk is the node's. The frozen copy stays until Drop.
// Done twice it does no harm.
func (s *Source) Finish(ctx context.Context, dir string, rec manifest.Source) (manifest.Source, error) {
	rec.Entries = append([]manifest.Entry{}, rec.Entries...)
	dst := filepath.Join(dir, rec.Name)
	at := dst
	if rec.Frozen != nil {
		at = s.FrozenAt(filepath.Base(dir))
	}
	err := hashAll(ctx, at, rec.Entries, 1, s.progress("snapshot hash", rec.Bytes))
	if err != nil || rec.Frozen == nil {
		return rec, err
	}
	partial := Partial(dir, rec.Name)
	if err := errors.Join(atomicfile.RemoveTree(partial), atomicfile.RemoveTree(dst)); err != nil {
		return rec, fmt.Errorf("cannot remove an interrupted copy: %w", err)
	}
	c := &copier{
		ctx: ctx, entries: rec.Entries, units: units(at, rec.Entries), dst: partial, method: "auto", workers: 1,
		report: s.progress("snapshot copy", rec.Bytes),
	}
	if err := c.run(); err != nil {
		return rec, err
	}
	if faults, err := verify(ctx, partial, rec, true, s.progress("snapshot verify", rec.Bytes)); err != nil || len(faults) > 0 {
		return rec, errors.Join(append([]error{err}, asErrors(faults)...)...)
	}
	if err := atomicfile.Rename(partial, dst); err != nil {
		return rec, fmt.Errorf("cannot publish copy: %w", err)
	}
	rec.Frozen = nil
	summarize(&rec)
	return rec, nil
}

// Partial is where Finish makes a copy in dir before it has its name.
func Partial(dir, name string) string { return filepath.Join(dir, "."+name+".partial") }

func (s *Source) progress(phase string, total int64) func(int64) {
	return func(done int64) { s.observe(phase, done, total) }
}

func asErrors(faults []manifest.Fault) []error {
	errs := make([]error, len(faults))
	for i, f := range faults {
		errs[i] = f
	}
	return errs
}
