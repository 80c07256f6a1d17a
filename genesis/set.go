package genesis

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"nodevisor/internal/hint"
)

// known are the top-level keys that a document of a kind may be given where it has none. Any other must be there: a
// misspelt key would be a field that no node reads.
var known = []string{"chain_id", "genesis_time", "initial_height", "validators", "db_owner", "leader"}

// Set gives the value at path another one. path is dotted, an array's elements are numbered from 0, and a dot within a key
// is written `\.`: "app_state.gov.params.voting_period", "validators.0.power". What was a string stays one, whatever text
// looks like (a chain may write its numbers as strings); a number, a truth value, a list or an object must be given as
// JSON of the same type. A key that isn't there is made only in an object that is, and at the top only where every
// document may have it.
func (d *Document) Set(path, text string) error {
	keys := split(path)
	if err := d.set(keys, text); err != nil {
		return &hint.Error{Op: "set " + path, Err: err, Hint: "supervisor genesis show FILE lists what there is"}
	}
	return nil
}

func (d *Document) set(keys []string, text string) error {
	at := any(d.fields)
	for i, key := range keys[:len(keys)-1] {
		next, ok := member(at, key)
		if !ok {
			return fmt.Errorf("there is no %s", strings.Join(keys[:i+1], "."))
		}
		at = next
	}
	last := keys[len(keys)-1]
	old, there := member(at, last)
	if !there && len(keys) == 1 && !slices.Contains(known, last) {
		return fmt.Errorf("the document has no field %s", last)
	}
	if last == "" {
		return errors.New("the path is empty, or ends with a dot")
	}
	v, err := newValue(old, text, last)
	if err != nil {
		return err
	}
	switch at := at.(type) {
	case map[string]any:
		at[last] = v
	case []any:
		if !there {
			return fmt.Errorf("the list has %d elements", len(at))
		}
		n, _ := strconv.Atoi(last) // member found it
		at[n] = v
	default:
		return fmt.Errorf("%s is neither an object nor a list", strings.Join(keys[:len(keys)-1], "."))
	}
	return nil
}

// newValue reads text as a value of old's type.
func newValue(old any, text, key string) (any, error) {
	parsed, err := parse([]byte(text))
	asText := func() any {
		if s, ok := parsed.(string); ok && err == nil {
			return s
		}
		return text
	}
	switch old.(type) {
	case string:
		return asText(), nil
	case json.Number:
		if n, ok := parsed.(json.Number); ok && err == nil {
			return n, nil
		}
		return nil, fmt.Errorf("%q is no number, and a number was there", shorten(text, 40))
	case bool:
		if b, ok := parsed.(bool); ok && err == nil {
			return b, nil
		}
		return nil, fmt.Errorf("%q is neither true nor false", shorten(text, 40))
	case map[string]any:
		if m, ok := parsed.(map[string]any); ok && err == nil {
			return m, nil
		}
		return nil, errors.New("a JSON object is needed")
	case []any:
		if l, ok := parsed.([]any); ok && err == nil {
			return l, nil
		}
		return nil, errors.New("a JSON list is needed")
	}
	if err != nil || key == "chain_id" || key == "genesis_time" || key == "db_owner" {
		return asText(), nil
	}
	return parsed, nil
}

// SetAll applies the table [genesis] set: keys are paths, a table below stands for a further part of the path. The order
// is that of the paths, so that every node does the same.
func (d *Document) SetAll(values map[string]any) error {
	flat := map[string]string{}
	if err := flatten(flat, "", values); err != nil {
		return err
	}
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(flat)) {
		errs = append(errs, d.Set(path, flat[path]))
	}
	return errors.Join(errs...)
}

// CheckSet reports what in the table [genesis] set is no value that a document can hold.
func CheckSet(values map[string]any) error { return flatten(map[string]string{}, "", values) }

func flatten(to map[string]string, path string, values map[string]any) error {
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(values)) {
		at := key
		if path != "" {
			at = path + "." + key
		}
		switch v := values[key].(type) {
		case map[string]any:
			errs = append(errs, flatten(to, at, v))
		case string:
			to[at] = v
		case bool, int64, []any:
			data, err := json.Marshal(v)
			errs = append(errs, err)
			to[at] = string(data)
		default:
			errs = append(errs, fmt.Errorf("%s: must be a string, a whole number, true or false, a list or a table; write other numbers as strings", at))
		}
	}
	return errors.Join(errs...)
}

// Get finds the value at path, as Set does.
func (d *Document) Get(path string) (v any, ok bool) {
	v = d.fields
	for _, key := range split(path) {
		if v, ok = member(v, key); !ok {
			return nil, false
		}
	}
	return v, true
}

func member(in any, key string) (any, bool) {
	switch in := in.(type) {
	case map[string]any:
		v, ok := in[key]
		return v, ok
	case []any:
		n, err := strconv.Atoi(key)
		if err != nil || n < 0 || n >= len(in) {
			return nil, false
		}
		return in[n], true
	}
	return nil, false
}

// split takes a path apart at its dots, but for escaped ones.
func split(path string) []string {
	const dot = "\x00"
	parts := strings.Split(strings.ReplaceAll(path, `\.`, dot), ".")
	for i := range parts {
		parts[i] = strings.ReplaceAll(parts[i], dot, ".")
	}
	return parts
}

// join is split's opposite.
func join(path, key string) string {
	key = strings.ReplaceAll(key, ".", `\.`)
	if path == "" {
		return key
	}
	return path + "." + key
}
