// Package trace is the record that a fakenode keeps of its own life: what ran, when, and how it ended. Tests and
// benchmarks read it where a log line would be too vague and a poll of /proc too late.
//
// The file holds one JSON document a line. A line is appended with one write, so several processes may share a file,
// and a process that is killed leaves whole lines.
package trace

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Kind says what happened.
type Kind string

// The kinds of events, in the order in which a life shows them.
const (
	Start      Kind = "start"       // a node began: Argv, Dir, Version
	Daemon     Kind = "daemon"      // the grandchild that outlives its node began: its own PID
	Child      Kind = "child"       // an orphan began: its own PID
	RPC        Kind = "rpc"         // the RPC answers: Addr
	FirstBlock Kind = "first-block" // the first block that this process committed: Height
	Block      Kind = "block"       // a block was made and is about to be stored, if asked for: Height, Signed
	Upgrade    Kind = "upgrade"     // an upgrade was applied: Name, Height
	Halted     Kind = "halted"      // the node can't go on at Height and stays alive: Name is the plan's, if there is one
	Signal     Kind = "signal"      // a signal arrived: Signal
	Exit       Kind = "exit"        // the node ended by itself or after a stop: Code
	PreUpgrade Kind = "pre-upgrade" // `pre-upgrade` ran: Code is what it will exit with, Attempt what it was told
)

// Event is one line of the record. What doesn't belong to its kind is left out.
type Event struct {
	Kind    Kind     `json:"event"`
	Time    int64    `json:"ns"` // wall clock, nanoseconds since 1970
	PID     int      `json:"pid"`
	PPID    int      `json:"ppid"`
	Version string   `json:"version"` // the binary's
	Argv    []string `json:"argv,omitempty"`
	Dir     string   `json:"dir,omitempty"` // the working directory
	Height  int64    `json:"height,omitempty"`
	Signed  bool     `json:"signed,omitempty"` // the block was signed: the same height signed twice is a double sign
	Name    string   `json:"name,omitempty"`
	Addr    string   `json:"addr,omitempty"`
	Signal  string   `json:"signal,omitempty"` // as strsignal names it: "terminated"
	Code    int      `json:"code,omitempty"`
	Attempt string   `json:"attempt,omitempty"` // SUPERVISOR_ATTEMPT
}

// Append adds e to the file at path, which is made if need be. It does nothing where path is empty.
func Append(path string, e Event) error {
	if path == "" {
		return nil
	}
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("cannot encode event: %w", err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("cannot append to trace: %w", err)
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// Read returns the events at path, oldest first. A missing file holds none. An unfinished last line is left for the
// next reader: its writer is at work.
func Read(path string) ([]Event, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read trace: %w", err)
	}
	var events []Event
	for {
		line, rest, ok := bytes.Cut(data, []byte("\n"))
		if !ok {
			return events, nil
		}
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("cannot read line %d of trace %s: %w", len(events)+1, path, err)
		}
		events, data = append(events, e), rest
	}
}
