package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/alert"
	"nodevisor/supervisor/status"
)

// tidying is the completing and pruning of snapshots while the node runs: the one thing besides a job that changes the
// store. It is broken off when the node ends, and before every job that takes, restores or prunes.
type tidying struct {
	cancel context.CancelFunc
	ended  chan struct{}
}

// upkeep is what is known and done of the store of snapshots beside the jobs.
type upkeep struct {
	snapshots status.Snapshots
	disk      status.Disk
	low       bool // the operator was told that the next snapshot has no room
	roomTimer *time.Timer
	tidying   *tidying      // nil: none is under way
	again     bool          // there is something to tidy: a tidying was broken off, or its time has come
	problem   string        // why snapshots can't be completed; "" = they can
	pause     time.Duration // before a tidying that failed is tried again; 0 = none failed
	tidyTimer *time.Timer
}

// A tidying that failed is tried again after tidyPause, which doubles up to tidyPauseMax: what is in its way (a server that
// is away, a full disk) takes a person, and each try may read all of a database.
const tidyPause, tidyPauseMax = time.Minute, time.Hour

// tidy completes sealed snapshots and prunes old ones in the background: while the node runs, or while it is held and the
// supervisor stays.
func (s *Supervisor) tidy() {
	if s.o.Snapshots == nil || s.store.tidying != nil || s.child == nil && s.state != status.Held || s.stopping || s.done {
		return
	}
	s.store.tidyTimer.Stop()
	ctx, cancel := context.WithCancel(s.ctx)
	t := &tidying{cancel: cancel, ended: make(chan struct{})}
	s.store.tidying, s.store.again = t, false
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
			s.store.tidying, s.store.again = nil, broken
			if s.job == nil {
				s.progress = nil
			}
			s.summarize()
			if !broken {
				s.tidied(err)
				s.endCompleted()
			}
		})
	})
}

// tidied takes the end of a tidying that nobody broke off. What fails is shown until it succeeds.
func (s *Supervisor) tidied(err error) {
	if err == nil {
		s.store.pause, s.store.problem = 0, ""
		return
	}
	s.store.pause = min(max(tidyPause, 2*s.store.pause), tidyPauseMax)
	s.store.tidyTimer.Reset(s.store.pause)
	s.log.Error("cannot complete the snapshots; trying again", "error", err, "hint", hint.Of(err), "pause", s.store.pause)
	s.store.problem = err.Error()
}

// endCompleted ends a `run` that a halt keeps only until its snapshot is completed, or can't be: the next one does it.
func (s *Supervisor) endCompleted() {
	if !s.completing {
		return
	}
	s.completing = false
	if s.state == status.Held && s.o.Config.Hold == HoldExit && !s.stopping {
		s.finish(ExitHeld)
	}
}

// breakTidying ends a tidying soon, without waiting for it.
func (s *Supervisor) breakTidying() {
	if s.store.tidying != nil {
		s.store.tidying.cancel()
	}
}

// afterTidying makes a job's work of what must have the store of snapshots for itself.
func (s *Supervisor) afterTidying(work func(context.Context) error) func(context.Context) error {
	t := s.store.tidying
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
			s.store.roomTimer.Reset(roomEvery)
			switch {
			case err == nil:
				s.store.snapshots, s.store.disk = snaps, disk
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
	d := s.store.disk
	low := d.Free != nil && d.Needed != nil && d.MinFree != nil && *d.Free-*d.Needed < *d.MinFree
	if low && !s.store.low {
		text := fmt.Sprintf("%d bytes are free, the next snapshot needs %d, and min_free keeps %d", *d.Free, *d.Needed, *d.MinFree)
		s.log.Warn("there is no room for the next snapshot", "free", *d.Free, "needed", *d.Needed, "min_free", *d.MinFree,
			"hint", "supervisor snapshot prune; or set [snapshot] dir to another disk, or a lower min_free")
		s.o.Event(alert.LowDisk, text)
	}
	s.store.low = low
}

// tellOfSnapshots puts into the status what an operator must know of the snapshots: that they can't be completed, that the
// next one will cost the node time, and that none could be put back.
func (s *Supervisor) tellOfSnapshots(st *status.Document) {
	if s.store.problem != "" {
		st.Snapshots.Problem = new(s.store.problem)
		st.Warnings = append(st.Warnings, "a snapshot can't be completed, and is tried again: "+s.store.problem)
	}
	if note := s.store.snapshots.Note; note != nil {
		st.Warnings = append(st.Warnings, *note)
	}
	if why := s.store.snapshots.Blocked; why != nil && st.Rollback.Possible {
		st.Rollback = status.Rollback{Reason: why}
	}
}
