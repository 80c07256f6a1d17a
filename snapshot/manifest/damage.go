package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/capped"
)

// DamageName is the file beside the manifest that says what a comparison proved to be wrong. It is one of its own: who
// verifies holds no lock, and beside a running supervisor, which may be changing the manifest, nothing of that is lost.
const DamageName = "damage.json"

// maxDamage caps what is read of it, in bytes; damageShown is how many faults it names.
const (
	maxDamage   = 1 << 20
	damageShown = 20
)

// Damage is what a snapshot was proved to lack or to have otherwise than its manifest says.
type Damage struct {
	FoundAt time.Time `json:"found_at"`
	Deep    bool      `json:"deep"`   // a restored database differs, each file is right: only such a comparison takes it back
	Count   int       `json:"count"`  // of the faults
	Faults  []Fault   `json:"errors"` // the first of them
}

// Error makes it the cause of a refusal.
func (d *Damage) Error() string {
	text := "it is damaged"
	if d.Deep {
		text = "it is damaged, as verify --deep found"
	}
	if len(d.Faults) > 0 {
		text += ": " + d.Faults[0].Error()
	}
	if d.Count > 1 {
		text += fmt.Sprintf(", and %d more", d.Count-1)
	}
	return text
}

// NewDamage describes what a comparison found, or is nil where nothing of it is proven.
func NewDamage(faults []Fault, deep bool) *Damage {
	d := &Damage{FoundAt: time.Now().UTC().Truncate(time.Millisecond), Deep: deep}
	for _, f := range faults {
		if f.Unproven {
			continue
		}
		if d.Count++; len(d.Faults) < damageShown {
			d.Faults = append(d.Faults, f)
		}
	}
	if d.Count == 0 {
		return nil
	}
	return d
}

// Refusal is why a snapshot with these faults isn't used: a *Damage where one is proven.
func Refusal(faults []Fault) error {
	if d := NewDamage(faults, false); d != nil {
		return d
	}
	return fmt.Errorf("it can't be read as it was taken: %w", faults[0])
}

// ReadDamage reads what is recorded of the snapshot in dir; nil: nothing is. A record that can't be read is an error, and
// still says that there is damage.
func ReadDamage(dir string) (*Damage, error) {
	data, err := capped.ReadBytes(filepath.Join(dir, DamageName), maxDamage)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	d := new(Damage)
	if err == nil {
		err = json.Unmarshal(data, d)
	}
	if err != nil {
		return nil, fmt.Errorf("it is damaged, and what was found can't be read: %w", err)
	}
	return d, nil
}

// WriteDamage records d durably in the snapshot's directory.
func WriteDamage(dir string, d *Damage) error {
	data, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(filepath.Join(dir, DamageName), append(data, '\n'), 0o600)
}

// ClearDamage takes the record back.
func ClearDamage(dir string) error { return atomicfile.Remove(filepath.Join(dir, DamageName)) }
