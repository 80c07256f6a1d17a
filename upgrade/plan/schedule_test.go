package plan

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/upgrade/state"
)

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
			require.ErrorIs(t, err, state.ErrUntrusted)
			assert.Contains(t, hint.Of(err), path)
		})
	}
	good := `{"schema":1,"plans":[{"name":"v2","height":5}],"skip":null,"halt":null}`
	for n := range good {
		require.NoError(t, os.WriteFile(path, []byte(good[:n]), 0o600))
		_, err := LoadSchedule(path)
		require.ErrorIs(t, err, state.ErrUntrusted, fmt.Sprint("cut after ", n))
	}
}

func TestHaltDue(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	assert.False(t, Schedule{}.HaltDue(5, at))
	s := Schedule{Halt: &Halt{Height: 10}}
	assert.False(t, s.HaltDue(UnknownHeight, at), "unknown is not a height")
	assert.False(t, s.HaltDue(9, at))
	assert.True(t, s.HaltDue(10, at))
	s = Schedule{Halt: &Halt{Time: at}}
	assert.False(t, s.HaltDue(1<<40, at.Add(-time.Second)))
	assert.True(t, s.HaltDue(UnknownHeight, at))
	assert.Equal(t, "2026-03-01T12:00:00Z", s.Halt.When())
}
