package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"nodevisor/supervisor/alert"
	"nodevisor/upgrade"
)

// tidying is the completing and pruning of snapshots while the node runs: the one thing besides a job that changes the
// store. It is broken off when the node ends, and before every job that takes, restores or prunes.
type tidying struct {
	cancel context.CancelFunc
	ended  chan struct{}
}

// tidy completes sealed snapshots and prunes old ones in the background, while the node runs.
func (s *Supervisor) tidy() {
	if s.o.Snapshots == nil || s.tidying != nil || s.child == nil {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	t := &tidying{cancel: cancel, ended: make(chan struct{})}
	s.tidying, s.untidy = t, false
	keep := ""
	if u := s.journal.Upgrade; u != nil {
		keep = u.Snapshot
	}
	store := s.o.Snapshots
	s.spawn(func() {
		err := store.Tidy(ctx, keep)
		broken := ctx.Err() != nil
		cancel()
		close(t.ended)
		s.post(func() {
			s.tidying, s.untidy = nil, broken
			if s.job == nil {
				s.progress = nil
			}
			if err != nil && !broken {
				s.log.Warn("cannot complete the snapshots", "error", err)
			}
			s.summarize()
		})
	})
}

// breakTidying ends a tidying soon, without waiting for it.
func (s *Supervisor) breakTidying() {
	if s.tidying != nil {
		s.tidying.cancel()
	}
}

// afterTidying makes a job's work of what must have the store of snapshots for itself.
func (s *Supervisor) afterTidying(work func(context.Context) error) func(context.Context) error {
	t := s.tidying
	if t == nil {
		return work
	}
	t.cancel()
	return func(ctx context.Context) error {
		<-t.ended // it looks at its context between two blocks of a file
		return work(ctx)
	}
}

// summarize refreshes what the status shows of the snapshots.
func (s *Supervisor) summarize() {
	store := s.o.Snapshots
	if store == nil {
		return
	}
	s.ask(func(ctx context.Context) func() {
		snaps, disk, err := store.Summary(ctx)
		return func() {
			s.roomTimer.Reset(roomEvery)
			switch {
			case err == nil:
				s.snapshots, s.disk = snaps, disk
				s.sayRoom()
			case !errors.Is(err, context.Canceled):
				s.log.Warn("cannot read the snapshots", "error", err)
			}
		}
	})
}

// roomEvery is how often the room for the next snapshot is looked at: it costs a stat of each file of the data.
const roomEvery = 5 * time.Minute

// sayRoom tells an operator once that the next snapshot would go below min_free, long before an upgrade needs it.
func (s *Supervisor) sayRoom() {
	d := s.disk
	low := d.Free != nil && d.Needed != nil && d.MinFree != nil && *d.Free-*d.Needed < *d.MinFree
	if low && !s.lowDisk {
		text := fmt.Sprintf("%d bytes are free, the next snapshot needs %d, and min_free keeps %d", *d.Free, *d.Needed, *d.MinFree)
		s.log.Warn("there is no room for the next snapshot", "free", *d.Free, "needed", *d.Needed, "min_free", *d.MinFree,
			"hint", "supervisor snapshot prune; or set [snapshot] dir to another disk, or a lower min_free")
		s.o.Event(alert.LowDisk, text)
	}
	s.lowDisk = low
}

// snapshotAt takes a snapshot where the configuration asks for one at that event. It is for a job: the node is at rest.
func (s *Supervisor) snapshotAt(ctx context.Context, event string) error {
	if s.o.Snapshots == nil || s.o.SnapshotOn == nil || !s.o.SnapshotOn(event) {
		return nil
	}
	height := upgrade.Unknown
	if r, ok := s.o.Recorder.Last(); ok {
		height = r.Height
	}
	request, err := json.Marshal(map[string]any{"op": "create", "label": event, "height": max(0, height)})
	if err != nil {
		return err
	}
	_, err = s.o.Snapshots.Do(ctx, request, true)
	return err
}
