// Package client speaks to a running supervisor through its control socket: HTTP over a unix socket, JSON in and out.
// Every command uses it, and nothing else does.
package client

import (
	"encoding/json"
	"time"

	"nodevisor/upgrade/plan"
)

// The operations: POST /v1/<op>. The status is GET /v1/status.
const (
	OpResume    = "resume"    // leave a hold
	OpApply     = "apply"     // carry an upgrade out now, whatever the height
	OpHalt      = "halt"      // stop there, snapshot, hold; Cancel takes it off
	OpStop      = "stop"      // stop the node and end
	OpSnapshots = "snapshots" // an operator's request to the store of snapshots
	OpAdd       = "add"       // schedule a plan, accept a fixed binary
	OpCancel    = "cancel"    // take a plan off the schedule
	OpSkip      = "skip"      // put a plan on the skip list
	OpRollback  = "rollback"  // undo the upgrade in flight
	OpReload    = "reload"    // re-read the configuration
)

// Request is the body of every operation; each uses the fields that it needs.
type Request struct {
	Plan       plan.Plan       `json:"plan,omitzero"`
	Name       string          `json:"name,omitempty"`
	Height     int64           `json:"height,omitempty"`
	Time       time.Time       `json:"time,omitzero"`
	Now        bool            `json:"now,omitempty"`
	Cancel     bool            `json:"cancel,omitempty"`
	Force      bool            `json:"force,omitempty"`
	Check      bool            `json:"check,omitempty"` // add: only say what would be refused
	Restore    bool            `json:"restore,omitempty"`
	Wait       bool            `json:"wait,omitempty"`    // halt: answer when it has come
	Confirm    bool            `json:"confirm,omitempty"` // upgrade resume: trust the version on probation
	BinaryOnly bool            `json:"binary_only,omitempty"`
	Stop       bool            `json:"stop,omitempty"` // the node may be stopped for it
	Snapshots  json.RawMessage `json:"snapshots,omitempty"`
}

// Reply is the answer to an operation that was done.
type Reply struct {
	Message    string          `json:"message"`
	DowntimeMS int64           `json:"downtime_ms,omitempty"`
	Result     json.RawMessage `json:"result,omitempty"`
}

// The exit codes of a command whose operation the supervisor refused.
const (
	ExitFailed = 1
	ExitHeld   = 3 // needs an operator
)

// Failure is the answer to one that was not; it is also what a failing command prints with --json, as "error".
type Failure struct {
	Message string `json:"message"`
	Hint    string `json:"hint"`
	Code    int    `json:"code"` // the command's exit code
}

// Error makes a Failure an error; the hint is found by package hint's Of through Hint.
func (f *Failure) Error() string { return f.Message }
