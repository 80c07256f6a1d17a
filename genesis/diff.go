package genesis

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
)

// Change is one field in which two documents differ. What is there on one side only is one change, however large.
type Change struct {
	Path string          `json:"path"`
	Kind string          `json:"change"` // changed, added, removed
	Old  json.RawMessage `json:"old"`    // nil where it was added
	New  json.RawMessage `json:"new"`    // nil where it was removed
}

// String is one line: path, old → new, long values cut.
func (c Change) String() string {
	const longest = 100
	side := func(v json.RawMessage) string {
		if v == nil {
			return "(none)"
		}
		return shorten(string(v), longest)
	}
	return fmt.Sprintf("%s: %s → %s", c.Path, side(c.Old), side(c.New))
}

// Diff lists every field that changes, in the order of the paths. Lists are compared element by element, validators by
// their public key: one that joined must not look as if all after it had changed.
func Diff(before, after *Document) []Change {
	d := &differ{changes: []Change{}}
	d.objects("", before.fields, after.fields)
	return d.changes
}

type differ struct{ changes []Change }

func (d *differ) add(path, kind string, before, after json.RawMessage) {
	d.changes = append(d.changes, Change{Path: path, Kind: kind, Old: before, New: after})
}

func raw(v any) json.RawMessage { return render(nil, v, "", "") }

func (d *differ) values(path string, before, after any) {
	switch b := before.(type) {
	case map[string]any:
		if a, ok := after.(map[string]any); ok {
			d.objects(path, b, a)
			return
		}
	case []any:
		if a, ok := after.([]any); ok {
			d.lists(path, b, a)
			return
		}
	}
	if !reflect.DeepEqual(before, after) {
		d.add(path, "changed", raw(before), raw(after))
	}
}

func (d *differ) objects(path string, before, after map[string]any) {
	all := maps.Clone(before)
	maps.Copy(all, after)
	for _, key := range slices.Sorted(maps.Keys(all)) {
		at := join(path, key)
		b, was := before[key]
		a, is := after[key]
		switch {
		case !was:
			d.add(at, "added", nil, raw(a))
		case !is:
			d.add(at, "removed", raw(b), nil)
		default:
			d.values(at, b, a)
		}
	}
}

func (d *differ) lists(path string, before, after []any) {
	if b, ok := byKey(before); ok {
		if a, ok := byKey(after); ok && len(b)+len(a) > 0 {
			d.objects(path, b, a)
			return
		}
	}
	for i := range max(len(before), len(after)) {
		at := join(path, strconv.Itoa(i))
		switch {
		case i >= len(before):
			d.add(at, "added", nil, raw(after[i]))
		case i >= len(after):
			d.add(at, "removed", raw(before[i]), nil)
		default:
			d.values(at, before[i], after[i])
		}
	}
}

// byKey names the elements of a list of validators by their public keys: CometBFT and Kwil v0.9 call it pub_key, Kwil
// v0.10 pubkey. Any other list, and one in which a key comes twice, has no such names.
func byKey(all []any) (map[string]any, bool) {
	named := map[string]any{}
	for _, v := range all {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		key, ok := m["pub_key"]
		if !ok {
			key, ok = m["pubkey"]
		}
		if inner, is := key.(map[string]any); is {
			key, ok = inner["value"]
		}
		name, isText := key.(string)
		if _, twice := named[name]; !ok || !isText || twice {
			return nil, false
		}
		named[name] = v
	}
	return named, true
}
