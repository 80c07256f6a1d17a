package genesis

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// The kinds of templates.
const (
	Kwil    = "kwil"
	Cosmos  = "cosmos"
	Command = "command"
)

// Kinds lists them.
func Kinds() []string { return []string{Kwil, Cosmos, Command} }

// maxChainID is CometBFT's limit of a chain id, in bytes (MaxChainIDLen in its types/genesis.go).
const maxChainID = 50

// Detect tells the kind of a document by its shape, and for Kwil the version; "" where it fits none.
func (d *Document) Detect() (kind, version string) {
	has := func(path string) bool { _, ok := d.Get(path); return ok }
	switch {
	case has("app_state"):
		return Cosmos, ""
	case has("state_hash"), has("db_owner") && has("leader"):
		return Kwil, "v0.10"
	case has("consensus_params.votes"):
		return Kwil, "v0.9"
	}
	return "", ""
}

// Validate reports every mistake of the document at once: what all chains share, and what those of Cosmos have. Kwil's
// shapes are package genesis/kwil's.
func (d *Document) Validate(kind string) error {
	errs := []error{d.checkName(kind != Command), d.checkHeight()}
	if kind == Cosmos {
		errs = append(errs, d.checkCosmos())
	}
	return errors.Join(errs...)
}

func (d *Document) checkName(needed bool) error {
	v, there := d.fields["chain_id"]
	id, isText := v.(string)
	switch {
	case !there && !needed:
		return nil
	case !there:
		return errors.New("chain_id: missing")
	case !isText || id == "":
		return errors.New("chain_id: must be a string that isn't empty")
	case len(id) > maxChainID:
		return fmt.Errorf("chain_id: longer than %d bytes", maxChainID)
	}
	return nil
}

func (d *Document) checkHeight() error {
	if _, there := d.fields["initial_height"]; !there {
		return nil // every known node then begins at its first height
	}
	if h, ok := d.InitialHeight(); !ok || h < 0 {
		return errors.New("initial_height: must be a whole number that isn't negative")
	}
	return nil
}

// InitialHeight is the height of the first block, which is written as a number or, by CometBFT, as a string.
func (d *Document) InitialHeight() (int64, bool) {
	v := d.fields["initial_height"]
	if s, ok := v.(string); ok {
		v = json.Number(s)
	}
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	h, err := n.Int64()
	return h, err == nil
}

func (d *Document) checkCosmos() error {
	var errs []error
	when, _ := d.fields["genesis_time"].(string)
	if t, err := time.Parse(time.RFC3339Nano, when); err != nil || t.IsZero() {
		errs = append(errs, fmt.Errorf("genesis_time: %q is no time such as 2026-12-01T14:00:00Z", shorten(when, 40)))
	}
	if _, ok := d.fields["app_state"].(map[string]any); !ok {
		errs = append(errs, errors.New("app_state: missing, or no object"))
	}
	// The SDK 0.50 and later write "consensus" (params and validators), those before CometBFT's own "consensus_params".
	_, newer := d.fields["consensus"].(map[string]any)
	_, older := d.fields["consensus_params"].(map[string]any)
	if !newer && !older {
		errs = append(errs, errors.New("consensus: neither consensus nor consensus_params is an object"))
	}
	return errors.Join(errs...)
}
