package genesis

import (
	"encoding/json"
	"maps"
	"slices"
)

// render appends v in canonical form. newline is "" for one line, else a line break and the indentation so far; indent is
// one step of it.
func render(b []byte, v any, newline, indent string) []byte {
	switch v := v.(type) {
	case map[string]any:
		keys := slices.Sorted(maps.Keys(v))
		return list(b, '{', '}', len(keys), newline, indent, func(b []byte, i int, inner string) []byte {
			b = append(renderText(b, keys[i]), ':')
			if newline != "" {
				b = append(b, ' ')
			}
			return render(b, v[keys[i]], inner, indent)
		})
	case []any:
		return list(b, '[', ']', len(v), newline, indent, func(b []byte, i int, inner string) []byte {
			return render(b, v[i], inner, indent)
		})
	case string:
		return renderText(b, v)
	case json.Number:
		return append(b, v...)
	case bool:
		if v {
			return append(b, "true"...)
		}
		return append(b, "false"...)
	}
	return append(b, "null"...)
}

func list(b []byte, opening, closing byte, n int, newline, indent string, item func(b []byte, i int, inner string) []byte) []byte {
	b = append(b, opening)
	inner := newline
	if newline != "" {
		inner += indent
	}
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = item(append(b, inner...), i, inner)
	}
	if n > 0 {
		b = append(b, newline...)
	}
	return append(b, closing)
}

// renderText escapes the quote, the backslash and control characters, as RFC 8785 section 3.2.2.2 does, and nothing else:
// encoding/json also escapes <, >, & and two line separators.
func renderText(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	short := map[byte]byte{'"': '"', '\\': '\\', '\b': 'b', '\t': 't', '\n': 'n', '\f': 'f', '\r': 'r'}
	b = append(b, '"')
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		if e, ok := short[c]; ok {
			b = append(b, '\\', e)
		} else {
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
	}
	return append(append(b, s[from:]...), '"')
}
