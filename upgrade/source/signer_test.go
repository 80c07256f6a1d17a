package source

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

const signed = `{
  "height": "1234",
  "round": 0,
  "step": 3,
  "signature": "c2ln",
  "signbytes": "AB"
}`

func TestSignerHeight(t *testing.T) {
	for name, c := range map[string]struct {
		files  map[string]string
		height int64
		known  bool
	}{
		"default place":              {map[string]string{"data/priv_validator_state.json": signed}, 1234, true},
		"nothing signed yet":         {map[string]string{"data/priv_validator_state.json": `{"height":"0","round":0,"step":0}`}, 0, true},
		"no file":                    {nil, 0, false},
		"config without the key":     {map[string]string{"config/config.toml": "moniker = 'x'\n[rpc]\nladdr='tcp://127.0.0.1:1'\n", "data/priv_validator_state.json": signed}, 1234, true},
		"default written out":        {map[string]string{"config/config.toml": `priv_validator_state_file = "data/priv_validator_state.json"`, "data/priv_validator_state.json": signed}, 1234, true},
		"another place":              {map[string]string{"config/config.toml": `priv_validator_state_file = "signer/state.json"`, "signer/state.json": signed, "data/priv_validator_state.json": `{"height":"1"}`}, 1234, true},
		"another place, missing":     {map[string]string{"config/config.toml": `priv_validator_state_file = "signer/state.json"`, "data/priv_validator_state.json": signed}, 0, false},
		"keys of Tendermint 0.35":    {map[string]string{"config/config.toml": "[priv-validator]\nstate-file = 'signer/state.json'\n", "signer/state.json": signed}, 1234, true},
		"remote signer":              {map[string]string{"config/config.toml": `priv_validator_laddr = "tcp://0.0.0.0:26659"`, "data/priv_validator_state.json": signed}, 0, false},
		"remote signer, 0.35":        {map[string]string{"config/config.toml": "[priv-validator]\nladdr = 'tcp://0.0.0.0:26659'\n", "data/priv_validator_state.json": signed}, 0, false},
		"remote signer switched off": {map[string]string{"config/config.toml": `priv_validator_laddr = ""`, "data/priv_validator_state.json": signed}, 1234, true},
	} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			for path, content := range c.files {
				write(t, filepath.Join(home, path), content)
			}
			height, known, err := SignerHeight(home)
			require.NoError(t, err)
			assert.Equal(t, c.height, height)
			assert.Equal(t, c.known, known)
		})
	}
}

func TestSignerHeightAbsolutePath(t *testing.T) {
	home, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "state.json")
	write(t, elsewhere, signed)
	write(t, cometPath(home), `priv_validator_state_file = "`+elsewhere+`"`)
	height, known, err := SignerHeight(home)
	require.NoError(t, err)
	assert.True(t, known)
	assert.EqualValues(t, 1234, height)
}

func TestSignerHeightRefusesGarbage(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "cut short": signed[:12], "number": `{"height":1234}`, "missing": `{"round":0}`, "null": `{"height":null}`, "negative": `{"height":"-1"}`,
		"overflow": `{"height":"9223372036854775808"}`, "hexadecimal": `{"height":"0x12"}`, "list": `["1234"]`, "two": signed + signed, "zeroes": string(make([]byte, 100)),
	} {
		home := t.TempDir()
		write(t, home+"/data/priv_validator_state.json", content)
		_, known, err := SignerHeight(home)
		require.Error(t, err, name)
		assert.False(t, known, name)
		assert.NotEmpty(t, hint.Of(err), name)
	}
	for name, content := range map[string]string{"broken toml": `priv_validator_state_file = `, "wrong type": `priv_validator_state_file = 5`} {
		home := t.TempDir()
		write(t, home+"/data/priv_validator_state.json", signed)
		write(t, cometPath(home), content)
		_, known, err := SignerHeight(home)
		assert.Error(t, err, name)
		assert.False(t, known, name)
	}
	home := t.TempDir()
	require.NoError(t, os.MkdirAll(home+"/data/priv_validator_state.json", 0o755))
	_, _, err := SignerHeight(home)
	assert.Error(t, err, "a directory")
}
