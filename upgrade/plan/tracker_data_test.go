package plan

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/upgrade/version"
)

// A resync from genesis passes three plans that the history has: each is carried out again.
func TestAResyncThroughPlansThatAreInHistory(t *testing.T) {
	for name, rpc := range map[string]bool{"with heights": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			s := tell(t, version.Genesis, 5000, noon.Add(-day)) // the record of the data that was wiped
			want(t, Crash, None)(s.boots(5001))
			for i, plan := range []struct {
				name   string
				height int64
			}{{"v2", 100}, {"v3", 200}, {"v4", 300}} {
				s.runs()
				if rpc {
					s.SawHeight(plan.height - 50)
					assert.Equal(t, plan.height-50, s.Known(), "the record follows the data")
					s.SawHeight(plan.height - 1)
				}
				s.writes(plan.name, plan.height, noon.Add(time.Duration(i)*time.Hour))
				want(t, Due, ByFile)(s.ends(5001))
				s.SetCurrent(version.Of(plan.name), Plan{Name: plan.name, Height: plan.height}, true)
				s.runs().notDue("done: current is its version")
				if rpc {
					s.SawHeight(plan.height + 1)
				}
			}
		})
	}
}

// The data is replaced by an older snapshot, by hand: the supervisor's record and the signer are ahead of it.
func TestDataReplacedByAnOlderSnapshot(t *testing.T) {
	t.Run("the plan of then comes again", func(t *testing.T) {
		s := tell(t, "upgrades/v3", 5000, noon.Add(-day)).writes("v4", 4000, noon.Add(-2*day)) // stale: v4 was patched away by hand
		s.boots(5001)
		s.runs(5001).notDue("done")
		want(t, Crash, None)(s.ends(5001)) // stopped, and an older snapshot put in place: the file stayed
		s.runs(3990)
		assert.Equal(t, int64(3990), s.Known())
		s.notDue("its height is still to come")
		s.SawHeight(4000)
		s.due("v4", ByHeight)
	})
	t.Run("before the start, and no RPC", func(t *testing.T) {
		s := tell(t, "upgrades/v3", 5000, noon.Add(-day)).writes("v4", 4000, noon) // written by the old node, on the older data
		want(t, Crash, None)(s.boots(5001))
		s.runs().rewritten(noon.Add(time.Minute))
		want(t, Due, ByFile)(s.ends(5001))
	})
	t.Run("the file of then under a newer version", func(t *testing.T) {
		s := tell(t, "upgrades/v3", 5000, noon.Add(-day)).writes("v2", 100, noon)
		s.SetCurrent("upgrades/v3", Plan{Name: "v3", Height: 200}, true)
		want(t, Crash, None)(s.boots(5001))
		s.runs(150).notDue("the node is above it")
		want(t, Crash, None)(s.ends(5001))
	})
	t.Run("a lower answer of another source is no new life", func(t *testing.T) {
		s := tell(t, "upgrades/v3.0.1", UnknownHeight, time.Time{}).writes("v3", 100, noon.Add(-day))
		s.boots(UnknownHeight)
		s.runs(101, 100).notDue("it was seen above")
	})
}

func TestTheRecordAgainstTheFile(t *testing.T) {
	for name, c := range map[string]struct {
		record int64
		at     time.Time
		done   bool
	}{
		"newer and above":      {101, noon.Add(time.Second), true},
		"newer, at the height": {100, noon.Add(time.Second), false},
		"newer and below":      {50, noon.Add(time.Second), false},
		"older and above":      {101, noon.Add(-time.Second), false},
		"as old":               {101, noon, false},
		"none":                 {UnknownHeight, time.Time{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t, version.Genesis, c.record, c.at).writes("v2", 100, noon)
			s.SawFile(s.file, false)
			_, pending := s.FilePlan()
			assert.Equal(t, !c.done, pending)
		})
	}
	t.Run("a file that appeared while our node ran is never done by an older record", func(t *testing.T) {
		s := tell(t, version.Genesis, 5000, noon.Add(time.Hour)) // also where a clock went back
		s.boots(UnknownHeight)
		s.runs().writes("v2", 100, noon).look()
		s.due("v2", ByFile)
	})
}

