package plan

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"nodevisor/upgrade/version"
)

// Cosmovisor's crash loop (cosmos-sdk issue 22731): the node is gone at H, its plan is written, and no RPC answers.
func TestTheNodeIsGoneAtItsHeight(t *testing.T) {
	t.Run("it writes the plan and exits, no height was ever read", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{})
		want(t, Crash, None)(s.boots(UnknownHeight))
		s.runs()
		s.writes("v2", 100, noon)
		want(t, Due, ByFile)(s.ends(UnknownHeight))
	})
	t.Run("the height was read just below", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{})
		s.boots(UnknownHeight)
		s.runs(98, 99).writes("v2", 100, noon)
		want(t, Due, ByFile)(s.ends(UnknownHeight))
	})
	t.Run("at start-up, the signer is at exactly the height", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{}).writes("v2", 100, noon.Add(-day))
		want(t, Due, BySigner)(s.boots(100))
	})
	t.Run("at start-up, the recorded height is the plan's", func(t *testing.T) {
		s := tell(t, version.Genesis, 100, noon.Add(-day)).writes("v2", 100, noon.Add(-day))
		want(t, Due, ByHeight)(s.boots(UnknownHeight))
	})
	t.Run("at start-up, nothing says so: current is started once, writes its plan again and ends", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{}).writes("v2", 100, noon.Add(-day))
		want(t, Crash, None)(s.boots(UnknownHeight))
		s.runs().notDue("a file that was found says nothing of the height")
		s.rewritten(noon)
		want(t, Due, ByFile)(s.ends(UnknownHeight))
	})
	t.Run("at start-up, started once: its line says so", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{}).writes("v2", 100, noon.Add(-day))
		s.boots(UnknownHeight)
		s.runs()
		s.SawLine("v2", 100)
		want(t, Due, ByLog)(s.ends(UnknownHeight))
	})
	t.Run("at start-up, started once: still nothing", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{}).writes("v2", 100, noon.Add(-day))
		s.boots(UnknownHeight)
		s.runs()
		want(t, Unclear, None)(s.ends(UnknownHeight))
		assert.Contains(t, s.Describe(), "v2 at 100")
	})
	t.Run("a signer one beside the height says nothing", func(t *testing.T) {
		for _, signer := range []int64{0, 99, 101, UnknownHeight} {
			s := tell(t, version.Genesis, UnknownHeight, time.Time{}).writes("v2", 100, noon.Add(-day))
			want(t, Crash, None)(s.boots(signer))
		}
	})
	t.Run("it stays alive and answers", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{})
		s.boots(UnknownHeight)
		s.runs(99).notDue("no plan")
		s.writes("v2", 100, noon).look()
		s.due("v2", ByFile)
		s.SawHeight(100)
		s.due("v2", ByFile)
	})
}

// The look that the node's last write asked for may be answered between its end and the verdict on it.
func TestTheLastWriteIsSeenAfterTheEnd(t *testing.T) {
	s := tell(t, version.Genesis, UnknownHeight, time.Time{})
	s.boots(UnknownHeight)
	s.runs().writes("v2", 100, noon)
	s.SawFile(s.file, false)
	want(t, Due, ByFile)(s.ends(UnknownHeight))

	s = tell(t, version.Genesis, UnknownHeight, time.Time{})
	s.boots(UnknownHeight)
	s.runs()
	want(t, Crash, None)(s.ends(UnknownHeight))
	s.writes("v2", 100, noon) // by an operator, in the pause before the restart
	s.SawFile(s.file, false)
	s.runs().notDue("what came while no node ran is not the node's word")
}

