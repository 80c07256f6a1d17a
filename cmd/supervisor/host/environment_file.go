package host

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"nodevisor/internal/capped"
)

// maxEnvironmentFile is the most that is read of one, in bytes.
const maxEnvironmentFile = 1 << 20

// readEnvironmentFiles reads what one EnvironmentFiles= of `systemctl show` names: "/path (ignore_errors=no)". The path
// may be a pattern; a missing file is an error unless the unit says "-" before it.
func readEnvironmentFiles(value string, env map[string]string) error {
	path, ignore := value, false
	if i := strings.LastIndex(value, " (ignore_errors="); i >= 0 {
		path, ignore = value[:i], strings.HasPrefix(value[i:], " (ignore_errors=yes")
	}
	files := []string{path}
	if found, err := filepath.Glob(path); err == nil && len(found) > 0 {
		files = found
	}
	slices.Sort(files)
	for _, file := range files {
		text, err := capped.ReadFile(file, maxEnvironmentFile)
		if ignore && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot read environment file: %w", err)
		}
		parseEnvironmentFile(text, env)
	}
	return nil
}

// parseEnvironmentFile reads NAME=value lines as systemd does (systemd.exec(5), "EnvironmentFile="): comments begin with
// # or ;, values may be quoted in part, a backslash at a line's end continues it. Lines that are no assignment are
// passed over, as systemd passes them over.
func parseEnvironmentFile(text string, env map[string]string) {
	text = strings.ReplaceAll(text, "\r\n", "\n")
	for text != "" {
		text = strings.TrimLeft(text, " \t\n\r")
		if text == "" {
			return
		}
		if text[0] == '#' || text[0] == ';' {
			_, text = cutComment(text)
			continue
		}
		end := strings.IndexAny(text, "=\n")
		if end < 0 {
			return
		}
		name := strings.TrimSpace(text[:end])
		isAssignment := text[end] == '='
		text = text[end+1:]
		if !isAssignment {
			continue
		}
		var value string
		value, text = environmentValue(text)
		if isVariable(name) {
			env[name] = value
		}
	}
}

// cutComment splits behind a comment's last line: a backslash continues it too.
func cutComment(text string) (comment, rest string) {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '\n':
			return text[:i], text[i+1:]
		}
	}
	return text, ""
}

// environmentValue reads one value up to the end of its last line.
func environmentValue(text string) (value, rest string) {
	var b strings.Builder
	kept := 0 // how much of b is not unquoted white space at the end
	text = strings.TrimLeft(text, " \t")
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '\n':
			return b.String()[:kept], text[i+1:]
		case '\\':
			if i++; i < len(text) && text[i] != '\n' {
				b.WriteByte(text[i])
				kept = b.Len()
			}
		case '\'', '"':
			i += quotedPart(&b, text[i:])
			kept = b.Len()
		default:
			b.WriteByte(c)
			if c != ' ' && c != '\t' {
				kept = b.Len()
			}
		}
	}
	return b.String()[:kept], ""
}

// quotedPart writes the quoted text that begins here and returns the offset of its closing quote. Within single quotes
// everything is literal; within double quotes a backslash takes the special meaning from "\`$ and joins lines.
func quotedPart(b *strings.Builder, text string) int {
	quote := text[0]
	i := 1
	for ; i < len(text) && text[i] != quote; i++ {
		if quote == '"' && text[i] == '\\' && i+1 < len(text) {
			i++
			if text[i] == '\n' {
				continue
			}
			if !strings.ContainsRune("\"\\`$", rune(text[i])) {
				b.WriteByte('\\')
			}
		}
		b.WriteByte(text[i])
	}
	return i
}
