package systemd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"nodevisor/internal/hint"
)

// maxUnit caps what is read of a unit's file, in bytes.
const maxUnit = 1 << 20

// File is a unit as it lies on disk, with its drop-ins: its lines in the order in which systemd reads them.
type File struct {
	Path    string
	DropIns []string // the files that were read after Path, and are part of the lines
	lines   []line
}

// line is one assignment, or what stands between them.
type line struct {
	section    string
	key, value string // key "" = a comment or an empty line, which is raw
	raw        string
}

// Change is one difference between a unit and the migrated one.
type Change struct {
	Old, New string // lines; "" = none
	Why      string
}

// String is one line for people.
func (c Change) String() string {
	switch {
	case c.Old == "":
		return fmt.Sprintf("+ %s  (%s)", c.New, c.Why)
	case c.New == "":
		return fmt.Sprintf("- %s  (%s)", c.Old, c.Why)
	}
	return fmt.Sprintf("~ %s -> %s  (%s)", c.Old, c.New, c.Why)
}

// ReadFile reads a unit and its drop-ins: those beside it (FILE.d/*.conf), and of a unit that a package brought also those
// that an operator wrote.
func ReadFile(path string) (*File, error) {
	f := &File{Path: path}
	if err := f.read(path); err != nil {
		return nil, err
	}
	for _, dir := range dropInDirs(path) {
		found, _ := filepath.Glob(filepath.Join(dir, "*.conf")) // the pattern is well-formed
		slices.Sort(found)
		f.DropIns = append(f.DropIns, found...)
	}
	for _, d := range f.DropIns {
		if err := f.read(d); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// dropInDirs are the directories of a unit's drop-ins. `systemctl edit` writes to /etc, wherever the unit itself lies
// (systemd.unit(5), "UNIT FILE LOAD PATH").
func dropInDirs(path string) []string {
	dirs := []string{path + ".d"}
	switch filepath.Dir(path) {
	case "/lib/systemd/system", "/usr/lib/systemd/system", "/usr/local/lib/systemd/system":
		dirs = append(dirs, filepath.Join("/etc/systemd/system", filepath.Base(path)+".d"))
	}
	return dirs
}

func (f *File) read(path string) error {
	fail := func(err error) error {
		return &hint.Error{Op: "read unit", Path: path, Err: err, Hint: "systemctl cat NAME shows where a unit's files lie"}
	}
	file, err := os.Open(path)
	if err != nil {
		return fail(err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxUnit+1))
	switch {
	case err != nil:
		return fail(err)
	case len(text) > maxUnit:
		return fail(errors.New("larger than 1 MiB: no unit"))
	case bytes.IndexByte(text, 0) >= 0:
		return fail(errors.New("not a text"))
	}
	lines, err := parse(string(text))
	if err != nil {
		return fail(err)
	}
	if path == f.Path {
		f.lines = lines
		return nil
	}
	for _, l := range lines {
		if l.key != "" || l.raw != "" && !strings.HasPrefix(l.raw, "[") {
			f.insert(l)
		}
	}
	return nil
}

// parse reads the lines of one file: systemd.syntax(7). A line that ends with a backslash goes on with the next, if there is
// one.
func parse(text string) (lines []line, err error) {
	section, open := "", ""
	all := strings.Split(strings.TrimSuffix(strings.ReplaceAll(text, "\r\n", "\n"), "\n"), "\n")
	for n, raw := range all {
		last := n == len(all)-1
		trimmed := strings.TrimSpace(raw)
		comment := trimmed == "" || trimmed[0] == '#' || trimmed[0] == ';'
		switch {
		case open != "" && comment && trimmed != "": // comments within a line that goes on are dropped
			if !last {
				continue
			}
			trimmed = open
		case open != "":
			trimmed = open + " " + trimmed
		case comment:
			lines = append(lines, line{section: section, raw: trimmed})
			continue
		}
		open = ""
		if cut, ok := goesOn(trimmed); ok {
			if trimmed = strings.TrimSpace(cut); trimmed == "" || !last {
				open = trimmed
				continue
			}
		}
		if strings.HasPrefix(trimmed, "[") && strings.HasSuffix(trimmed, "]") {
			section = trimmed[1 : len(trimmed)-1]
			lines = append(lines, line{section: section, raw: trimmed})
			continue
		}
		key, value, ok := strings.Cut(trimmed, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if _, torn := goesOn(value); !ok || key == "" || section == "" || torn {
			return nil, fmt.Errorf("line %d: %.60q is no KEY=VALUE in a [Section]", n+1, trimmed)
		}
		lines = append(lines, line{section: section, key: key, value: value})
	}
	return lines, nil
}

// goesOn cuts the backslash off that makes the next line part of this one; two of them are one that is meant.
func goesOn(text string) (cut string, ok bool) {
	backslashes := len(text) - len(strings.TrimRight(text, `\`))
	if backslashes%2 == 0 {
		return text, false
	}
	return text[:len(text)-1], true
}

// insert puts a line at the end of its section, which is made where it is missing: before [Install], as people write it.
func (f *File) insert(l line) {
	at := -1
	for i, have := range f.lines {
		if have.section == l.section && (have.key != "" || have.raw != "") {
			at = i
		}
	}
	if at < 0 {
		at = slices.IndexFunc(f.lines, func(have line) bool { return have.section == "Install" }) - 1
		if at < 0 {
			at = len(f.lines) - 1
		}
		f.lines = slices.Insert(f.lines, at+1, line{section: l.section, raw: "[" + l.section + "]"}, l, line{section: l.section})
		return
	}
	f.lines = slices.Insert(f.lines, at+1, l)
}

// Values are what the unit assigns to a key, in order; an empty assignment forgets what came before.
func (f *File) Values(section, key string) (values []string) {
	for _, l := range f.lines {
		if l.section != section || l.key != key {
			continue
		}
		if l.value == "" {
			values = nil
			continue
		}
		values = append(values, l.value)
	}
	return values
}

// String is the unit's text.
func (f *File) String() string {
	var b strings.Builder
	for _, l := range f.lines {
		if l.key == "" {
			b.WriteString(l.raw + "\n")
		} else {
			b.WriteString(l.key + "=" + l.value + "\n")
		}
	}
	return b.String()
}

// set makes value the only one of a key, in the place of the last one that is there. nil: it was so.
func (f *File) set(s Setting) *Change {
	isKey := func(l line) bool { return l.section == s.Section && l.key == s.Key }
	var old []string
	last := -1
	for i, l := range f.lines {
		if isKey(l) {
			old = append(old, s.Key+"="+l.value)
			last = i
		}
	}
	now := s.Key + "=" + s.Value
	switch {
	case last < 0:
		f.insert(line{section: s.Section, key: s.Key, value: s.Value})
		return &Change{New: now, Why: s.Why}
	case len(old) == 1 && old[0] == now:
		return nil
	}
	f.lines[last].value = s.Value
	f.lines = append(slices.DeleteFunc(f.lines[:last:last], isKey), f.lines[last:]...)
	return &Change{Old: strings.Join(old, ", "), New: now, Why: s.Why}
}

// remove takes a key out of a section.
func (f *File) remove(section, key, why string) (changes []Change) {
	f.lines = slices.DeleteFunc(f.lines, func(l line) bool {
		gone := l.section == section && l.key == key
		if gone {
			changes = append(changes, Change{Old: key + "=" + l.value, Why: why})
		}
		return gone
	})
	return changes
}

// Words splits a value into its words: quotes of both kinds hold blanks together, anywhere in a word, and a backslash
// begins one of C's escapes, or takes the character after it as it is (systemd.syntax(7), "QUOTING").
func Words(value string) (words []string) {
	var word strings.Builder
	open, within := byte(0), false
	for value != "" {
		c := value[0]
		switch {
		case c == '\\' && len(value) > 1:
			value = escaped(&word, value)
			within = true
			continue
		case open != 0 && c == open:
			open = 0
		case open == 0 && (c == '"' || c == '\''):
			open, within = c, true
		case open == 0 && strings.IndexByte(" \t\n\r", c) >= 0:
			if within {
				words = append(words, word.String())
			}
			word.Reset()
			within = false
		default:
			word.WriteByte(c)
			within = true
		}
		value = value[1:]
	}
	if within {
		words = append(words, word.String())
	}
	return words
}

// escaped writes what the escape at the beginning of text stands for, and returns what follows it.
func escaped(word *strings.Builder, text string) (rest string) {
	if text[1] == 's' { // systemd's own
		word.WriteByte(' ')
		return text[2:]
	}
	c, multibyte, rest, err := strconv.UnquoteChar(text, 0)
	switch {
	case err != nil:
		word.WriteByte(text[1])
		return text[2:]
	case multibyte:
		word.WriteRune(c)
	default:
		word.WriteByte(byte(c))
	}
	return rest
}
