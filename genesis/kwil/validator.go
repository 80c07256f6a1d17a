package kwil

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// The types of keys that Kwil knows by itself; an extension may add others.
const (
	keyEd25519   = "ed25519"
	keySecp256k1 = "secp256k1"
)

// Validator is one of the network's, with its voting power.
type Validator struct {
	Type  string // ed25519 | secp256k1
	Key   string // the public key, lower-case hexadecimal
	Power int64
	Name  string // v0.9 only
}

// parseVoter reads a row of the voters' table: its id, its key, its power. The row itself stays out of errors: it isn't
// ours to show.
func parseVoter(v Version, row string) (Validator, error) {
	column := strings.Split(row, "\t")
	if len(column) != 3 {
		return Validator{}, fmt.Errorf("%w: a row of %s with %d columns, not 3", ErrUnexpected, VotersTable, len(column))
	}
	text, ok := strings.CutPrefix(column[1], `\\x`) // bytea's \x, its backslash doubled by COPY
	key, err := hex.DecodeString(text)
	if !ok || err != nil {
		return Validator{}, fmt.Errorf("%w: a key in %s is not hexadecimal", ErrUnexpected, VotersTable)
	}
	power, err := strconv.ParseInt(column[2], 10, 64)
	if err != nil || power <= 0 {
		return Validator{}, fmt.Errorf("%w: a power in %s is not a positive number", ErrUnexpected, VotersTable)
	}
	if v == V010 {
		// Four bytes before the key name its type, little-endian; the key's length tells it as well.
		if len(key) < 4 {
			return Validator{}, fmt.Errorf("%w: a key of %d bytes in %s", ErrUnexpected, len(key), VotersTable)
		}
		key = key[4:]
	}
	kind, err := keyType(v, key)
	if err != nil {
		return Validator{}, fmt.Errorf("%w: in %s: %w", ErrUnexpected, VotersTable, err)
	}
	return Validator{Type: kind, Key: hex.EncodeToString(key), Power: power}, nil
}

// keyType tells a key's type by its length: ed25519 has 32 bytes; secp256k1, compressed, 33, and only v0.10 knows it.
func keyType(v Version, key []byte) (string, error) {
	switch {
	case len(key) == 32:
		return keyEd25519, nil
	case v == V010 && len(key) == 33 && (key[0] == 2 || key[0] == 3):
		return keySecp256k1, nil
	}
	return "", fmt.Errorf("a public key of %d bytes is of no type that is known", len(key))
}

// validatorJSON is an element of the document's list, in either version.
type validatorJSON struct {
	V09Key  string `json:"pub_key"`
	V010Key string `json:"pubkey"`
	Type    string `json:"type"`
	Power   int64  `json:"power"`
	Name    string `json:"name"`
}

// readValidators reads the document's list, and says what is wrong with it.
func readValidators(v Version, raw json.RawMessage) (list []Validator, errs []error) {
	var in []validatorJSON
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, []error{fmt.Errorf("validators: %w", err)}
	}
	if len(in) == 0 {
		errs = append(errs, fmt.Errorf("validators: none"))
	}
	seen := map[string]bool{}
	for i, j := range in {
		out := Validator{Type: keyEd25519, Key: strings.ToLower(j.V09Key), Power: j.Power, Name: j.Name}
		if v == V010 {
			out.Type, out.Key = j.Type, strings.ToLower(j.V010Key)
		}
		if err := out.check(v); err != nil {
			errs = append(errs, fmt.Errorf("validators[%d]: %w", i, err))
		}
		if seen[out.Key] {
			errs = append(errs, fmt.Errorf("validators[%d]: its key is there twice", i))
		}
		seen[out.Key] = true
		list = append(list, out)
	}
	return list, errs
}

func (val Validator) check(v Version) error {
	key, err := hex.DecodeString(val.Key)
	if err != nil {
		return fmt.Errorf("the public key is not hexadecimal: %w", err)
	}
	if val.Power <= 0 {
		return fmt.Errorf("power %d is not positive", val.Power)
	}
	if v == V010 && val.Type != keyEd25519 && val.Type != keySecp256k1 {
		return nil // an extension's: kwild's to judge
	}
	kind, err := keyType(v, key)
	if err != nil {
		return err
	}
	if kind != val.Type {
		return fmt.Errorf("the public key has the length of %s, its type says %q", kind, val.Type)
	}
	return nil
}

// render gives the element of the document's list.
func (val Validator) render(v Version, index int) *object {
	o := &object{}
	if v == V010 {
		o.set("pubkey", val.Key)
		o.set("type", val.Type)
		o.set("power", val.Power)
		return o
	}
	o.set("pub_key", val.Key)
	o.set("power", val.Power)
	if val.Name == "" {
		val.Name = fmt.Sprintf("validator-%d", index) // as Kwil's tool names them
	}
	o.set("name", val.Name)
	return o
}
