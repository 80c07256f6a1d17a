package kwil

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// maxDocument bounds a genesis document, in bytes.
const maxDocument = 64 << 20

// object is a JSON object that keeps the order in which its members were set.
type object struct {
	keys   []string
	values map[string]any
}

// set puts a value at a dotted path, and makes the objects on the way.
func (o *object) set(path string, value any) {
	key, rest, deeper := strings.Cut(path, ".")
	if o.values == nil {
		o.values = map[string]any{}
	}
	if _, ok := o.values[key]; !ok {
		o.keys = append(o.keys, key)
	}
	if !deeper {
		o.values[key] = value
		return
	}
	inner, ok := o.values[key].(*object)
	if !ok {
		inner = &object{}
		o.values[key] = inner
	}
	inner.set(rest, value)
}

// has tells whether something is at a dotted path.
func (o *object) has(path string) bool {
	key, rest, deeper := strings.Cut(path, ".")
	value, ok := o.values[key]
	if !ok || !deeper {
		return ok
	}
	inner, ok := value.(*object)
	return ok && inner.has(rest)
}

// MarshalJSON writes the members in their order.
func (o *object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, key := range o.keys {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(key)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(o.values[key])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// document is a parsed one: the leaves by their dotted paths, numbers as they were written. Arrays are leaves, and so
// are objects that are empty or have names with dots.
type document map[string]json.RawMessage

// parse reads a document without judging it.
func parse(raw []byte) (document, error) {
	if len(raw) > maxDocument {
		return nil, fmt.Errorf("cannot read genesis document: larger than %d bytes", maxDocument)
	}
	d := document{}
	if err := d.add("", raw); err != nil {
		return nil, fmt.Errorf("cannot read genesis document: %w", err)
	}
	return d, nil
}

func (d document) add(path string, raw json.RawMessage) error {
	var members map[string]json.RawMessage
	if trimmed := bytes.TrimSpace(raw); path == "" || len(trimmed) > 0 && trimmed[0] == '{' {
		if err := json.Unmarshal(raw, &members); err != nil {
			return err
		}
		if members == nil {
			return errors.New("not a JSON object")
		}
	}
	dotted := slices.ContainsFunc(slices.Collect(maps.Keys(members)), func(key string) bool { return strings.Contains(key, ".") })
	if path == "" && dotted {
		return errors.New("a field with a dot in its name")
	}
	if path != "" && (len(members) == 0 || dotted) {
		d[path] = raw
		return nil
	}
	for key, value := range members {
		inner := key
		if path != "" {
			inner = path + "." + key
		}
		if err := d.add(inner, value); err != nil {
			return err
		}
	}
	return nil
}

// under tells whether the document has path, or anything below it.
func (d document) under(path string) bool {
	for p := range d {
		if p == path || strings.HasPrefix(p, path+".") {
			return true
		}
	}
	return false
}

// get decodes the leaf at path into out; a missing one is an error that names it.
func (d document) get(path string, out any) error {
	raw, ok := d[path]
	if !ok {
		return fmt.Errorf("%s: missing", path)
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Detect tells a document's version by its shape: v0.9 keeps its parameters under consensus_params, v0.10 on top.
func Detect(raw []byte) (Version, error) {
	d, err := parse(raw)
	if err != nil {
		return "", err
	}
	switch {
	case d.under("consensus_params") || d.under("app_hash"):
		return V09, nil
	case d.under("max_block_size") || d.under("leader") || d.under("state_hash") || d.under("db_owner"):
		return V010, nil
	}
	return "", fmt.Errorf("cannot tell the version of the genesis document: %w", ErrVersion)
}

// StateHash is the hash of the state that the document names, or nil where it names none.
func StateHash(v Version, raw []byte) ([]byte, error) {
	d, err := parse(raw)
	if err != nil {
		return nil, err
	}
	return d.stateHash(v)
}

func (d document) stateHash(v Version) ([]byte, error) {
	field := v.hashField()
	var text string
	if raw, ok := d[field]; !ok || string(bytes.TrimSpace(raw)) == "null" {
		return nil, nil
	}
	if err := d.get(field, &text); err != nil || text == "" {
		return nil, err
	}
	decode := hex.DecodeString
	if v == V09 {
		decode = base64.StdEncoding.DecodeString
	}
	hash, err := decode(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", field, err)
	}
	if len(hash) != 32 {
		return nil, fmt.Errorf("%s: %d bytes, not 32", field, len(hash))
	}
	return hash, nil
}

// Validate checks a document against the shape of a version: what is missing is named, hash, keys and numbers are
// well-formed. Fields that aren't known are no fault. All faults are reported together.
func Validate(v Version, raw []byte) error {
	d, err := parse(raw)
	if err != nil {
		return err
	}
	var errs []error
	text := func(path string, empty bool) {
		var s string
		if err := d.get(path, &s); err != nil {
			errs = append(errs, err)
		} else if s == "" && !empty {
			errs = append(errs, fmt.Errorf("%s: empty", path))
		}
	}
	number := func(path string, least int64) {
		var n int64
		if err := d.get(path, &n); err != nil {
			errs = append(errs, err)
		} else if n < least {
			errs = append(errs, fmt.Errorf("%s: %d is below %d", path, n, least))
		}
	}
	text("chain_id", false)
	number("initial_height", 0)
	if _, err := d.stateHash(v); err != nil {
		errs = append(errs, err)
	}
	var validators []Validator
	if list, ok := d["validators"]; !ok {
		errs = append(errs, errors.New("validators: missing"))
	} else {
		var faults []error
		validators, faults = readValidators(v, list)
		errs = append(errs, faults...)
	}
	for _, p := range params() {
		if path := p.path(v); path != "" && p.check != nil {
			errs = append(errs, p.check(d, path))
		}
	}
	switch v {
	case V09:
		var at time.Time
		errs = append(errs, d.get("genesis_time", &at))
	case V010:
		text("db_owner", true)
		errs = append(errs, d.checkLeader(validators), d.checkMigration())
	default:
		return fmt.Errorf("%q: %w", v, ErrVersion)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("not a genesis document of Kwil %s: %w", v, err)
	}
	return nil
}

// checkLeader: kwild refuses a leader that is no validator.
func (d document) checkLeader(validators []Validator) error {
	var kind, key string
	if err := errors.Join(d.get("leader.type", &kind), d.get("leader.key", &key)); err != nil {
		return err
	}
	if !slices.ContainsFunc(validators, func(v Validator) bool { return v.Type == kind && strings.EqualFold(v.Key, key) }) {
		return errors.New("leader: not one of the validators")
	}
	return nil
}

// checkMigration: both heights, or none.
func (d document) checkMigration() error {
	var from, to int64
	if err := errors.Join(d.get("migration.start_height", &from), d.get("migration.end_height", &to)); err != nil {
		return err
	}
	if (from == 0) != (to == 0) {
		return errors.New("migration: one height without the other")
	}
	return nil
}
