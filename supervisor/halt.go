package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/alert"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/control"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/source"
	"nodevisor/upgrade/version"
)

// halt stops the node where an operator wanted it stopped, takes the snapshot and the template, and holds. The schedule
// forgets the halt last: a crash in between halts again, and finds the same snapshot.
func (s *Supervisor) halt(answer func(status.HaltResult, error)) {
	if answer == nil {
		answer = func(status.HaltResult, error) {}
	}
	h := *s.schedule.Halt // `halt --now` is one at this moment
	result := status.HaltResult{At: h.When(), Problems: []string{}}
	s.log.Info("halting", "at", result.At)
	own, trial := s.ownHalt, s.child != nil && s.trial
	s.atRest(func(time.Time) {
		s.do("halt", s.unitsDown(s.afterTidying(func(ctx context.Context) error {
			var given error
			if trial { // it was ended by request
				given = s.o.Engine.GiveBack()
			}
			return errors.Join(given, s.carryHalt(ctx, h, own, &result))
		})), func(err error) {
			switch {
			case s.stopping && s.journal.Hold == nil:
				answer(result, control.ErrOver)
			case err != nil:
				answer(result, err)
				s.holdFor(err)
			default:
				answer(result, nil)
				s.o.Event(alert.Halted, strings.TrimPrefix(result.Text(), "halted ")+"; next: "+result.Next[0])
				s.summarize()
				s.completing = result.Snapshot != nil
				s.held()
			}
			s.answerHalted(result, err)
		})
	})
}

// carryHalt is the job of a halt: the node is at rest. own is where the node halts by itself; 0 = nowhere.
func (s *Supervisor) carryHalt(ctx context.Context, h plan.Halt, own int64, r *status.HaltResult) error {
	if last, _, ok := s.finalLine(); ok { // the lines were read to their end: this is the last block
		if err := s.o.Recorder.Note(last); err != nil {
			s.log.Warn("cannot record the height", "error", err)
		}
	}
	if err := s.o.Recorder.Flush(); err != nil {
		return err
	}
	r.Measure(h, s.lastHeight(), own)
	id := ""
	if s.takenOn(atHalt) {
		var err error
		if id, err = s.o.Engine.HaltSnapshot(s.newSnapshot(atHalt)); err != nil {
			return err
		}
	}
	id, err := s.takeAt(ctx, atHalt, id)
	switch {
	case errors.Is(err, errTemplate) && ctx.Err() == nil:
		s.log.Error("the halt stands, without a genesis template", "error", err, "hint", hint.Of(err))
		r.Problems = append(r.Problems, err.Error())
		r.Next = append(r.Next, "supervisor genesis create --snapshot "+id+" (tries the template again)")
	case err != nil:
		return err
	}
	if id != "" {
		r.Snapshot = &id
	}
	if id != "" && len(r.Problems) == 0 && s.templateOn(atHalt) {
		if r.Template, err = s.o.DescribeTemplate(id); err != nil {
			return err
		}
		r.Next = append(r.Next, "supervisor genesis create --snapshot "+id+" --out DIR (hands the template on)")
	}
	r.Next = append(r.Next, "supervisor resume")
	if err := s.o.Engine.Hold(r.Text(), strings.Join(r.Next, ", or: ")); err != nil {
		return err
	}
	return s.o.Engine.SetHalt(nil, plan.UnknownHeight)
}

// finalLine is the last height of a node's log that ended, where heights are read there.
func (s *Supervisor) finalLine() (height int64, at time.Time, ok bool) {
	if s.o.Lines == nil || !s.o.LinesFor {
		return 0, time.Time{}, false
	}
	return s.o.Lines.Height()
}

// readOwnHalt is where a node of that version halts by itself, if it starts now. It does file I/O: not for the loop.
func (s *Supervisor) readOwnHalt(v version.Version) int64 {
	args, _ := s.o.Command(v)
	return source.HaltHeight(s.o.Layout.Home, args)
}

// opHalt schedules a halt, takes it off, or halts now. With Wait the answer to a halt that is to come waits for it.
func (s *Supervisor) opHalt(r request) {
	if hold := s.journal.Hold; r.body.Now && s.state == status.Held && hold != nil {
		// A halt that is recorded now would come due right after the resume.
		finishRequest(r, nil, "the node is stopped already: held, %s. Next: %s", hold.Reason, hold.Hint)
		return
	}
	var h *plan.Halt
	switch b := r.body; {
	case b.Cancel:
	case b.Now:
		h = &plan.Halt{Time: time.Now().UTC()}
	default:
		h = &plan.Halt{Height: b.Height, Time: b.Time}
	}
	known := s.tracker.Known()
	work := func(context.Context) error { return s.o.Engine.SetHalt(h, known) }
	if r.body.Now && s.child != nil && s.takenOn(atHalt) {
		work = s.afterTidying(func(ctx context.Context) error {
			// A snapshot that can't be taken is seen before the node is stopped for it.
			if _, err := s.o.Snapshots.Do(ctx, json.RawMessage(`{"op":"create","dry_run":true}`), false); err != nil {
				return err
			}
			return s.o.Engine.SetHalt(h, known)
		})
	}
	s.do("halt", work, func(err error) {
		switch {
		case err != nil:
			finishRequest(r, err, "")
		case h == nil:
			finishRequest(r, nil, "no halt is scheduled any more")
			s.answerHalted(status.HaltResult{}, errHaltCancelled)
		case r.body.Now:
			s.halt(func(result status.HaltResult, err error) { answerHalt(r, result, err) })
		case r.body.Wait && s.state != status.Held:
			s.readHeight()
			s.halted = append(s.halted, func(result status.HaltResult, err error) { answerHalt(r, result, err) })
		default:
			s.readHeight()
			finishRequest(r, nil, "halting at %s", h.When())
		}
	})
}

var errHaltCancelled = errors.New("the halt was taken off the schedule")

func answerHalt(r request, result status.HaltResult, err error) {
	if err != nil {
		r.answer(client.Reply{}, err)
		return
	}
	data, err := json.Marshal(result)
	r.answer(client.Reply{Message: result.Text() + ". Next: " + strings.Join(result.Next, ", or: "), Result: data}, err)
}

// answerHalted answers those who wait for a halt.
func (s *Supervisor) answerHalted(result status.HaltResult, err error) {
	for _, answer := range s.halted {
		answer(result, err)
	}
	s.halted = nil
}
