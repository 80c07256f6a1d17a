// Package datadir snapshots and restores one directory: the node's data.
//
// While the node is at rest, Freeze makes a copy that costs what changes in place, not what is there: clones where the
// file system shares blocks, hard links for the tables that a store writes once, plain copies for the rest. Finish
// hashes it after the restart. A restore stages a full copy beside the source and swaps it in under a journal of its own.
package datadir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/swap"
)

// Kind is the kind of source that this package implements.
const Kind = "dir"

// Options describe a source.
type Options struct {
	Name       string
	Path       string   // absolute
	Method     string   // auto | reflink | hardlink | copy
	Exclude    []string // patterns (path.Match) over the path within the source
	Signer     []string // base names of signers' states
	SignerFile string   // where the node's own configuration puts the signer's state: absolute; "" = not known
	Own        []string // directories of the store, absolute: no link may lead there
	Observe    manifest.Observe
}

// Source is one directory. Its links are resolved once, by New: what the name led to then is what is copied and
// restored, whatever happens to the links later.
type Source struct {
	swap.Place // where it is, and how a restore gets there
	name       string
	method     string
	exclude    []string
	signer     []string
	signerFile string // within the source; "" = none
	own        []string
	observe    manifest.Observe
}

// New resolves a source. A missing directory is no error here (a restore may be what it needs): see Present.
func New(o Options) (*Source, error) {
	for _, pattern := range o.Exclude {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, fmt.Errorf("source %q: exclude: %q: %w", o.Name, pattern, err)
		}
	}
	resolved, err := resolve(o.Path)
	if err != nil {
		return nil, &hint.Error{Op: "resolve source", Path: o.Path, Err: err, Hint: fmt.Sprintf("set the path of source %q", o.Name)}
	}
	s := &Source{Place: swap.Place{Path: resolved}, name: o.Name, method: o.Method, exclude: o.Exclude, signer: o.Signer, own: o.Own, observe: o.Observe}
	if s.observe == nil {
		s.observe = func(string, int64, int64) {}
	}
	if o.SignerFile != "" {
		s.signerFile = s.inner(o.SignerFile)
	}
	s.IsSigner = s.isSigner
	s.Inside, err = keepsInside(resolved)
	return s, err
}

// resolve follows the links of path to the end, also where what they lead to isn't there.
func resolve(path string) (string, error) {
	for range 40 { // the kernel's own limit: path_resolution(7)
		resolved, err := filepath.EvalSymlinks(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return resolved, err
		}
		parent, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return "", err
		}
		path = filepath.Join(parent, filepath.Base(path))
		target, err := os.Readlink(path)
		if err != nil {
			return path, nil // not there, and no link
		}
		if path = target; !filepath.IsAbs(target) {
			path = filepath.Join(parent, target)
		}
	}
	return "", unix.ELOOP
}

// keepsInside tells whether the source must be swapped entry by entry: a mount point can't be renamed, and neither can
// a directory whose parent isn't writable.
func keepsInside(path string) (bool, error) {
	var x unix.Statx_t
	switch err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &x); {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, &os.PathError{Op: "statx", Path: path, Err: err}
	case x.Mode&unix.S_IFMT != unix.S_IFDIR:
		return false, &os.PathError{Op: "open", Path: path, Err: unix.ENOTDIR}
	case x.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 && x.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
		return true, nil
	}
	return unix.Faccessat(unix.AT_FDCWD, filepath.Dir(path), unix.W_OK, unix.AT_EACCESS) != nil, nil
}

// inner is file's path within the source, or "" where it lies elsewhere.
func (s *Source) inner(file string) string {
	if dir, err := resolve(filepath.Dir(file)); err == nil && within(s.Path, dir) {
		rel, _ := filepath.Rel(s.Path, filepath.Join(dir, filepath.Base(file)))
		return rel
	}
	return ""
}

// Name is the source's name.
func (s *Source) Name() string { return s.name }

// Where is the source's path, links resolved.
func (s *Source) Where() string { return s.Path }

// Kind says that it is a directory.
func (s *Source) Kind() string { return Kind }

// Present tells whether there is anything to copy.
func (s *Source) Present() bool {
	st, err := lstat(s.Path)
	return err == nil && isType(&st, unix.S_IFDIR)
}

func (s *Source) isSigner(p string) bool {
	return slices.Contains(s.signer, path.Base(p)) || (s.signerFile != "" && p == s.signerFile)
}

