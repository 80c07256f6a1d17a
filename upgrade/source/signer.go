package source

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"strconv"

	"nodevisor/internal/capped"
	"nodevisor/internal/hint"
)

// SignerHeight reads the height that the validator of home last signed at, from the state file of CometBFT's file signer.
//
// Not known (false, no error) is what follows where there is no such file, and where a remote signer connects to the
// node: a file that is left over then says nothing. The file lies where config/config.toml puts it. What can't be
// understood is an error, never a height.
func SignerHeight(home string) (int64, bool, error) {
	conf, err := readTOML[cometConfig](cometPath(home))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, false, &hint.Error{Op: "read the signer's place from", Path: cometPath(home), Err: err, Hint: "mend the file as for the node itself"}
	}
	if conf.SignerAddr != "" || conf.Signer.Addr != "" {
		return 0, false, nil
	}
	path := filepath.Join("data", "priv_validator_state.json")
	if conf.Signer.State != "" {
		path = conf.Signer.State
	}
	if conf.SignerState != "" {
		path = conf.SignerState
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(home, path)
	}
	data, err := capped.ReadBytes(path, 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	height, err := signedHeight(data, err)
	if err != nil {
		return 0, false, &hint.Error{
			Op: "read the signer's state", Path: path, Err: err,
			Hint: "the file guards against signing twice: restore it from this validator's newest copy, never an older one",
		}
	}
	return height, true, nil
}

func signedHeight(data []byte, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	var state map[string]any // not a struct, whose keys package json would take in any case: CometBFT knows them as spelt
	if err := json.Unmarshal(data, &state); err != nil {
		return 0, err
	}
	text, ok := state["height"].(string) // as CometBFT's JSON writes every int64
	if !ok {
		return 0, errors.New(`"height" is missing or no string`)
	}
	h, err := strconv.ParseUint(text, 10, 63)
	if err != nil {
		return 0, errors.New(`"height" is no height`)
	}
	return int64(h), nil // 0 is a validator that has signed nothing yet
}
