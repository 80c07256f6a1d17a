package swap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nodevisor/internal/atomicfile"
	"nodevisor/snapshot/manifest"
)

// swapEntries moves the root's entries one by one: those of the live tree aside, then those of the replacement in.
// What lies in the stage is not moved yet, what carries an old identity is not aside yet: so it can be done again.
func (p *Place) swapEntries(j *journal) ([]manifest.Signer, error) {
	now, err := list(p.Path)
	if err != nil {
		return nil, err
	}
	for _, id := range now {
		if !has(j.Old, id) && !has(j.New, id) {
			return nil, p.strange(j, filepath.Join(p.Path, id.Name))
		}
	}
	signers, err := p.settle(j)
	if err != nil {
		return nil, err
	}
	if err := p.refresh(j); err != nil {
		return nil, err
	}
	if err := atomicfile.MkdirAll(p.beforeOf(j), 0o700); err != nil {
		return nil, fmt.Errorf("cannot put the data of before aside: %w", err)
	}
	if err := move(p.Path, p.beforeOf(j), j.Old); err != nil {
		return nil, err
	}
	staged, err := list(p.stageOf(j))
	if err != nil {
		return nil, err
	}
	if err := move(p.stageOf(j), p.Path, staged); err != nil {
		return nil, err
	}
	return signers, nil
}

// refresh records the replacement's entries anew if settling the signer's state changed one.
func (p *Place) refresh(j *journal) error {
	staged, err := list(p.stageOf(j))
	if err != nil {
		return err
	}
	known := true
	for _, id := range staged {
		if !has(j.New, id) {
			j.New, known = append(j.New, id), false
		}
	}
	if known {
		return nil
	}
	return p.writeJournal(j)
}

func has(all []identity, id identity) bool {
	return slices.ContainsFunc(all, func(i identity) bool { return i.Name == id.Name && i.Ino == id.Ino })
}

// move renames those of ids that are in from to the same names in to, which must be free, and syncs both directories.
func move(from, to string, ids []identity) error {
	for _, want := range ids {
		got, ok, err := identify(filepath.Join(from, want.Name))
		if err != nil {
			return err
		}
		if !ok || got.Ino != want.Ino {
			continue
		}
		if _, taken, err := identify(filepath.Join(to, want.Name)); taken || err != nil {
			return errors.Join(err, fmt.Errorf("cannot move %s to %s: the name is taken", got.Name, to))
		}
		if err := os.Rename(filepath.Join(from, want.Name), filepath.Join(to, want.Name)); err != nil {
			return fmt.Errorf("cannot swap in the restored data: %w", err)
		}
	}
	return errors.Join(atomicfile.SyncDir(from), atomicfile.SyncDir(to))
}

// settle writes the winning signer states into the replacement, wherever its parts are by now.
func (p *Place) settle(j *journal) ([]manifest.Signer, error) {
	rels, err := p.allSigners(j)
	if err != nil {
		return nil, err
	}
	return decide(rels, func(rel string) (*manifest.Signer, error) {
		c := p.contestOf(j, rel)
		if err := atomicfile.RemoveTemps(filepath.Dir(filepath.Join(c.new, rel))); err != nil { // of a crash in the last settling
			return nil, err
		}
		return c.settle(rel)
	})
}

func (p *Place) preview(j *journal, c contest) ([]manifest.Signer, error) {
	c.allowNew = true // it is done: this only tells
	rels, err := p.allSigners(j)
	if err != nil {
		return nil, err
	}
	return decide(rels, c.preview)
}

// allSigners are those of the snapshot and those of the live tree, wherever its parts are.
func (p *Place) allSigners(j *journal) ([]string, error) {
	rels, err := p.live(p.Path, p.beforeOf(j))
	if err != nil {
		return nil, err
	}
	return union(rels, j.Signers), nil
}

// contestOf finds the live and the new state. Entry by entry, the new one may be in place already: then what is aside
// is the live one.
func (p *Place) contestOf(j *journal, rel string) contest {
	c := contest{id: j.Snapshot, old: []string{p.Path, p.beforeOf(j)}, new: p.stageOf(j), allowNew: j.SignerFromSnapshot}
	top, _, _ := strings.Cut(rel, "/")
	if id, ok, err := identify(filepath.Join(p.Path, top)); j.Inside && ok && err == nil && has(j.New, id) {
		c.old, c.new, c.allowNew = []string{p.beforeOf(j)}, p.Path, true
	}
	return c
}
