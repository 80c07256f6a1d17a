package supervisor

import (
	"maps"
	"slices"
	"strings"
	"time"

	"nodevisor/supervisor/alert"
	"nodevisor/supervisor/child"
	"nodevisor/upgrade"
)

// inner is what the published status holds for the metrics alone; it isn't part of the document.
type inner struct {
	tally    *tally
	flight   *upgrade.Upgrade // in flight
	since    time.Time        // the supervisor's start
	fallback bool
	told     func() alert.Counts // nil: nobody is told
}

// tally counts what a status doesn't tell any more when it is over. It is counted whether or not somebody asks, so that a
// listener that a reload opens knows of the past. A published one is never changed: the loop replaces it.
type tally struct {
	restarts map[string]uint64
	failures map[upgrade.Phase]uint64
	phases   map[upgrade.Phase]histogram
	downtime histogram
	counted  time.Time // of the last phase that was counted
	finished time.Time // of the last upgrade that was
}

// Why the node was restarted.
const (
	afterExit      = "exit"      // it ended by itself, with any code
	afterSignal    = "signal"    // a signal ended it
	afterProbation = "probation" // it ended, however, on probation
)

func restartReasons() []string { return []string{afterExit, afterSignal, afterProbation} }

// count changes the tally of this moment on.
func (s *Supervisor) count(change func(*tally)) {
	t := *s.tally
	t.restarts, t.failures, t.phases = maps.Clone(t.restarts), maps.Clone(t.failures), maps.Clone(t.phases)
	change(&t)
	s.tally = &t
}

func newTally() *tally {
	return &tally{
		restarts: map[string]uint64{}, failures: map[upgrade.Phase]uint64{}, phases: map[upgrade.Phase]histogram{},
		finished: time.Now(),
	}
}

// countRestart counts a restart after an end that nobody asked for.
func (s *Supervisor) countRestart(exit *child.Exit, trial bool) {
	reason := afterExit
	switch {
	case trial:
		reason = afterProbation
	case exit != nil && exit.Signal != 0:
		reason = afterSignal
	}
	s.restarts++
	s.count(func(t *tally) { t.restarts[reason]++ })
}

// countFailure counts what went wrong with the upgrade in flight, if there is one.
func (s *Supervisor) countFailure() {
	if u := s.journal.Upgrade; u != nil {
		s.count(func(t *tally) { t.failures[u.Phase]++ })
	}
}

// countPhase counts the phase that the engine has reached; told of the same one again it does nothing.
func (s *Supervisor) countPhase(u upgrade.Upgrade) {
	if len(u.Phases) == 0 {
		return
	}
	last := u.Phases[len(u.Phases)-1]
	if last.Phase != u.Phase || !last.At.After(s.tally.counted) {
		return
	}
	s.count(func(t *tally) {
		t.counted = last.At
		t.phases[last.Phase] = t.phases[last.Phase].with(float64(last.MS) / 1000)
	})
}

// countFinished counts an upgrade that ended in this life of ours.
func (s *Supervisor) countFinished(l *LastUpgrade) {
	if l == nil || l.DowntimeMS == nil || !l.At.After(s.tally.finished) {
		return
	}
	s.count(func(t *tally) {
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
