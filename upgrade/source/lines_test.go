package source

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestLinesFindTheAnnouncement(t *testing.T) {
	for what, c := range map[string]struct {
		line   string
		name   string
		height int64
	}{
		"plain":            {`UPGRADE "v2" NEEDED at height: 32: {}`, "v2", 32},
		"no info":          {`UPGRADE "v2" NEEDED at height: 32`, "v2", 32},
		"line end":         {"UPGRADE \"v2\" NEEDED at height: 32\r\n", "v2", 32},
		"zerolog console":  {"\x1b[90m11:40PM\x1b[0m \x1b[31mERR\x1b[0m \x1b[1mUPGRADE \"V2-Demo\" NEEDED at height: 32: {}\x1b[0m \x1b[36mmodule=\x1b[0mx/upgrade", "V2-Demo", 32},
		"colour after H":   {"\x1b[31mUPGRADE \"v2\" NEEDED at height: 32\x1b[0m", "v2", 32},
		"zerolog json":     {`{"level":"error","module":"x/upgrade","message":"UPGRADE \"v2\" NEEDED at height: 32: {\"binaries\":{}}"}`, "v2", 32},
		"json with colour": {`{"message":"\u001b[31mUPGRADE \"v2\" NEEDED at height: 32\u001b[0m"}`, "v2", 32},
		"quoted in json":   {`{"err":"panic: \"UPGRADE \\\"v2\\\" NEEDED at height: 32: \""}`, "v2", 32},
		"at the start":     {`error during handshake: error on replay: UPGRADE "v2" NEEDED at height: 32: info`, "v2", 32},
		"logfmt":           {`E[2026-01-01|00:00:00.000] CONSENSUS FAILURE!!! module=consensus err="UPGRADE \"v2\" NEEDED at height: 32: " stack="goroutine 1"`, "v2", 32},
		"panic":            {`panic: UPGRADE "v6.3.0" NEEDED at height: 191111111: upgrade`, "v6.3.0", 191111111},
		"name with blanks": {`UPGRADE "The Big One" NEEDED at height: 7: `, "The Big One", 7},
		"the last of two":  {`UPGRADE "v2" NEEDED at height: 32: UPGRADE "v3" NEEDED at height: 64: `, "v3", 64},
		"long line":        {`UPGRADE "v2" NEEDED at height: 32: ` + strings.Repeat("x", 1<<20), "v2", 32},
		"nothing":          {`INF executed block height=32 module=state`, "", 0},
		"empty":            {"", "", 0},
		"only a word":      {`UPGRADE `, "", 0},
		"by time":          {`UPGRADE "v2" NEEDED at time: 2026-01-01T00:00:00Z: `, "", 0},
		"no height":        {`UPGRADE "v2" NEEDED at height: soon`, "", 0},
		"height 0":         {`UPGRADE "v2" NEEDED at height: 0`, "", 0},
		"negative":         {`UPGRADE "v2" NEEDED at height: -5`, "", 0},
		"overflow":         {`UPGRADE "v2" NEEDED at height: 9999999999999999999`, "", 0},
		"20 digits":        {`UPGRADE "v2" NEEDED at height: 12345678901234567890`, "", 0},
		"plain word in it": {`UPGRADE "the UPGRADE two" NEEDED at height: 7`, "the UPGRADE two", 7},
		"no name":          {`UPGRADE "" NEEDED at height: 32`, "", 0},
		"no quotes":        {`UPGRADE v2 NEEDED at height: 32`, "", 0},
		"lower case":       {`upgrade "v2" needed at height: 32`, "", 0},
	} {
		l, err := NewLines("")
		require.NoError(t, err)
		l.Line([]byte(c.line))
		got, ok := l.Needed()
		assert.Equal(t, c.name, got.Name, what)
		assert.Equal(t, c.height, got.Height, what)
		assert.Equal(t, c.name != "", ok, what)
		assert.Equal(t, ok, !got.At.IsZero(), what)
	}
}

