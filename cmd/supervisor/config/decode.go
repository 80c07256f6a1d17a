package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"nodevisor/internal/suggest"
)

// maxDepth is how deep the brackets of a value may be nested; the configuration itself needs three.
const maxDepth = 64

// decoder fills a Config from a TOML document. It goes on after a mistake, so that an operator sees all of them at
// once; that is why the document is first read into plain maps, and not into the struct by the TOML library, which
// stops at the first value of a wrong type.
type decoder struct {
	file     string
	at       map[string]position
	keys     []string          // every key that exists, for suggestions
	origin   map[string]string // path → file:line:column, for each value that was taken
	problems []located
}

// located is a mistake with its place, by which they are sorted.
type located struct {
	position
	err error
}

// decodeToml reads text into cfg, over what is there. file names it in errors. Every key that was taken gets its
// place in origin.
func decodeToml(file, text string, cfg *Config, origin map[string]string) []error {
	at, depth := keyPositions(text)
	if depth > maxDepth {
		return []error{&Problem{At: file, Err: fmt.Errorf("values are nested more than %d deep", maxDepth)}}
	}
	var raw map[string]any
	if _, err := toml.Decode(text, &raw); err != nil {
		return []error{syntaxProblem(file, err)}
	}
	d := &decoder{file: file, at: at, keys: allKeys(reflect.TypeFor[Config](), ""), origin: origin}
	d.table("", raw, reflect.ValueOf(cfg).Elem())
	slices.SortStableFunc(d.problems, func(a, b located) int {
		return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.column, b.column))
	})
	var problems []error
	for _, p := range d.problems {
		problems = append(problems, p.err)
	}
	return problems
}

// syntaxProblem names the place of a syntax error in the form of all the others.
func syntaxProblem(file string, err error) error {
	var parse toml.ParseError
	if !errors.As(err, &parse) {
		return &Problem{At: file, Err: err}
	}
	p := &Problem{
		At: fmt.Sprintf("%s:%d:%d", file, max(parse.Position.Line, 1), max(parse.Position.Col, 1)), Err: errors.New(parse.Message),
	}
	if strings.Contains(parse.Message, "already been defined") { // a table was pasted below the one that init wrote
		p.Hint = "a table and a key stand in the file once: write it there, then: supervisor doctor"
	}
	return p
}

// place is file:line:column of path.
func (d *decoder) place(path string) string {
	if p, ok := positionOf(d.at, path); ok {
		return fmt.Sprintf("%s:%d:%d", d.file, p.line, p.column)
	}
	return d.file
}

func (d *decoder) bad(path, format string, args ...any) {
	p, _ := positionOf(d.at, path)
	d.problems = append(d.problems, located{p, &Problem{At: d.place(path), Err: fmt.Errorf(format, args...)}})
}

// table fills the struct out from in.
func (d *decoder) table(path string, in map[string]any, out reflect.Value) {
	for _, key := range slices.Sorted(maps.Keys(in)) {
		at := join(path, key)
		if field, ok := fieldOf(out, key); ok {
			d.value(at, in[key], field)
		} else {
			d.unknown(path, key)
		}
	}
}

func (d *decoder) unknown(table, key string) {
	where := ""
	if table != "" {
		where = " in [" + table + "]"
	}
	// For suggestions all tables of an array, and all versions, are one.
	plain := table
	if i := strings.IndexByte(plain, '['); i > 0 {
		plain = plain[:i]
	} else if strings.HasPrefix(plain, "version.") {
		plain = "version"
	}
	d.bad(join(table, key), "unknown key %q%s%s", key, where, suggestKey(plain, key, d.keys))
}

// value puts in into out, whatever out's kind, and remembers where it came from.
func (d *decoder) value(path string, in any, out reflect.Value) {
	before := len(d.problems)
	switch {
	case out.Type() == reflect.TypeFor[map[string]any]():
		if m, ok := in.(map[string]any); ok {
			out.Set(reflect.ValueOf(m))
		} else {
			d.bad(path, "%s must be a table, not %s", path, describe(in))
		}
	case out.Kind() == reflect.Pointer:
		out.Set(reflect.New(out.Type().Elem()))
		d.value(path, in, out.Elem())
	case out.Kind() == reflect.Struct:
		if m, ok := in.(map[string]any); ok {
			d.table(path, m, out)
		} else {
			d.bad(path, "%s must be a table, not %s", path, describe(in))
		}
	case out.Kind() == reflect.Map:
		d.mapping(path, in, out)
	case out.Kind() == reflect.Slice:
		d.list(path, in, out)
	default:
		if err := setScalar(in, out); err != nil {
			d.bad(path, "%s %w", path, err)
		}
	}
	if len(d.problems) == before {
		d.origin[path] = d.place(path)
	}
}

