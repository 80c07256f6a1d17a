// Package kwil writes and reads the pair of files from which Kwil's tools start a new network: a genesis document and
// the state as compressed SQL.
//
// The SQL is pg_dump's plain output, cleaned by the rules of Kwil's own `snapshot create` (kwil-admin v0.9, kwild v0.10),
// so that the hash of both is the same wherever both keep everything. Kwil's tool applies its rules line by line to
// everything, also to the data; here a reader that knows COPY blocks, literals and function bodies applies them to
// statements alone: no row and no literal is ever changed or lost.
//
// The document carries the old network's parameters. What is known from nowhere gets the default of Kwil's tool, and is
// named in the result; a chain id is never made up.
package kwil

import (
	"errors"
	"fmt"
	"strings"
)

// Version is a generation of Kwil's formats.
type Version string

// The generations that are known.
const (
	V09  Version = "v0.9"
	V010 Version = "v0.10"
)

// GenesisFile is the document's name in every version.
const GenesisFile = "genesis.json"

// ErrVersion means that a version isn't known.
var ErrVersion = errors.New("not a version of Kwil that is known: v0.9 or v0.10")

// ParseVersion reads a version: "v0.9", "0.10", "v0.9.4".
func ParseVersion(s string) (Version, error) {
	parts := strings.Split(strings.TrimPrefix(s, "v"), ".")
	if len(parts) >= 2 && parts[0] == "0" {
		switch parts[1] {
		case "9":
			return V09, nil
		case "10":
			return V010, nil
		}
	}
	return "", fmt.Errorf("%q: %w", s, ErrVersion)
}

// StateFile is the name of the compressed SQL beside genesis.json.
func (v Version) StateFile() string {
	if v == V09 {
		return "kwildb-snapshot.sql.gz"
	}
	return "snapshot.sql.gz"
}

// hashField is the field of the document that holds the hash of the SQL.
func (v Version) hashField() string {
	if v == V09 {
		return "app_hash" // base64, as Go writes []byte
	}
	return "state_hash" // hexadecimal
}
