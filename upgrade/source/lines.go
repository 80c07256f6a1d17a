package source

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"sync"
	"time"
)

// maxLine is how much of a line is looked at, 64 KiB: what is looked for stands in short lines.
const maxLine = 64 << 10

// Needed is the node's own announcement that it stops for an upgrade.
type Needed struct {
	Name   string
	Height int64
	At     time.Time // when the line was seen
}

// Lines picks out of a node's output what tells of upgrades and heights. It keeps the last match of each, and is safe for
// concurrent use: stdout and stderr come from two readers.
//
// A line is evidence for a plan that is known from elsewhere, never a plan by itself: what peers and users send to a node
// can end up in its log.
type Lines struct {
	mu      sync.Mutex
	text    string         // the pattern as it was configured
	pattern *regexp.Regexp // nil = no heights in this node's log
	group   int
	needed  Needed
	height  int64 // 0 = none seen
	at      time.Time
}

// NewLines returns a Lines for the pattern of [height] log; "" looks for announcements alone.
func NewLines(pattern string) (*Lines, error) {
	if pattern == "" {
		return &Lines{}, nil
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("cannot use the pattern of [height] log: %w", err)
	}
	group := re.SubexpIndex("height")
	if group < 0 {
		return nil, fmt.Errorf("cannot use the pattern of [height] log: it has no group (?P<height>…)")
	}
	return &Lines{text: pattern, pattern: re, group: group}, nil
}

// Line takes one line of the node's output, with or without its end. It does not keep line.
func (l *Lines) Line(line []byte) {
	line = line[:min(len(line), maxLine)]
	if name, height, ok := findNeeded(line); ok {
		l.mu.Lock()
		l.needed = Needed{Name: name, Height: height, At: time.Now()}
		l.mu.Unlock()
	}
	l.mu.Lock()
	pattern, group := l.pattern, l.group
	l.mu.Unlock()
	if pattern == nil {
		return
	}
	m := pattern.FindSubmatch(stripColours(bytes.TrimRight(line, "\r\n")))
	if m == nil {
		return
	}
	if h, err := parseHeight(string(m[group])); err == nil {
		l.mu.Lock()
		l.height, l.at = h, time.Now()
		l.mu.Unlock()
	}
}

// Adopt takes the pattern of another Lines over; what the old one found isn't believed any more, if it was another one.
func (l *Lines) Adopt(from *Lines) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text != from.text {
		l.text, l.pattern, l.group, l.height = from.text, from.pattern, from.group, 0
	}
}

// Needed returns the last announcement that was seen.
func (l *Lines) Needed() (Needed, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.needed, l.needed.Height != 0
}

// Height returns the last height that the pattern found, and when.
func (l *Lines) Height() (height int64, at time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.height, l.at, l.height != 0
}

// Reset forgets everything: the lines of a process that ended say nothing of the next one, whose data may be another's.
func (l *Lines) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.needed, l.height, l.at = Needed{}, 0, time.Time{}
}

// The announcement as x/upgrade formats it: `UPGRADE "%s" NEEDED at %s: %s` with `height: %d` in the middle
// (cosmos-sdk, x/upgrade/abci.go). Between the node and us it may have been quoted, even twice, and coloured.
var (
	neededBegin = []byte("UPGRADE ")
	neededEnd   = []byte("\" NEEDED at height:")
)

const maxName = 512 // bytes; a version's name is a file's, and those have at most 255

// findNeeded returns the last announcement in line. Lines without its end cost one search for a fixed string. It is taken
// apart by hand, since the work must stay in proportion to the line whatever a peer manages to put there.
func findNeeded(line []byte) (name string, height int64, ok bool) {
	if !bytes.Contains(line, neededEnd[1:]) {
		return "", 0, false
	}
	for rest := stripColours(line); ; {
		end := bytes.Index(rest, neededEnd)
		if end < 0 {
			return name, height, ok
		}
		before, after := rest[max(0, end-maxName-len(neededBegin)-8):end], rest[end+len(neededEnd):]
		if n, h := nameBefore(before), heightAfter(after); n != "" && h > 0 {
			name, height, ok = n, h, true
		}
		rest = after
	}
}

// nameBefore returns what stands between the last `UPGRADE "` and the end of text, without the backslashes of quoting.
func nameBefore(text []byte) string {
	for end := len(text); ; {
		i := bytes.LastIndex(text[:end], neededBegin)
		if i < 0 {
			return ""
		}
		quoted := bytes.TrimLeft(text[i+len(neededBegin):], `\`)
		if name, ok := bytes.CutPrefix(quoted, []byte{'"'}); ok {
			return string(bytes.TrimRight(name, `\`))
		}
		end = i
	}
}

// heightAfter returns the whole number that text begins with, or 0.
func heightAfter(text []byte) int64 {
	text = bytes.TrimPrefix(text, []byte{' '})
	digits := 0
	for digits < len(text) && text[digits] >= '0' && text[digits] <= '9' {
		digits++
	}
	h, err := strconv.ParseInt(string(text[:digits]), 10, 64)
	if err != nil {
		return 0
	}
	return h
}

// colours are the terminal's SGR sequences, plain and as JSON escapes them.
var colours = regexp.MustCompile(`(?:\x1b|\\+u001[bB]|\\+x1[bB])\[[0-9;]*m`)

func stripColours(line []byte) []byte {
	if bytes.IndexByte(line, 0x1b) < 0 && !bytes.Contains(line, []byte("1b[")) && !bytes.Contains(line, []byte("1B[")) {
		return line
	}
	return colours.ReplaceAll(line, nil)
}
