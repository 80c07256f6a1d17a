package rename

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/swap"
)

const (
	journalSchema = 1
	maxJournal    = 4 << 20 // bytes
)

// A journal describes a restore under way. Databases are known by their oids, which no renaming changes and the server
// doesn't give twice: done again, a swap doesn't swap back.
type journal struct {
	Schema   int    `json:"schema"`
	Phase    string `json:"phase"` // swap.Staging, swap.Swapping
	Snapshot string `json:"snapshot"`
	Live     string `json:"live"`      // the name that both want
	LiveOID  uint32 `json:"live_oid"`  // of the database of before; 0: there is none. Known in the phase swap
	Before   string `json:"before"`    // the name that it gets
	Stage    string `json:"stage"`     // the replacement's name until then
	StageOID uint32 `json:"stage_oid"` // 0: it is not complete
	Clone    bool   `json:"clone"`     // the replacement is the snapshot's clone: an abort leaves it

	Database manifest.Database `json:"database"` // what the replacement gets beyond its content; without tables
}

// journalPath is in a folder of the home's own.
func (p *Place) journalPath() string {
	return filepath.Join(p.State, "restore-"+p.Server.Source()+".json")
}

// pending reads the journal; nil: there is none.
func (p *Place) pending() (*journal, error) {
	path := p.journalPath()
	bad := func(err error) error {
		return &hint.Error{
			Op: "read restore journal", Path: path, Err: err,
			Hint: "a restore was interrupted and its record is damaged: see with psql -l which database is " + p.Server.Where() + ", rename the right one so, then remove the journal",
		}
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > maxJournal:
		return nil, bad(errors.New("not a regular file of a sane size"))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	j := new(journal)
	if err := json.Unmarshal(data, j); err != nil {
		return nil, bad(err)
	}
	if err := p.checkJournal(j); err != nil {
		return nil, bad(err)
	}
	return j, nil
}

func (p *Place) checkJournal(j *journal) error {
	switch {
	case j.Schema != journalSchema:
		return fmt.Errorf("schema %d is not %d", j.Schema, journalSchema)
	case j.Phase != swap.Staging && j.Phase != swap.Swapping:
		return fmt.Errorf("phase %q is none of %s, %s", j.Phase, swap.Staging, swap.Swapping)
	case j.Live == "" || !p.Owner.Owns(j.Stage) || !p.Owner.Owns(j.Before) || j.Stage == j.Before:
		return errors.New("a name in it is none of ours")
	case j.Phase == swap.Swapping && j.StageOID == 0:
		return errors.New("the identity of the replacement is missing")
	}
	return nil
}

func (p *Place) writeJournal(j *journal) error {
	data, err := json.Marshal(j)
	if err == nil {
		err = atomicfile.MkdirAll(p.State, 0o700)
	}
	if err == nil {
		err = atomicfile.WriteFile(p.journalPath(), append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot write restore journal: %w", err)
	}
	return nil
}

func (p *Place) removeJournal() error {
	if err := atomicfile.Remove(p.journalPath()); err != nil {
		return fmt.Errorf("cannot remove restore journal: %w", err)
	}
	return nil
}

// Pending is the phase of a restore under way: swap.Staging, swap.Swapping, or "". It asks no server.
func (p *Place) Pending() (phase string, err error) {
	j, err := p.pending()
	if j == nil || err != nil {
		return "", err
	}
	return j.Phase, nil
}
