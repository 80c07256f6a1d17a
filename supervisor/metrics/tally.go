package metrics

import (
	"maps"
	"slices"
	"strings"
	"time"

	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// Tally counts what a status doesn't tell any more when it is over. It is counted whether or not somebody asks, so that a
// listener that a reload opens knows of the past. It is a value: what counts returns the next one, and a published one is
// never changed.
type Tally struct {
	restarts map[string]uint64
	failures map[upgrade.Phase]uint64
	phases   map[upgrade.Phase]histogram
	downtime histogram
	counted  time.Time // of the last phase that was counted
	finished time.Time // of the last upgrade that was
}

// Why the node was restarted.
const (
	AfterExit      = "exit"      // it ended by itself, with any code
	AfterSignal    = "signal"    // a signal ended it
	AfterProbation = "probation" // it ended, however, on probation
)

func restartReasons() []string { return []string{AfterExit, AfterSignal, AfterProbation} }

// NewTally is the tally of a life that begins now: upgrades that were finished before aren't counted.
func NewTally() *Tally {
	return &Tally{
		restarts: map[string]uint64{}, failures: map[upgrade.Phase]uint64{}, phases: map[upgrade.Phase]histogram{},
		finished: time.Now(),
	}
}

// with changes a copy.
func (t *Tally) with(change func(*Tally)) *Tally {
	next := *t
	next.restarts, next.failures, next.phases = maps.Clone(t.restarts), maps.Clone(t.failures), maps.Clone(t.phases)
	change(&next)
	return &next
}

// Restart counts a restart after an end that nobody asked for: AfterExit, AfterSignal or AfterProbation.
func (t *Tally) Restart(reason string) *Tally {
	return t.with(func(t *Tally) { t.restarts[reason]++ })
}

// Failure counts what went wrong with an upgrade that had reached a phase.
func (t *Tally) Failure(reached upgrade.Phase) *Tally {
	return t.with(func(t *Tally) { t.failures[reached]++ })
}

// Phase counts the phase that an upgrade has reached; told of the same one again it does nothing.
func (t *Tally) Phase(u upgrade.Upgrade) *Tally {
	if len(u.Phases) == 0 {
		return t
	}
	last := u.Phases[len(u.Phases)-1]
	if last.Phase != u.Phase || !last.At.After(t.counted) {
		return t
	}
	return t.with(func(t *Tally) {
		t.counted = last.At
		t.phases[last.Phase] = t.phases[last.Phase].with(float64(last.MS) / 1000)
	})
}

// Finished counts an upgrade that ended in this life.
func (t *Tally) Finished(l *status.LastUpgrade) *Tally {
	if l == nil || l.DowntimeMS == nil || !l.At.After(t.finished) {
		return t
	}
	return t.with(func(t *Tally) {
		t.finished = l.At
		t.downtime = t.downtime.with(float64(*l.DowntimeMS) / 1000)
	})
}

// bounds are the upper bounds of the buckets, in seconds: a switch takes milliseconds, a copy of the data minutes, a network
// comes back within hours.
var bounds = [...]float64{0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14400}

// histogram is a distribution of durations. The zero value is empty.
type histogram struct {
	count   uint64
	sum     float64
	buckets [len(bounds)]uint64
}

func (h histogram) with(seconds float64) histogram {
	h.count++
	h.sum += seconds
	if i := slices.IndexFunc(bounds[:], func(b float64) bool { return seconds <= b }); i >= 0 {
		h.buckets[i]++
	}
	return h
}

// cumulated is what Prometheus wants: of each bound, how many lie at or below it.
func (h histogram) cumulated() map[float64]uint64 {
	all, sum := map[float64]uint64{}, uint64(0)
	for i, b := range bounds {
		sum += h.buckets[i]
		all[b] = sum
	}
	return all
}

// valid makes label values of what others wrote: a label that is no UTF-8 would fail the whole scrape.
func valid(labels []string) []string {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "�")
	}
	return labels
}
