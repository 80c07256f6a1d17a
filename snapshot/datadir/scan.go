package datadir

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/swap"
)

// A tree is what one look at a source found: the list for the manifest, and the work that copying it takes.
type tree struct {
	entries  []manifest.Entry
	units    []unit
	dirs     []stamp
	followed []manifest.Followed
	mounts   []string
	skipped  []manifest.Skipped
	bytes    int64 // sizes of the files
	space    int64 // what they take on the disk
	plain    int64 // of that, what is no table of a store
	files    int
	tables   int
}

// A unit is work for one goroutine: some files of one directory.
type unit struct {
	root, sub string // they lie in root/sub; no link is followed below root
	rel       string // the directory of the copy, within its root
	items     []item
}

type item struct {
	entry int    // in tree.entries
	src   string // the name in root/sub: another than the entry's where a link to a file was followed
	ino   uint64 // 0: not known
	table bool   // an immutable table of a store
}

// A stamp lets the end of a copy tell whether a directory got or lost names meanwhile.
type stamp struct {
	root, sub string
	ino       uint64
	mtim      unix.Timespec
}

// Units are small enough to keep all workers busy to the end, and big enough that opening their directories is nothing.
const (
	unitFiles = 64
	unitBytes = 64 << 20
)

type scanner struct {
	ctx     context.Context
	s       *Source
	t       *tree
	parents []ident // the directories that are being listed, for loops
}

type ident struct{ dev, ino uint64 }

// scan lists the source.
func (s *Source) scan(ctx context.Context) (*tree, error) {
	fd, err := openRoot(s.Path)
	if err != nil {
		return nil, fmt.Errorf("cannot read source %s: %w", s.name, err)
	}
	defer unix.Close(fd)
	sc := &scanner{ctx: ctx, s: s, t: new(tree)}
	if err := sc.dir(fd, s.Path, ".", "."); err != nil {
		return nil, err
	}
	return sc.t, nil
}

// dir lists the open directory fd, which is root/sub and becomes rel in the copy.
func (sc *scanner) dir(fd int, root, sub, rel string) error {
	fail := func(name string, err error) error {
		return fmt.Errorf("cannot read %s: %w", filepath.Join(root, sub, name), err)
	}
	if err := manifest.Interrupted(sc.ctx, "listing of "+sc.s.Path); err != nil {
		return err
	}
	var self unix.Stat_t
	if err := unix.Fstat(fd, &self); err != nil {
		return fail("", err)
	}
	if slices.Contains(sc.parents, ident{self.Dev, self.Ino}) {
		return &hint.Error{
			Op: "copy", Path: filepath.Join(root, sub), Err: fmt.Errorf("a link in the source leads back to it: loop at %s", rel),
			Hint: fmt.Sprintf("add %q to exclude of source %q", rel, sc.s.name),
		}
	}
	sc.parents = append(sc.parents, ident{self.Dev, self.Ino})
	defer func() { sc.parents = sc.parents[:len(sc.parents)-1] }()
	all, err := names(fd)
	if err != nil {
		return fail("", err)
	}
	slices.Sort(all)
	sc.t.dirs = append(sc.t.dirs, stamp{root, sub, self.Ino, self.Mtim})
	sc.add(rel, manifest.Dir, &self)

	d := &dirScan{unit: unit{root: root, sub: sub, rel: rel}, store: isStore(fd, all, path.Join(filepath.Base(sc.s.Path), rel)), self: &self}
	for _, name := range all {
		p := path.Join(rel, name)
		if sc.s.excluded(p) {
			continue
		}
		if !utf8.ValidString(name) {
			return &hint.Error{
				Op: "record", Path: filepath.Join(root, sub, name), Err: fmt.Errorf("its name %q is no UTF-8", name),
				Hint: fmt.Sprintf("rename it, or exclude it from source %q", sc.s.name),
			}
		}
		st, err := statAt(fd, name)
		if err != nil {
			return fail(name, err)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			sc.file(d, name, p, &st)
		case unix.S_IFDIR:
			if p == swap.LostFound { // fsck's, in the root of a file system: readable by root alone
				sc.t.skipped = append(sc.t.skipped, manifest.Skipped{Path: p, Type: swap.LostFound})
				continue
			}
			err = sc.subdir(d, fd, name, p, &st)
		case unix.S_IFLNK:
			err = sc.link(fd, filepath.Join(root, sub), name, p, &st)
		default:
			sc.skip(p, &st)
		}
		if err != nil {
			return err
		}
	}
	sc.flush(d)
	return nil
}

// dirScan collects one directory's files into units.
type dirScan struct {
	unit  unit
	bytes int64
	store bool
	self  *unix.Stat_t
}

func (sc *scanner) file(d *dirScan, name, p string, st *unix.Stat_t) {
	signer := sc.s.isSigner(p)
	// Only what the store's own owner made: another's file in its directory is no table of it.
	table := d.store && isTable(name) && st.Uid == d.self.Uid && !signer
	e := sc.add(p, manifest.File, st)
	sc.t.entries[e].Signer = signer
	sc.t.files++
	sc.t.bytes += st.Size
	sc.t.space += space(st)
	if table {
		sc.t.tables++
	} else {
		sc.t.plain += space(st)
		d.bytes += st.Size
	}
	d.unit.items = append(d.unit.items, item{entry: e, src: name, ino: st.Ino, table: table})
	if len(d.unit.items) >= unitFiles || d.bytes >= unitBytes {
		sc.flush(d)
	}
}

