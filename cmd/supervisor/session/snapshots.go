package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/internal/progress"
	"nodevisor/snapshot"
	"nodevisor/snapshot/manifest"
	"nodevisor/supervisor/status"
)

// Snapshots joins the store to what upgrade.Snapshotter and supervisor.Snapshots ask for.
type Snapshots struct {
	*snapshot.Store
}

// openSnapshots opens the store. The upgrade in flight's snapshot is protected from every pruning.
func openSnapshots(s *Session, observe func(phase string, done, total int64)) (*Snapshots, error) {
	o := snapshot.Options{Config: s.Config.Snapshot, Home: s.Config.Node.Home, Log: s.Log, Observe: s.Progress}
	if observe != nil {
		o.Observe = func(e progress.Event) { observe(e.Phase, e.Done, e.Total) }
	}
	o.Protect = s.inFlightSnapshots
	store, err := snapshot.Open(o)
	if err != nil {
		return nil, err
	}
	return &Snapshots{store}, nil
}

// SnapshotRequest is what the snapshot commands ask of the store, through the control socket or under the lock.
type SnapshotRequest struct {
	Op     string            `json:"op"`           // create, restore, pin, unpin, delete, prune, verify
	ID     string            `json:"id,omitempty"` // create: under this one; "" = a new one
	Label  string            `json:"label,omitempty"`
	Height int64             `json:"height,omitempty"`
	To     string            `json:"to,omitempty"`
	Into   map[string]string `json:"into,omitempty"` // restore: databases by the source's name, and the empty ones they go into
	Signer bool              `json:"signer_from_snapshot,omitempty"`
	DryRun bool              `json:"dry_run,omitempty"`
	Deep   bool              `json:"deep,omitempty"`
}

// Raw is the request as the control socket carries it.
func (r SnapshotRequest) Raw() json.RawMessage { return rawJSON(r) }

// Create seals a snapshot of the data at rest.
func (s *Snapshots) Create(ctx context.Context, id, label string, height int64, ready func() error) error {
	return s.CreateWhen(ctx, id, label, max(0, height), ready)
}

// Restore puts a snapshot in the place of the data.
func (s *Snapshots) Restore(ctx context.Context, id, once string) error {
	_, err := s.Store.Restore(ctx, id, snapshot.RestoreOptions{Once: once})
	return err
}

// Room tells whether the next snapshot fits. One that doesn't may still fit after a pruning.
func (s *Snapshots) Room(ctx context.Context) error {
	f, err := s.Forecast(ctx)
	if err != nil {
		return err
	}
	if f.Err() == nil {
		return nil
	}
	if _, err := s.Prune(ctx, false); err != nil {
		return err
	}
	if f, err = s.Forecast(ctx); err != nil {
		return err
	}
	return f.Err()
}

// Summary is what the status shows.
func (s *Snapshots) Summary(ctx context.Context) (status.Snapshots, status.Disk, error) {
	var sum status.Snapshots
	var disk status.Disk
	all, err := s.List()
	if err != nil {
		return sum, disk, err
	}
	sum.Count, sum.Last = len(all), newestGood(all)
	if f, err := s.Forecast(ctx); err == nil {
		disk.Free, disk.Needed, disk.MinFree = &f.Free, &f.Needed, &f.MinFree
		if f.Method != "" {
			sum.Method = &f.Method
		}
	}
	s.askDatabases(ctx, &sum)
	return sum, disk, nil
}

// newestGood is the newest snapshot that isn't damaged, as the status shows it; nil: there is none.
func newestGood(all []snapshot.Info) *status.LastSnapshot {
	for _, i := range all {
		if i.State != manifest.Damaged {
			return &status.LastSnapshot{ID: i.ID, Height: i.Height, CreatedAt: i.CreatedAt, VerifiedAt: i.VerifiedAt, Bytes: i.Bytes, DurationMS: i.DurationMS}
		}
	}
	return nil
}

