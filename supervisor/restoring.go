package supervisor

import (
	"context"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/child"
)

// Restoring is what the loop must know of a root whose node restores its state at its first start (package genesis). Such
// a node that is interrupted runs on a part of its state from then on, and doesn't notice: it is never killed for being
// slow, and never started on what an interrupted restore left.
type Restoring struct {
	// Begin is called before each start of the node, in a job. It tells whether the start is one that restores. Where an
	// earlier one was interrupted it has made the database anew first; where that happened too often, or the root isn't
	// ready, it fails.
	Begin func(ctx context.Context) (bool, error)
	// Done records that the restore is over.
	Done func() error
}

// restoring is a start that restores, from the start until the node's first height or its end.
type restoring struct {
	node  *child.Process
	since time.Time
}

// unhurried is the stop timeout of a node that restores: only a second request kills it.
const unhurried = 365 * 24 * time.Hour

// stopTimeout is how long the node may take to end.
func (s *Supervisor) stopTimeout() time.Duration {
	if s.restore != nil && s.restore.node == s.child {
		return unhurried
	}
	return s.o.Config.StopTimeout
}

// beginRestore asks, in the job that starts the node, whether this start restores.
func (s *Supervisor) beginRestore(ctx context.Context) (bool, error) {
	if s.o.Restoring == nil {
		return false, nil
	}
	return s.o.Restoring.Begin(ctx)
}

// restoreBegan notes that the node that was just started restores.
func (s *Supervisor) restoreBegan(c *child.Process) {
	s.restore = &restoring{node: c, since: c.StartedAt()}
	s.log.Info("the node restores its state; it is given all the time that it needs", "pid", c.Pid())
}

// restored is called when the node gave a sign of life of its own: a height, or that it is ready. What can't be recorded is
// tried again at the next one.
func (s *Supervisor) restored() {
	r := s.restore
	if r == nil || r.node != s.child {
		return
	}
	s.restore = nil
	s.spawn(func() {
		err := s.o.Restoring.Done()
		s.post(func() {
			if err != nil {
				s.log.Error("cannot record that the restore is over", "error", err, "hint", hint.Of(err))
				if s.child == r.node && s.restore == nil {
					s.restore = r
				}
				return
			}
			s.log.Info("the node has restored its state", "took", time.Since(r.since).Round(time.Second))
		})
	})
}
