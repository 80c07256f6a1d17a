package source

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"

	"nodevisor/internal/capped"
)

// maxNodeConfig bounds what is read of a node's own configuration, 1 MiB; the files that CometBFT and the SDK write have
// some 30 KiB, most of it comments.
const maxNodeConfig = 1 << 20

// cometConfig is what matters here of CometBFT's config/config.toml. Keys with a dash are those of Tendermint 0.35,
// which Sei still uses.
type cometConfig struct {
	SignerState string `toml:"priv_validator_state_file"`
	SignerAddr  string `toml:"priv_validator_laddr"`
	Signer      struct {
		State string `toml:"state-file"`
		Addr  string `toml:"laddr"`
	} `toml:"priv-validator"`
	RPC struct {
		Addr *string `toml:"laddr"`
	} `toml:"rpc"`
}

// appConfig is what matters here of the SDK's config/app.toml.
type appConfig struct {
	HaltHeight any `toml:"halt-height"` // a number, or one in quotes: the SDK takes both
	GRPC       struct {
		Enable *bool   `toml:"enable"`
		Addr   *string `toml:"address"`
	} `toml:"grpc"`
}

// configFile reads one TOML file of the node and keeps it until the file changes.
type configFile[T any] struct {
	path string
	sig  signature
	val  T
	err  error
}

// load returns the file's content; fs.ErrNotExist where there is none.
func (c *configFile[T]) load() (T, error) {
	sig := signatureOf(c.path)
	if sig == c.sig && sig != (signature{}) {
		return c.val, c.err
	}
	c.sig = sig
	c.val, c.err = readTOML[T](c.path)
	return c.val, c.err
}

func readTOML[T any](path string) (v T, err error) {
	data, err := capped.ReadFile(path, maxNodeConfig)
	if err != nil {
		return v, err
	}
	if _, err := toml.Decode(data, &v); err != nil {
		return v, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return v, nil
}

func cometPath(home string) string { return filepath.Join(home, "config", "config.toml") }
func appPath(home string) string   { return filepath.Join(home, "config", "app.toml") }

// flagValue finds --name VALUE or --name=VALUE among a node's arguments; of several the last holds, as with pflag.
func flagValue(args []string, name string) (value string, ok bool) {
	for i, arg := range args {
		if arg == "--" {
			break
		}
		if v, found := strings.CutPrefix(arg, "--"+name+"="); found {
			value, ok = v, true
		} else if arg == "--"+name && i+1 < len(args) {
			value, ok = args[i+1], true
		}
	}
	return value, ok
}
