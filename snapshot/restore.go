package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/datadir"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres"
	"nodevisor/snapshot/swap"
)

// RestoreOptions say how to restore.
type RestoreOptions struct {
	To                      string            // each source into a directory of its name in it, instead of in its place
	Into                    map[string]string // databases, by the source's name, into existing empty ones (DSN); nothing else is restored then
	SignerStateFromSnapshot bool              // where there is no live signer's state, take the snapshot's
	Once                    string            // names this restore: done again under the same name it has no effect; "" = always done
	DryRun                  bool              // check all that can be, say what would be done, and change nothing
}

// where says for the log where the sources go. A DSN may hold a password, so databases are named by their source.
func (o RestoreOptions) where() string {
	switch {
	case o.To != "":
		return o.To
	case o.Into != nil:
		return "an empty database each: " + strings.Join(slices.Sorted(maps.Keys(o.Into)), ", ")
	}
	return "its place"
}

// RestoreResult says what a restore did, or would do.
type RestoreResult struct {
	ID      string           `json:"id"`
	DryRun  bool             `json:"dry_run"`
	TookMS  int64            `json:"took_ms"`
	Sources []RestoredSource `json:"sources"`
}

// RestoredSource is one source of a RestoreResult.
type RestoredSource struct {
	Name   string            `json:"name"`
	Path   string            `json:"path"`   // what was restored
	Before *string           `json:"before"` // where the data of before lies now; nil: there was none, or it wasn't touched
	Bytes  int64             `json:"bytes"`
	Files  int               `json:"files"`
	Signer []manifest.Signer `json:"signer"` // signer states, and which one remains
}

// part is one source of a restore.
type part struct {
	source source
	job    manifest.Restore
	result RestoredSource
}

// Restore puts a snapshot, given by id or by path, in the place of the live data; the node is at rest. All sources are
// staged and compared before the first is swapped in; the data of before is kept. A signer's state is never taken back.
//
// An error leaves the live data as it was, unless it says that the restore is unfinished: then, as after a crash,
// Recover carries it to its end.
func (s *Store) Restore(ctx context.Context, id string, opt RestoreOptions) (RestoreResult, error) {
	begin := time.Now()
	dir, m, err := s.find(id)
	if err != nil {
		return RestoreResult{}, err
	}
	release, err := s.acquire(m.ID)
	if err != nil {
		return RestoreResult{}, err
	}
	defer release()
	if o := s.readOnce(); opt.Once != "" && o.Done && o.Name == opt.Once && o.Snapshot == m.ID {
		s.log.Info("snapshot was restored already", "snapshot", m.ID)
		return RestoreResult{ID: m.ID, Sources: []RestoredSource{}}, nil
	}
	parts, err := s.parts(ctx, dir, m, opt)
	switch {
	case err != nil || opt.DryRun:
	case opt.To != "":
		err = extract(ctx, parts)
	case opt.Into != nil:
		err = into(ctx, parts, opt.Into)
	default:
		err = s.replace(ctx, parts, opt.Once)
	}
	if err != nil {
		if d := (*manifest.Damage)(nil); errors.As(err, &d) {
			err = errors.Join(err, s.record(dir, m, d))
		}
		return RestoreResult{}, fmt.Errorf("cannot restore snapshot %s: %w", m.ID, err)
	}
	r := RestoreResult{ID: m.ID, DryRun: opt.DryRun, TookMS: time.Since(begin).Milliseconds(), Sources: []RestoredSource{}}
	for _, p := range parts {
		r.Sources = append(r.Sources, p.result)
	}
	if !opt.DryRun {
		s.log.Info("snapshot restored", "snapshot", m.ID, "to", opt.where(), "bytes", m.Bytes, "took", time.Since(begin))
	}
	return r, nil
}

