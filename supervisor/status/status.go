// Package status is what a supervisor says of itself: the document of `status --json` with its parts, how it is made of what
// lies in files, and what a halt came to. Absent values are null, fields are added and never renamed: scripts read it.
package status

import (
	"time"

	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

// State is what the supervisor does with the node at this moment. It lives in memory alone.
type State string

// The states.
const (
	Starting         State = "starting" // started, not yet alive for a second
	Running          State = "running"
	Stopping         State = "stopping"
	Backoff          State = "backoff"            // waiting before a restart
	Upgrading        State = "upgrading"          // a phase of an upgrade, of a halt, of a snapshot at rest
	WaitingForBinary State = "waiting-for-binary" // a plan's height has come, its binary is missing or bad
	Held             State = "held"
	Stopped          State = "stopped"
)

// States lists every state.
func States() []State {
	return []State{Starting, Running, Stopping, Backoff, Upgrading, WaitingForBinary, Held, Stopped}
}

// Schema is the version of the status document. Fields are added, never renamed or removed.
const Schema = 1

// Document is `status --json`: the contract with scripts. Absent values are null.
type Document struct {
	Schema       int           `json:"schema"`
	Supervisor   Identity      `json:"supervisor"`
	State        State         `json:"state"`
	PID          *int          `json:"pid"`
	StartedAt    *time.Time    `json:"started_at"`
	Version      *string       `json:"version"`
	Binary       *Binary       `json:"binary"`
	Height       *int64        `json:"height"`
	HeightSource *string       `json:"height_source"`
	HeightAge    *int64        `json:"height_age_ms"`
	Restarts     int           `json:"restarts"`
	CrashLoop    bool          `json:"crash_loop"`
	LastExit     *Exit         `json:"last_exit"`
	Plan         *Plan         `json:"plan"`
	Skipped      []Skip        `json:"skipped"` // plans that are passed over, in the order in which they were put on the list
	Upgrade      *Upgrade      `json:"upgrade"`
	Halt         *Halt         `json:"halt"`
	Hold         *upgrade.Hold `json:"hold"`
	Rollback     Rollback      `json:"rollback"`
	LastUpgrade  *LastUpgrade  `json:"last_upgrade"`
	Snapshots    Snapshots     `json:"snapshots"`
	Disk         Disk          `json:"disk"`
	Progress     *Progress     `json:"progress"`
	Message      string        `json:"message"` // one line for people: what is going on, or must be done
	Warnings     []string      `json:"warnings"`
}

// Identity names the supervisor.
type Identity struct {
	Version string  `json:"version"`
	PID     *int    `json:"pid"`
	Home    string  `json:"home"`
	Config  *string `json:"config"`
}

// Binary names the running binary.
type Binary struct {
	Path   string  `json:"path"`
	SHA256 *string `json:"sha256"`
}

// Exit is how the node ended last.
type Exit struct {
	Code    *int      `json:"code"`
	Signal  *string   `json:"signal"`
	At      time.Time `json:"at"`
	Version string    `json:"version"`
	Forced  bool      `json:"forced"` // SIGKILL was needed
}

// Plan is a plan that is to come: an element of `upgrade list --json`.
type Plan struct {
	Name       string      `json:"name"`
	Height     *int64      `json:"height"`
	Time       *time.Time  `json:"time"`
	Source     plan.Source `json:"source"`
	Exact      bool        `json:"exact"` // the node halts for it by itself; else the stop comes a little late
	Ready      bool        `json:"ready"`
	Problems   []string    `json:"problems"`
	Hint       *string     `json:"hint"` // the command that mends the first of them; null: ready
	ETA        *time.Time  `json:"eta"`
	BlocksLeft *int64      `json:"blocks_left"`
}

// Skip is a plan on the skip list.
type Skip struct {
	Name   string    `json:"name"`
	Height *int64    `json:"height"` // null: at any height
	Since  time.Time `json:"since"`
	Why    string    `json:"why"` // "operator", or what the version that was rolled back failed with
}

// Upgrade is the upgrade in flight, or the next one's preparation.
type Upgrade struct {
	Name     string        `json:"name"`
	Phase    upgrade.Phase `json:"phase"`
	Attempts int           `json:"attempts"`
	Error    *string       `json:"error"`
}

// Halt is the scheduled halt.
type Halt struct {
	Height *int64     `json:"height"`
	Time   *time.Time `json:"time"`
	Exact  bool       `json:"exact"`
}

// Rollback says whether the last upgrade can still be undone, and why not.
type Rollback struct {
	Possible bool    `json:"possible"`
	Reason   *string `json:"reason"`
}

// LastUpgrade is a finished upgrade: an element of `upgrade history --json`.
type LastUpgrade struct {
	Name       string          `json:"name"`
	From       string          `json:"from"`
	To         string          `json:"to"`
	Result     upgrade.Result  `json:"result"`
	DowntimeMS *int64          `json:"downtime_ms"`
	Phases     []PhaseDuration `json:"phases"`
	Snapshot   *string         `json:"snapshot"`
	At         time.Time       `json:"at"`
	Height     *int64          `json:"height"`
	Evidence   *plan.Evidence  `json:"evidence"`
	Attempts   int             `json:"attempts"`
	Overshoot  *int64          `json:"overshoot"`
}

// PhaseDuration is how long one phase took, in milliseconds.
type PhaseDuration struct {
	Phase upgrade.Phase `json:"phase"`
	MS    int64         `json:"ms"`
}

// Snapshots sums up the snapshots.
type Snapshots struct {
	Count   int           `json:"count"`
	Last    *LastSnapshot `json:"last"`
	Method  *string       `json:"method"`  // how the next one is taken: the slowest of its sources'
	Problem *string       `json:"problem"` // why those that are only sealed can't be completed
	Note    *string       `json:"-"`       // what an operator should know of the next one
	Blocked *string       `json:"-"`       // why no snapshot could be put back now, and so no upgrade undone
}

// LastSnapshot is the newest snapshot.
type LastSnapshot struct {
	ID         string     `json:"id"`
	Height     *int64     `json:"height"` // null: it wasn't known
	CreatedAt  time.Time  `json:"created_at"`
	VerifiedAt *time.Time `json:"verified_at"`
	Bytes      int64      `json:"bytes"`
	DurationMS int64      `json:"duration_ms"` // of the time that the node was down for it
}

// Disk is the room on the snapshots' file system, in bytes.
type Disk struct {
	Free    *int64 `json:"free"`
	Needed  *int64 `json:"needed"`
	MinFree *int64 `json:"min_free"` // no snapshot goes below it
}

// Progress is how far a long phase is.
type Progress struct {
	Phase string `json:"phase"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
}

// DescribeFinished renders a document of the history.
func DescribeFinished(f upgrade.Finished) LastUpgrade {
	u := f.Upgrade
	l := LastUpgrade{
		Name: u.Plan.Name, From: u.From.Name(), To: u.To.Name(), Result: f.Result, At: f.At, Attempts: u.Attempts,
		Phases: []PhaseDuration{},
	}
	for _, p := range u.Phases {
		l.Phases = append(l.Phases, PhaseDuration{Phase: p.Phase, MS: p.MS})
	}
	if d := u.Downtime(); d > 0 || !u.Up.IsZero() {
		l.DowntimeMS = new(d.Milliseconds())
	}
	if u.Snapshot != "" {
		l.Snapshot = &u.Snapshot
	}
	if u.Plan.Height > 0 {
		l.Height = &u.Plan.Height
	}
	if u.Evidence != "" {
		l.Evidence = &u.Evidence
	}
	if u.Overshot > 0 {
		l.Overshoot = &u.Overshot
	}
	return l
}

// DescribePlan renders a plan that is to come. height is the node's, or plan.UnknownHeight.
func DescribePlan(p plan.Plan, scheduled bool, ready version.Readiness, height int64, perBlock time.Duration, clock time.Time) Plan {
	s := Plan{Name: p.Name, Source: p.Source, Exact: !scheduled, Ready: ready.Ready(), Problems: ready.Problems}
	if s.Problems == nil {
		s.Problems = []string{}
	}
	if !ready.Ready() {
		s.Hint = new(ready.Next())
	}
	if !p.Time.IsZero() {
		s.Time, s.ETA, s.Exact = new(p.Time.UTC()), new(p.Time.UTC()), true
		return s
	}
	s.Height = &p.Height
	if height != plan.UnknownHeight {
		left := max(0, p.Height-height)
		s.BlocksLeft = &left
		if perBlock > 0 {
			s.ETA = new(clock.Add(time.Duration(left) * perBlock).UTC().Truncate(time.Second))
		}
	}
	return s
}
