package genesis

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/capped"
	"nodevisor/internal/hint"
)

// MarkerFile is where, below a node's root, the marker of `genesis init` lies.
const MarkerFile = "supervisor/genesis-init.json"

// The phases of a Marker.
const (
	// Preparing: init is at work, or was interrupted. Nothing may start; init done again begins from clean.
	Preparing = "preparing"
	// Restoring: the root is ready, and the node's next start restores the state into its database.
	Restoring = "restoring"
)

// Marker says how far the setting up of a root has come. It is there from init's first change of the root until the
// node's own restore has ended; a root without one is as any other.
//
// For a run loop: ReadMarker before each start. Without one, or after RemoveMarker, starts are as ever. In phase Preparing
// nothing is started: hold, with the hint to do `genesis init` again. In phase Restoring the start is one that restores: no
// stop timeout and no restart of its own. BeginStart comes before it; where that says that a start was begun before, the
// restore was interrupted, and the node would run on half of the state (kwild looks only whether its schemas exist): the
// database is dropped and made anew first. Once the node has made its first height known the restore is over:
// RemoveMarker.
type Marker struct {
	Schema    int             `json:"schema"`
	Phase     string          `json:"phase"`
	Kind      string          `json:"kind"`
	Version   string          `json:"version"`
	At        time.Time       `json:"at"`
	Files     []string        `json:"files"`        // what init makes, relative to the root: what it may take away again
	StateHash string          `json:"state_sha256"` // of the state, decompressed, in hexadecimal
	Database  *MarkerDatabase `json:"database"`     // nil where init was told to leave the server alone
	Starts    int             `json:"starts"`       // of the node, in phase Restoring
}

// MarkerDatabase is how to reach the node's database. There is no password in it: it is found as init found it.
type MarkerDatabase struct {
	DSN          string `json:"dsn"`
	PasswordFile string `json:"password_file"`
}

// ReadMarker reads the marker of a root; nil where there is none. One that can't be read is an error, never none: whoever
// took it for none would start a node on half a state.
func ReadMarker(root string) (*Marker, error) {
	path := filepath.Join(root, MarkerFile)
	data, err := capped.ReadBytes(path, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	m := new(Marker)
	if err == nil {
		err = json.Unmarshal(data, m)
	}
	if err == nil && (m.Schema != schema || (m.Phase != Preparing && m.Phase != Restoring)) {
		err = fmt.Errorf("schema %d, phase %q: not written by this version", m.Schema, m.Phase)
	}
	for _, f := range m.Files {
		if err == nil && !filepath.IsLocal(f) {
			err = fmt.Errorf("%q is not below the root", f)
		}
	}
	if err != nil {
		return nil, &hint.Error{Op: "read", Path: path, Err: hint.Cause(err), Hint: "move the root aside, and set it up again with supervisor genesis init"}
	}
	return m, nil
}

// Write makes the marker durable.
func (m *Marker) Write(root string) error {
	m.Schema = schema
	data, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(filepath.Join(root, MarkerFile), append(data, '\n'), 0o600)
}

// BeginStart counts a start before it is made, and tells whether one was begun before.
func (m *Marker) BeginStart(root string) (again bool, err error) {
	m.Starts++
	return m.Starts > 1, m.Write(root)
}

// RemoveMarker ends the setting up. A missing one is no error.
func RemoveMarker(root string) error { return atomicfile.Remove(filepath.Join(root, MarkerFile)) }
