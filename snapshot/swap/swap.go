// Package swap puts a restored directory in the place of a live one, so that after a crash at any instruction it is
// either done or undone, and so that a signer's state is never taken back.
//
// The replacement is staged in a folder of ours on the same file system. A journal there records what the two
// directories are by their inode numbers: done twice, a swap doesn't swap back. A mount point can't be renamed; its
// entries are swapped one by one.
package swap

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
)

// Our folder, and what else is never part of a swap.
const (
	Beside    = ".supervisor-frozen" // in the directory's parent
	Within    = ".supervisor"        // in the directory, where it is a mount point or its parent isn't ours to write
	LostFound = "lost+found"         // fsck's, in the root of a file system
)

// A Place is a directory whose content may be replaced.
type Place struct {
	Path     string                // absolute, its links resolved; it may not be there
	Inside   bool                  // its entries are swapped one by one, our folder lies within
	IsSigner func(rel string) bool // tells whether a file in it is a signer's state
}

// Begin makes our folder, writes the journal and says where the replacement is to be made. signers are the states that
// the replacement will hold; fromSnapshot lets them in where there is no live one.
func (p *Place) Begin(id string, signers []string, fromSnapshot bool) (stage string, err error) {
	if j, err := p.pending(); err != nil || j != nil {
		return "", errors.Join(err, p.unfinished(j))
	}
	if err := atomicfile.MkdirAll(p.Side(), 0o700); err != nil {
		return "", fmt.Errorf("cannot stage restore: %w", err)
	}
	tag := strings.ToLower(rand.Text()[:6])
	j := &journal{
		Schema: schema, Phase: Staging, Snapshot: id, Stage: "stage-" + tag, Inside: p.Inside,
		Before: "before-" + id + "-" + tag, Signers: signers, SignerFromSnapshot: fromSnapshot,
	}
	if !p.Inside {
		j.Before = filepath.Base(p.Path) + "." + j.Before
	}
	return p.stageOf(j), p.writeJournal(j)
}

func (p *Place) unfinished(j *journal) error {
	if j == nil {
		return nil
	}
	return &hint.Error{Op: "restore", Path: p.Path, Err: fmt.Errorf("another restore, of %s, is not finished", j.Snapshot), Hint: "supervisor doctor"}
}

// Staged tells that the replacement is complete and on the disk: the winning signer states are written into it.
func (p *Place) Staged() error {
	j, err := p.pending()
	if err != nil || j == nil {
		return err
	}
	if _, err := p.settle(j); err != nil {
		return err
	}
	return atomicfile.SyncDir(p.sideOf(j))
}

// Pending is the phase of a restore under way: Staging, Swapping, or "".
func (p *Place) Pending() (phase string, err error) {
	j, err := p.pending()
	if j == nil || err != nil {
		return "", err
	}
	return j.Phase, nil
}

// Commit records what the live tree and its replacement are, and with that the decision: from here a crash leads on to
// the swap. Every source of the restore must be staged. It does nothing in the phase Swapping.
func (p *Place) Commit() error {
	j, err := p.pending()
	if err != nil || j == nil || j.Phase == Swapping {
		return err
	}
	if j.Inside {
		j.Old, err = list(p.Path)
		if err == nil {
			j.New, err = list(p.stageOf(j))
		}
	} else {
		j.Old, err = single(p.Path)
		if err == nil {
			j.New, err = single(p.stageOf(j))
		}
	}
	if err != nil {
		return fmt.Errorf("cannot prepare the swap: %w", err)
	}
	j.Phase = Swapping
	return p.writeJournal(j)
}

func single(path string) ([]identity, error) {
	id, ok, err := identify(path)
	if !ok || err != nil {
		return nil, err
	}
	return []identity{id}, nil
}

// Swap puts the replacement in place and the live tree aside. It says where that is ("" where there was none), and whose
// signer states remain. Done again, also after a crash in it, it does what is left to do.
func (p *Place) Swap() (before string, signers []manifest.Signer, err error) {
	j, err := p.pending()
	switch {
	case err != nil:
		return "", nil, err
	case j == nil || j.Phase != Swapping:
		return "", nil, fmt.Errorf("cannot swap %s: no restore is staged", p.Path)
	case j.Inside:
		signers, err = p.swapEntries(j)
	default:
		signers, err = p.swapDir(j)
	}
	if err == nil && len(j.Old) > 0 {
		before = p.beforeOf(j)
	}
	return before, signers, err
}

