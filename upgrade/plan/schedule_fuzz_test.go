package plan

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"nodevisor/upgrade/state"
)

// TestWhatCantBeReadAgainIsNotScheduled: a request that a command would not make doesn't make the schedule unusable.
func TestWhatCantBeReadAgainIsNotScheduled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "schedule.json")
	require.NoError(t, Schedule{}.Save(path))
	for name, s := range map[string]Schedule{
		"a negative height": {Plans: []Plan{{Name: "v2", Height: -5}}}, "no height": {Plans: []Plan{{Name: "v2"}}},
		"a name":             {Plans: []Plan{{Name: "../v2", Height: 5}}},
		"a skipped name":     {Skip: []Skip{{Name: "a/b"}}},
		"another raw name":   {Plans: []Plan{{Name: "v2", RawName: "V3", Height: 5}}},
		"a halt nowhere":     {Halt: &Halt{}},
		"a halt in the past": {Halt: &Halt{Height: -1}},
	} {
		require.Error(t, s.Save(path), name)
	}
	_, err := LoadSchedule(path)
	require.NoError(t, err)
}

// FuzzSchedule: of a schedule that people edited, nothing is due before its height or time, and it is written as it was read.
func FuzzSchedule(f *testing.F) {
	for _, doc := range []string{
		`{"schema":1,"plans":[{"name":"v2","height":5,"source":"operator"},{"name":"late","time":"2100-03-01T12:00:00Z"}],"skip":null,"halt":null}`,
		`{"schema":1,"plans":[{"name":"v3","raw_name":"V3","height":9,"info":"{}","source":"file"}],"skip":[{"name":"v2","since":"2026-01-01T00:00:00Z"}],"halt":{"height":7}}`,
		`{"schema":1,"plans":[{"name":"v2"}]}`, `{"schema":1,"plans":[{"name":"v2","heigth":5}]}`, `{"schema":1,"halt":{}}`,
		`{"schema":1,"plans":[{"name":"v2","raw_name":"../x","height":5}]}`, `{"schema":1,"plans":[{"name":"..","height":-5}]}`,
	} {
		f.Add([]byte(doc), int64(1))
	}
	path := filepath.Join(f.TempDir(), "schedule.json")
	clock := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, doc []byte, height int64) {
		require.NoError(t, os.WriteFile(path, doc, 0o600))
		s, err := LoadSchedule(path)
		if err != nil {
			require.ErrorIs(t, err, state.ErrUntrusted)
			return
		}
		for _, p := range s.Plans {
			requireInside(t, p.Name)
			require.Equal(t, FromOperator, p.Source)
		}
		tracker := NewTracker(UnknownHeight, time.Time{})
		tracker.SetSchedule(s)
		if height > 0 {
			tracker.SawHeight(height)
		}
		if p, _, due := tracker.Due(clock); due {
			require.True(t, !p.Time.IsZero() && !clock.Before(p.Time) || p.Height > 0 && height >= p.Height, "%+v", p)
		}
		require.NoError(t, s.Save(path))
		again, err := LoadSchedule(path)
		require.NoError(t, err)
		first, err := state.Encode(s)
		require.NoError(t, err)
		second, err := state.Encode(again)
		require.NoError(t, err)
		require.Equal(t, string(first), string(second))
	})
}
