package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres"
)

// Create takes the snapshot id (of NewID) of every source; the node is at rest. See CreateLive for one that runs. After it the snapshot is sealed: its
// list and all its data are on the disk. An id that is sealed already is success. Cancelled, it leaves a .partial, which
// Create with the same id begins anew and Recover removes; any other failure removes it, so that no full disk stays
// behind. A height of 0 or below is not known.
func (s *Store) Create(ctx context.Context, id, label string, height int64) error {
	return s.create(ctx, id, label, height, false, nil)
}

// CreateWhen is Create, whose snapshot is sealed only once ready, which is asked when all is copied, returned nil.
func (s *Store) CreateWhen(ctx context.Context, id, label string, height int64, ready func() error) error {
	return s.create(ctx, id, label, height, false, ready)
}

// Live tells whether every source can be copied beneath a running node: databases that are dumped, from one exported
// snapshot each.
func (s *Store) Live() bool {
	for _, sl := range s.slots {
		if sl.cfg.Kind != postgres.Kind || sl.cfg.database().Mode != postgres.ModeDump {
			return false
		}
	}
	return len(s.slots) > 0
}

// CreateLive is Create while the node runs. It is refused unless Live.
func (s *Store) CreateLive(ctx context.Context, id, label string, height int64) error {
	if !s.Live() {
		return &hint.Error{Op: "create snapshot", Path: id, Err: errors.New("a source can only be copied while the node is at rest"), Hint: "supervisor snapshot create --stop"}
	}
	return s.create(ctx, id, label, height, true, nil)
}

func (s *Store) create(ctx context.Context, id, label string, height int64, live bool, ready func() error) error {
	begin := time.Now()
	final, err := s.pathOf(id)
	if err != nil {
		return err
	}
	if done, err := s.sealed(final); err != nil {
		return err
	} else if done {
		return atomicfile.SyncDir(s.dir) // whoever gave it this name may have been killed before it was durable
	}
	sources, err := s.present()
	if err != nil {
		return err
	}
	release, err := s.acquire(id)
	if err != nil {
		return err
	}
	defer release()
	lock, err := s.makePartial(id)
	if err != nil {
		return err
	}
	defer lock.Close()

	m := &manifest.Manifest{Schema: manifest.Schema, ID: id, Label: label, CreatedAt: begin.UTC().Truncate(time.Millisecond), State: manifest.Sealed, Home: s.real}
	if height > 0 {
		m.Height = &height
	}
	if m.Seq, err = s.nextSeq(); err == nil {
		err = s.fill(ctx, m, sources, begin, live)
	}
	if err == nil && ready != nil {
		err = ready()
	}
	if err == nil {
		err = atomicfile.Rename(final+partialSuffix, final)
	}
	if err != nil {
		if ctx.Err() == nil {
			err = errors.Join(err, s.discard(id))
		}
		return fmt.Errorf("cannot create snapshot %s: %w", id, err)
	}
	s.log.Info("snapshot sealed", "snapshot", id, "height", height, "bytes", m.Bytes, "took", time.Since(begin))
	return nil
}

// Abandon removes what a cancelled Create left of an id that isn't made again. Without it Recover does so at the next start.
func (s *Store) Abandon(id string) error { return s.reclaim(id) }

// sealed tells whether the snapshot in dir is there. Something else under its name is an error.
func (s *Store) sealed(dir string) (bool, error) {
	_, err := manifest.Read(dir)
	if err == nil {
		return true, nil
	}
	if _, lerr := os.Lstat(dir); errors.Is(lerr, fs.ErrNotExist) {
		return false, nil
	}
	return false, &hint.Error{Op: "create snapshot", Path: dir, Err: fmt.Errorf("the name is taken by something else: %w", err), Hint: "move it aside"}
}