func TestOneplanFromSeveralSources(t *testing.T) {
	operator := Plan{Name: "v2", Height: 100, Source: FromOperator}
	chain := Plan{Name: "v2", Height: 100, Info: `{"binaries":{}}`, Source: FromChain}
	s := tell(t, version.Genesis, UnknownHeight, time.Time{})
	s.SetSchedule(Schedule{Plans: []Plan{operator}})
	s.SetChain(&chain)
	require.Len(t, s.Pending(), 1, "the operator's plan without info meets the chain's with info")
	assert.Equal(t, chain, s.Pending()[0])

	s.writes("v2", 100, noon.Add(-day))
	s.boots(UnknownHeight)
	require.Len(t, s.Pending(), 1)
	assert.Equal(t, FromFile, s.Pending()[0].Source)
	assert.Equal(t, "{}", s.Pending()[0].Info, "the node's own info comes first")
	s.file.Plan.Info = ""
	s.rewritten(noon).look()
	assert.Equal(t, chain.Info, s.Pending()[0].Info, "an empty info equals any")

	s.SetChain(&Plan{Name: "v2", Height: 200, Source: FromChain})
	require.Len(t, s.Pending(), 2, "another height is another plan")
	s.SetChain(&Plan{Name: "a", Height: 100, Source: FromChain})
	require.Len(t, s.Pending(), 2)
	assert.Equal(t, "v2", s.Pending()[0].Name, "at one height the node's own comes first, whatever the names")
	assert.Equal(t, []version.Version{"upgrades/v2", "upgrades/a"}, s.PendingVersions())
	next, err := s.NextPlan()
	require.NoError(t, err)
	assert.Equal(t, "v2", next.Name)
}

func TestWhoseTriggerAPlanIs(t *testing.T) {
	chain := Plan{Name: "v2", Height: 100, Source: FromChain}
	s := tell(t, version.Genesis, UnknownHeight, time.Time{})
	s.boots(UnknownHeight)
	s.SetChain(&chain)
	s.runs(100).notDue("the node halts by itself and writes its file: the chain's word may be a minute old")
	assert.False(t, s.Scheduled(chain))
	s.SetSchedule(Schedule{Plans: []Plan{{Name: "v3", Height: 100, Source: FromOperator}}})
	s.due("v3", ByHeight)
	s.SawHeight(105)
	s.due("v3", ByHeight) // no node halts for it by itself: the stop is a little late, and the plan not done by that
	assert.True(t, s.Scheduled(Plan{Name: "v3", Height: 100}))
}

func TestTimedPlans(t *testing.T) {
	s := tell(t, version.Genesis, UnknownHeight, time.Time{})
	s.SetSchedule(Schedule{Plans: []Plan{{Name: "v2", Time: noon.Add(time.Minute), Source: FromOperator}, {Name: "v3", Height: 5, Source: FromOperator}}})
	want(t, Crash, None)(s.boots(UnknownHeight))
	s.runs(1).notDue("early")
	assert.Equal(t, "v3", s.Pending()[0].Name, "heights come before times")
	p, ev, ok := s.Due(noon.Add(time.Minute))
	require.True(t, ok)
	assert.Equal(t, "v2", p.Name)
	assert.Equal(t, ByTime, ev)
	s.SetCurrent("upgrades/v2", Plan{}, false)
	_, _, ok = s.Due(noon.Add(time.Hour))
	assert.False(t, ok, "done: current is its version")
}

