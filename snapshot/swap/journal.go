package swap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The phases of a restore. Staging is undone after a crash: nothing live was touched. Swapping is finished: all sources of
// the restore were staged before the first entered it.
const (
	Staging  = "staging"
	Swapping = "swap"
)

// A journal describes a restore under way. It lies in our folder on the source's own file system: it is there
// whenever a half-swapped source is.
type journal struct {
	Schema   int    `json:"schema"`
	Phase    string `json:"phase"`
	Snapshot string `json:"snapshot"`
	Stage    string `json:"stage"`  // the replacement's name in our folder
	Before   string `json:"before"` // the name that the live tree gets: beside the source, or in our folder
	Inside   bool   `json:"inside"` // entry by entry

	// Identities as of the phase swap. For a whole directory one each; Old is empty where there was none.
	Old []identity `json:"old"`
	New []identity `json:"new"`

	Signers            []string `json:"signers"` // states that the snapshot holds
	SignerFromSnapshot bool     `json:"signer_from_snapshot"`
}

// identity is what a name stood for. Only the inode number is compared: all names of one swap lie in one file system,
// and its device number may change with a reboot.
type identity struct {
	Name string `json:"name"`
	Dev  uint64 `json:"dev"`
	Ino  uint64 `json:"ino"`
}

const (
	schema     = 1
	maxJournal = 64 << 20 // bytes; a mount point's root may hold many entries
)

// Side is our folder on the directory's file system: frozen copies lie in it too.
func (p *Place) Side() string { return filepath.Dir(p.journalPath(p.Inside)) }

// journalPath is named after the directory, not after the configured source: two homes may keep theirs side by side.
func (p *Place) journalPath(inside bool) string {
	if inside {
		return filepath.Join(p.Path, Within, "restore.json")
	}
	return filepath.Join(filepath.Dir(p.Path), Beside, "restore-"+filepath.Base(p.Path)+".json")
}

// pending reads the journal of a restore under way; nil: there is none. Both places are looked at: whether the parent
// may be written can have changed since.
func (p *Place) pending() (*journal, error) {
	for _, inside := range []bool{p.Inside, !p.Inside} {
		j, err := p.record(inside).Read()
		if j != nil || err != nil {
			return j, err
		}
	}
	return nil, nil
}

// record is where the journal of a restore within the directory lies, or of one beside it.
func (p *Place) record(inside bool) Record[journal] {
	return Record[journal]{
		Path: p.journalPath(inside), Limit: maxJournal,
		Check:   func(j *journal) error { return j.check(inside) },
		Restore: "compare " + p.Path + " with what lies beside it, put the right one in place",
	}
}

func (j *journal) check(inside bool) error {
	switch {
	case j.Schema != schema:
		return fmt.Errorf("schema %d is not %d", j.Schema, schema)
	case j.Phase != Staging && j.Phase != Swapping:
		return fmt.Errorf("phase %q is none of staging, swap", j.Phase)
	case j.Inside != inside:
		return errors.New("it was made for another place")
	case !isBase(j.Stage) || !isBase(j.Before):
		return errors.New("a name in it leads elsewhere")
	case inside && j.Stage == j.Before:
		return errors.New("the live tree's name is the replacement's")
	case !inside && j.Phase == Swapping && (len(j.Old) > 1 || len(j.New) != 1):
		return errors.New("identities are missing")
	}
	for _, id := range append(j.Old, j.New...) {
		if !isBase(id.Name) {
			return errors.New("a name in it leads elsewhere")
		}
	}
	for _, rel := range j.Signers {
		if !filepath.IsLocal(rel) {
			return errors.New("a name in it leads elsewhere")
		}
	}
	return nil
}

func isBase(name string) bool {
	return filepath.IsLocal(name) && filepath.Base(name) == name && name != "."
}

func (p *Place) writeJournal(j *journal) error { return p.record(j.Inside).Write(j) }

func (p *Place) sideOf(j *journal) string { return filepath.Dir(p.journalPath(j.Inside)) }

func (p *Place) stageOf(j *journal) string { return filepath.Join(p.sideOf(j), j.Stage) }

// beforeOf is where the live tree goes.
func (p *Place) beforeOf(j *journal) string {
	if j.Inside {
		return filepath.Join(p.sideOf(j), j.Before)
	}
	return filepath.Join(filepath.Dir(p.Path), j.Before)
}

// identify reads what path stands for; ok is false where nothing does.
func identify(path string) (id identity, ok bool, err error) {
	var st unix.Stat_t
	err = unix.Lstat(path, &st)
	if errors.Is(err, unix.ENOENT) {
		return identity{}, false, nil
	}
	if err != nil {
		return identity{}, false, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return identity{filepath.Base(path), st.Dev, st.Ino}, true, nil
}

// list identifies what lies in the root of a source or of a stage, without what is ours.
func list(dir string) (all []identity, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if e.Name() == Within || e.Name() == LostFound {
			continue
		}
		id, ok, err := identify(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, id)
		}
	}
	return all, nil
}
