package plan

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/upgrade/version"
)

// noon is when the stories of this file begin; day is when files and records of "yesterday" are from.
var (
	noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	day  = 24 * time.Hour
)

// story drives a tracker as the run loop does. Its plan file is a value: the tracker does no I/O.
type story struct {
	*Tracker
	t    *testing.T
	file File
}

// tell begins a story on the version v, with the recorded height (UnknownHeight = none) of that time.
func tell(t *testing.T, v version.Version, record int64, at time.Time) *story {
	s := &story{Tracker: NewTracker(record, at), t: t, file: File{Err: ErrMissing}}
	s.SetCurrent(v, Plan{}, false)
	return s
}

// writes puts a plan into the file at that time; it is seen with the next look.
func (s *story) writes(name string, height int64, at time.Time) *story {
	s.file.Plan, s.file.Err = Plan{Name: name, Height: height, Info: "{}", Source: FromFile}, nil
	return s.rewritten(at)
}

// rewritten changes what the file's identity is made of, as every write does.
func (s *story) rewritten(at time.Time) *story {
	s.file.id.mtime++
	s.file.at = at
	return s
}

func (s *story) tears(at time.Time) *story {
	s.file.Plan, s.file.Err = Plan{}, ErrInvalid
	return s.rewritten(at)
}

// boots looks at the file before the first start, and says what is known then.
func (s *story) boots(signer int64) (Plan, Evidence, Verdict) {
	s.SawFile(s.file, false)
	return s.Ended(noon, signer, false)
}

// runs starts the node: the file is looked at once more, as the run loop does.
func (s *story) runs(heights ...int64) *story {
	s.NodeStarted()
	s.look()
	for _, h := range heights {
		s.SawHeight(h)
	}
	return s
}

func (s *story) look() bool { return s.SawFile(s.file, true) }

// ends lets the node end by itself: what it wrote last is seen first.
func (s *story) ends(signer int64) (Plan, Evidence, Verdict) {
	s.look()
	return s.Ended(noon, signer, true)
}

func (s *story) due(name string, want Evidence) {
	s.t.Helper()
	p, ev, ok := s.Due(noon)
	require.True(s.t, ok, "the height of %s has come", name)
	assert.Equal(s.t, name, p.Name)
	assert.Equal(s.t, want, ev)
}

func (s *story) notDue(why string) {
	s.t.Helper()
	p, ev, ok := s.Due(noon)
	require.False(s.t, ok, "%s: %s by %s", why, p.Name, ev)
}

func want(t *testing.T, verdict Verdict, ev Evidence) func(Plan, Evidence, Verdict) {
	t.Helper()
	return func(p Plan, gotEv Evidence, got Verdict) {
		t.Helper()
		require.Equal(t, verdict, got, "%s by %q", p.Name, gotEv)
		assert.Equal(t, ev, gotEv)
	}
}
