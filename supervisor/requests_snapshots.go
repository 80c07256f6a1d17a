package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// snapshotOp is what the loop must know of a request to the store; the rest is the store's.
type snapshotOp struct {
	Op     string            `json:"op"`
	To     string            `json:"to"`
	Into   map[string]string `json:"into"`
	DryRun bool              `json:"dry_run"`
}

// replaces tells whether the request puts other data in the place of the node's.
func (o snapshotOp) replaces() bool {
	return o.Op == "restore" && o.To == "" && len(o.Into) == 0 && !o.DryRun
}

// opSnapshots hands a request to the store of snapshots. With Stop the node is stopped for it and started again; after a
// restore it stays stopped, held: which version the data belongs to is the operator's to say.
func (s *Supervisor) opSnapshots(r request) {
	if s.o.Snapshots == nil {
		finishRequest(r, hint.New("use snapshots", "", "no snapshot source is configured, and there is no data directory",
			"add [[snapshot.source]] to the configuration"), "")
		return
	}
	var op snapshotOp
	if err := json.Unmarshal(r.body.Snapshots, &op); err != nil {
		finishRequest(r, fmt.Errorf("cannot read the request: %w", err), "")
		return
	}
	if op.replaces() {
		if err := upgrade.CanReplaceData(s.journal.Upgrade); err != nil {
			finishRequest(r, err, "")
			return
		}
	}
	switch {
	case !r.body.Stop || s.child == nil:
		s.snapshotJob(r, op, time.Time{})
	case op.replaces() || op.Op == "create":
		s.tryFirst(r, op)
	default:
		s.atRest(func(begun time.Time) { s.snapshotJob(r, op, begun) })
	}
}

// tryFirst looks, before the node is stopped, whether a restore or a snapshot would be refused.
func (s *Supervisor) tryFirst(r request, op snapshotOp) {
	s.do("snapshot", s.afterTidying(func(ctx context.Context) error {
		var dry map[string]any
		if err := json.Unmarshal(r.body.Snapshots, &dry); err != nil {
			return fmt.Errorf("cannot read the request: %w", err)
		}
		dry["dry_run"] = true
		request, err := json.Marshal(dry)
		if err != nil {
			return err
		}
		_, err = s.o.Snapshots.Do(ctx, request, false)
		return err
	}), func(err error) {
		if err != nil {
			finishRequest(r, err, "")
			return
		}
		s.atRest(func(begun time.Time) { s.snapshotJob(r, op, begun) })
	})
}

// snapshotJob does one operation of the store, and then what follows for a node at rest. begun is when it came to rest for
// that; zero = it wasn't stopped for it.
func (s *Supervisor) snapshotJob(r request, op snapshotOp, begun time.Time) {
	atRest, paused := s.child == nil, s.state == status.Backoff
	holds := op.replaces() && s.untrusted == nil // what can't be trusted holds by itself
	var result json.RawMessage
	work := s.afterTidying(func(ctx context.Context) error {
		out, err := s.o.Snapshots.Do(ctx, r.body.Snapshots, atRest)
		if err != nil {
			return err
		}
		if result, err = json.Marshal(out); err != nil || !atRest || !holds {
			return err
		}
		return s.o.Engine.Hold("a snapshot was restored", HintAfterRestore)
	})
	if atRest && (op.replaces() || op.Op == "create") {
		work = s.unitsDown(work)
	}
	s.do("snapshot", work, func(err error) {
		s.summarize()
		s.store.again = s.store.again || op.Op == "create" // one that was taken beneath the node is completed beneath it, too
		reply := client.Reply{Result: result}
		if !begun.IsZero() {
			reply.DowntimeMS = time.Since(begun).Milliseconds()
		}
		if err != nil {
			reply = client.Reply{}
		}
		r.answer(reply, err)
		switch {
		case !atRest || s.state == status.Held: // it goes on as it was
		case paused && !op.replaces(): // its restart comes when the pause after a crash is over
		case op.replaces():
			s.afterOperation(err, "") // after a restore that failed halfway the data is nobody's to start on
		default:
			s.afterOperation(nil, "")
		}
	})
}