// mapping replaces the map out: a table of variables, or one table for each version.
func (d *decoder) mapping(path string, in any, out reflect.Value) {
	m, ok := in.(map[string]any)
	if !ok {
		d.bad(path, "%s must be a table, not %s", path, describe(in))
		return
	}
	out.Set(reflect.MakeMapWithSize(out.Type(), len(m)))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		elem := reflect.New(out.Type().Elem()).Elem()
		d.value(join(path, key), m[key], elem)
		out.SetMapIndex(reflect.ValueOf(key), elem)
	}
}

// list replaces the slice out. An array of tables comes as []map[string]any, one written inline as []any.
func (d *decoder) list(path string, in any, out reflect.Value) {
	var items []any
	switch in := in.(type) {
	case []any:
		items = in
	case []map[string]any:
		for _, m := range in {
			items = append(items, m)
		}
	default:
		d.bad(path, "%s must be a list, not %s", path, describe(in))
		return
	}
	out.Set(reflect.MakeSlice(out.Type(), len(items), len(items)))
	for i, item := range items {
		d.value(fmt.Sprintf("%s[%d]", path, i), item, out.Index(i))
	}
}

// setScalar puts a TOML value into a string, bool, int or duration. Its error reads on after the key's name.
func setScalar(in any, out reflect.Value) error {
	if out.Type() == reflect.TypeFor[time.Duration]() {
		s, ok := in.(string)
		if !ok {
			return fmt.Errorf(`must be a duration with its unit, such as "30s", not %s`, describe(in))
		}
		return setText(s, out)
	}
	switch out.Kind() {
	case reflect.String:
		if s, ok := in.(string); ok {
			return setText(s, out)
		}
		return fmt.Errorf("must be a string, not %s", describe(in))
	case reflect.Bool:
		if b, ok := in.(bool); ok {
			out.SetBool(b)
			return nil
		}
		return fmt.Errorf("must be true or false, not %s", describe(in))
	case reflect.Int:
		if i, ok := in.(int64); ok && i >= math.MinInt && i <= math.MaxInt {
			out.SetInt(i)
			return nil
		}
		return fmt.Errorf("must be a whole number, not %s", describe(in))
	}
	return fmt.Errorf("can't be set (%s)", out.Type())
}

// setText puts a text, as an environment variable holds it, into a string, bool, int or duration.
func setText(text string, out reflect.Value) error {
	if strings.ContainsRune(text, 0) {
		return errors.New("must not contain a NUL") // no path, argument or variable can
	}
	if out.Type() == reflect.TypeFor[time.Duration]() {
		v, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf(`must be a duration with its unit, such as "30s", not %q`, text)
		}
		out.SetInt(int64(v))
		return nil
	}
	switch out.Kind() {
	case reflect.String:
		out.SetString(text)
	case reflect.Bool:
		switch strings.ToLower(text) {
		case "true":
			out.SetBool(true)
		case "false":
			out.SetBool(false)
		default:
			return fmt.Errorf("must be true or false, not %q", text)
		}
	case reflect.Int:
		v, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("must be a whole number, not %q", text)
		}
		out.SetInt(int64(v))
	default:
		return errors.New("is no single value: it can only be set in the file")
	}
	return nil
}

// describe names a TOML value in an error, shortly and without a secret's whole length.
func describe(in any) string {
	switch in := in.(type) {
	case string:
		return fmt.Sprintf("the string %.40q", in)
	case int64, float64, bool:
		return fmt.Sprint(in)
	case map[string]any:
		return "a table"
	case []any, []map[string]any:
		return "a list"
	}
	return "a date or time"
}

// fieldOf finds the field of a struct by its toml tag.
func fieldOf(v reflect.Value, key string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("toml") == key && key != "-" {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// allKeys lists every key below a struct type, tables included: "node", "node.name". What lies in arrays of tables
// and in versions is listed below the array: "snapshot.source.kind", "version.args".
func allKeys(t reflect.Type, path string) (keys []string) {
	for t.Kind() == reflect.Slice || (t.Kind() == reflect.Map && t.Elem().Kind() == reflect.Struct) {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	for i := range t.NumField() {
		if key := t.Field(i).Tag.Get("toml"); key != "" && key != "-" {
			keys = append(keys, join(path, key))
			keys = append(keys, allKeys(t.Field(i).Type, join(path, key))...)
		}
	}
	return keys
}

// suggestKey says what an unknown key in table was probably meant to be: ` (did you mean "name"?)`, or "". keys are
// all known keys, as full paths. A right key in the wrong table is the commonest mistake after a misspelt one.
func suggestKey(table, key string, keys []string) string {
	var here, elsewhere []string
	for _, k := range keys {
		i := strings.LastIndexByte(k, '.')
		if k[:max(i, 0)] == table {
			here = append(here, k[i+1:])
		} else if k[i+1:] == key {
			elsewhere = append(elsewhere, k[:max(i, 0)])
		}
	}
	if c := suggest.Closest(key, here); c != "" {
		return ` (did you mean "` + c + `"?)`
	}
	if len(elsewhere) > 0 && elsewhere[0] != "" {
		return ` (did you mean "` + key + `" in [` + elsewhere[0] + `]?)`
	}
	return ""
}
