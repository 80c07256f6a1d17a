package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// signer keeps the last height that was signed, in the file and the JSON of CometBFT's privval.FilePVLastSignState.
type signer struct {
	path   string
	height int64
	sync   durable
}

// signState is the file's content. The step is always 3, a precommit.
type signState struct {
	Height    string `json:"height"`
	Round     int    `json:"round"`
	Step      int    `json:"step"`
	Signature string `json:"signature,omitempty"`
	SignBytes string `json:"signbytes,omitempty"`
}

// openSigner reads the state. A missing file is a new validator's; one that can't be read is refused, as CometBFT does.
func openSigner(path string, sync durable) (*signer, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		s := &signer{path: path, sync: sync}
		return s, s.write(signState{Height: "0"})
	}
	if err != nil {
		return nil, err
	}
	var state signState
	if err := json.Unmarshal(data, &state); err != nil {
		return nil, fmt.Errorf("error reading PrivValidator state from %s: %w", path, err)
	}
	height, err := strconv.ParseInt(state.Height, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("error reading PrivValidator state from %s: %w", path, err)
	}
	return &signer{path: path, height: height, sync: sync}, nil
}

// sign signs the block at height, and says whether it did: no height is signed twice, and none below the last.
func (s *signer) sign(height int64) (bool, error) {
	if height <= s.height {
		return false, nil
	}
	// Raised even if the write fails: a vote that may be out must never be cast again.
	s.height = height
	digits := strconv.FormatInt(height, 10)
	return true, s.write(signState{Height: digits, Step: 3, Signature: "c2ln", SignBytes: fmt.Sprintf("%X", digits)})
}

// write replaces the file, mode 0600 as CometBFT's. The vote goes out once it returned.
func (s *signer) write(state signState) error {
	data, err := json.MarshalIndent(state, "", "  ")
	if err != nil {
		return err
	}
	return s.sync.replace(s.path, data, 0o600)
}

// signerPath is where config/config.toml puts the state, below the home; else where CometBFT's default does.
func (s *settings) signerPath() string {
	path := s.configValue("", "priv_validator_state_file")
	if path == "" {
		path = "data/priv_validator_state.json"
	}
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(s.home, path)
}

// configValue reads one string of config/config.toml, or "" where there is none. It knows as much TOML as the files
// that CometBFT writes: tables, and keys with quoted values on a line of their own.
func (s *settings) configValue(table, key string) string {
	data, err := os.ReadFile(filepath.Join(s.home, "config", "config.toml"))
	if err != nil {
		return ""
	}
	at := ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			at = strings.Trim(line, "[]")
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if ok && at == table && strings.TrimSpace(name) == key {
			return strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return ""
}
