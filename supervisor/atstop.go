package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade/plan"
)

// The events besides upgrades at which a snapshot, and the template that belongs to it, may be asked for.
const (
	atHalt = "halt" // an operator wanted the node stopped there
	atStop = "stop" // the end of `run` was asked for
	atExit = "exit" // the node ended by itself
)

// errTemplate means that the snapshot was taken and its template could not be made.
var errTemplate = errors.New("the genesis template could not be made")

// templateOn tells whether the configuration asks for a template at an event.
func (s *Supervisor) templateOn(event string) bool {
	return s.o.Templates != nil && s.o.TemplateOn != nil && s.o.TemplateOn(event)
}

// takenOn tells whether anything is taken at an event. A template belongs to a snapshot: whoever wants the one gets both.
func (s *Supervisor) takenOn(event string) bool {
	if s.o.Snapshots == nil {
		return false
	}
	return s.templateOn(event) || s.o.SnapshotOn != nil && s.o.SnapshotOn(event)
}

// takeAt takes the snapshot, and then the template, that the configuration asks for at an event; the returned id is "" where
// it asks for none. id is the one to take it under: the same again is the same snapshot. A template that fails is
// errTemplate: the snapshot is there then. It is for a job, and the node is at rest.
func (s *Supervisor) takeAt(ctx context.Context, event, id string) (string, error) {
	if !s.takenOn(event) {
		return "", nil
	}
	height := s.lastHeight()
	request, err := json.Marshal(map[string]any{"op": "create", "id": id, "label": event, "height": max(0, height)})
	if err != nil {
		return "", err
	}
	if _, err = s.o.Snapshots.Do(ctx, request, true); err != nil || !s.templateOn(event) {
		return id, err
	}
	if err := s.o.Templates.Export(ctx, id, height); err != nil {
		return id, fmt.Errorf("%w: %w", errTemplate, err)
	}
	return id, nil
}

// lastHeight is the height that was recorded last, or plan.UnknownHeight. It does file I/O where it was never read.
func (s *Supervisor) lastHeight() int64 {
	if r, ok := s.o.Recorder.Last(); ok {
		return r.Height
	}
	return plan.UnknownHeight
}

// newSnapshot is the id of a snapshot that is to be taken at an event.
func (s *Supervisor) newSnapshot(event string) string {
	return s.o.Engine.NewSnapshot(event, s.lastHeight())
}

// takeAtStop takes what is asked for at each requested stop. A stop must end in time, so that it isn't ended by a SIGKILL:
// where a service manager hears of us, it is asked for more time for as long as this takes (Notifier.Alive); else what the
// stop of the node has left of stop_timeout must do. What is forecast to take longer, by the last snapshot's time, isn't
// begun, and what takes longer is broken off, as it is by a second request. Neither is a failure of the stop.
func (s *Supervisor) takeAtStop(ctx context.Context, was *stopped, last *status.LastSnapshot) {
	if !s.takenOn(atStop) {
		return
	}
	skip := func(why string) { s.log.Warn("no snapshot is taken at this stop", "reason", why) }
	switch {
	case was.restoring:
		skip("the node was restoring its state, and had only a part of it")
		return
	case was.forced:
		skip("the node had to be killed, and stop_timeout is over")
		return
	case s.o.Notify == nil:
		left := s.o.Config.StopTimeout - was.took
		if last != nil && time.Duration(last.DurationMS)*time.Millisecond > left {
			skip(fmt.Sprintf("the last one took %d ms, and stop_timeout leaves %d ms", last.DurationMS, left.Milliseconds()))
			return
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, left)
		defer cancel()
	}
	begun := time.Now()
	id, err := s.takeAt(ctx, atStop, s.newSnapshot(atStop))
	switch {
	case err == nil:
		s.log.Info("snapshot taken at the stop; it is completed when the node runs again", "snapshot", id, "took", time.Since(begun))
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		skip("it was broken off, because stop_timeout is over")
	case ctx.Err() != nil:
		skip("it was broken off by a second request")
	default:
		s.log.Error("cannot take the snapshot at the stop", "error", err, "hint", hint.Of(err))
	}
}

// takeAtExit takes what is asked for where the node ended by itself, and then does next. In a crash loop it does so no more:
// the data is the same, and each copy would be room and time that the node needs.
func (s *Supervisor) takeAtExit(inLoop bool, next func()) {
	if !s.takenOn(atExit) || s.half {
		next()
		return
	}
	if inLoop {
		s.log.Warn("no snapshot is taken after this end", "reason", "the node ends again and again")
		next()
		return
	}
	s.do("snapshot", s.unitsDown(s.afterTidying(func(ctx context.Context) error {
		_, err := s.takeAt(ctx, atExit, s.newSnapshot(atExit))
		return err
	})), func(err error) {
		if err != nil && !s.stopping {
			s.log.Warn("cannot take a snapshot after the node's end", "error", err, "hint", hint.Of(err))
		}
		if !s.stopping {
			next()
		}
	})
}
