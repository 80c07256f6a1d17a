package datadir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
)

// Up to this many new files and directories each is synced by itself, all of them together at the end; above, one syncfs
// of the target costs less, although it also writes what others have left unwritten there.
const syncEach = 64

// chunk is how much is copied or hashed between two looks at the context.
const chunk = 32 << 20

// errChanged means that the source isn't at rest.
var errChanged = errors.New("it changed while it was copied")

// A copier makes one copy of a tree. It records in the entries how each file came in.
type copier struct {
	ctx     context.Context
	entries []manifest.Entry
	units   []unit
	dst     string // the root of the copy; made by run, must not exist
	method  string // auto | reflink | hardlink | copy
	peers   []string
	rest    bool // the source must be at rest: what changes is an error
	workers int
	report  func(done int64)

	dev     uint64   // of dst
	cloneNo sync.Map // device of a source file → it can't be cloned to dst
	done    atomic.Int64

	mu       sync.Mutex
	unsynced []*os.File // new files that finish syncs
	syncAll  bool       // they are too many: one syncfs instead
}

// workers bounds the parallel copies: enough to keep a disk's queue filled, few enough to leave the node's host usable.
func workers() int { return max(2, min(8, 2*runtime.GOMAXPROCS(0))) }

// run copies everything and returns once it is on the disk, but for the name of dst in its parent.
func (c *copier) run() error {
	if err := c.makeDirs(); err != nil {
		return err
	}
	defer c.release()
	outer := c.ctx
	g, ctx := errgroup.WithContext(outer)
	g.SetLimit(c.workers)
	c.ctx = ctx
	for i := range c.units {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return c.unit(&c.units[i]) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := manifest.Interrupted(outer, "copy to "+c.dst); err != nil {
		return err
	}
	if err := c.makeLinks(); err != nil {
		return err
	}
	return c.finish()
}

// makeDirs makes every directory with mode 0700: what they are to have comes last, it may forbid writing.
func (c *copier) makeDirs() error {
	if err := os.Mkdir(c.dst, 0o700); err != nil {
		return fmt.Errorf("cannot make copy: %w", err)
	}
	st, err := lstat(c.dst)
	if err != nil {
		return err
	}
	c.dev = st.Dev
	return c.each(manifest.Dir, func(fd int, name string, e *manifest.Entry) error {
		if e.Path == "." {
			return nil
		}
		return unix.Mkdirat(fd, name, 0o700)
	})
}

func (c *copier) makeLinks() error {
	return c.each(manifest.Link, func(fd int, name string, e *manifest.Entry) error {
		if err := unix.Symlinkat(e.Target, fd, name); err != nil {
			return err
		}
		return applyMeta(fd, name, e)
	})
}

// each calls f for the entries of one type, with the open directory of the copy that holds it. Entries of a directory
// follow each other more often than not, so the last one stays open.
func (c *copier) each(typ string, f func(dirfd int, name string, e *manifest.Entry) error) error {
	fd, open := -1, ""
	defer func() { unix.Close(fd) }()
	for i := range c.entries {
		e := &c.entries[i]
		if e.Type != typ {
			continue
		}
		if dir := path.Dir(e.Path); fd < 0 || dir != open {
			unix.Close(fd)
			var err error
			if fd, err = openBeneath(c.dst, dir); err != nil {
				return fmt.Errorf("cannot write copy: %w", err)
			}
			open = dir
		}
		if err := f(fd, path.Base(e.Path), e); err != nil {
			return fmt.Errorf("cannot write %s: %w", filepath.Join(c.dst, e.Path), err)
		}
	}
	return nil
}

func (c *copier) unit(u *unit) error {
	src, err := openBeneath(u.root, u.sub)
	if err != nil {
		return fmt.Errorf("cannot read source: %w", err)
	}
	defer unix.Close(src)
	dst, err := openBeneath(c.dst, u.rel)
	if err != nil {
		return fmt.Errorf("cannot write copy: %w", err)
	}
	defer unix.Close(dst)
	peers := c.openPeers(u)
	defer func() {
		for _, fd := range peers {
			unix.Close(fd)
		}
	}()
	for _, it := range u.items {
		e := &c.entries[it.entry]
		if err := manifest.Interrupted(c.ctx, "copy of "+e.Path); err != nil {
			return err
		}
		if err := c.file(src, dst, it, e, peers); err != nil {
			err = fmt.Errorf("cannot copy %s: %w", filepath.Join(u.root, u.sub, it.src), err)
			if errors.Is(err, errChanged) || (c.rest && errors.Is(err, os.ErrNotExist)) {
				return &hint.Error{Op: "freeze source", Path: u.root, Err: err, Hint: "supervisor status"}
			}
			return err
		}
	}
	c.report(c.done.Load())
	return nil
}

// file brings one file into the copy, the cheapest safe way.
func (c *copier) file(src, dst int, it item, e *manifest.Entry, peers []int) error {
	fd, err := openAt(src, it.src, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && c.differs(&st, it, e) {
		err = errChanged
	}
	linked := false
	if err == nil && it.table && (c.method == manifest.Hardlink || c.method == "auto" && c.unclonable(st.Dev)) {
		linked, err = c.link(src, dst, fd, it, e, &st, peers)
	}
	if linked || err != nil {
		unix.Close(fd)
		return err
	}
	f := os.NewFile(uintptr(fd), it.src) // costs system calls of its own: not for a thousand links
	defer f.Close()
	cloned, err := c.fill(dst, f, it, e, &st)
	if !cloned && err == nil && it.table && c.method == "auto" && c.unclonable(st.Dev) {
		// The first to learn that there are no clones here. Nothing was copied yet.
		if linked, err = c.link(src, dst, fd, it, e, &st, peers); linked || err != nil {
			return err
		}
		_, err = c.fill(dst, f, item{}, e, &st)
	}
	return err
}

// differs tells whether an open file isn't the one that was listed.
func (c *copier) differs(st *unix.Stat_t, it item, e *manifest.Entry) bool {
	return !isType(st, unix.S_IFREG) || st.Size != e.Size || it.ino != 0 && (st.Ino != it.ino || !mtime(st).Equal(e.MTime))
}

// fill makes a new file of e and fills it by clone or by copy. A table that can't be cloned is left to be linked: then
// false is returned, and no file is left.
func (c *copier) fill(dst int, f *os.File, it item, e *manifest.Entry, st *unix.Stat_t) (done bool, err error) {
	name := path.Base(e.Path)
	fd, err := openAt(dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return false, err
	}
	w := os.NewFile(uintptr(fd), name)
	kept := false
	defer func() {
		if !kept {
			w.Close()
		}
	}()
	cloned, err := c.clone(w, f, st)
	switch {
	case err != nil:
		return false, err
	case cloned:
		e.Method = manifest.Reflink
		c.done.Add(e.Size)
	case it.table && c.method == "auto" && c.unclonable(st.Dev):
		return false, unix.Unlinkat(dst, name, 0)
	default:
		e.Method = manifest.Copy
		if err := c.copyData(w, f, st); err != nil {
			return false, err
		}
	}
	if err := applyMeta(dst, name, e); err != nil {
		return false, err
	}
	c.keep(w)
	kept = true
	return true, c.unchanged(f, st)
}

// unchanged fails if f isn't what it was before it was copied.
func (c *copier) unchanged(f *os.File, before *unix.Stat_t) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if c.rest && (st.Size != before.Size || st.Mtim != before.Mtim || st.Ctim != before.Ctim || st.Nlink == 0) {
		return errChanged
	}
	return nil
}

func (c *copier) unclonable(dev uint64) bool {
	_, no := c.cloneNo.Load(dev)
	return no
}

// clone lets w share f's blocks (ioctl_ficlone(2)). false: it can't here.
func (c *copier) clone(w, f *os.File, st *unix.Stat_t) (bool, error) {
	if (c.method != "auto" && c.method != manifest.Reflink) || st.Size == 0 || c.unclonable(st.Dev) {
		return false, nil
	}
	err := retry(func() error { return unix.IoctlFileClone(int(w.Fd()), int(f.Fd())) })
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EXDEV):
		c.cloneNo.Store(st.Dev, true)
		fallthrough
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM), errors.Is(err, unix.ETXTBSY): // this file alone
		if c.method == manifest.Reflink && st.Dev == c.dev {
			return false, fmt.Errorf("clone: %w", err)
		}
		return false, nil
	}
	return false, fmt.Errorf("clone: %w", err)
}

// copyData copies exactly the size that the file had; a sparse file stays sparse.
func (c *copier) copyData(w, f *os.File, st *unix.Stat_t) error {
	if st.Blocks*512 >= st.Size {
		return c.copyRange(w, f, 0, st.Size)
	}
	if err := w.Truncate(st.Size); err != nil {
		return err
	}
	for off := int64(0); off < st.Size; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole to the end
		}
		if err != nil {
			return c.copyRange(w, f, off, st.Size) // it knows no holes
		}
		end, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		c.done.Add(data - off)
		if err := c.copyRange(w, f, data, min(end, st.Size)); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// copyRange copies [from, to). os.File.ReadFrom uses copy_file_range(2) and falls back to reading and writing.
func (c *copier) copyRange(w, f *os.File, from, to int64) error {
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return err
	}
	if _, err := w.Seek(from, io.SeekStart); err != nil {
		return err
	}
	for from < to {
		n, err := w.ReadFrom(io.LimitReader(f, min(chunk, to-from)))
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("%w: it ends at %d, not at %d", errChanged, from, to)
		}
		from += n
		c.report(c.done.Add(n))
		if err := manifest.Interrupted(c.ctx, "copy of "+f.Name()); err != nil {
			return err
		}
	}
	return nil
}
