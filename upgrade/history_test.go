package upgrade

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

func finished(name string, begun time.Time, r Result) Finished {
	return Finished{Result: r, At: begun.Add(time.Minute), Upgrade: Upgrade{
		Plan: Plan{Name: name, Height: 100, Source: FromFile}, From: Genesis, To: VersionOf(name), Phase: Committed, Begun: begun,
		Down: begun, Up: begun.Add(41 * time.Millisecond),
	}}
}

func TestHistoryIsOrderedWhateverTheClock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "history")
	none, err := LoadHistory(dir)
	require.NoError(t, err)
	assert.Empty(t, none)

	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for i, name := range []string{"v2", "v3", "my upgrade"} {
		require.NoError(t, saveHistory(dir, finished(name, at.Add(-time.Duration(i)*time.Hour), ResultCommitted)), "the clock runs backwards")
	}
	all, err := LoadHistory(dir)
	require.NoError(t, err)
	require.Len(t, all, 3)
	assert.Equal(t, []string{"my upgrade", "v3", "v2"}, []string{all[0].Upgrade.Plan.Name, all[1].Upgrade.Plan.Name, all[2].Upgrade.Plan.Name})
	assert.FileExists(t, filepath.Join(dir, "000003-my%20upgrade.json"))
	assert.Equal(t, 41*time.Millisecond, all[0].Upgrade.Downtime())
}

func TestHistoryOfTheSameUpgradeIsOneDocument(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "history")
	at := time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC)
	f := finished("v2", at, ResultCommitted)
	require.NoError(t, saveHistory(dir, f))
	f.At = f.At.Add(time.Hour) // a crash between history and journal, and a later recovery
	require.NoError(t, saveHistory(dir, f))
	all, err := LoadHistory(dir)
	require.NoError(t, err)
	require.Len(t, all, 1)

	require.NoError(t, saveHistory(dir, finished("v2", at, ResultRolledBack)))
	require.NoError(t, saveHistory(dir, finished("v2", at.Add(time.Hour), ResultCommitted)))
	all, err = LoadHistory(dir)
	require.NoError(t, err)
	assert.Len(t, all, 3, "another result, or another upgrade to the same version, is another document")
}

func TestHistoryKeepsWhatItDoesNotKnow(t *testing.T) {
	dir := t.TempDir()
	at := time.Now()
	require.NoError(t, saveHistory(dir, finished("v2", at, ResultCommitted)))
	for name, text := range map[string]string{"000007-broken.json": "{", "zzzzzz-notes.json": "{}", "README": "x", "000009-dir.json.bak": "{}"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	require.NoError(t, saveHistory(dir, finished("v3", at, ResultCommitted)))
	assert.FileExists(t, filepath.Join(dir, "000008-v3.json"), "after the last number, also that of a broken document")
	all, err := LoadHistory(dir)
	require.NoError(t, err)
	require.Len(t, all, 2, "what can't be read is left out")
	for _, name := range []string{"000007-broken.json", "zzzzzz-notes.json", "README"} {
		assert.FileExists(t, filepath.Join(dir, name))
	}
}

// A name may fill a file name alone: then the sequence number and the ending have no room beside it.
func TestHistoryOfTheLongestName(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, saveHistory(dir, finished(strings.Repeat("x", maxNameBytes), time.Now(), ResultCommitted)))
	all, err := LoadHistory(dir)
	require.NoError(t, err)
	require.Len(t, all, 1)
	assert.Len(t, all[0].Upgrade.Plan.Name, maxNameBytes)
}

func TestDowntimeIsNeverNegative(t *testing.T) {
	at := time.Now()
	assert.Zero(t, Upgrade{}.Downtime())
	assert.Zero(t, Upgrade{Up: at}.Downtime())
	assert.Zero(t, Upgrade{Down: at, Up: at.Add(-time.Hour)}.Downtime())
}

func TestScheduleRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "supervisor", "schedule.json")
	s, err := LoadSchedule(path)
	require.NoError(t, err, "a missing schedule is an empty one")
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s.Add(Plan{Name: "late", Time: at, Source: FromOperator})
	s.Add(Plan{Name: "v4", Height: 400, Source: FromOperator})
	s.Add(Plan{Name: "v3", Height: 300, Info: "{}", Source: FromOperator})
	s.AddSkip(Skip{Name: "v2", Height: 200, Since: at, Why: "operator"})
	s.Halt = &Halt{Height: 350}
	s.Imported = map[string]string{"batch": "digest"}
	require.NoError(t, s.Save(path))
	back, err := LoadSchedule(path)
	require.NoError(t, err)
	assert.Equal(t, s, back)
	assert.Equal(t, []string{"v3", "v4", "late"}, []string{s.Plans[0].Name, s.Plans[1].Name, s.Plans[2].Name}, "heights, then times")

	s.Add(Plan{Name: "v3", Height: 310, Source: FromOperator})
	require.Len(t, s.Plans, 3, "one plan per name")
	assert.True(t, s.Has("v3"))
	assert.True(t, s.Cancel("v3"))
	assert.False(t, s.Cancel("v3"))
	assert.False(t, s.Has("v3"))
}

