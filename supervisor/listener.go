package supervisor

import (
	"context"
	"errors"

	"nodevisor/supervisor/child"
	"nodevisor/supervisor/metrics"
)

// observer is the metrics listener of one address.
type observer struct {
	address string
	cancel  context.CancelFunc
	ended   chan struct{}
}

// observeAt begins to serve /metrics, /healthz and /readyz at address, instead of where they are served now; "" ends it.
// All of it happens beside the loop, and nothing of Prometheus is made where nobody is to ask.
func (s *Supervisor) observeAt(address string) {
	old := s.observed
	if old != nil && old.address == address {
		return
	}
	s.observed = nil
	if old != nil {
		old.cancel()
	}
	if address == "" {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	o := &observer{address: address, cancel: cancel, ended: make(chan struct{})}
	s.observed = o
	s.spawn(func() {
		defer close(o.ended)
		if old != nil {
			<-old.ended // the addresses may overlap
		}
		metrics.Serve(ctx, s.log, address, metrics.Handler(s.o.Layout.Node, s.sample.Load, s.answers))
	})
}

// answers asks the loop for a sign of life, which it gives in every state.
func (s *Supervisor) answers(ctx context.Context) error {
	answered := make(chan struct{})
	select {
	case s.posts <- func() { close(answered) }:
	case <-s.over:
		return errEnded
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-answered:
		return nil
	case <-s.over:
		return errEnded
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

var errEnded = errors.New("the supervisor ends")

// countRestart counts a restart after an end that nobody asked for.
func (s *Supervisor) countRestart(exit *child.Exit, trial bool) {
	reason := metrics.AfterExit
	switch {
	case trial:
		reason = metrics.AfterProbation
	case exit != nil && exit.Signal != 0:
		reason = metrics.AfterSignal
	}
	s.restarts++
	s.tally = s.tally.Restart(reason)
}

// countFailure counts what went wrong with the upgrade in flight, if there is one.
func (s *Supervisor) countFailure() {
	if u := s.journal.Upgrade; u != nil {
		s.tally = s.tally.Failure(u.Phase)
	}
}