// excluded tells whether p is none of the source's: our own folder, or what the configuration leaves out.
func (s *Source) excluded(p string) bool {
	if p == swap.Within {
		return true
	}
	return slices.ContainsFunc(s.exclude, func(pattern string) bool { ok, _ := path.Match(pattern, p); return ok })
}

// FrozenAt is where a copy lies that could not be made in the snapshot's own directory.
func (s *Source) FrozenAt(id string) string { return filepath.Join(s.Side(), id, s.name) }

// Drop removes what FrozenAt names, if it is there. It works on after a crash, and is no error done twice.
func (s *Source) Drop(id string) error {
	dir := filepath.Dir(s.FrozenAt(id))
	if _, err := lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := atomicfile.RemoveTree(s.FrozenAt(id)); err != nil {
		return fmt.Errorf("cannot remove frozen copy: %w", err)
	}
	// Other sources may have theirs in it, or in the folder above: then it isn't empty, and stays.
	os.Remove(dir)
	os.Remove(s.Side())
	return nil
}

// FrozenIDs lists the snapshots that have a frozen copy of this source, also one that Drop was interrupted in.
func (s *Source) FrozenIDs() ([]string, error) {
	entries, err := os.ReadDir(s.Side())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot list frozen copies: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		held, err := os.ReadDir(filepath.Dir(s.FrozenAt(e.Name())))
		if err == nil && (len(held) == 0 || slices.ContainsFunc(held, func(d fs.DirEntry) bool { return d.Name() == s.name })) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Forecast tells what a snapshot in dir would take. It reads names and sizes alone; the node may run. Files that come
// and go meanwhile are normal. Links and clones are counted in full: they grow to that as the store compacts.
func (s *Source) Forecast(ctx context.Context, dir string) (manifest.Estimate, error) {
	t, err := s.rescan(ctx)
	if err != nil {
		return manifest.Estimate{}, err
	}
	frozen, err := s.freezesBeside(dir)
	if err != nil {
		return manifest.Estimate{}, err
	}
	e := manifest.Estimate{CrossDevice: frozen, Bytes: t.bytes, Files: t.files, Needs: []manifest.Need{{Path: dir, Bytes: t.space}}}
	clones := (s.method == "auto" || s.method == manifest.Reflink) && s.clones(t, dir, frozen)
	switch {
	case clones:
		e.Method = manifest.Reflink
	case s.method == manifest.Reflink:
		return e, s.noClones()
	case s.method == "auto" && t.tables > 0, s.method == manifest.Hardlink:
		e.Method = manifest.Hardlink
	default:
		e.Method = manifest.Copy
	}
	if frozen {
		e.Needs = append(e.Needs, manifest.Need{Path: s.Path, Bytes: s.frozenSpace(t, clones)})
	}
	return e, nil
}

// rescan lists a source that may be changing: a file or directory that is gone before it was looked at starts it anew.
func (s *Source) rescan(ctx context.Context) (t *tree, err error) {
	for range 5 {
		if t, err = s.scan(ctx); !errors.Is(err, fs.ErrNotExist) || !s.Present() {
			return t, err
		}
	}
	return t, err
}

// frozenSpace is what a frozen copy takes on the source's file system. It lives for minutes: links don't grow to full
// size meanwhile.
func (s *Source) frozenSpace(t *tree, clones bool) int64 {
	switch {
	case clones:
		return 0
	case s.method == manifest.Reflink || s.method == manifest.Copy:
		return t.space
	}
	return t.plain
}

func (s *Source) noClones() error {
	return &hint.Error{
		Op: "clone", Path: s.Path, Err: errors.New("the file system shares no blocks between files"),
		Hint: `set [snapshot] method = "auto"`,
	}
}

// freezesBeside tells whether a copy in dir would leave the source's file system, where neither clones nor links reach.
func (s *Source) freezesBeside(dir string) (bool, error) {
	if s.method == manifest.Copy {
		return false, nil // nothing to gain: a copy goes straight to its place
	}
	source, err := lstat(s.Path)
	if err != nil {
		return false, err
	}
	for { // the store's directory may not be there yet: its nearest parent tells
		var st unix.Stat_t
		err := unix.Stat(dir, &st)
		if err == nil {
			return st.Dev != source.Dev, nil
		}
		if !errors.Is(err, unix.ENOENT) || dir == filepath.Dir(dir) {
			return false, &os.PathError{Op: "stat", Path: dir, Err: err}
		}
		dir = filepath.Dir(dir)
	}
}

// Retire removes the frozen copy: the snapshot's own directory holds everything.
func (s *Source) Retire(id string) error { return s.Drop(id) }