func TestPlansThatArePassedOver(t *testing.T) {
	at := Plan{Name: "v2", Height: 100, Source: FromFile}
	for name, pass := range map[string]func(s *story){
		"by the skip list":           func(s *story) { s.SetSchedule(Schedule{Skip: []Skip{{Name: "v2", Height: 100}}}) },
		"at any height":              func(s *story) { s.SetSchedule(Schedule{Skip: []Skip{{Name: "v2"}}}) },
		"by --unsafe-skip-upgrades":  func(s *story) { s.SetSkipHeights(map[int64]bool{100: true}) },
		"by --unsafe-skip, operator": func(s *story) { s.SetSkipHeights(map[int64]bool{7: true, 100: true}) },
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t, version.Genesis, UnknownHeight, time.Time{}).writes("v2", 100, noon.Add(-day))
			pass(s)
			want(t, Crash, None)(s.boots(100))
			next, err := s.NextPlan()
			require.ErrorContains(t, err, "skip list")
			assert.Nil(t, next)
			s.runs(100).notDue("passed over")
			s.rewritten(noon)
			want(t, Crash, None)(s.ends(100))
			assert.True(t, s.Skips(at))
		})
	}
	s := tell(t, version.Genesis, UnknownHeight, time.Time{}).writes("v2", 101, noon.Add(-day))
	s.SetSkipHeights(map[int64]bool{100: true})
	s.boots(UnknownHeight)
	_, pending := s.FilePlan()
	assert.True(t, pending, "another height isn't")
}

func TestAHalfWrittenFile(t *testing.T) {
	t.Run("completed while the node runs", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{}).tears(noon)
		want(t, Crash, None)(s.boots(UnknownHeight)) // nothing ended: the node is started
		require.ErrorIs(t, s.FileError(), ErrInvalid)
		s.runs(99).notDue("unreadable")
		s.writes("v2", 100, noon)
		assert.True(t, s.look())
		require.NoError(t, s.FileError())
		s.due("v2", ByFile)
	})
	t.Run("still torn when the node ends", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{})
		s.boots(UnknownHeight)
		s.runs(99).tears(noon)
		want(t, Unclear, None)(s.ends(UnknownHeight))
		assert.Contains(t, s.Describe(), "can't be read")
	})
	t.Run("torn, while an operator's plan is due", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{}).tears(noon)
		s.SetSchedule(Schedule{Plans: []Plan{{Name: "v2", Height: 100, Source: FromOperator}}})
		s.boots(UnknownHeight)
		s.runs(100)
		want(t, Due, ByHeight)(s.ends(UnknownHeight))
	})
	t.Run("removed", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{}).writes("v2", 100, noon.Add(-day))
		s.boots(UnknownHeight)
		s.runs(50)
		s.file.Err = ErrMissing
		s.rewritten(noon)
		assert.True(t, s.look())
		require.NoError(t, s.FileError(), "a missing file is no trouble")
		assert.Empty(t, s.Pending())
		want(t, Crash, None)(s.ends(UnknownHeight))
	})
}

func TestHeights(t *testing.T) {
	s := tell(t, version.Genesis, 700, noon)
	assert.Equal(t, UnknownHeight, s.Height(), "unknown is not zero, nor the record")
	assert.Equal(t, int64(700), s.Known())
	s.runs(710)
	assert.Equal(t, int64(710), s.Height())
	s.NodeStarted()
	assert.Equal(t, UnknownHeight, s.Height())
	assert.Equal(t, int64(710), s.Known(), "the last height read is kept as a lower bound")
	s.SawHeight(20)
	assert.Equal(t, int64(20), s.Known())
	s.NodeStarted()
	assert.Equal(t, int64(20), s.Known(), "also that of a new life of the data")
	assert.Equal(t, UnknownHeight, tell(t, version.Genesis, UnknownHeight, time.Time{}).Known())
}

func TestLookAtPlanFileSeesEveryWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "upgrade-info.json")
	announce := func(name string) {
		require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `{"name":%q,"height":100}`, name), 0o644))
	}
	require.ErrorIs(t, LookAt("", true).Err, ErrMissing)
	require.ErrorIs(t, LookAt(path, true).Err, ErrMissing)
	announce("v2")
	first := LookAt(path, true)
	require.NoError(t, first.Err)
	assert.WithinDuration(t, time.Now(), first.at, time.Minute)
	assert.Equal(t, first.id, LookAt(path, true).id)
	announce("v3")
	second := LookAt(path, true)
	require.Eventually(t, func() bool { // two writes within one tick of the file system's clock look the same
		announce("v3")
		return first.id != LookAt(path, true).id
	}, 20*time.Second, 2*time.Millisecond)
	assert.Equal(t, "v3", second.Plan.Name)
}
