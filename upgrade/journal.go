package upgrade

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
)

// journalSchema is the version of the documents in <home>/supervisor. Another one is refused, never guessed at.
const journalSchema = 1

// maxStateBytes caps what is read of a state file.
const maxStateBytes = 4 << 20

// ErrJournal means that a state file can't be trusted: unreadable, of an unknown version, changed, or at odds with the
// link. It is a hold: the supervisor never falls back to a default.
var ErrJournal = errors.New("the journal can't be trusted")

// Journal is <home>/supervisor/upgrade.json: the upgrade in flight, and the hold.
type Journal struct {
	Schema  int      `json:"schema"`
	Upgrade *Upgrade `json:"upgrade"`
	Hold    *Hold    `json:"hold"`
	// Check is a digest over the rest: a flipped bit in a height or a name is as bad as a torn file.
	Check string `json:"check"`
}

// Hold says why the supervisor stopped acting, and what a person can do. Nothing is lost meanwhile.
type Hold struct {
	Reason string    `json:"reason"`
	Hint   string    `json:"hint"`
	Since  time.Time `json:"since"`
}

// Upgrade is one plan being carried out.
type Upgrade struct {
	Plan     Plan    `json:"plan"`
	From     Version `json:"from"`
	To       Version `json:"to"`
	Phase    Phase   `json:"phase"`
	Evidence string  `json:"evidence,omitempty"` // why the height has come: file, rpc, log, signer, time, operator
	SHA256   string  `json:"sha256,omitempty"`   // the verified binary's
	Snapshot string  `json:"snapshot,omitempty"` // its id, chosen before it is made: making it again is no second one
	Skipped  bool    `json:"snapshot_skipped,omitempty"`
	Attempts int     `json:"attempts"`          // starts of the new version, counted before each
	Tries    int     `json:"tries"`             // how often the effect after Phase was begun: SUPERVISOR_ATTEMPT
	Crashes  int     `json:"crashes,omitempty"` // how often it was interrupted in a row; capped
	// Announced: the plan was in the node's own file when the upgrade began, so it must be there after the stop.
	Announced  bool        `json:"announced,omitempty"`
	Downloaded bool        `json:"downloaded,omitempty"`  // the binary came from the plan's info
	BinaryOnly bool        `json:"binary_only,omitempty"` // the rollback leaves the data alone
	Error      string      `json:"error,omitempty"`       // the last thing that went wrong
	Reached    int64       `json:"reached,omitempty"`     // the highest block that the new version was seen to have committed
	Overshot   int64       `json:"overshot,omitempty"`    // blocks that the old version made above the plan's last one
	Begun      time.Time   `json:"begun"`
	Down       time.Time   `json:"down,omitzero"` // the old node's end
	Up         time.Time   `json:"up,omitzero"`   // the new node's first start
	Phases     []PhaseTime `json:"phases,omitempty"`
}

// PhaseTime is how long one phase took.
type PhaseTime struct {
	Phase Phase     `json:"phase"`
	MS    int64     `json:"ms"`
	At    time.Time `json:"at"`
}

// record appends what the phase took since the one before it.
func (u *Upgrade) record(p Phase, since, now time.Time) {
	u.Phases = slices.DeleteFunc(u.Phases, func(t PhaseTime) bool { return t.Phase == p })
	u.Phases = append(u.Phases, PhaseTime{Phase: p, MS: now.Sub(since).Milliseconds(), At: now.UTC()})
}

// LoadJournal reads the journal; a missing file is an empty one.
func LoadJournal(path string) (Journal, error) {
	j := Journal{Schema: journalSchema}
	data, err := readState(path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err == nil {
		j, err = decodeJournal(data)
	}
	if err != nil {
		return j, &hint.Error{
			Op: "read the journal", Path: path, Err: fmt.Errorf("%w: %w", ErrJournal, err),
			Hint: "supervisor doctor, then set the version by hand with: supervisor upgrade use VERSION --force",
		}
	}
	return j, nil
}

func decodeJournal(data []byte) (Journal, error) {
	var version struct{ Schema int }
	if err := json.Unmarshal(data, &version); err != nil {
		return Journal{}, err
	}
	if version.Schema != journalSchema {
		return Journal{}, fmt.Errorf("its schema is %d, this program knows %d", version.Schema, journalSchema)
	}
	var j Journal
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return Journal{}, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Journal{}, errors.New("something follows the document")
	}
	want, err := j.digest()
	if err != nil {
		return Journal{}, err
	}
	if want != j.Check {
		return Journal{}, errors.New("its check doesn't match: it was changed by hand or by a faulty disk")
	}
	if u := j.Upgrade; u != nil && !u.Phase.Known() {
		return Journal{}, fmt.Errorf("unknown phase %q", u.Phase)
	}
	return j, nil
}

// Save writes the journal with durability d. A failed write is tried once more from scratch: after a failed fsync the
// old descriptor can't be trusted, a new file can.
func (j Journal) Save(path string, d atomicfile.Durability) error {
	j.Schema = journalSchema
	var err error
	if j.Check, err = j.digest(); err != nil {
		return err
	}
	data, err := json.MarshalIndent(j, "", " ")
	if err != nil {
		return err
	}
	if err := atomicfile.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	write := func() error {
		return atomicfile.Write(path, 0o600, d, func(w io.Writer) error { _, err := w.Write(append(data, '\n')); return err })
	}
	if err := write(); err == nil {
		return nil
	}
	return write()
}

// digest covers everything but Check itself. Times are compared as JSON renders them, so a load and save agree.
func (j Journal) digest() (string, error) {
	j.Check = ""
	data, err := json.Marshal(j)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8]), nil
}

// readState reads a small state file, capped.
func readState(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxStateBytes+1))
	if err == nil && len(data) > maxStateBytes {
		err = errors.New("larger than 4 MiB")
	}
	return data, err
}