func TestScheduleSkips(t *testing.T) {
	var s Schedule
	s.AddSkip(Skip{Name: "v2", Height: 200})
	s.AddSkip(Skip{Name: "v3"})
	for _, c := range []struct {
		p    Plan
		want bool
	}{
		{Plan{Name: "v2", Height: 200}, true},
		{Plan{Name: "v2", Height: 201}, false},
		{Plan{Name: "v2"}, true},
		{Plan{Name: "v3", Height: 7}, true},
		{Plan{Name: "v4", Height: 200}, false},
	} {
		assert.Equal(t, c.want, s.Skips(c.p), "%s at %d", c.p.Name, c.p.Height)
	}
	s.Unskip("v3")
	assert.False(t, s.Skips(Plan{Name: "v3", Height: 7}))
}

func TestUnusableScheduleIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "schedule.json")
	for name, doc := range map[string]string{
		"empty": "", "cut off": `{"schema":1,"plans":[`, "schema 99": `{"schema":99}`, "no schema": `{}`, "garbage behind": `{"schema":1}x`,
		"a name that leaves the tree": `{"schema":1,"plans":[{"name":"..","height":5}]}`,
		"a negative height":           `{"schema":1,"plans":[{"name":"v2","height":-5}]}`,
		"a height that is misspelt":   `{"schema":1,"plans":[{"name":"v2","heigth":5}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(path, []byte(doc), 0o600))
			_, err := LoadSchedule(path)
			require.ErrorIs(t, err, ErrJournal)
			assert.Contains(t, hint.Of(err), path)
		})
	}
	good := `{"schema":1,"plans":[{"name":"v2","height":5}],"skip":null,"halt":null}`
	for n := range good {
		require.NoError(t, os.WriteFile(path, []byte(good[:n]), 0o600))
		_, err := LoadSchedule(path)
		require.ErrorIs(t, err, ErrJournal, fmt.Sprint("cut after ", n))
	}
}

// Which version's data a snapshot holds: the history knows, whatever is current now.
func TestVersionThen(t *testing.T) {
	at := func(minute int) time.Time { return time.Date(2026, 5, 1, 0, minute, 0, 0, time.UTC) }
	flight := Finished{At: at(60), Upgrade: Upgrade{From: "upgrades/v4", To: "upgrades/v5", Snapshot: "five", Begun: at(50), Up: at(52)}}
	all := []Finished{
		flight,
		{Result: ResultUsed, At: at(40), Upgrade: Upgrade{From: "upgrades/v2", To: "upgrades/v4"}},
		{Result: ResultRolledBack, At: at(33), Upgrade: Upgrade{From: "upgrades/v2", To: "upgrades/v3", Snapshot: "three", Up: at(30)}},
		{Result: ResultSkipped, At: at(25), Upgrade: Upgrade{To: "upgrades/never"}},
		{Result: ResultCommitted, At: at(22), Upgrade: Upgrade{From: "genesis", To: "upgrades/v2", Snapshot: "two", Up: at(20)}},
	}
	for _, c := range []struct {
		snapshot string
		minute   int
		want     Version
	}{
		{"a", 5, "genesis"},
		{"two", 19, "genesis"},
		{"two", 55, "genesis"}, // by its id, also where the clock was set back
		{"b", 21, "upgrades/v2"},
		{"c", 24, "upgrades/v2"},
		{"d", 26, "upgrades/v2"},
		{"three", 29, "upgrades/v2"},
		{"e", 31, "upgrades/v3"}, // of the attempt that failed
		{"f", 35, "upgrades/v2"},
		{"g", 41, "upgrades/v4"},
		{"five", 51, "upgrades/v4"},
		{"h", 55, "upgrades/v5"},
		{"i", 61, "upgrades/v5"},
	} {
		assert.Equal(t, c.want, VersionThen(all, "upgrades/v5", c.snapshot, at(c.minute)), "%s at %d", c.snapshot, c.minute)
	}
	assert.Equal(t, Version("genesis"), VersionThen(nil, "genesis", "x", at(1)))
}
