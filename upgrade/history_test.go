package upgrade

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

func finished(name string, begun time.Time, r Result) Finished {
	return Finished{Result: r, At: begun.Add(time.Minute), Upgrade: Upgrade{
		Plan: plan.Plan{Name: name, Height: 100, Source: plan.FromFile}, From: version.Genesis, To: version.Of(name), Phase: Committed, Begun: begun,
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
	assert.Equal(t, []string{"000007-broken.json"}, DamagedHistory(dir), "and named")
	for _, name := range []string{"000007-broken.json", "zzzzzz-notes.json", "README"} {
		assert.FileExists(t, filepath.Join(dir, name))
	}
}

// A name may fill a file name alone: then the sequence number and the ending have no room beside it.
func TestHistoryOfTheLongestName(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, saveHistory(dir, finished(strings.Repeat("x", 255), time.Now(), ResultCommitted)))
	all, err := LoadHistory(dir)
	require.NoError(t, err)
	require.Len(t, all, 1)
	assert.Len(t, all[0].Upgrade.Plan.Name, 255)
}

func TestDowntimeIsNeverNegative(t *testing.T) {
	at := time.Now()
	assert.Zero(t, Upgrade{}.Downtime())
	assert.Zero(t, Upgrade{Up: at}.Downtime())
	assert.Zero(t, Upgrade{Down: at, Up: at.Add(-time.Hour)}.Downtime())
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
		want     version.Version
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
	assert.Equal(t, version.Version("genesis"), VersionThen(nil, "genesis", "x", at(1)))
}

func TestSeen(t *testing.T) {
	for name, leave := range map[string]func(h *home){
		"the node's plan":          func(h *home) { h.announce("v2", 100) },
		"Cosmovisor's trace":       func(h *home) { h.write(h.l.InfoPath("upgrades/v2"), "{}") },
		"trace of a blank":         func(h *home) { h.write(h.l.InfoPath("upgrades/my%20upgrade"), "") },
		"our history":              func(h *home) { h.write(filepath.Join(h.l.HistoryDir(), "000001-v2.json"), "{}") },
		"our journal":              func(h *home) { h.write(h.l.JournalPath(), "") },
		"a history without rights": func(h *home) { h.write(h.l.HistoryDir(), "a file in its place") },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.stage("upgrades/v2", "") // staged alone is no upgrade
			require.False(t, Seen(h.l))
			leave(h)
			assert.True(t, Seen(h.l))
		})
	}
	// A path is a path: what looks like a pattern in it is none.
	strange := layoutOf(filepath.Join(t.TempDir(), "[node]*?"))
	require.NoError(t, os.MkdirAll(strange.Dir("upgrades/v2"), 0o755))
	assert.False(t, Seen(strange))
	require.NoError(t, os.WriteFile(strange.InfoPath("upgrades/v2"), nil, 0o644))
	assert.True(t, Seen(strange))
	strange.Plan = ""
	assert.True(t, Seen(strange))
}
