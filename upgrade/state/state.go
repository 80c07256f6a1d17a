// Package state reads and renders the documents in <home>/supervisor: the journal, the schedule, the history. Each is small JSON
// for people to read, carries the same schema number, is capped in both directions, and is trusted whole or not at all.
package state

import (
	"encoding/json"
	"errors"
	"fmt"

	"nodevisor/internal/capped"
)

// Schema is the version of the documents in <home>/supervisor. Another one is refused, never guessed at.
const Schema = 1

// maxBytes caps what is read of a state file: a plan's info of 1 MiB grows to six times that where JSON escapes all
// of it. Nothing larger is written either.
const maxBytes = 8 << 20

// ErrUntrusted means that a state file can't be trusted: unreadable, of an unknown version, changed, or at odds with the
// link. It is a hold: the supervisor never falls back to a default.
var ErrUntrusted = errors.New("can't be trusted")

// Encode renders a state file, for people to read; one that could not be read again isn't written.
func Encode(v any) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", " ")
	if err == nil && len(data) >= maxBytes {
		err = errTooLarge
	}
	return append(data, '\n'), err
}

var errTooLarge = fmt.Errorf("larger than %d MiB", maxBytes>>20)

// Read reads a small state file, capped. A pipe in its place, which the node's own user could put there, blocks no start.
func Read(path string) ([]byte, error) { return capped.ReadBytes(path, maxBytes) }
