package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/alert"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/control"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// HaltResult is what a halt came to: the answer of `supervisor halt --json`, and in words the hold's text.
type HaltResult struct {
	At        string          `json:"at"`        // what was asked for: a height, a time, or now
	Height    *int64          `json:"height"`    // of the last block that is known; null: none could be read
	Exact     bool            `json:"exact"`     // no block was made from the asked height on
	Overshoot *int64          `json:"overshoot"` // blocks from the asked height on, as far as is known; null: no height was asked for
	Snapshot  *string         `json:"snapshot"`
	Template  *TemplateStatus `json:"template"`
	Problems  []string        `json:"problems"` // what could not be done; the halt stands all the same
	Next      []string        `json:"next"`     // the commands that can follow
}

// halt stops the node where an operator wanted it stopped, takes the snapshot and the template, and holds. The schedule
// forgets the halt last: a crash in between halts again, and finds the same snapshot.
func (s *Supervisor) halt(answer func(HaltResult, error)) {
	if answer == nil {
		answer = func(HaltResult, error) {}
	}
	h := upgrade.Halt{Time: time.Now().UTC()}
	result := HaltResult{At: "now", Problems: []string{}}
	if s.schedule.Halt != nil {
		h = *s.schedule.Halt
		result.At = h.When()
	}
	s.log.Info("halting", "at", result.At)
	s.atRest(func(time.Time) {
		s.do("halt", s.unitsDown(s.afterTidying(func(ctx context.Context) error { return s.carryHalt(ctx, h, &result) })), func(err error) {
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

// carryHalt is the job of a halt: the node is at rest.
func (s *Supervisor) carryHalt(ctx context.Context, h upgrade.Halt, r *HaltResult) error {
	if last, _, ok := s.finalLine(); ok { // the lines were read to their end: this is the last block
		if err := s.o.Recorder.Note(last); err != nil {
			s.log.Warn("cannot record the height", "error", err)
		}
	}
	if err := s.o.Recorder.Flush(); err != nil {
		return err
	}
	r.measure(h, s.lastHeight(), OwnHalt(s.commandOf()))
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
	return s.o.Engine.SetHalt(nil, upgrade.Unknown)
}

// finalLine is the last height of a node's log that ended, where heights are read there.
func (s *Supervisor) finalLine() (height int64, at time.Time, ok bool) {
	if s.o.Lines == nil || !s.o.LinesFor {
		return 0, time.Time{}, false
	}
	return s.o.Lines.Height()
}

// commandOf are the arguments of the version that runs.
func (s *Supervisor) commandOf() []string {
	args, _ := s.o.Command(s.version)
	return args
}

// measure compares where the node stands with where it was to stop. own is the height of the node's own halt, 0 = none: a
// node of the Cosmos SDK stores that block and doesn't execute it, so what it answers is no overshoot.
func (r *HaltResult) measure(h upgrade.Halt, stands, own int64) {
	if stands != upgrade.Unknown {
		r.Height = &stands
	}
	if h.Height == 0 {
		r.Exact = true
		return
	}
	over := int64(0)
	switch {
	case own == h.Height:
		r.Exact = true
	case stands == upgrade.Unknown:
		return
	default:
		over = max(0, stands-(h.Height-1))
		r.Exact = over == 0
	}
	r.Overshoot = &over
}

// Text is the result in words.
func (r HaltResult) Text() string {
	parts := []string{strings.Replace("halted at "+r.At+" as an operator asked for", "at now", "now", 1)}
	if r.Height != nil {
		parts = append(parts, fmt.Sprintf("the last known height is %d", *r.Height))
	}
	if !r.Exact && r.Overshoot != nil {
		parts = append(parts, fmt.Sprintf("%d %s later than asked for, because the node doesn't halt by itself", *r.Overshoot, plural(*r.Overshoot, "block")))
	}
	if r.Snapshot != nil {
		parts = append(parts, "snapshot "+*r.Snapshot)
	}
	if t := r.Template; t != nil {
		parts = append(parts, "genesis template "+t.Path)
		for _, name := range slices.Sorted(maps.Keys(t.SHA256)) {
			parts = append(parts, name+" sha256 "+t.SHA256[name])
		}
	}
	return strings.Join(append(parts, r.Problems...), "; ")
}

func plural(n int64, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// OwnHalt is the height at which a node was told to halt by itself, in its arguments (--halt-height of the Cosmos SDK's
// start); 0 = nowhere.
func OwnHalt(args []string) int64 {
	const flag = "--halt-height"
	for i, a := range args {
		value, ok := strings.CutPrefix(a, flag+"=")
		if a == flag && i+1 < len(args) {
			value, ok = args[i+1], true
		}
		var n int64
		if _, err := fmt.Sscan(value, &n); ok && err == nil && n > 0 {
			return n
		}
	}
	return 0
}

// opHalt schedules a halt, takes it off, or halts now. With Wait the answer to a halt that is to come waits for it.
func (s *Supervisor) opHalt(r request) {
	var h *upgrade.Halt
	switch b := r.body; {
	case b.Cancel:
	case b.Now:
		h = &upgrade.Halt{Time: time.Now().UTC()}
	default:
		h = &upgrade.Halt{Height: b.Height, Time: b.Time}
	}
	known := s.tracker.Known()
	s.do("halt", func(context.Context) error { return s.o.Engine.SetHalt(h, known) }, func(err error) {
		switch {
		case err != nil:
			finishRequest(r, err, "")
		case h == nil:
			finishRequest(r, nil, "no halt is scheduled any more")
			s.answerHalted(HaltResult{}, errHaltCancelled)
		case r.body.Now && s.state != status.Held:
			s.halt(func(result HaltResult, err error) { answerHalt(r, result, err) })
		case r.body.Wait && s.state != status.Held:
			s.readHeight()
			s.halted = append(s.halted, func(result HaltResult, err error) { answerHalt(r, result, err) })
		default:
			s.readHeight()
			finishRequest(r, nil, "halting at %s", h.When())
		}
	})
}

var errHaltCancelled = errors.New("the halt was taken off the schedule")

func answerHalt(r request, result HaltResult, err error) {
	if err != nil {
		r.answer(client.Reply{}, err)
		return
	}
	data, err := json.Marshal(result)
	r.answer(client.Reply{Message: result.Text() + ". Next: " + strings.Join(result.Next, ", or: "), Result: data}, err)
}

// answerHalted answers those who wait for a halt.
func (s *Supervisor) answerHalted(result HaltResult, err error) {
	for _, answer := range s.halted {
		answer(result, err)
	}
	s.halted = nil
}
