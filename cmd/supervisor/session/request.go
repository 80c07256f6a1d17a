package session

import (
	"context"
	"encoding/json"
	"errors"

	"nodevisor/snapshot"
	"nodevisor/supervisor"
	"nodevisor/supervisor/client"
	"nodevisor/upgrade"
)

// Snapshots does one request: through the running supervisor, or under the lock.
func (s *Session) Snapshots(ctx context.Context, r SnapshotRequest, stop bool) (client.Reply, error) {
	var out client.Reply
	req := client.Request{Snapshots: r.Raw(), Stop: stop}
	reply, err := s.ask(ctx, client.OpSnapshots, req)
	if err == nil || !errors.Is(err, client.ErrNotRunning) {
		return reply, err
	}
	err = s.UnderLock(ctx, func(o *Offline) error {
		if r.Op == "create" || r.ReplacesData() {
			if err := o.AtRest(ctx); err != nil {
				return err
			}
		}
		undo, err := o.holdForRestore(r)
		if err != nil {
			return err
		}
		v, err := o.Store.Do(ctx, req.Snapshots, true)
		if err != nil {
			return errors.Join(err, undo())
		}
		if out.Result, err = json.Marshal(v); err != nil {
			return err
		}
		return o.completeByHand(ctx, r, out.Result)
	})
	return out, err
}

// ReplacesData tells whether the request puts a snapshot in the place of the node's data.
func (r SnapshotRequest) ReplacesData() bool {
	return r.Op == "restore" && r.To == "" && len(r.Into) == 0 && !r.DryRun
}

// holdForRestore refuses a restore beneath an upgrade in flight, and holds before the data is replaced: killed in between,
// nobody starts a version on data that may be another's. undo takes the hold away again where the restore failed and
// nothing was held before.
func (o *Offline) holdForRestore(r SnapshotRequest) (undo func() error, err error) {
	undo = func() error { return nil }
	if !r.ReplacesData() || o.Broken != nil {
		return undo, nil // a journal that can't be trusted holds by itself
	}
	if err := upgrade.CanReplaceData(o.Engine.InFlight()); err != nil || o.Engine.Journal().Hold != nil {
		return undo, err
	}
	return o.Engine.Release, o.Engine.Hold("a snapshot was restored", supervisor.HintAfterRestore)
}

// completeByHand verifies a snapshot that was taken without a running supervisor: nobody else would.
func (o *Offline) completeByHand(ctx context.Context, r SnapshotRequest, result json.RawMessage) error {
	if r.Op != "create" {
		return nil
	}
	var made snapshot.Info
	if err := json.Unmarshal(result, &made); err != nil {
		return err
	}
	return o.Store.Complete(ctx, made.ID)
}

// SnapshotHeight is the best that is known of the height, for the manifest; 0 = unknown. A supervisor that doesn't answer
// is an error: it wouldn't take the request either.
func (s *Session) SnapshotHeight(ctx context.Context) (int64, error) {
	st, err := s.Status(ctx)
	switch {
	case errors.Is(err, client.ErrNoAnswer):
		return 0, err
	case err != nil || st.Height == nil:
		return 0, nil
	}
	return *st.Height, nil
}
