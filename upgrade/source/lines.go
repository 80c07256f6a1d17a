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
	pattern *regexp.Regexp // nil = no heights in this node's log
	group   int

	mu     sync.Mutex
	needed Needed
	height int64 // 0 = none seen
	at     time.Time
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
	return &Lines{pattern: re, group: group}, nil
}

// Line takes one line of the node's output, with or without its end. It does not keep line.
func (l *Lines) Line(line []byte) {
	line = line[:min(len(line), maxLine)]
	if name, height, ok := findNeeded(line); ok {
		l.mu.Lock()
		l.needed = Needed{Name: name, Height: height, At: time.Now()}
		l.mu.Unlock()
	}
	if l.pattern == nil {
		return
	}
	m := l.pattern.FindSubmatch(stripColours(bytes.TrimRight(line, "\r\n")))
	if m == nil {
		return
	}
	if h, err := parseHeight(string(m[l.group])); err == nil {
		l.mu.Lock()
		l.height, l.at = h, time.Now()
		l.mu.Unlock()
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
	neededVerb   = []byte("UPGRADE ")
	neededHeight = regexp.MustCompile(`^\\*"(.{1,512}?)\\*" NEEDED at height: ?([0-9]{1,19})(?:[^0-9]|$)`)
)

// findNeeded returns the last announcement in line. Lines without the word cost one search for a fixed string.
func findNeeded(line []byte) (name string, height int64, ok bool) {
	if !bytes.Contains(line, neededVerb) {
		return "", 0, false
	}
	line = stripColours(line)
	for {
		i := bytes.Index(line, neededVerb)
		if i < 0 {
			return name, height, ok
		}
		line = line[i+len(neededVerb):]
		if m := neededHeight.FindSubmatch(line); m != nil {
			if h, err := strconv.ParseInt(string(m[2]), 10, 64); err == nil && h > 0 {
				name, height, ok = string(m[1]), h, true
			}
		}
	}
}

// colours are the terminal's SGR sequences, plain and as JSON escapes them.
var colours = regexp.MustCompile(`(?:\x1b|\\+u001[bB]|\\+x1[bB])\[[0-9;]*m`)

func stripColours(line []byte) []byte {
	if bytes.IndexByte(line, 0x1b) < 0 && !bytes.Contains(line, []byte("1b[")) && !bytes.Contains(line, []byte("1B[")) {
		return line
	}
	return colours.ReplaceAll(line, nil)
}