// parts plans a restore and refuses what can be seen beforehand: damage, an unknown source, a signer's state in doubt.
func (s *Store) parts(ctx context.Context, dir string, m *manifest.Manifest, opt RestoreOptions) ([]*part, error) {
	// A dry run stands for the whole restore, which compares the digests on the copy that it makes.
	found, err := s.faults(ctx, dir, m, opt.DryRun && m.State == manifest.Verified)
	if err != nil {
		return nil, err
	}
	if len(found) > 0 {
		return nil, &hint.Error{Op: "use snapshot", Path: m.ID, Err: manifest.Refusal(found), Hint: "supervisor snapshot verify " + m.ID}
	}
	if len(m.Sources) == 0 {
		return nil, errors.New("it holds nothing")
	}
	if err := s.checkInto(m, opt.Into); err != nil {
		return nil, err
	}
	var parts []*part
	for _, rec := range inOrderOfSwap(m.Sources) {
		if _, wanted := opt.Into[rec.Name]; opt.Into != nil && !wanted {
			continue
		}
		src, err := s.sourceOf(rec)
		if err != nil {
			return nil, err
		}
		at, err := s.placeOf(dir, m, rec)
		if err != nil {
			return nil, err
		}
		p := &part{source: src, job: manifest.Restore{ID: m.ID, From: at, Record: rec, Verified: m.State == manifest.Verified, SignerFromSnapshot: opt.SignerStateFromSnapshot, Elsewhere: opt.To != "" || opt.Into != nil}}
		p.result = RestoredSource{Name: rec.Name, Path: src.Where(), Bytes: rec.Bytes, Files: rec.Files}
		if opt.To != "" {
			to, err := filepath.Abs(opt.To)
			if err != nil {
				return nil, err
			}
			p.result.Path = filepath.Join(to, rec.Name)
		}
		if p.result.Signer, err = src.Preview(p.job); err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// inOrderOfSwap puts databases before directories: a swap of a database can be refused by its server, and then nothing
// else has been touched.
func inOrderOfSwap(all []manifest.Source) []manifest.Source {
	all = slices.Clone(all)
	rank := map[string]int{postgres.Kind: 0, datadir.Kind: 1}
	slices.SortStableFunc(all, func(a, b manifest.Source) int { return cmp.Compare(rank[a.Kind], rank[b.Kind]) })
	return all
}

// checkInto refuses what names no database of the snapshot.
func (s *Store) checkInto(m *manifest.Manifest, into map[string]string) error {
	for name := range into {
		is := func(rec manifest.Source) bool {
			return rec.Name == name && rec.Kind == postgres.Kind && rec.Frozen == nil
		}
		if !slices.ContainsFunc(m.Sources, is) {
			return &hint.Error{
				Op: "restore into another database", Path: name, Err: errors.New("no archive of a database of that name is in the snapshot"),
				Hint: "supervisor snapshot show " + m.ID,
			}
		}
	}
	return nil
}

func into(ctx context.Context, parts []*part, dsns map[string]string) error {
	for _, p := range parts {
		p.result.Path = dsns[p.result.Name]
		if err := p.source.(*postgres.Source).Into(ctx, p.job, dsns[p.result.Name]); err != nil {
			return err
		}
	}
	return nil
}

func extract(ctx context.Context, parts []*part) (err error) {
	for _, p := range parts {
		if p.result.Signer, err = p.source.Extract(ctx, p.job, p.result.Path); err != nil {
			return err
		}
	}
	return nil
}

// replace stages everything, then swaps everything.
func (s *Store) replace(ctx context.Context, parts []*part, name string) error {
	for _, p := range parts {
		phase, err := p.source.Pending()
		if err != nil {
			return err
		}
		if phase != "" {
			return &hint.Error{Op: "restore", Path: p.source.Where(), Err: errors.New("an earlier restore was interrupted"), Hint: "supervisor doctor"}
		}
	}
	for i, p := range parts {
		if err := p.source.Stage(ctx, p.job); err != nil {
			return errors.Join(err, abort(parts[:i+1]))
		}
	}
	if err := manifest.Interrupted(ctx, "restore"); err != nil { // the last chance: a swap isn't stopped halfway
		return errors.Join(err, abort(parts))
	}
	if err := s.beginOnce(name, parts[0].job.ID); err != nil {
		return errors.Join(err, abort(parts))
	}
	for _, p := range parts {
		if err := p.source.Commit(); err != nil { // nothing is swapped yet: who is connected to the second database stops both
			return errors.Join(err, undo(parts))
		}
	}
	for i, p := range parts {
		before, signers, err := p.source.Swap()
		switch {
		case err != nil && i == 0: // nothing of the others is swapped: all can go back
			return errors.Join(err, undo(parts))
		case err != nil:
			return unfinished(err)
		}
		if p.result.Signer = signers; before != "" {
			p.result.Before = &before
		}
	}
	if err := s.swappedOnce(); err != nil {
		return unfinished(err)
	}
	for _, p := range parts {
		if err := p.source.Done(); err != nil {
			return unfinished(err)
		}
	}
	return nil
}

func abort(parts []*part) (err error) {
	for _, p := range parts {
		err = errors.Join(err, p.source.Abort())
	}
	return err
}

// undo takes the first part's swap back, then the others' decision: while one of them is left, a crash leads on to the
// end of the restore, which is as good.
func undo(parts []*part) error {
	for _, p := range parts {
		if err := p.source.Undo(); err != nil {
			return unfinished(err)
		}
	}
	return abort(parts)
}

func unfinished(err error) error {
	return &hint.Error{Op: "finish restore", Err: fmt.Errorf("it is unfinished, and goes on at the next start: %w", err), Hint: "supervisor status"}
}

// recoverRestore ends a restore that a crash interrupted. One source in the phase swap means that all were staged: it
// is finished. Otherwise nothing live was touched: it is undone.
func (s *Store) recoverRestore() error {
	var pending, none []source
	committed := false
	for _, sl := range s.slots {
		src := s.source(sl)
		phase, err := src.Pending()
		if err != nil {
			return err
		}
		if phase != "" {
			pending = append(pending, src)
			committed = committed || phase == swap.Swapping
		} else {
			none = append(none, src)
		}
	}
	for _, src := range none { // a restore may have died before its journal was there
		if err := src.Abort(); err != nil {
			return err
		}
	}
	if err := s.end(pending, committed); err != nil {
		return err
	}
	if len(pending) > 0 {
		s.log.Warn("interrupted restore ended", "finished", committed)
	}
	return nil
}

// end takes the pending sources of a restore to its end, each step by all before the next.
func (s *Store) end(pending []source, committed bool) error {
	each := func(step func(source) error) (err error) {
		for i := 0; i < len(pending) && err == nil; i++ {
			err = step(pending[i])
		}
		return err
	}
	if !committed {
		return each(source.Abort)
	}
	if err := each(source.Commit); err != nil {
		return err
	}
	if err := each(func(src source) error { _, _, err := src.Swap(); return err }); err != nil {
		return err
	}
	if err := s.swappedOnce(); err != nil {
		return err
	}
	return each(source.Done)
}
