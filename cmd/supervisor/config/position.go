package config

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// position is a place in a TOML document; both count from 1, the column in characters.
type position struct{ line, column int }

// keyPositions finds where each key and each table of a TOML document begins. Keys are joined by dots, tables of an
// array carry their index: "node.name", "snapshot.source[1].kind". A key within an inline table or an array has no
// entry: positionOf then gives its owner's.
//
// The decoder gives no positions for keys that it doesn't know, and only the last one for arrays of tables. The text
// is checked by the parser, so this reads only as much of the grammar as is needed to step over values
// (https://toml.io/en/v1.1.0); of any other text it makes something, but it never fails. depth is how deep the values
// are nested: the parser recurses, and a stack that overflows can't be caught.
func keyPositions(text string) (found map[string]position, depth int) {
	s := &keyScanner{text: text, found: map[string]position{}, arrays: map[string]int{}}
	for s.at < len(text) {
		switch text[s.at] {
		case '#':
			s.skipLine()
		case '[':
			s.header()
		case ' ', '\t', '\r', '\n', '=':
			s.at++
		default:
			s.pair()
		}
	}
	return s.found, s.deepest
}

// positionOf looks path up, or what it lies in. ok is false for a path of which nothing is known.
func positionOf(found map[string]position, path string) (p position, ok bool) {
	for path != "" {
		if p, ok = found[path]; ok {
			return p, true
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return position{}, false
}

type keyScanner struct {
	text   string
	at     int
	table  string
	found  map[string]position
	arrays map[string]int // how many tables an array has so far

	deepest        int
	counted, lines int // how many newlines lie before the offset counted
}

// record keeps the first place of a path: [a] after [a.b] is legal, and dotted keys open a table again and again.
func (s *keyScanner) record(path string, start int) {
	if _, ok := s.found[path]; !ok {
		// Starts only grow, so lines are counted on from the last one: a megabyte of keys stays cheap.
		s.lines += strings.Count(s.text[s.counted:start], "\n")
		s.counted = start
		lineStart := strings.LastIndexByte(s.text[:start], '\n') + 1
		s.found[path] = position{line: s.lines + 1, column: utf8.RuneCountInString(s.text[lineStart:start]) + 1}
	}
}

// header reads "[a.b]" or "[[a.b]]".
func (s *keyScanner) header() {
	start := s.at
	s.at++
	array := s.at < len(s.text) && s.text[s.at] == '['
	if array {
		s.at++
	}
	segments := s.key()
	s.table = ""
	for i, segment := range segments {
		s.table = join(s.table, segment)
		if last := i == len(segments)-1; last && array {
			s.arrays[s.table]++
		}
		if n := s.arrays[s.table]; n > 0 {
			s.table = fmt.Sprintf("%s[%d]", s.table, n-1)
		}
		s.record(s.table, start) // the tables above it too: they may have no header of their own
	}
	s.skipLine()
}

// pair reads "key = value".
func (s *keyScanner) pair() {
	start, path := s.at, s.table
	for _, segment := range s.key() {
		path = join(path, segment)
		s.record(path, start)
	}
	s.skipValue()
}

// key reads dotted segments, and always moves on.
func (s *keyScanner) key() (segments []string) {
	for s.at < len(s.text) {
		switch c := s.text[s.at]; c {
		case '=', ']', '\n':
			return segments
		case '"', '\'':
			start := s.at
			s.skipString()
			raw := strings.Trim(s.text[start:s.at], string(c))
			if c == '"' {
				raw = strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(raw)
			}
			segments = append(segments, raw)
		case '.', ' ', '\t', '\r':
			s.at++
		default:
			start := s.at
			for s.at < len(s.text) && !strings.ContainsRune("=].\"' \t\r\n", rune(s.text[s.at])) {
				s.at++
			}
			segments = append(segments, s.text[start:s.at])
		}
	}
	return segments
}

// skipValue moves to the end of the line that a value ends in: strings and brackets may span several.
func (s *keyScanner) skipValue() {
	for depth := 0; s.at < len(s.text); {
		switch s.text[s.at] {
		case '"', '\'':
			s.skipString()
			continue
		case '#':
			s.skipLine()
			if depth <= 0 {
				return
			}
			continue
		case '[', '{':
			depth++
			s.deepest = max(s.deepest, depth)
		case ']', '}':
			depth--
		case '\n':
			if depth <= 0 {
				return
			}
		}
		s.at++
	}
}

// skipString moves behind the string that begins here: basic or literal, on one line or on several.
func (s *keyScanner) skipString() {
	quote := s.text[s.at : s.at+1]
	basic := quote == `"`
	if long := strings.Repeat(quote, 3); strings.HasPrefix(s.text[s.at:], long) {
		quote = long
	}
	s.at += len(quote)
	for s.at < len(s.text) {
		switch {
		case strings.HasPrefix(s.text[s.at:], quote):
			s.at += len(quote)
			for len(quote) == 3 && s.at < len(s.text) && s.text[s.at] == quote[0] {
				s.at++ // up to two quotes may stand right before the closing ones
			}
			return
		case len(quote) == 1 && s.text[s.at] == '\n':
			return
		case basic && s.text[s.at] == '\\' && s.at+1 < len(s.text):
			s.at += 2
		default:
			s.at++
		}
	}
}

func (s *keyScanner) skipLine() {
	if i := strings.IndexByte(s.text[s.at:], '\n'); i >= 0 {
		s.at += i + 1
	} else {
		s.at = len(s.text)
	}
}

// join appends a segment to a path.
func join(path, segment string) string {
	if path == "" {
		return segment
	}
	return path + "." + segment
}
