// Package genesis knows genesis documents and the templates that are made of them: a document from which a new network
// can start, made at a stop, beside the snapshot that it belongs to; and the marker of a root that was made from one.
//
// A document is data of strangers: it is read with limits, two values under one key are refused, and what is not known is
// kept. Numbers stay as they are written, because 10^18 tokens don't fit into a float.
package genesis

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"nodevisor/internal/capped"
	"nodevisor/internal/hint"
)

const (
	// MaxDocument is the most that is read of a document, in bytes: exported states are of some hundred megabytes.
	MaxDocument = 1 << 30
	// maxDepth is how deep objects and arrays may be nested. Real states need about 20.
	maxDepth = 128
)

// Document is a genesis document: one JSON object. Its values are nil, bool, json.Number, string, []any and
// map[string]any.
type Document struct{ fields map[string]any }

// Parse reads one JSON object. It refuses what encoding/json lets pass: a key that comes twice, text that isn't UTF-8,
// half a surrogate pair, and nesting beyond 128 levels. Nothing may follow the object.
func Parse(data []byte) (*Document, error) {
	v, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("cannot read genesis document: %w", err)
	}
	fields, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("cannot read genesis document: it is no JSON object")
	}
	return &Document{fields}, nil
}

// ReadFile reads the document in a regular file, and gives its bytes too. Errors are *hint.Error.
func ReadFile(path string) (*Document, []byte, error) {
	data, err := capped.ReadBytes(path, MaxDocument)
	if err != nil {
		return nil, nil, &hint.Error{Op: "read genesis document", Path: path, Err: hint.Cause(err), Hint: "give the path of a genesis document"}
	}
	d, err := Parse(data)
	if err != nil {
		return nil, nil, &hint.Error{Op: "use", Path: path, Err: err, Hint: "copy the file again, and compare it with its SHA256SUMS"}
	}
	return d, data, nil
}

// OpenRegular opens a regular file; a FIFO or a device, which could block or never end, is refused. The path is the caller's
// to say.
func OpenRegular(path string) (*os.File, error) {
	f, err := capped.Open(path)
	return f, hint.Cause(err)
}

// Canonical is the document in the one form that its meaning has: keys sorted by their bytes, no blanks, text as UTF-8
// with only what JSON demands escaped, numbers as they are written.
func (d *Document) Canonical() []byte { return render(nil, d.fields, "", "") }

// Hash is the SHA-256 of the canonical form, in hexadecimal: the line that operators compare. Order of keys and blanks
// have no part in it.
func (d *Document) Hash() string { return digest(d.Canonical()) }

// Text is the document for a file: the canonical order, indented, so that equal documents are equal files.
func (d *Document) Text() []byte { return append(render(nil, d.fields, "\n", "  "), '\n') }

// Fields gives the top-level members, for those who know their shape. They must not be changed.
func (d *Document) Fields() map[string]any { return d.fields }

// ChainID is the chain's name; "" where there is none.
func (d *Document) ChainID() string {
	id, _ := d.fields["chain_id"].(string)
	return id
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// parse checks the syntax with encoding/json and then builds the value itself: that package keeps the last of two equal
// keys, and replaces what is no UTF-8.
func parse(data []byte) (any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("it is not UTF-8 text")
	}
	if err := json.Unmarshal(data, new(json.RawMessage)); err != nil {
		if at := (*json.SyntaxError)(nil); errors.As(err, &at) {
			return nil, fmt.Errorf("byte %d: %w", at.Offset, err)
		}
		return nil, err
	}
	p := parser{data: data}
	return p.value(0)
}

// parser walks over text whose syntax is known to be right.
type parser struct {
	data []byte
	at   int
}

func (p *parser) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("byte %d: nested more than %d deep", p.at, maxDepth)
	}
	switch p.peek() {
	case '{':
		return p.object(depth)
	case '[':
		return p.array(depth)
	case '"':
		return p.text()
	}
	start := p.at
	for p.at < len(p.data) && bytes.IndexByte([]byte(",]} \t\r\n"), p.data[p.at]) < 0 {
		p.at++
	}
	switch word := string(p.data[start:p.at]); word {
	case "null":
		return nil, nil
	case "true", "false":
		return word == "true", nil
	default:
		return json.Number(word), nil
	}
}

// peek passes over blanks and gives the next byte.
func (p *parser) peek() byte {
	for p.data[p.at] == ' ' || p.data[p.at] == '\t' || p.data[p.at] == '\r' || p.data[p.at] == '\n' {
		p.at++
	}
	return p.data[p.at]
}

func (p *parser) object(depth int) (any, error) {
	p.at++
	all := map[string]any{}
	for p.peek() != '}' {
		if p.data[p.at] == ',' {
			p.at++
			p.peek()
		}
		begin := p.at
		key, err := p.text()
		if err != nil {
			return nil, err
		}
		if _, twice := all[key]; twice {
			return nil, fmt.Errorf("byte %d: the key %q comes twice", begin, key)
		}
		p.peek()
		p.at++ // the colon
		if all[key], err = p.value(depth + 1); err != nil {
			return nil, err
		}
	}
	p.at++
	return all, nil
}

func (p *parser) array(depth int) (any, error) {
	p.at++
	all := []any{}
	for p.peek() != ']' {
		if p.data[p.at] == ',' {
			p.at++
		}
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	p.at++
	return all, nil
}

func (p *parser) text() (string, error) {
	begin := p.at
	p.at++
	escaped := false
	for p.data[p.at] != '"' {
		if p.data[p.at] == '\\' {
			escaped = true
			p.at++
		}
		p.at++
	}
	p.at++
	raw := p.data[begin:p.at]
	if !escaped {
		return string(raw[1 : len(raw)-1]), nil
	}
	if half(raw) {
		return "", fmt.Errorf("byte %d: half a surrogate pair", begin)
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err
}

// half finds an escaped UTF-16 surrogate without its other half: it stands for no character.
func half(raw []byte) bool {
	for i := 0; i+1 < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		i++
		if raw[i] != 'u' {
			continue
		}
		switch r := codeUnit(raw[i+1:]); {
		case r < 0xd800 || r > 0xdfff:
			i += 4
		case r < 0xdc00 && bytes.HasPrefix(raw[i+5:], []byte(`\u`)) && codeUnit(raw[i+7:]) >= 0xdc00 && codeUnit(raw[i+7:]) <= 0xdfff:
			i += 10
		default:
			return true
		}
	}
	return false
}

func codeUnit(hexadecimal []byte) uint64 {
	n, _ := strconv.ParseUint(string(hexadecimal[:4]), 16, 32)
	return n
}

// shorten cuts a value for a line of text.
func shorten(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// Summary lists the fields, one line each, long values cut.
func (d *Document) Summary() []string {
	const longest = 100
	var lines []string
	for _, key := range slices.Sorted(maps.Keys(d.fields)) {
		switch v := d.fields[key].(type) {
		case map[string]any:
			text := shorten(string(raw(v)), longest)
			if len(v) > 8 {
				text = fmt.Sprintf("{%d members}", len(v))
			}
			lines = append(lines, key+": "+text)
		case []any:
			lines = append(lines, fmt.Sprintf("%s: [%d elements]", key, len(v)))
		default:
			lines = append(lines, key+": "+shorten(string(raw(v)), longest))
		}
	}
	return lines
}