// warnOfDamaged puts into the status which snapshots are damaged. It looks itself: another command may have found it out,
// and the running supervisor looks at its snapshots only now and then.
func (s *Session) warnOfDamaged(st *status.Document) {
	if s.bad != nil {
		return // where the snapshots lie isn't certain then
	}
	store, err := s.Store(nil)
	if err != nil {
		return // doctor's to say
	}
	damaged, err := store.Damaged()
	if err != nil {
		st.Warnings = append(st.Warnings, err.Error())
	}
	for _, i := range damaged {
		st.Warnings = append(st.Warnings, fmt.Sprintf("snapshot %s can't be relied on: %s; supervisor snapshot verify %s", i.ID, *i.Error, i.ID))
		if last := st.Snapshots.Last; last != nil && last.ID == i.ID {
			if all, err := store.List(); err == nil {
				st.Snapshots.Last = newestGood(all)
			}
		}
	}
}

// askDatabases puts into the status what an upgrade would meet: a dump in the window where a clone was hoped for, and what
// would forbid to put a database back. A server that is away is the forecast's to tell.
func (s *Snapshots) askDatabases(ctx context.Context, sum *status.Snapshots) {
	if sum.Method != nil && *sum.Method == manifest.Dump {
		sum.Note = new("the next snapshot dumps a database while the node is down; supervisor doctor says what a clone, which is faster, lacks")
	}
	for _, db := range s.Databases() {
		if err := db.Bound(ctx); err != nil && !errors.Is(err, manifest.ErrAway) {
			sum.Blocked = new("the database " + db.Name() + " can't be put back: " + err.Error())
			return
		}
	}
}

// Tidy completes what is only sealed. Completing prunes.
func (s *Snapshots) Tidy(ctx context.Context, _ string) error {
	all, err := s.List()
	if err != nil {
		return err
	}
	for _, i := range all {
		if i.State == "sealed" {
			err = errors.Join(err, s.Complete(ctx, i.ID))
		}
	}
	return err
}

// Do carries out an operator's request.
func (s *Snapshots) Do(ctx context.Context, raw json.RawMessage, atRest bool) (any, error) {
	var r SnapshotRequest
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("cannot read the request: %w", err)
	}
	switch r.Op {
	case "create":
		return s.create(ctx, r, atRest)
	case "restore":
		if !atRest && r.ReplacesData() {
			return nil, needsStop("restore", "--stop (stops the node, restores, and holds)")
		}
		return s.Store.Restore(ctx, r.ID, snapshot.RestoreOptions{To: r.To, Into: r.Into, SignerStateFromSnapshot: r.Signer, DryRun: r.DryRun})
	case "pin":
		return s.after(r.ID, s.Pin(r.ID))
	case "unpin":
		return s.after(r.ID, s.Unpin(r.ID))
	case "delete":
		return map[string]string{"deleted": r.ID}, s.Delete(r.ID)
	case "prune":
		ids, err := s.Prune(ctx, r.DryRun)
		if ids == nil {
			ids = []string{}
		}
		return map[string]any{"deleted": ids, "dry_run": r.DryRun}, err
	}
	return nil, hint.New("do", r.Op, "no such snapshot operation", "supervisor snapshot --help")
}

func needsStop(op, next string) error {
	return hint.New(op, "the snapshot", "the node is running, and a directory can only be copied while it is at rest", "add "+next)
}

// create seals a snapshot: of the node at rest, or beneath it where every source allows that. One that is broken off leaves
// nothing behind. It is completed by whoever asked for it, or by the running supervisor.
func (s *Snapshots) create(ctx context.Context, r SnapshotRequest, atRest bool) (any, error) {
	create := s.Store.Create
	if !atRest && !r.DryRun {
		if !s.Live() {
			return nil, needsStop("create", "--stop (stops the node, takes the snapshot, starts the node again)")
		}
		create = s.CreateLive
	}
	if err := s.Check(); err != nil {
		return nil, err
	}
	if err := s.Room(ctx); err != nil || r.DryRun {
		return nil, err
	}
	id := r.ID
	if id == "" {
		id = snapshot.NewID(time.Now(), r.Label, r.Height)
	}
	if err := create(ctx, id, r.Label, max(0, r.Height)); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(err, s.Abandon(id))
		}
		return nil, err
	}
	return s.info(id)
}

// after answers with the snapshot as it is now.
func (s *Snapshots) after(id string, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return s.info(id)
}

func (s *Snapshots) info(id string) (snapshot.Info, error) {
	all, err := s.List()
	if err != nil {
		return snapshot.Info{}, err
	}
	for _, i := range all {
		if i.ID == id {
			return i, nil
		}
	}
	return snapshot.Info{}, hint.New("find snapshot", id, "it is not in the list", "supervisor snapshot list")
}
