package datadir

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"nodevisor/snapshot/manifest"
)

// units makes the work for a tree that entries already list, in root.
func units(root string, entries []manifest.Entry) []unit {
	var all []unit
	bytes := int64(0)
	for i := range entries {
		e := &entries[i]
		if e.Type != manifest.File {
			continue
		}
		dir := path.Dir(e.Path)
		if n := len(all); n == 0 || all[n-1].rel != dir || len(all[n-1].items) >= unitFiles || bytes >= unitBytes {
			all = append(all, unit{root: root, sub: dir, rel: dir})
			bytes = 0
		}
		bytes += e.Size
		u := &all[len(all)-1]
		u.items = append(u.items, item{entry: i, src: path.Base(e.Path)})
	}
	return all
}

// eachFile opens every listed file in root, links refused, and hands it to f, on several goroutines. A unit's error
// ends all.
func eachFile(ctx context.Context, root string, entries []manifest.Entry, workers int, f func(*os.File, *manifest.Entry) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for _, u := range units(root, entries) {
		g.Go(func() error {
			dir, err := openBeneath(u.root, u.sub)
			if err != nil {
				return err
			}
			defer unix.Close(dir)
			for _, it := range u.items {
				e := &entries[it.entry]
				if err := manifest.Interrupted(ctx, "reading of "+e.Path); err != nil {
					return err
				}
				fd, err := openAt(dir, it.src, unix.O_RDONLY, 0)
				if err != nil {
					return &os.PathError{Op: "open", Path: filepath.Join(root, e.Path), Err: err}
				}
				file := os.NewFile(uintptr(fd), filepath.Join(root, e.Path))
				err = f(file, e)
				file.Close()
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// hashAll records each file's digest in the entries.
func hashAll(ctx context.Context, root string, entries []manifest.Entry, workers int, report func(int64)) error {
	var done atomic.Int64
	return eachFile(ctx, root, entries, workers, func(f *os.File, e *manifest.Entry) error {
		sum, n, err := hash(ctx, f, func(n int64) { report(done.Add(n)) })
		if err != nil {
			return err
		}
		if n != e.Size {
			return fmt.Errorf("cannot hash %s: it has %d bytes, the snapshot was made with %d", f.Name(), n, e.Size)
		}
		e.SHA256 = sum
		return nil
	})
}

// hash reads f to its end.
func hash(ctx context.Context, f *os.File, report func(int64)) (string, int64, error) {
	h, total := sha256.New(), int64(0)
	for {
		n, err := io.Copy(h, io.LimitReader(f, chunk))
		if err != nil {
			return "", total, fmt.Errorf("cannot hash %s: %w", f.Name(), err)
		}
		if total += n; n == 0 {
			return hex.EncodeToString(h.Sum(nil)), total, nil
		}
		report(n)
		if err := manifest.Interrupted(ctx, "hashing of "+f.Name()); err != nil {
			return "", total, err
		}
	}
}

// Verify compares the copy in at with its record: names, types, sizes, modes, link targets, and with hashes the content
// of every file whose digest is recorded. Fault paths are relative to at's parent. An error means that it couldn't tell.
func Verify(ctx context.Context, at string, rec manifest.Source, hashes bool, observe manifest.Observe) ([]manifest.Fault, error) {
	return verify(ctx, at, rec, hashes, func(done int64) {
		if observe != nil {
			observe("verify", done, rec.Bytes)
		}
	})
}

func verify(ctx context.Context, at string, rec manifest.Source, hashes bool, report func(int64)) ([]manifest.Fault, error) {
	l := &lister{ctx: ctx, want: make(map[string]*manifest.Entry, len(rec.Entries)), name: rec.Name}
	for i := range rec.Entries {
		l.want[rec.Entries[i].Path] = &rec.Entries[i]
	}
	fd, err := openRoot(at)
	if errors.Is(err, os.ErrNotExist) {
		return []manifest.Fault{{Path: rec.Name, Want: "a directory", Got: "nothing"}}, nil
	}
	if st, lerr := lstat(at); err != nil && lerr == nil && !isType(&st, unix.S_IFDIR) {
		return []manifest.Fault{{Path: rec.Name, Want: "a directory", Got: typeOf(&st)}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot verify: %w", err)
	}
	defer unix.Close(fd)
	if err := l.dir(fd, "."); err != nil {
		return nil, fmt.Errorf("cannot verify %s: %w", at, err)
	}
	for i := range rec.Entries { // what was found and right is struck off
		if e := &rec.Entries[i]; l.want[e.Path] != nil {
			l.fault(e.Path, describe(e), "nothing")
		}
	}
	if hashes {
		if err := l.hash(at, report); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(l.faults, func(a, b manifest.Fault) int { return strings.Compare(a.Path, b.Path) })
	return l.faults, nil
}

// A lister walks a copy and strikes off what it finds.
type lister struct {
	ctx    context.Context
	name   string
	want   map[string]*manifest.Entry
	intact []manifest.Entry // files whose size and type are right: worth hashing
	mu     sync.Mutex
	faults []manifest.Fault
}

func (l *lister) fault(p, want, got string) { l.add(manifest.Fault{Path: p, Want: want, Got: got}) }

// add takes a fault whose path is one within the source.
func (l *lister) add(f manifest.Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.Path = path.Join(l.name, f.Path)
	l.faults = append(l.faults, f)
}

func (l *lister) dir(fd int, rel string) error {
	if err := manifest.Interrupted(l.ctx, "listing of "+rel); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	l.check(rel, &st, "")
	all, err := names(fd)
	if err != nil {
		return err
	}
	for _, name := range all {
		p := path.Join(rel, name)
		st, err := statAt(fd, name)
		if err != nil {
			return err
		}
		switch {
		case l.want[p] == nil:
			l.fault(p, "nothing", typeOf(&st))
		case isType(&st, unix.S_IFDIR) && l.want[p].Type == manifest.Dir:
			child, err := openAt(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err != nil {
				return err
			}
			err = l.dir(child, p)
			unix.Close(child)
			if err != nil {
				return err
			}
		case isType(&st, unix.S_IFLNK):
			target, err := readlinkAt(fd, name)
			if err != nil {
				return err
			}
			l.check(p, &st, target)
		default:
			l.check(p, &st, "")
		}
	}
	return nil
}

// check compares one thing that is there with its entry, and strikes the entry off.
func (l *lister) check(p string, st *unix.Stat_t, target string) {
	e := l.want[p]
	delete(l.want, p)
	switch typ := typeOf(st); {
	case e == nil:
		l.fault(p, "nothing", typ)
	case typ != e.Type:
		l.fault(p, e.Type, typ)
	case typ == manifest.Link && target != e.Target:
		l.fault(p, "link to "+e.Target, "link to "+target)
	case typ == manifest.File && st.Size != e.Size:
		l.fault(p, fmt.Sprintf("%d bytes", e.Size), fmt.Sprintf("%d bytes", st.Size))
	default:
		if mode := manifest.Mode(st.Mode & 0o7777); typ != manifest.Link && mode != e.Mode {
			l.fault(p, fmt.Sprintf("mode %04o", uint32(e.Mode)), fmt.Sprintf("mode %04o", uint32(mode)))
		}
		if typ == manifest.File && e.SHA256 != "" {
			l.intact = append(l.intact, *e)
		}
	}
}

func (l *lister) hash(at string, report func(int64)) error {
	var done atomic.Int64
	// The order of the walk is that of the disk's names; units want directories together, which it keeps.
	return eachFile(l.ctx, at, l.intact, workers(), func(f *os.File, e *manifest.Entry) error {
		sum, _, err := hash(l.ctx, f, func(n int64) { report(done.Add(n)) })
		switch {
		case manifest.Interrupted(l.ctx, "verification") != nil:
			return err
		case err != nil: // a sector that can't be read is a fault too, and may be a cable's
			l.add(manifest.Fault{Path: e.Path, Want: "sha256 " + e.SHA256, Got: err.Error(), Unproven: true})
		case sum != e.SHA256:
			l.fault(e.Path, "sha256 "+e.SHA256, "sha256 "+sum)
		}
		return nil
	})
}

func typeOf(st *unix.Stat_t) string {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return manifest.File
	case unix.S_IFDIR:
		return manifest.Dir
	case unix.S_IFLNK:
		return manifest.Link
	}
	return "special file"
}

func describe(e *manifest.Entry) string {
	if e.Type == manifest.File {
		return fmt.Sprintf("file of %d bytes", e.Size)
	}
	return e.Type
}

// Exclusive is how many bytes of the copy in at nothing else holds: copies, and links whose other names are gone. ok is
// false where clones make it unknowable.
func Exclusive(at string, rec manifest.Source) (bytes int64, ok bool) {
	for i := range rec.Entries {
		e := &rec.Entries[i]
		switch e.Method {
		case manifest.Reflink:
			return 0, false
		case manifest.Copy, manifest.Dump:
			bytes += e.Size
		case manifest.Hardlink:
			if st, err := lstat(filepath.Join(at, e.Path)); err == nil && st.Nlink == 1 {
				bytes += e.Size
			}
		}
	}
	return bytes, true
}
