package snapshot

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"nodevisor/internal/hint"
)

// partialSuffix marks what isn't a snapshot yet, or no longer.
const partialSuffix = ".partial"

// maxLabel caps the label's part of an id, so that the names made of it stay below 255 bytes.
const maxLabel = 40

// idForm is deliberately narrow: only what is called so is ever deleted in a directory that others may use too.
var idForm = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z(-[0-9A-Za-z_.]+)*-[0-9a-z]{4}$`)

// NewID makes the id of a snapshot: sorting by time, unique also where two are made in one second or the clock was set
// back, and safe as a file name, e.g. 20261122T010203Z-v2-1200-k3f9. A height of 0 or below is not known, and left out.
func NewID(now time.Time, label string, height int64) string {
	id := now.UTC().Format("20060102T150405Z")
	if label = sanitize(label); label != "" {
		id += "-" + label
	}
	if height > 0 {
		id += fmt.Sprintf("-%d", height)
	}
	return id + "-" + strings.ToLower(rand.Text()[:4])
}

// sanitize keeps letters, digits and dots of a label; anything else becomes one dash.
func sanitize(label string) string {
	parts := strings.FieldsFunc(label, func(r rune) bool {
		isLetter := (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z')
		isDigit := r >= '0' && r <= '9'
		return !isLetter && !isDigit && r != '.' && r != '_'
	})
	clean := strings.Join(parts, "-")
	return strings.Trim(clean[:min(len(clean), maxLabel)], "-")
}

// isID tells whether name can be a snapshot's directory.
func isID(name string) bool {
	return len(name) <= 128 && idForm.MatchString(name) && !strings.HasSuffix(name, partialSuffix)
}

// pathOf is the directory of an id.
func (s *Store) pathOf(id string) (string, error) {
	if !isID(id) {
		return "", &hint.Error{Op: "use snapshot", Path: id, Err: fmt.Errorf("%q is no snapshot id", id), Hint: "supervisor snapshot list"}
	}
	return filepath.Join(s.dir, id), nil
}

// ids lists the directories that are called like snapshots, sorted by name. A missing store has none.
func (s *Store) ids(suffix string) ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("cannot list snapshots: %w", err)
	}
	var all []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok && e.IsDir() && isID(name) {
			all = append(all, name)
		}
	}
	return all, nil
}