// swapDir exchanges two directories in one step where the file system can (renameat2(2), RENAME_EXCHANGE), so that the
// source's name never stands for nothing.
func (p *Place) swapDir(j *journal) ([]manifest.Signer, error) {
	stage, before := p.stageOf(j), p.beforeOf(j)
	source, there, err := identify(p.Path)
	if err != nil {
		return nil, err
	}
	old, aside, err := identify(before)
	if err != nil {
		return nil, err
	}
	var signers []manifest.Signer
	switch {
	case there && source.Ino == j.New[0].Ino: // swapped already
		if signers, err = p.preview(j, contest{id: j.Snapshot, old: []string{before, stage}, new: p.Path}); err != nil {
			return nil, err
		}
	case there && len(j.Old) == 1 && source.Ino == j.Old[0].Ino:
		if signers, err = p.settle(j); err != nil {
			return nil, err
		}
		err = exchange(stage, p.Path, before)
	case !there && (len(j.Old) == 0 || aside && old.Ino == j.Old[0].Ino):
		if signers, err = p.settle(j); err != nil {
			return nil, err
		}
		err = os.Rename(stage, p.Path)
	default:
		return nil, p.strange(j, p.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot swap in the restored data: %w", err)
	}
	if id, ok, err := identify(stage); err != nil {
		return nil, err
	} else if ok && len(j.Old) == 1 && id.Ino == j.Old[0].Ino {
		if err := unix.Renameat2(unix.AT_FDCWD, stage, unix.AT_FDCWD, before, unix.RENAME_NOREPLACE); err != nil && !noFlags(err) {
			return nil, fmt.Errorf("cannot put the data of before aside: %w", err)
		} else if err != nil {
			if err := os.Rename(stage, before); err != nil {
				return nil, fmt.Errorf("cannot put the data of before aside: %w", err)
			}
		}
	}
	return signers, errors.Join(atomicfile.SyncDir(filepath.Dir(p.Path)), atomicfile.SyncDir(p.sideOf(j)))
}

// exchange swaps stage and source, or moves one after the other where the file system can't do both at once.
func exchange(stage, source, before string) error {
	err := unix.Renameat2(unix.AT_FDCWD, stage, unix.AT_FDCWD, source, unix.RENAME_EXCHANGE)
	if err == nil || !noFlags(err) {
		return err
	}
	if err := os.Rename(source, before); err != nil {
		return err
	}
	return os.Rename(stage, source)
}

// noFlags tells that the file system, or the kernel, knows no flags of renameat2.
func noFlags(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP)
}

// strange refuses to touch what is neither the live tree nor its replacement as the journal knows them.
func (p *Place) strange(j *journal, path string) error {
	return &hint.Error{
		Op: "finish restore", Path: path, Err: errors.New("it is neither the data of before nor the restored data"),
		Hint: fmt.Sprintf("the restored data: %s; the data of before: %s; put the right one in place, then remove %s", p.stageOf(j), p.beforeOf(j), p.journalPath(j.Inside)),
	}
}

// Undo takes back what a failed Swap did, if it didn't get to its end. After it the phase is Staging again, and Abort
// removes the rest.
func (p *Place) Undo() error {
	j, err := p.pending()
	if err != nil || j == nil || j.Phase != Swapping {
		return err
	}
	if err := p.undo(j); err != nil {
		return fmt.Errorf("cannot undo the swap: %w", err)
	}
	j.Phase, j.Old, j.New = Staging, nil, nil
	return p.writeJournal(j)
}

func (p *Place) undo(j *journal) error {
	if j.Inside {
		if err := move(p.Path, p.stageOf(j), j.New); err != nil {
			return err
		}
		if err := move(p.beforeOf(j), p.Path, j.Old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		os.Remove(p.beforeOf(j)) // it is empty again
		return nil
	}
	source, there, err := identify(p.Path)
	switch {
	case err != nil:
		return err
	case there && len(j.Old) == 1 && source.Ino == j.Old[0].Ino, !there && len(j.Old) == 0:
		return nil
	case !there:
		if old, ok, err := identify(p.beforeOf(j)); err != nil || !ok || old.Ino != j.Old[0].Ino {
			return errors.Join(err, p.strange(j, p.beforeOf(j)))
		}
		return atomicfile.Rename(p.beforeOf(j), p.Path)
	}
	return errors.New("it is done already")
}

// Done ends a restore whose swap is done: the journal goes.
func (p *Place) Done() error {
	j, err := p.pending()
	if err != nil || j == nil {
		return err
	}
	done := j.Phase == Swapping
	if j.Inside {
		left, err := list(p.stageOf(j))
		done = done && err == nil && len(left) == 0
	} else {
		id, ok, err := identify(p.Path)
		done = done && ok && err == nil && id.Ino == j.New[0].Ino
	}
	if !done {
		return fmt.Errorf("cannot end the restore of %s: it is not swapped in", p.Path)
	}
	return p.close(j)
}

// Abort ends a restore that was not committed: the replacement goes, then the journal. Where there is none, it removes
// what a beginning left that was interrupted before the journal was there.
func (p *Place) Abort() error {
	j, err := p.pending()
	if err != nil {
		return err
	}
	if j == nil {
		for _, inside := range []bool{false, true} {
			side := filepath.Dir(p.journalPath(inside))
			if err := atomicfile.RemoveTemps(side); err != nil {
				return fmt.Errorf("cannot tidy up after a restore: %w", err)
			}
			os.Remove(side) // if it holds nothing else
		}
		return nil
	}
	if j.Phase == Swapping {
		return fmt.Errorf("cannot abort the restore of %s: it is committed", p.Path)
	}
	return p.close(j)
}

// close removes the stage, what an interrupted write of the journal left, and then the journal, which alone knows the
// stage's name.
func (p *Place) close(j *journal) error {
	if id, ok, err := identify(p.stageOf(j)); err != nil {
		return err
	} else if ok && len(j.Old) == 1 && !j.Inside && id.Ino == j.Old[0].Ino {
		return p.strange(j, p.stageOf(j)) // never delete the data of before
	}
	if err := atomicfile.RemoveTree(p.stageOf(j)); err != nil {
		return fmt.Errorf("cannot remove staged restore: %w", err)
	}
	if err := atomicfile.RemoveTemps(p.sideOf(j)); err != nil {
		return fmt.Errorf("cannot tidy up after a restore: %w", err)
	}
	if err := p.record(j.Inside).Remove(); err != nil {
		return err
	}
	os.Remove(p.sideOf(j)) // if it holds nothing else
	return nil
}
