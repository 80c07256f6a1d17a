package upgrade

import (
	"fmt"
	"slices"
	"strings"
)

// Phase is how far an upgrade has come. It is durable: a phase is recorded after its effect, and every effect can be
// done again.
type Phase string

// The phases, in their order; then the way back.
const (
	Planned     Phase = "planned"      // the plan is known
	Staged      Phase = "staged"       // its binary was verified
	Stopped     Phase = "stopped"      // the old node is gone
	Snapshotted Phase = "snapshotted"  // a snapshot is sealed, or skipped by configuration
	Switched    Phase = "switched"     // current names the new version
	Migrated    Phase = "migrated"     // the new binary's pre-upgrade is done
	OnProbation Phase = "probation"    // the new version was started, and isn't trusted yet
	Committed   Phase = "committed"    // it is trusted
	RollingBack Phase = "rolling-back" // data and link go back to what they were before
	RolledBack  Phase = "rolled-back"  // they are back
)

// transition is one edge of the phase table: what is done, from which phase, and which phase is recorded after it.
type transition struct {
	from, to Phase
	effect   string
}

// transitions is the whole machine. Code, journal checks and the diagram in the documentation are made from it.
var transitions = []transition{
	{Planned, Staged, "verify the binary"},
	{Staged, Stopped, "stop the node"},
	{Stopped, Snapshotted, "wait the delay, take the snapshot, then the template"},
	{Snapshotted, Switched, "custom pre-upgrade, hash the binary again, switch the link"},
	{Switched, Migrated, "the new binary's pre-upgrade"},
	{Migrated, OnProbation, "count the attempt, start the new version"},
	{OnProbation, OnProbation, "the new node ended, count and start again"},
	{OnProbation, Committed, "alive and a block above the plan's height, or at the next plan's"},
	{Stopped, RollingBack, "rollback"},
	{Snapshotted, RollingBack, "rollback"},
	{Switched, RollingBack, "rollback"},
	{Migrated, RollingBack, "rollback"},
	{OnProbation, RollingBack, "rollback, by policy or operator"},
	{RollingBack, RolledBack, "restore the snapshot, switch the link back"},
	{RollingBack, Snapshotted, "resume with --restore, the same and begin again"},
}

// Phases lists every phase in its order.
func Phases() []Phase {
	return []Phase{
		Planned, Staged, Stopped, Snapshotted, Switched, Migrated, OnProbation, Committed, RollingBack, RolledBack,
	}
}

// Known tells whether p is a phase of this version of the program.
func (p Phase) Known() bool { return slices.Contains(Phases(), p) }

// AtRest tells whether the upgrade has begun to act: from here to migrated the node is down, and the journal alone says
// what comes next.
func (p Phase) AtRest() bool {
	return slices.Contains([]Phase{Stopped, Snapshotted, Switched, Migrated, RollingBack}, p)
}

// OnNew tells whether current must name the new version in this phase.
func (p Phase) OnNew() bool {
	return slices.Contains([]Phase{Switched, Migrated, OnProbation, Committed}, p)
}

// canFollow tells whether the table has an edge from p to next.
func (p Phase) canFollow(next Phase) bool {
	return slices.ContainsFunc(transitions, func(t transition) bool { return t.from == p && t.to == next })
}

// Diagram renders the phase table as a Mermaid state diagram; docs/architecture.md holds it, and a test compares them.
func Diagram() string {
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n    [*] --> planned\n")
	id := func(p Phase) string { return strings.ReplaceAll(string(p), "-", "_") }
	for _, p := range Phases() {
		if id(p) != string(p) {
			fmt.Fprintf(&b, "    state %q as %s\n", string(p), id(p))
		}
	}
	for _, t := range transitions {
		fmt.Fprintf(&b, "    %s --> %s: %s\n", id(t.from), id(t.to), t.effect)
	}
	b.WriteString("    committed --> [*]\n    rolled_back --> [*]\n")
	return b.String()
}
