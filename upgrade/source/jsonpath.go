package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// jsonPath is a way into a JSON document: string keys and int indices.
type jsonPath []any

// parsePath reads "result.sync_info.latest_block_height", "[0].height", "blocks[-1].n" (from the end). A leading "$" or
// "." as in jq and JSONPath is accepted.
func parsePath(s string) (jsonPath, error) {
	rest := strings.TrimPrefix(strings.TrimPrefix(s, "$"), ".")
	bad := func(why string) (jsonPath, error) { return nil, fmt.Errorf("path %q: %s", s, why) }
	if rest == "" {
		return bad("it is empty")
	}
	var path jsonPath
	for first := true; rest != ""; first = false {
		if rest[0] == '[' {
			index, after, ok := strings.Cut(rest[1:], "]")
			n, err := strconv.Atoi(index)
			if !ok || err != nil {
				return bad("[ must be followed by a whole number and ]")
			}
			path, rest = append(path, n), after
			continue
		}
		if !first {
			if rest[0] != '.' {
				return bad("] must be followed by . or [")
			}
			rest = rest[1:]
		}
		end := strings.IndexAny(rest, ".[")
		if end < 0 {
			end = len(rest)
		}
		if end == 0 {
			return bad("a key is empty")
		}
		path, rest = append(path, rest[:end]), rest[end:]
	}
	return path, nil
}

// errMissing means that a path leads nowhere in this document.
var errMissing = errors.New("not in the answer")

// lookUp decodes data and follows each path in turn; the first that leads somewhere decides.
func lookUp(data []byte, paths ...jsonPath) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var doc any
	if err := dec.Decode(&doc); err != nil {
		return nil, fmt.Errorf("the answer is no JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("the answer is more than one JSON document")
	}
	for _, p := range paths {
		if v, ok := p.follow(doc); ok {
			return v, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", paths[0], errMissing)
}

func (p jsonPath) follow(v any) (any, bool) {
	for _, step := range p {
		switch step := step.(type) {
		case string:
			object, _ := v.(map[string]any)
			next, ok := object[step]
			if !ok {
				return nil, false
			}
			v = next
		case int:
			list, _ := v.([]any)
			if step < 0 {
				step += len(list)
			}
			if step < 0 || step >= len(list) {
				return nil, false
			}
			v = list[step]
		}
	}
	return v, true
}

// String renders p as parsePath reads it.
func (p jsonPath) String() string {
	var b strings.Builder
	for _, step := range p {
		switch step := step.(type) {
		case string:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(step)
		case int:
			fmt.Fprintf(&b, "[%d]", step)
		}
	}
	return b.String()
}

// heightOf takes a JSON number or a string (decimal, or 0x and hexadecimal digits, as Ethereum's JSON-RPC writes
// quantities). Only whole numbers from 1 on are heights: nodes answer 0 while they have no block, which is "not known".
func heightOf(v any) (int64, error) {
	switch v := v.(type) {
	case json.Number:
		return parseHeight(v.String())
	case string:
		return parseHeight(v)
	}
	return 0, fmt.Errorf("the height is neither a number nor a string (%T)", v)
}

func parseHeight(s string) (int64, error) {
	digits, base := s, 10
	if hex, ok := strings.CutPrefix(s, "0x"); ok {
		digits, base = hex, 16
	}
	// ParseUint takes no sign, and with an explicit base no underscores. 63 bits: heights are int64 everywhere.
	h, err := strconv.ParseUint(digits, base, 63)
	if err != nil {
		return 0, fmt.Errorf("%.32q is no height", s)
	}
	if h == 0 {
		return 0, errNoBlock
	}
	return int64(h), nil
}

// errNoBlock is the answer of a node that is up and has no block yet.
var errNoBlock = errors.New("the node has no block yet")
