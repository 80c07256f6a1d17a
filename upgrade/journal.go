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
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// checkDigits is the length of a journal's check.
const checkDigits = 16

// Journal is <home>/supervisor/upgrade.json: the upgrade in flight, and the hold.
type Journal struct {
	Schema  int      `json:"schema"`
	Upgrade *Upgrade `json:"upgrade"`
	Hold    *Hold    `json:"hold"`
	// Check is a digest over every other byte of the document: a flipped bit in a height or a name is as bad as a torn file.
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
	Plan     plan.Plan       `json:"plan"`
	From     version.Version `json:"from"`
	To       version.Version `json:"to"`
	Phase    Phase           `json:"phase"`
	Evidence plan.Evidence   `json:"evidence,omitempty"` // why the height has come
	Stood    int64           `json:"stood,omitempty"`    // the height that was known when it was announced
	Overshot int64           `json:"overshot,omitempty"` // blocks that the old version made above the plan's last one
	SHA256   string          `json:"sha256,omitempty"`   // the verified binary's
	// Announced: the plan was in the node's own file when the upgrade began, so it must be there after the stop.
	Announced  bool        `json:"announced,omitempty"`
	Downloaded bool        `json:"downloaded,omitempty"`       // the binary came from the plan's info
	BinaryOnly bool        `json:"binary_only,omitempty"`      // the rollback leaves the data alone
	WayBack    string      `json:"way_back,omitempty"`         // names the way back under way: random, a new one for each decision to go
	Snapshot   string      `json:"snapshot,omitempty"`         // its id, chosen before it is made: made again, it is no second one
	Skipped    bool        `json:"snapshot_skipped,omitempty"` // no snapshot was wanted
	Attempts   int         `json:"attempts"`                   // starts of the new version, counted before each
	Tries      int         `json:"tries"`                      // how often the effect after Phase was begun: SUPERVISOR_ATTEMPT
	Crashes    int         `json:"crashes,omitempty"`          // how often it was interrupted in a row; capped
	Error      string      `json:"error,omitempty"`            // the last thing that went wrong
	Reached    int64       `json:"reached,omitempty"`          // the highest block that the new version was seen to have committed
	Begun      time.Time   `json:"begun"`
	Down       time.Time   `json:"down,omitzero"` // the old node's end
	Up         time.Time   `json:"up,omitzero"`   // the new node's first start
	Phases     []PhaseTime `json:"phases,omitempty"`
}

// record appends what the phase took since the one before it.
func (u *Upgrade) record(p Phase, since, now time.Time) {
	// A new list each time: the old one may be in the hands of whoever was told of it.
	u.Phases = slices.DeleteFunc(slices.Clone(u.Phases), func(t PhaseTime) bool { return t.Phase == p })
	u.Phases = append(u.Phases, PhaseTime{Phase: p, MS: now.Sub(since).Milliseconds(), At: now.UTC()})
}

// Floor is the last block that the old version may have made: one above it is the new version's own.
func (u Upgrade) Floor() int64 { return max(u.Plan.Height, u.Stood) }

// PhaseTime is how long one phase took.
type PhaseTime struct {
	Phase Phase     `json:"phase"`
	MS    int64     `json:"ms"`
	At    time.Time `json:"at"`
}

// LoadJournal reads the journal; a missing file is an empty one.
func LoadJournal(path string) (Journal, error) {
	j := Journal{Schema: state.Schema}
	data, err := state.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err == nil {
		j, err = decodeJournal(data)
	}
	if err != nil {
		return j, &hint.Error{
			Op: "read the journal", Path: path, Err: fmt.Errorf("the journal %w: %w", state.ErrUntrusted, err),
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
	if version.Schema != state.Schema {
		return Journal{}, fmt.Errorf("its schema is %d, this program knows %d", version.Schema, state.Schema)
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
	if want, ok := digest(data, j.Check); !ok || want != j.Check {
		return Journal{}, errors.New("its check doesn't match: it was changed by hand or by a faulty disk")
	}
	if u := j.Upgrade; u != nil {
		switch {
		case !u.Phase.Known():
			return Journal{}, fmt.Errorf("unknown phase %q", u.Phase)
		case !u.To.InTree(), u.From != "" && !u.From.InTree():
			return Journal{}, fmt.Errorf("a version in it lies outside the tree: from %.80q to %.80q", u.From, u.To)
		}
	}
	return j, nil
}

// Save writes the journal with durability d. A failed write is tried once more from scratch: after a failed fsync the
// old descriptor can't be trusted, a new file can.
func (j Journal) Save(path string, d atomicfile.Durability) error {
	data, err := j.encode()
	if err != nil {
		return err
	}
	if err := atomicfile.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	write := func() error {
		return atomicfile.Write(path, 0o600, d, func(w io.Writer) error { _, err := w.Write(data); return err })
	}
	if err := write(); err == nil {
		return nil
	}
	return write()
}

func (j Journal) encode() ([]byte, error) {
	j.Schema, j.Check = state.Schema, strings.Repeat("0", checkDigits)
	data, err := state.Encode(j)
	if err != nil {
		return nil, err
	}
	sum, _ := digest(data, j.Check)
	return append(data[:bytes.LastIndex(data, []byte(j.Check))], []byte(sum+"\"\n}\n")...), nil
}

// digest covers the bytes of a journal but its check, which is the last value of the document.
func digest(data []byte, check string) (sum string, ok bool) {
	i := bytes.LastIndex(data, []byte(check))
	if len(check) != checkDigits || i < 0 {
		return "", false
	}
	h := sha256.New()
	h.Write(data[:i])
	h.Write(data[i+checkDigits:])
	return hex.EncodeToString(h.Sum(nil)[:checkDigits/2]), true
}
