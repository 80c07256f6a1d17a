package upgrade

import (
	"fmt"
	"time"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/state"
)

// change changes the journal in memory and on disk, or neither: the memory never runs ahead of a disk that is full.
func (e *Engine) change(d atomicfile.Durability, do func()) error {
	if err := e.settled(); err != nil {
		return err
	}
	before, mark := e.Journal(), e.mark
	do()
	if err := e.save(d); err != nil {
		e.j, e.mark = before, mark
		return err
	}
	return nil
}

func (e *Engine) save(d atomicfile.Durability) error {
	if err := e.settled(); err != nil {
		return err
	}
	return e.written(e.j.Save(e.Layout.JournalPath(), d))
}

func (e *Engine) written(err error) error {
	if err == nil {
		return nil
	}
	return &hint.Error{
		Op: "write the journal", Path: e.Layout.JournalPath(), Err: err,
		Hint: "free some space or mend the disk, then: supervisor resume",
	}
}

// advance records that the effect of the phase before next is durable.
func (e *Engine) advance(next Phase, d atomicfile.Durability) error {
	if err := e.mayFollow(next); err != nil {
		return err
	}
	if err := e.change(d, func() { e.enter(next) }); err != nil {
		return err
	}
	e.tell()
	return nil
}

func (e *Engine) mayFollow(next Phase) error {
	if u := e.j.Upgrade; u.Phase != next && !u.Phase.canFollow(next) {
		return fmt.Errorf("the journal %w: no way from %s to %s", state.ErrUntrusted, u.Phase, next)
	}
	return nil
}

// A record is one that is written while the engine goes on.
type record struct {
	err    chan error
	before Journal // what the disk holds if it fails
	mark   time.Time
}

// advanceBeside is advance while the record is still being written. Until settled returns nil nothing may be done that
// counts without the record.
func (e *Engine) advanceBeside(next Phase, d atomicfile.Durability) error {
	if err := e.mayFollow(next); err != nil {
		return err
	}
	if err := e.settled(); err != nil {
		return err
	}
	r := &record{err: make(chan error, 1), before: e.Journal(), mark: e.mark}
	e.enter(next)
	j, path := e.Journal(), e.Layout.JournalPath()
	go func() { r.err <- j.Save(path, d) }()
	e.behind = r
	e.tell()
	return nil
}

// settled waits for the record that is being written, if there is one. One that failed leaves memory as the disk is.
func (e *Engine) settled() error {
	r := e.behind
	if r == nil {
		return nil
	}
	e.behind = nil
	err := e.written(<-r.err)
	if err != nil {
		e.j, e.mark = r.before, r.mark
	}
	return err
}

func (e *Engine) advanceFull(next Phase) error { return e.advance(next, atomicfile.Full) }

func (e *Engine) saveFull() error { return e.save(atomicfile.Full) }

// step moves on in memory alone; the next record on disk includes it.
func (e *Engine) step(next Phase) {
	e.enter(next)
	e.tell()
}

func (e *Engine) enter(next Phase) {
	u := e.j.Upgrade
	t := time.Now()
	if e.mark.IsZero() {
		e.mark = t
	}
	u.record(next, e.mark, t)
	u.Phase, u.Tries, u.Crashes, u.Error = next, 1, 0, ""
	e.mark = t
}

// tell makes the phase that was reached known.
func (e *Engine) tell() {
	u := e.j.Upgrade
	e.Observe(*u)
	e.Log.Info("phase reached", "phase", u.Phase, "plan", u.Plan.Name, "took", u.Phases[len(u.Phases)-1].duration())
}

func (t PhaseTime) duration() time.Duration { return time.Duration(t.MS) * time.Millisecond }