func (sc *scanner) flush(d *dirScan) {
	if len(d.unit.items) > 0 {
		sc.t.units = append(sc.t.units, d.unit)
		d.unit.items, d.bytes = nil, 0
	}
}

func (sc *scanner) subdir(d *dirScan, fd int, name, p string, st *unix.Stat_t) error {
	if st.Dev != d.self.Dev {
		sc.t.mounts = append(sc.t.mounts, p)
	}
	child, err := openAt(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", filepath.Join(d.unit.root, d.unit.sub, name), err)
	}
	defer unix.Close(child)
	return sc.dir(child, d.unit.root, path.Join(d.unit.sub, name), p)
}

// link decides what a symlink becomes: a link again where it stays inside the source, the content of its target where
// it leads out. A snapshot must never hold a link to live data: what it protects from would change it too.
func (sc *scanner) link(fd int, dir, name, p string, st *unix.Stat_t) error {
	target, err := readlinkAt(fd, name)
	if err != nil {
		return fmt.Errorf("cannot read link %s: %w", filepath.Join(dir, name), err)
	}
	resolved, err := filepath.EvalSymlinks(filepath.Join(dir, name))
	switch {
	case os.IsNotExist(err): // dangling: no data behind it
	case err != nil:
		return &hint.Error{
			Op: "follow link", Path: filepath.Join(dir, name), Err: err,
			Hint: fmt.Sprintf("mend the link, or add %q to exclude of source %q", p, sc.s.name),
		}
	case !within(sc.s.Path, resolved):
		return sc.follow(dir, name, p, resolved)
	case filepath.IsAbs(target) || !filepath.IsLocal(filepath.Join(path.Dir(p), target)) || !within(sc.s.Path, dir):
		// It names the live place; from the copy the same thing is reached by a relative path.
		inside, err := filepath.Rel(sc.s.Path, resolved)
		if err != nil {
			return err
		}
		if target, err = filepath.Rel(filepath.Join("/", path.Dir(p)), filepath.Join("/", inside)); err != nil {
			return err
		}
	}
	sc.t.entries[sc.add(p, manifest.Link, st)].Target = target
	return nil
}

func (sc *scanner) follow(dir, name, p, resolved string) error {
	fail := func(err error) error {
		return &hint.Error{
			Op: "follow link", Path: filepath.Join(dir, name), Err: err,
			Hint: fmt.Sprintf("add %q to exclude of source %q", p, sc.s.name),
		}
	}
	for _, own := range sc.s.own {
		if within(own, resolved) || within(resolved, own) {
			return fail(fmt.Errorf("it leads to the snapshots themselves: %s", resolved))
		}
	}
	st, err := lstat(resolved)
	if err != nil {
		return fail(err)
	}
	sc.t.followed = append(sc.t.followed, manifest.Followed{Path: p, Target: resolved})
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		d := &dirScan{unit: unit{root: filepath.Dir(resolved), sub: ".", rel: path.Dir(p)}, self: &st}
		sc.file(d, filepath.Base(resolved), p, &st)
		sc.flush(d)
		return nil
	case unix.S_IFDIR:
		fd, err := openRoot(resolved)
		if err != nil {
			return fail(err)
		}
		defer unix.Close(fd)
		return sc.dir(fd, resolved, ".", p)
	}
	sc.skip(p, &st)
	return nil
}

func (sc *scanner) add(p, typ string, st *unix.Stat_t) int {
	e := manifest.Entry{Path: p, Type: typ, Mode: manifest.Mode(st.Mode & 0o7777), UID: st.Uid, GID: st.Gid, MTime: mtime(st)}
	if typ == manifest.File {
		e.Size = st.Size
	}
	sc.t.entries = append(sc.t.entries, e)
	return len(sc.t.entries) - 1
}

func (sc *scanner) skip(p string, st *unix.Stat_t) {
	typ := map[uint32]string{unix.S_IFSOCK: "socket", unix.S_IFIFO: "fifo"}[st.Mode&unix.S_IFMT]
	if typ == "" {
		typ = "device"
	}
	sc.t.skipped = append(sc.t.skipped, manifest.Skipped{Path: p, Type: typ})
}

// within tells whether path is dir or lies below it. Both are clean and absolute.
func within(dir, path string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// isStore tells whether a directory is that of a LevelDB, Pebble or RocksDB store, whose tables are written once. Below
// a directory called *.wal nothing is trusted to be one: consensus logs are written in place.
func isStore(fd int, all []string, rel string) bool {
	regular := func(name string) bool {
		st, err := statAt(fd, name)
		return err == nil && isType(&st, unix.S_IFREG)
	}
	for part := range strings.SplitSeq(rel, "/") {
		if strings.HasSuffix(part, ".wal") {
			return false
		}
	}
	at, _ := slices.BinarySearch(all, "MANIFEST-")
	return at < len(all) && strings.HasPrefix(all[at], "MANIFEST-") && regular(all[at]) && slices.Contains(all, "CURRENT") && regular("CURRENT")
}

func isTable(name string) bool {
	return strings.HasSuffix(name, ".ldb") || strings.HasSuffix(name, ".sst")
}
