package rename

import (
	"errors"
	"fmt"
	"path/filepath"

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

// record is in a folder of the home's own.
func (p *Place) record() swap.Record[journal] {
	return swap.Record[journal]{
		Path: filepath.Join(p.State, "restore-"+p.Server.Source()+".json"), Limit: maxJournal, Check: p.checkJournal,
		Restore: "see with psql -l which database is " + p.Server.Where() + ", rename the right one so",
	}
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

// Pending is the phase of a restore under way: swap.Staging, swap.Swapping, or "". It asks no server.
func (p *Place) Pending() (phase string, err error) {
	j, err := p.record().Read()
	if j == nil || err != nil {
		return "", err
	}
	return j.Phase, nil
}