// A hand patch: v3.0.1 runs over the plan v3. The stale file must not undo it, whatever happens to node and file.
func TestAStaleFileUnderAHandPatch(t *testing.T) {
	const patched = version.Version("upgrades/v3.0.1")
	stale := func(t *testing.T, record int64, at time.Time) *story {
		return tell(t, patched, record, at).writes("v3", 100, noon.Add(-2*day))
	}
	t.Run("a crash, the record is newer than the file", func(t *testing.T) {
		s := stale(t, 5000, noon.Add(-day))
		want(t, Crash, None)(s.boots(5001))
		s.runs()
		want(t, Crash, None)(s.ends(5001))
	})
	t.Run("a crash after a height was read, no record", func(t *testing.T) {
		s := stale(t, UnknownHeight, time.Time{})
		want(t, Crash, None)(s.boots(5001))
		s.runs(5000)
		want(t, Crash, None)(s.ends(5001))
		s.runs()
		want(t, Crash, None)(s.ends(5001))
	})
	t.Run("a crash before any height, no record: held, not switched", func(t *testing.T) {
		s := stale(t, UnknownHeight, time.Time{})
		want(t, Crash, None)(s.boots(5001))
		s.runs()
		want(t, Unclear, None)(s.ends(5001))
	})
	t.Run("a crash, the record is older than the file", func(t *testing.T) {
		s := stale(t, 5000, noon.Add(-3*day))
		s.boots(5001)
		s.runs()
		want(t, Unclear, None)(s.ends(5001))
	})
	for name, change := range map[string]func(s *story){
		"rewritten":                func(s *story) { s.rewritten(noon).look() },
		"copied over itself, torn": func(s *story) { s.tears(noon).look(); s.writes("v3", 100, noon).look() },
	} {
		t.Run(name+" before a height of this start was read: held, not switched, and a height clears it", func(t *testing.T) {
			s := stale(t, 5000, noon.Add(-day))
			want(t, Crash, None)(s.boots(5001))
			s.runs()
			change(s)
			want(t, Unclear, None)(s.ends(5001))
			s.runs(5000)
			want(t, Crash, None)(s.ends(5001))
		})
	}
	for name, change := range map[string]func(s *story){
		"touched":                   func(s *story) { s.rewritten(noon) },
		"given to another owner":    func(s *story) { s.file.at = noon },
		"copied over itself, torn":  func(s *story) { s.tears(noon).look(); s.writes("v3", 100, noon) },
		"moved away and back":       func(s *story) { s.file.Err = ErrMissing; s.rewritten(noon).look(); s.writes("v3", 100, noon) },
		"emptied twice in between":  func(s *story) { s.tears(noon).look(); s.rewritten(noon).look(); s.writes("v3", 100, noon) },
		"replaced by an older plan": func(s *story) { s.writes("v2", 50, noon) },
	} {
		t.Run(name+" while the node runs", func(t *testing.T) {
			s := stale(t, UnknownHeight, time.Time{})
			s.boots(UnknownHeight)
			s.runs(5000).notDue("done")
			change(s)
			s.look()
			s.notDue("a plan that is done isn't undone by that")
			assert.False(t, s.NeedsHeight())
			want(t, Crash, None)(s.ends(5001))
			s.runs().notDue("nor by a restart")
		})
		if name == "replaced by an older plan" {
			continue // a new plan, and nobody to contradict it: so does a node without an RPC announce one
		}
		t.Run(name+" while the node runs, no height, a newer record", func(t *testing.T) {
			s := stale(t, 5000, noon.Add(-day))
			s.boots(UnknownHeight)
			s.runs().notDue("done, by the record")
			change(s)
			s.file.at = noon.Add(-2 * day) // whatever the time stamps, done stays done
			s.look()
			s.notDue("still")
		})
	}
	t.Run("given to another owner before the start", func(t *testing.T) {
		s := stale(t, 5000, noon.Add(-day))
		s.file.at = noon
		want(t, Crash, None)(s.boots(5001))
		s.runs(5001).notDue("the node's own height says that it is done")
		want(t, Crash, None)(s.ends(5001))
	})
	t.Run("current/upgrade-info.json names it", func(t *testing.T) {
		s := stale(t, UnknownHeight, time.Time{})
		s.SetCurrent(patched, Plan{Name: "v3", Height: 100}, true)
		want(t, Crash, None)(s.boots(100))
		s.runs()
		want(t, Crash, None)(s.ends(100))
	})
}

// Never early: another tool wrote a plan far ahead, and then the node is killed.
func TestAFutureHeightInTheFileAndAKill(t *testing.T) {
	const far = 9000
	t.Run("written while the node runs, killed at once", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{})
		s.boots(UnknownHeight)
		s.runs(4000).writes("v2", far, noon).look()
		assert.True(t, s.NeedsHeight(), "a node that can be asked is asked")
		s.notDue("its height may contradict")
		want(t, Crash, None)(s.ends(4001))
		s.runs().notDue("in the next life no height is known yet, and that is no evidence")
		s.SawHeight(4002)
		s.notDue("far ahead")
		p, farAhead := s.FarAhead()
		assert.True(t, farAhead, "it is kept as scheduled")
		assert.Equal(t, "v2", p.Name)
		s.SawHeight(far)
		s.due("v2", ByHeight)
	})
	t.Run("contradicted by a fresh height, then killed, then no height", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{})
		s.boots(UnknownHeight)
		s.runs(4000).writes("v2", far, noon).look()
		s.SawHeight(4001)
		want(t, Crash, None)(s.ends(UnknownHeight))
		s.runs().notDue("contradicted once is contradicted")
		want(t, Unclear, None)(s.ends(UnknownHeight))
	})
	t.Run("imported, then killed", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{}).writes("v2", far, noon.Add(-day))
		s.SetSchedule(Schedule{Plans: []Plan{{Name: "v2", Height: far, Source: FromOperator}}})
		want(t, Crash, None)(s.boots(UnknownHeight))
		s.runs()
		want(t, Crash, None)(s.ends(UnknownHeight))
		s.runs().rewritten(noon).look()
		s.notDue("an imported schedule wrote it")
		want(t, Crash, None)(s.ends(UnknownHeight))
	})
	t.Run("imported while it runs, the next life has no height yet", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{})
		s.boots(UnknownHeight)
		s.runs().writes("v2", far, noon)
		s.SetSchedule(Schedule{Plans: []Plan{{Name: "v2", Height: far, Source: FromOperator}}})
		s.look()
		s.notDue("scheduled")
		want(t, Crash, None)(s.ends(UnknownHeight))
		s.runs().notDue("still scheduled")
		s.SetSchedule(Schedule{})
		s.notDue("cancelled: what was an operator's is not the node's word now")
	})
	t.Run("found at the start, then killed", func(t *testing.T) {
		s := tell(t, version.Genesis, 3000, noon.Add(-day)).writes("v2", far, noon.Add(-day))
		want(t, Crash, None)(s.boots(3001))
		s.runs(4000)
		want(t, Crash, None)(s.ends(4001))
	})
	t.Run("one read fails", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{})
		s.boots(UnknownHeight)
		s.runs(4000).writes("v2", far, noon).look()
		s.HeightFailed()
		s.notDue("a busy node misses a question")
		s.SawHeight(4001)
		for range maxFailed {
			s.HeightFailed()
		}
		s.notDue("and was contradicted since")
	})
	t.Run("all reads fail: the RPC went with the consensus", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{})
		s.boots(UnknownHeight)
		s.runs(4000).writes("v2", 4010, noon).look()
		for range maxFailed - 1 {
			s.HeightFailed()
			s.notDue("not yet")
		}
		s.HeightFailed()
		s.due("v2", ByFile)
	})
	t.Run("a line in the log against the node's own height", func(t *testing.T) {
		s := tell(t, version.Genesis, UnknownHeight, time.Time{}).writes("v2", far, noon.Add(-day))
		s.boots(UnknownHeight)
		s.runs(4000)
		s.SawLine("v2", far) // what peers and users send can end up there
		s.notDue("contradicted")
		want(t, Crash, None)(s.ends(UnknownHeight))
	})
}

