package bench

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A unit is what a series is measured in.
type unit int

const (
	millis    unit = iota // of time, in seconds
	bytes                 // in megabytes, 10^6
	mebibytes             // of bytes, in 2^20
	count
)

// A series is one figure, measured several times.
type series struct {
	unit    unit
	samples []float64
}

// add records a sample: a time.Duration, or a number of the unit.
func (s *series) add(v float64)         { s.samples = append(s.samples, v) }
func (s *series) took(d time.Duration)  { s.add(d.Seconds()) }
func (s *series) since(begin time.Time) { s.took(time.Since(begin)) }
func (s *series) quantile(q float64) float64 {
	if s == nil || len(s.samples) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s.samples))
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

func (s *series) median() float64 { return s.quantile(0.5) }

func (u unit) format(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case u == count:
		return fmt.Sprintf("%.0f", v)
	case u == mebibytes:
		return fmt.Sprintf("%.1f MiB", v/(1<<20))
	case u == bytes && v >= 10e6:
		return fmt.Sprintf("%.1f MB", v/1e6)
	case u == bytes:
		return fmt.Sprintf("%.2f MB", v/1e6)
	case v < 0.01:
		return fmt.Sprintf("%.2f ms", v*1e3)
	case v < 1:
		return fmt.Sprintf("%.1f ms", v*1e3)
	}
	return fmt.Sprintf("%.2f s", v)
}

// String is the median, and behind it the range, where there is one.
func (s *series) String() string {
	text := s.unit.format(s.median())
	low, high := s.unit.format(s.quantile(0)), s.unit.format(s.quantile(1))
	if low != high {
		text += fmt.Sprintf(" (%s – %s)", low, high)
	}
	return text
}

// A row compares a figure of ours with one of something else.
type row struct {
	what  string
	ours  *series
	other *series // nil: there is nothing to compare with
	name  string  // of the other, where the table has no one name for it
}

// ratio is how many times the other's figure is ours.
func (r row) ratio() string {
	ratio := r.other.median() / r.ours.median()
	switch {
	case r.other == nil || math.IsNaN(ratio) || math.IsInf(ratio, 0):
		return "–"
	case ratio < 10:
		return fmt.Sprintf("%.2f", ratio)
	}
	return fmt.Sprintf("%.0f", ratio)
}

// A table is one part.
type table struct {
	other string // heads the column beside ours
	rows  []row
}

// compare adds a row, whose series are filled later.
func (tab *table) compare(what, name string, u unit, beside *series) *series {
	ours := &series{unit: u}
	tab.rows = append(tab.rows, row{what: what, ours: ours, other: beside, name: name})
	return ours
}

func (tab *table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| median (range) | Nodevisor | %s | ratio |\n| --- | --- | --- | --- |\n", tab.other)
	for _, r := range tab.rows {
		other := "–"
		if r.other != nil {
			other = strings.TrimSpace(r.name + " " + r.other.String())
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.what, r.ours, other, r.ratio())
	}
	return b.String()
}

// replaceSection puts text between the marks of a part in a page.
func replaceSection(path, part, text string) error {
	begin, end := "<!-- begin: make bench WRITE=1 PARTS="+part+" -->\n", "<!-- end: "+part+" -->\n"
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, begun := strings.Cut(string(page), begin)
	_, after, ended := strings.Cut(rest, end)
	if !begun || !ended {
		return errors.New(path + " lacks the marks of part " + part)
	}
	return os.WriteFile(path, []byte(before+begin+"\n"+text+"\n"+end+after), 0o644)
}

func TestSeries(t *testing.T) {
	s := &series{}
	assert.Equal(t, "–", s.String())
	s.took(3 * time.Millisecond)
	assert.Equal(t, "3.00 ms", s.String())
	for _, v := range []float64{0.001, 0.5, 2, 0.004} {
		s.add(v)
	}
	assert.Equal(t, "4.00 ms (1.00 ms – 2.00 s)", s.String())
	assert.InDelta(t, 0.5, s.quantile(0.75), 1e-9)
	assert.Equal(t, "12.3 MB", (&series{unit: bytes, samples: []float64{12.34e6}}).String())
	assert.Equal(t, "1.50 MB", (&series{unit: bytes, samples: []float64{1.5e6}}).String())
	assert.Equal(t, "7", (&series{unit: count, samples: []float64{7}}).String())
	assert.Equal(t, 2.5, (&series{samples: []float64{1, 2, 3, 4}}).median(), "of an even number: between the two")
}

func TestTable(t *testing.T) {
	peer := &series{samples: []float64{0.15}}
	tab := &table{other: "peer"}
	tab.compare("a", "", millis, peer).took(10 * time.Millisecond)
	tab.compare("b", "gzip", millis, peer).took(600 * time.Millisecond)
	tab.compare("c", "", count, nil).add(0)
	assert.Equal(t, "| median (range) | Nodevisor | peer | ratio |\n| --- | --- | --- | --- |\n"+
		"| a | 10.0 ms | 150.0 ms | 15 |\n| b | 600.0 ms | gzip 150.0 ms | 0.25 |\n| c | 0 | – | – |\n", tab.String())
}

func TestReplaceSection(t *testing.T) {
	path := t.TempDir() + "/page.md"
	const other = "before\n<!-- begin: make bench WRITE=1 PARTS=b -->\n<!-- end: b -->\n"
	const begin, end = "<!-- begin: make bench WRITE=1 PARTS=a -->\n", "<!-- end: a -->\nafter\n"
	require.NoError(t, os.WriteFile(path, []byte(other+begin+"old\n"+end), 0o600))
	for _, text := range []string{"new\n", "newer\n"} {
		require.NoError(t, replaceSection(path, "a", text))
		page, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, other+begin+"\n"+text+"\n"+end, string(page))
	}
	assert.Error(t, replaceSection(path, "c", "new"))
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"7": 7, "3K": 3 << 10, "2M": 2 << 20, "1G": 1 << 30} {
		assert.Equal(t, want, parseSize(t, text))
	}
}
