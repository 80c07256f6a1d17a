package status

import (
	"fmt"
	"time"

	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

// View is everything that a status is made of and that lies in files: `status` shows the same with and without a
// running supervisor.
type View struct {
	Journal  upgrade.Journal
	Schedule plan.Schedule
	Tracker  *plan.Tracker // nil: nothing could be read
	Current  version.Version
	Ready    map[version.Version]version.Readiness
	Last     *LastUpgrade
	Layout   version.Layout
	Pace     time.Duration // between two blocks; 0 = not known
}

// Document renders what the files say.
func (v View) Document(clock time.Time) *Document {
	st := &Document{Schema: Schema, State: Stopped, Hold: v.Journal.Hold, LastUpgrade: v.Last, Warnings: []string{}}
	if v.Current != "" {
		st.Version = new(v.Current.Name())
		st.Binary = &Binary{Path: v.Layout.Binary(v.Current)}
		if r, ok := v.Ready[v.Current]; ok && r.SHA256 != "" {
			st.Binary.SHA256 = &r.SHA256
		}
	}
	if h := v.Schedule.Halt; h != nil {
		st.Halt = &Halt{Exact: !h.Time.IsZero()}
		if h.Height > 0 {
			st.Halt.Height = &h.Height
		} else {
			st.Halt.Time = &h.Time
		}
	}
	st.Skipped = v.Skipped()
	height := plan.UnknownHeight
	if v.Tracker != nil {
		if height = v.Tracker.Known(); height != plan.UnknownHeight {
			st.Height = &height
		}
		if err := v.Tracker.FileError(); err != nil {
			st.Warnings = append(st.Warnings, "the plan file can't be used: "+err.Error())
		}
		if plans := v.Plans(clock); len(plans) > 0 {
			st.Plan = &plans[0]
		}
	}
	st.Upgrade = v.upgrade(st.Plan)
	st.Rollback = v.rollback(height)
	return st
}

// Plans lists what is to come, the next one first.
func (v View) Plans(clock time.Time) []Plan {
	all := []Plan{}
	for _, p := range v.Tracker.Pending() {
		to := version.Of(p.Name)
		ready, ok := v.Ready[to]
		if !ok {
			ready.Problems, ready.Hint = []string{"not looked at yet"}, "supervisor status, in a moment"
		}
		all = append(all, DescribePlan(p, v.Tracker.Scheduled(p), ready, v.Tracker.Known(), v.Pace, clock))
	}
	return all
}

// Skipped lists what is passed over.
func (v View) Skipped() []Skip {
	all := []Skip{}
	for _, k := range v.Schedule.Skip {
		one := Skip{Name: k.Name, Since: k.Since, Why: k.Why}
		if k.Height > 0 {
			one.Height = &k.Height
		}
		all = append(all, one)
	}
	return all
}

// upgrade is the one in flight; else the next plan's preparation: planned, or staged once its binary was verified.
func (v View) upgrade(next *Plan) *Upgrade {
	if u := v.Journal.Upgrade; u != nil {
		st := &Upgrade{Name: u.Plan.Name, Phase: u.Phase, Attempts: u.Attempts}
		if u.Error != "" {
			st.Error = &u.Error
		}
		return st
	}
	if next == nil {
		return nil
	}
	st := &Upgrade{Name: next.Name, Phase: upgrade.Planned}
	if next.Ready {
		st.Phase = upgrade.Staged
	}
	return st
}

func (v View) rollback(height int64) Rollback {
	err := upgrade.CanRollBack(v.Journal.Upgrade, height, false)
	if v.Journal.Upgrade == nil && v.Last != nil && v.Last.Result == upgrade.ResultCommitted && v.Last.Height != nil {
		err = fmt.Errorf("%s is committed", v.Last.Name)
		if height > *v.Last.Height {
			err = fmt.Errorf("block %d committed", height)
		}
	}
	if err == nil {
		return Rollback{Possible: true}
	}
	return Rollback{Reason: new(err.Error())}
}
