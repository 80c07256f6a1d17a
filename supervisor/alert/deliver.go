package alert

import (
	"context"
	"errors"
	"time"
)

// deliver is the goroutine of one receiver: in order, one at a time.
func (s *Sender) deliver(k *sink) {
	defer k.abandon()
	for {
		q, ok := s.next(k)
		if !ok {
			return
		}
		err := s.try(k, q.Alert)
		s.mu.Lock()
		if err == nil {
			s.counts.Sent++
		} else {
			s.counts.Failed++
		}
		s.mu.Unlock()
		s.record.settle(q.key, err == nil, time.Now())
		if err != nil {
			s.o.Log.Warn("cannot deliver a notification", "receiver", k.name, "event", q.Event, "error", err,
				"hint", "look at [notify] in the configuration")
		}
		if err := s.record.save(); err != nil {
			s.o.Log.Debug("cannot remember what was told", "error", err)
		}
	}
}

// next waits for an event; false means that there will be none.
func (s *Sender) next(k *sink) (queued, bool) {
	for {
		s.mu.Lock()
		if len(k.queue) > 0 {
			q := k.queue[0]
			k.queue = k.queue[1:]
			s.mu.Unlock()
			return q, true
		}
		s.mu.Unlock()
		select {
		case <-k.wake:
		case <-k.hurry:
			s.mu.Lock()
			empty := len(k.queue) == 0
			s.mu.Unlock()
			if empty {
				return queued{}, false
			}
		}
	}
}

// try delivers one event, with pauses between the tries. Once the Sender is being closed there is one more try, and no pause.
func (s *Sender) try(k *sink, a Alert) (err error) {
	pause, last := firstPause, false
	for n := 1; ; n++ {
		ctx, cancel := context.WithTimeout(k.ctx, timeout)
		err = k.send(ctx, a)
		cancel()
		if err == nil || n == tries || last || errors.Is(err, errFinal) || k.ctx.Err() != nil {
			return err
		}
		s.o.Log.Debug("a notification is tried again", "receiver", k.name, "event", a.Event, "error", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-k.hurry:
			last = true
		case <-k.ctx.Done():
			return err
		}
		pause *= 2
	}
}