// A line that a peer filled with halves of announcements costs no more than any other.
func TestLinesStayQuick(t *testing.T) {
	l, err := NewLines("")
	require.NoError(t, err)
	for _, part := range []string{`UPGRADE "`, `UPGRADE \`, `UPGRADE "" NEEDED at height:`, `" NEEDED at height: 1`, "\x1b[", `\u001b[1m`} {
		line := []byte(strings.Repeat(part, maxLine/len(part)-8) + `" NEEDED at height: x`)
		began := worked(t)
		for range 3 {
			l.Line(line)
		}
		assert.Less(t, worked(t)-began, 3*time.Second, "%q", part)
	}
}

// worked is the processor time that this process has used: that of the clock is also everybody else's.
func worked(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestLinesFindHeights(t *testing.T) {
	l, err := NewLines(`height=(?P<height>\w+)( |$)`)
	require.NoError(t, err)
	_, _, ok := l.Height()
	assert.False(t, ok)
	for _, c := range []struct {
		line string
		want int64
	}{
		{"INF starting", 0},
		{"INF executed block height=12 module=state", 12},
		{"INF executed block \x1b[36mheight=\x1b[0m13 module=state", 13},
		{"INF executed block height=0x10", 16},
		{"INF executed block height=17\r\n", 17},
		{"ERR height=many ", 17},
		{"ERR height=0 ", 17},
		{"ERR height=99999999999999999999 ", 17},
		{"INF executed block height=5 module=state", 5},
	} {
		l.Line([]byte(c.line))
		got, _, ok := l.Height()
		assert.Equal(t, c.want, got, c.line)
		assert.Equal(t, c.want != 0, ok, c.line)
	}
	l.Line([]byte(`UPGRADE "v2" NEEDED at height: 32: {}`))
	l.Reset()
	_, _, ok = l.Height()
	assert.False(t, ok, "forgotten")
	_, ok = l.Needed()
	assert.False(t, ok, "forgotten")
}

// Another pattern finds in the same node's lines what it names; the height of the one before isn't believed any more.
func TestLinesAdoptAnotherPattern(t *testing.T) {
	l, err := NewLines("")
	require.NoError(t, err)
	line := []byte("block=7 tip=9\n")
	for _, c := range []struct {
		pattern string
		want    int64
	}{{`block=(?P<height>\d+)`, 7}, {`tip=(?P<height>\d+)`, 9}, {"", 0}} {
		other, err := NewLines(c.pattern)
		require.NoError(t, err)
		l.Adopt(other)
		_, _, ok := l.Height()
		assert.False(t, ok, c.pattern)
		l.Line(line)
		l.Adopt(other)
		h, _, ok := l.Height()
		assert.Equal(t, c.want, h, "the same pattern again changes nothing")
		assert.Equal(t, c.want != 0, ok, c.pattern)
	}
}

func TestNewLinesRefuses(t *testing.T) {
	for _, pattern := range []string{`height=(`, `height=(\d+)`, `height=(?P<h>\d+)`} {
		_, err := NewLines(pattern)
		assert.Error(t, err, pattern)
		assert.Error(t, Config{Log: pattern}.Validate(), pattern)
	}
}

// The line is the tee's buffer, which is used again.
func TestLinesKeepNothingOfTheLine(t *testing.T) {
	l, err := NewLines(`h=(?P<height>\d+)`)
	require.NoError(t, err)
	line := []byte(`h=5 UPGRADE "v2" NEEDED at height: 32`)
	l.Line(line)
	for i := range line {
		line[i] = 'x'
	}
	got, _ := l.Needed()
	assert.Equal(t, "v2", got.Name)
}

func TestLinesFromSeveralReaders(t *testing.T) {
	l, err := NewLines(`h=(?P<height>\d+)`)
	require.NoError(t, err)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 200 {
				l.Line(fmt.Appendf(nil, `h=%d UPGRADE "v%d" NEEDED at height: %d`, i+1, i+1, i+1))
				if n, ok := l.Needed(); ok {
					assert.Equal(t, fmt.Sprintf("v%d", n.Height), n.Name, "both of one line")
				}
				_, _, _ = l.Height()
			}
		})
	}
	wg.Wait()
	h, _, _ := l.Height()
	assert.EqualValues(t, 200, h)
}

func FuzzLines(f *testing.F) {
	f.Add([]byte(`UPGRADE "v2" NEEDED at height: 32: {}`))
	f.Add([]byte(`{"message":"\u001b[1mUPGRADE \"v2\" NEEDED at height: 32\u001b[0m"}`))
	f.Add([]byte("\x1b[36mheight=\x1b[0m13 UPGRADE UPGRADE \"\xff\" NEEDED at height: 1"))
	f.Fuzz(func(t *testing.T, line []byte) {
		l, err := NewLines(`height=(?P<height>\S+)`)
		require.NoError(t, err)
		before := bytes.Clone(line)
		l.Line(line)
		require.Equal(t, before, line, "the tee's bytes are not changed")
		if n, ok := l.Needed(); ok {
			require.Positive(t, n.Height)
			require.NotEmpty(t, n.Name)
			require.Contains(t, string(stripColours(line)), n.Name)
		}
		if h, _, ok := l.Height(); ok {
			require.Positive(t, h)
		}
	})
}

func BenchmarkLines(b *testing.B) {
	l, err := NewLines(`executed block .*height=(?P<height>\d+)`)
	require.NoError(b, err)
	for name, line := range map[string]string{
		"other":  "11:40PM INF received complete proposal block hash=A1B2C3D4E5F60718293A4B5C6D7E8F9001122334455667788 height=1234567 module=consensus",
		"height": "11:40PM INF executed block app_hash=A1B2 height=1234567 module=state num_valid_txs=12",
	} {
		b.Run(name, func(b *testing.B) {
			data := []byte(line)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				l.Line(data)
			}
		})
	}
}