// fill freezes every source into <id>.partial and writes the manifest, last of all: a set is valid only when every
// member is. Sources run side by side, but for those that wait for others.
func (s *Store) fill(ctx context.Context, m *manifest.Manifest, sources []source, begin time.Time, live bool) error {
	dir := filepath.Join(s.dir, m.ID+partialSuffix)
	ids, err := s.ids("")
	if err != nil {
		return err
	}
	ledger := s.ledger()
	done := make(map[string]chan struct{}, len(sources)) // closed when that source is complete; never where it failed
	for _, src := range sources {
		done[src.Name()] = make(chan struct{})
	}
	recs := make([]manifest.Source, len(sources))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(manifest.Warm) // beside the copying, whose waits for the disk leave the processor idle
	for i, src := range sources {
		job := manifest.Job{ID: m.ID, Dir: dir, Room: ledger.claim, Live: live}
		for _, id := range ids {
			job.Peers = append(job.Peers, filepath.Join(s.dir, id, src.Name()))
		}
		group.Go(func() (err error) {
			for _, name := range s.after(src.Name()) {
				select {
				case <-done[name]:
				case <-ctx.Done():
					return manifest.Interrupted(ctx, "snapshot")
				}
			}
			if recs[i], err = src.Freeze(ctx, job); err == nil {
				close(done[src.Name()])
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, rec := range recs {
		m.Bytes += rec.Bytes
		m.Sources = append(m.Sources, rec)
	}
	m.DurationMS = time.Since(begin).Milliseconds()
	return manifest.Create(dir, m)
}

// after names the sources that must be complete before the one called name starts; all of them are part of the snapshot.
func (s *Store) after(name string) []string {
	for _, sl := range s.slots {
		if sl.cfg.Name == name {
			return sl.cfg.After
		}
	}
	return nil
}

// nextSeq numbers a snapshot: above every one in the directory and every one that was given before.
func (s *Store) nextSeq() (int64, error) {
	ids, err := s.ids("")
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if seq, err := manifest.PeekSeq(filepath.Join(s.dir, id)); err == nil { // a damaged one costs order, not the snapshot
			s.seq = max(s.seq, seq)
		}
	}
	s.seq++
	return s.seq, nil
}

// makePartial makes <id>.partial, empty, and locks it: another home that shares the directory must not take a snapshot
// under way for a left-over. The lock goes with the process.
func (s *Store) makePartial(id string) (*os.File, error) {
	if err := atomicfile.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make snapshot directory: %w", err)
	}
	if err := s.reclaim(id); err != nil {
		return nil, err
	}
	path := filepath.Join(s.dir, id+partialSuffix)
	// No sync of the parent: the name that must last is the one that the rename gives.
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make snapshot: %w", err)
	}
	if err := s.adopt(path); err != nil {
		return nil, fmt.Errorf("cannot make snapshot: %w", err)
	}
	return lockDir(path)
}

// adopt gives what root made the owner of the store's directory: the node's user is to read it.
func (s *Store) adopt(path string) error {
	info, err := os.Stat(s.dir)
	if err != nil || os.Geteuid() != 0 {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || (st.Uid == 0 && st.Gid == 0) {
		return nil
	}
	return os.Lchown(path, int(st.Uid), int(st.Gid))
}

// errLocked means that another process is making the snapshot.
var errLocked = errors.New("another process is at it")

func lockDir(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errLocked
	} else if err != nil && !errors.Is(err, unix.EINTR) {
		err = nil // a file system without locks: there only one home may use the directory
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	return f, nil
}

// reclaim discards what an ended process left; errLocked: it hasn't ended.
func (s *Store) reclaim(id string) error {
	lock, err := lockDir(filepath.Join(s.dir, id+partialSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	return s.discard(id)
}

// discard removes <id>.partial with what its sources froze elsewhere. It is called again until it succeeds: the
// directory itself, by which the rest is found, goes last.
func (s *Store) discard(id string) error {
	path := filepath.Join(s.dir, id+partialSuffix)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, sl := range s.slots {
		if err := s.source(sl).Drop(id); err != nil {
			return err
		}
	}
	if err := atomicfile.RemoveTree(path); err != nil {
		return fmt.Errorf("cannot remove unfinished snapshot: %w", err)
	}
	return nil
}
