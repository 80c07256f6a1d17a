package snapshot

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
)

// Room is one file system that a snapshot needs, in bytes. Needed counts links and clones in full: they grow to that.
type Room struct {
	Path    string `json:"path"`
	Needed  int64  `json:"needed"`
	Free    int64  `json:"free"`
	MinFree int64  `json:"min_free"`
}

// slack is what would be left above the floor.
func (r Room) slack() int64 { return r.Free - r.Needed - r.MinFree }

// Err refuses where min_free would be passed.
func (r Room) Err() error {
	if r.slack() >= 0 {
		return nil
	}
	return &hint.Error{
		Op: "take a snapshot in", Path: r.Path,
		Err:  fmt.Errorf("%d bytes are needed, %d are free, and min_free keeps %d of them", r.Needed, r.Free, r.MinFree),
		Hint: "supervisor snapshot prune; or set [snapshot] dir to another disk, or a lower min_free",
	}
}

// Forecast is what the next snapshot will take. Needed, Free and MinFree are those of the tightest file system.
type Forecast struct {
	Needed      int64  `json:"needed"`
	Free        int64  `json:"free"`
	MinFree     int64  `json:"min_free"`
	Bytes       int64  `json:"bytes"`
	Files       int    `json:"files"`
	Method      string `json:"method"`       // the slowest of the sources'; "" without any
	CrossDevice bool   `json:"cross_device"` // a frozen copy lies beside the source until it is fetched
	Rooms       []Room `json:"rooms"`
}

// Err refuses a forecast that doesn't fit, with what to do.
func (f Forecast) Err() error {
	for _, r := range f.Rooms {
		if err := r.Err(); err != nil {
			return err
		}
	}
	return nil
}

// Forecast reads names and sizes, before the node is stopped. A forecast that doesn't fit is no error here: see its Err.
func (s *Store) Forecast(ctx context.Context) (Forecast, error) {
	sources, err := s.present()
	if err != nil {
		return Forecast{}, err
	}
	if err := s.writable(); err != nil {
		return Forecast{}, err
	}
	f := Forecast{}
	l := s.ledger()
	cost := map[string]int{manifest.Reflink: 1, manifest.Hardlink: 2, manifest.Copy: 3, manifest.Clone: 4, manifest.Dump: 5}
	l.add(manifest.Need{Path: s.dir}) // shows the room also where there is no source yet
	for _, src := range sources {
		e, err := src.Forecast(ctx, s.dir)
		if err != nil {
			return Forecast{}, fmt.Errorf("cannot forecast snapshot: %w", err)
		}
		f.Bytes += e.Bytes
		f.Files += e.Files
		f.CrossDevice = f.CrossDevice || e.CrossDevice
		if cost[e.Method] >= cost[f.Method] {
			f.Method = e.Method
		}
		l.add(e.Needs...)
	}
	if l.err != nil {
		return Forecast{}, l.err
	}
	for i, r := range l.rooms {
		f.Rooms = append(f.Rooms, *r)
		if i == 0 || r.slack() < (Room{Needed: f.Needed, Free: f.Free, MinFree: f.MinFree}).slack() {
			f.Needed, f.Free, f.MinFree = r.Needed, r.Free, r.MinFree
		}
	}
	return f, nil
}

// writable refuses a directory, or where it isn't there yet its nearest parent, in which nothing can be made: a disk that
// was mounted read-only after an error is found before the node is stopped, and not behind it. It writes nothing.
func (s *Store) writable() error {
	path := s.dir
	for {
		err := unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
		switch {
		case err == nil:
			return nil
		case !os.IsNotExist(err) || path == filepath.Dir(path):
			return &hint.Error{
				Op: "take a snapshot in", Path: s.dir, Err: &fs.PathError{Op: "write to", Path: path, Err: err},
				Hint: "give the node's user the right to write there, mount it read-write, or set [snapshot] dir to another directory",
			}
		}
		path = filepath.Dir(path)
	}
}

// A ledger adds up what is needed on each file system. Free is read once, at the first need: what an earlier source has
// linked takes its room only later.
type ledger struct {
	mu    sync.Mutex // sources claim side by side
	s     *Store
	devs  map[uint64]*Room
	rooms []*Room
	err   error
}

func (s *Store) ledger() *ledger { return &ledger{s: s, devs: map[uint64]*Room{}} }

func (l *ledger) add(needs ...manifest.Need) {
	for _, n := range needs {
		dev, room, err := l.s.room(n.Path)
		if err != nil {
			l.err = err
			return
		}
		if l.devs[dev] == nil {
			l.devs[dev] = &room
			l.rooms = append(l.rooms, &room)
		}
		l.devs[dev].Needed += n.Bytes
	}
}

// claim adds needs and refuses what doesn't fit.
func (l *ledger) claim(needs ...manifest.Need) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(needs...)
	if l.err != nil {
		return l.err
	}
	for _, r := range l.rooms {
		if err := r.Err(); err != nil {
			return err
		}
	}
	return nil
}

// room reads the file system of path, or of its nearest parent that is there.
func (s *Store) room(path string) (dev uint64, r Room, err error) {
	for {
		var st unix.Stat_t
		var vfs unix.Statfs_t
		if err = unix.Stat(path, &st); err == nil {
			err = unix.Statfs(path, &vfs)
		}
		switch {
		case err == nil:
			r = Room{Path: path, Free: int64(vfs.Bavail) * vfs.Frsize, MinFree: s.minFree.of(int64(vfs.Blocks) * vfs.Frsize)}
			return st.Dev, r, nil
		case !os.IsNotExist(err) || path == filepath.Dir(path):
			return 0, Room{}, fmt.Errorf("cannot read free space of %s: %w", path, err)
		}
		path = filepath.Dir(path)
	}
}

// usable is what may be taken of path's file system, in bytes: what is free above the floor.
func (s *Store) usable(path string) (int64, error) {
	_, r, err := s.room(path)
	return r.slack(), err
}

// of is the floor in bytes on a file system of the given size.
func (m MinFree) of(size int64) int64 {
	if m.Percent > 0 {
		return int64(float64(size) / 100 * m.Percent)
	}
	return int64(m.Bytes)
}
