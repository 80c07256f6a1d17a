package supervisor

import (
	"context"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/alert"
)

// Moment is a point of the node's life at which other units of the host are acted upon.
type Moment string

// The moments. Those of a start come at every start of the node, also after a crash; those of a stop where the supervisor
// stops the node, and where it ended by itself and its data is touched before the next start. They come once between two
// starts.
const (
	BeforeStop   Moment = "before-stop"   // before the stop signal
	AfterStop    Moment = "after-stop"    // the node and all that it left is gone
	BeforeStart  Moment = "before-start"  // nothing of the node runs yet
	AfterHealthy Moment = "after-healthy" // its height was read, or it said that it is ready: once a start
)

// UnitAction is one thing that is done to another unit of the host.
type UnitAction struct {
	Name   string                      // of the unit
	Action string                      // start, stop, restart, wait
	Do     func(context.Context) error // bounded in time by itself
}

// unitWork is what is done to other units, which take their turns one moment after the other.
type unitWork struct {
	acting  int           // how many moments are being acted on beside the loop
	over    chan struct{} // closed when the latest of all moments is over; nil = there was none
	stopped bool          // those of a stop were acted upon, or will be, since a node was last started
	ctx     context.Context
	cancel  context.CancelFunc
}

// actOn acts on the units of a moment beside the loop, after those of earlier moments, and then runs then in the loop.
// Where there are none, then is run at once. What fails is said, and nothing more: no other unit keeps the node down.
func (s *Supervisor) actOn(at Moment, then func()) {
	if len(s.o.Units[at]) == 0 {
		then()
		return
	}
	act, over := s.turn(at)
	s.units.acting++
	s.spawn(func() {
		act(s.units.ctx)
		close(over)
		s.post(func() {
			s.units.acting--
			then()
		})
	})
}

// actWithin is actOn for what is a job anyway: it is carried out by the job itself. The returned function is called once.
func (s *Supervisor) actWithin(at Moment) func(context.Context) {
	if len(s.o.Units[at]) == 0 {
		return func(context.Context) {}
	}
	act, over := s.turn(at)
	return func(ctx context.Context) {
		defer close(over)
		act(ctx)
	}
}

// unitsDown makes a job's work of what touches the data of a node at rest: the units of its stop have been acted upon before,
// also where the node ended by itself. Whoever wants a price feeder down with the node doesn't want it to ask while the
// data is migrated. A cancelled job waits for none.
func (s *Supervisor) unitsDown(work func(context.Context) error) func(context.Context) error {
	before, after, latest := func(context.Context) {}, func(context.Context) {}, s.units.over
	if !s.units.stopped {
		s.units.stopped = true
		before, after = s.actWithin(BeforeStop), s.actWithin(AfterStop)
	}
	return func(ctx context.Context) error {
		before(ctx)
		after(ctx)
		if latest != nil {
			select {
			case <-latest: // those of a stop of ours, which are acted on beside the loop
			case <-ctx.Done():
			}
		}
		return work(ctx)
	}
}

// turn takes a place in the line: act waits for the turn before, and over, closed by the caller, lets the next one begin.
func (s *Supervisor) turn(at Moment) (act func(context.Context), over chan struct{}) {
	before, actions := s.units.over, s.o.Units[at]
	over = make(chan struct{})
	s.units.over = over
	return func(ctx context.Context) {
		if before != nil {
			<-before // bounded: each of its actions is
		}
		for _, a := range actions {
			if ctx.Err() != nil {
				return
			}
			s.log.Info("acting on another unit", "unit", a.Name, "action", a.Action, "at", string(at))
			if err := a.Do(ctx); err != nil {
				s.log.Warn("another unit was not acted upon; going on without", "unit", a.Name, "action", a.Action, "at", string(at),
					"error", err, "hint", hint.Of(err))
				s.o.Event(alert.UnitFailed, err.Error())
			}
		}
	}, over
}

// terminate begins the graceful stop of the node, once for each node, after the units that are acted upon before it.
func (s *Supervisor) terminate() {
	c := s.child
	if s.leaving == c {
		return // it was told, or will be
	}
	s.leaving, s.units.stopped = c, true
	s.actOn(BeforeStop, func() {
		if s.child == c {
			c.Terminate(s.stopSignal(), s.stopTimeout())
		}
	})
}