// A node that syncs fast is far below when it was read last, writes its plan and exits: after one more start it says so.
func TestAFastSyncConverges(t *testing.T) {
	s := tell(t, version.Genesis, UnknownHeight, time.Time{})
	s.boots(UnknownHeight)
	s.runs(4000).writes("v2", 5000, noon)
	want(t, Crash, None)(s.ends(UnknownHeight))
	s.runs().rewritten(noon.Add(time.Second)) // at H again: it writes its plan again
	want(t, Due, ByFile)(s.ends(UnknownHeight))

	s = tell(t, version.Genesis, UnknownHeight, time.Time{})
	s.boots(UnknownHeight)
	s.runs(4000).writes("v2", 5000, noon)
	want(t, Due, BySigner)(s.ends(5000))
}

// At rest a height is read every five seconds: a node that wrote its plan and was gone is believed, although the height
// that was read before is some blocks below. One that was read after the plan was written is not overruled.
func TestAPlanThatWasWrittenLast(t *testing.T) {
	s := tell(t, version.Genesis, UnknownHeight, time.Time{})
	s.boots(UnknownHeight)
	s.runs(80).writes("v2", 100, noon)
	want(t, Due, ByFile)(s.ends(UnknownHeight))

	s = tell(t, version.Genesis, UnknownHeight, time.Time{})
	s.boots(UnknownHeight)
	s.runs(80).writes("v2", 100, noon).look()
	s.SawHeight(81)
	want(t, Crash, None)(s.ends(UnknownHeight))
}

// The signer's state outlives the data: after a resync it may stand at a plan's height while the node is far below.
func TestTheSignerAheadOfTheData(t *testing.T) {
	s := tell(t, version.Genesis, UnknownHeight, time.Time{})
	s.boots(100)
	s.SetChain(&Plan{Name: "v2", Height: 100, Source: FromChain})
	s.runs(40, 60)
	want(t, Crash, None)(s.ends(100))

	s = tell(t, version.Genesis, UnknownHeight, time.Time{}).writes("v2", 100, noon.Add(-day))
	s.SawFile(s.file, false)
	s.runs(40, 60)
	want(t, Crash, None)(s.ends(100))
}

// The first look at another file beside a running node is as one of a start: what stands there is scheduled, and no sign that
// its height has come. What the node writes there afterwards is.
func TestAnotherFileIsFollowed(t *testing.T) {
	s := tell(t, version.Genesis, UnknownHeight, time.Time{})
	s.boots(UnknownHeight)
	s.runs().writes("v2", 100, noon).look()
	s.due("v2", ByFile)
	s.ForgetFile()
	s.notDue("nothing is known of the other one yet")
	s.writes("v3", 200, noon).look()
	s.notDue("it was there before")
	_, ok := s.FilePlan()
	assert.True(t, ok, "it is scheduled")
	want(t, Unclear, None)(s.ends(UnknownHeight))
	s.runs().rewritten(noon)
	want(t, Due, ByFile)(s.ends(UnknownHeight))

	s.ForgetFile()
	s.runs(250).look()
	_, ok = s.FilePlan()
	assert.False(t, ok, "past at this height")
}
