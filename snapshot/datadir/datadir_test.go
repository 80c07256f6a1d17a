package datadir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
)

func put(t testing.TB, path, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
}

func get(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}

func newSource(t testing.TB, change ...func(*Options)) *Source {
	t.Helper()
	o := Options{Name: "data", Path: filepath.Join(t.TempDir(), "data"), Method: "auto", Signer: []string{"signer.json"}}
	for _, f := range change {
		f(&o)
	}
	require.NoError(t, os.MkdirAll(o.Path, 0o755))
	s, err := New(o)
	require.NoError(t, err)
	return s
}

// freeze copies the source into a fresh directory and gives the record and where the copy is.
func freeze(t testing.TB, s *Source, peers ...string) (manifest.Source, string) {
	t.Helper()
	rec, at, err := tryFreeze(t, s, peers...)
	require.NoError(t, err)
	return rec, at
}

func tryFreeze(t testing.TB, s *Source, peers ...string) (manifest.Source, string, error) {
	t.Helper()
	dir := t.TempDir()
	rec, err := s.Freeze(context.Background(), manifest.Job{ID: "ID", Dir: dir, Peers: peers, Room: func(...manifest.Need) error { return nil }})
	return rec, filepath.Join(dir, "data"), err
}

func entry(t testing.TB, rec manifest.Source, path string) manifest.Entry {
	t.Helper()
	for _, e := range rec.Entries {
		if e.Path == path {
			return e
		}
	}
	t.Fatalf("no entry %s", path)
	return manifest.Entry{}
}

func lstatT(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	st, err := lstat(path)
	require.NoError(t, err)
	return st
}

func TestLinksInTheSource(t *testing.T) {
	outside := t.TempDir()
	put(t, filepath.Join(outside, "disk", "application.db", "000001.ldb"), "table")
	put(t, filepath.Join(outside, "single.json"), "single")
	s := newSource(t)
	in := func(name string) string { return filepath.Join(s.Path, name) }
	put(t, in("folder/file"), "content")
	link := func(target, name string) { require.NoError(t, os.Symlink(target, in(name))) }
	link("folder/file", "relative")
	link(in("folder/file"), "absolute")
	link("../data/folder", "roundabout")
	link("../folder/file", "folder/up")
	link("nowhere", "dangling")
	link(filepath.Join(outside, "disk", "application.db"), "application.db")
	link(filepath.Join(outside, "single.json"), "single")

	rec, at := freeze(t, s)
	for name, want := range map[string]string{"relative": "folder/file", "absolute": "folder/file", "roundabout": "folder", "folder/up": "../folder/file", "dangling": "nowhere"} {
		got, err := os.Readlink(filepath.Join(at, name))
		require.NoError(t, err, name)
		assert.Equal(t, want, got, name)
	}
	assert.Equal(t, "content", get(t, filepath.Join(at, "absolute")), "within the copy")
	for _, name := range []string{"application.db", "single"} {
		st := lstatT(t, filepath.Join(at, name))
		assert.False(t, isType(&st, unix.S_IFLNK), "%s holds the content", name)
	}
	put(t, filepath.Join(outside, "disk", "application.db", "000001.ldb"), "overwritten")
	put(t, filepath.Join(outside, "single.json"), "overwritten")
	assert.Equal(t, "table", get(t, filepath.Join(at, "application.db", "000001.ldb")))
	assert.Equal(t, "single", get(t, filepath.Join(at, "single")))
	assert.Equal(t, []manifest.Followed{
		{Path: "application.db", Target: filepath.Join(outside, "disk", "application.db")},
		{Path: "single", Target: filepath.Join(outside, "single.json")},
	}, rec.Followed)
	faults, err := Verify(context.Background(), at, rec, true, nil)
	require.NoError(t, err)
	assert.Empty(t, faults)
}

func TestLinksThatAreRefused(t *testing.T) {
	outside := t.TempDir()
	store := t.TempDir()
	for name, target := range map[string]func(s *Source) string{
		"itself":                   func(*Source) string { return "bad" },
		"the source's parent":      func(s *Source) string { return filepath.Dir(s.Path) },
		"a loop outside":           func(*Source) string { return outside },
		"the snapshots":            func(*Source) string { return store },
		"above the snapshots":      func(*Source) string { return filepath.Dir(store) },
		"a place in the snapshots": func(*Source) string { return filepath.Join(store, "x") },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource(t, func(o *Options) { o.Own = []string{store} })
			require.NoError(t, os.MkdirAll(filepath.Join(store, "x"), 0o755))
			os.Remove(filepath.Join(outside, "self"))
			require.NoError(t, os.Symlink(outside, filepath.Join(outside, "self")))
			require.NoError(t, os.Symlink(target(s), filepath.Join(s.Path, "bad")))
			_, _, err := tryFreeze(t, s)
			require.Error(t, err)
			assert.Contains(t, hint.Of(err), "exclude", "it says what to do")
		})
	}
}

func TestSpecialFilesAreListed(t *testing.T) {
	s := newSource(t)
	require.NoError(t, unix.Mkfifo(filepath.Join(s.Path, "pipe"), 0o600))
	require.NoError(t, unix.Mknod(filepath.Join(s.Path, "sock"), unix.S_IFSOCK|0o600, 0)) // whose path may be too long to listen at
	put(t, filepath.Join(s.Path, "file"), "x")
	rec, at := freeze(t, s)
	assert.Equal(t, []manifest.Skipped{{Path: "pipe", Type: "fifo"}, {Path: "sock", Type: "socket"}}, rec.Skipped)
	assert.Equal(t, 1, rec.Files)
	assert.NoFileExists(t, filepath.Join(at, "pipe"))
}

func TestExclude(t *testing.T) {
	s := newSource(t, func(o *Options) { o.Exclude = []string{"snapshots", "*/LOG*"} })
	for _, p := range []string{"snapshots/1/chunk", "db/LOG.old", "db/keep", ".supervisor/before-x/file", "db/.supervisor/kept"} {
		put(t, filepath.Join(s.Path, p), "x")
	}
	rec, _ := freeze(t, s)
	var got []string
	for _, e := range rec.Entries {
		if e.Type == manifest.File {
			got = append(got, e.Path)
		}
	}
	assert.Equal(t, []string{"db/.supervisor/kept", "db/keep"}, got)
}

func TestMetadata(t *testing.T) {
	s := newSource(t)
	old := time.Date(2020, 1, 2, 3, 4, 5, 678901234, time.UTC)
	for name, mode := range map[string]fs.FileMode{"a": 0o600, "b": 0o444, "c": 0o755} {
		p := filepath.Join(s.Path, "dir", name)
		put(t, p, name)
		require.NoError(t, os.Chmod(p, mode))
		require.NoError(t, os.Chtimes(p, old, old))
	}
	require.NoError(t, os.Chmod(filepath.Join(s.Path, "dir"), 0o550))
	t.Cleanup(func() { os.Chmod(filepath.Join(s.Path, "dir"), 0o750) })
	if os.Geteuid() == 0 {
		require.NoError(t, os.Lchown(filepath.Join(s.Path, "dir", "a"), 1234, 2345))
	}
	rec, at := freeze(t, s)
	t.Cleanup(func() { os.Chmod(filepath.Join(at, "dir"), 0o750) })
	for _, p := range []string{".", "dir", "dir/a", "dir/b", "dir/c"} {
		want, got := lstatT(t, filepath.Join(s.Path, p)), lstatT(t, filepath.Join(at, p))
		assert.Equal(t, want.Mode, got.Mode, p)
		assert.Equal(t, [2]uint32{want.Uid, want.Gid}, [2]uint32{got.Uid, got.Gid}, p)
		assert.Equal(t, want.Mtim, got.Mtim, p)
		e := entry(t, rec, p)
		assert.EqualValues(t, want.Mode&0o7777, e.Mode)
	}
}

func TestSparseFilesStaySparse(t *testing.T) {
	s := newSource(t)
	p := filepath.Join(s.Path, "sparse")
	f, err := os.Create(p)
	require.NoError(t, err)
	for _, off := range []int64{1 << 20, 40 << 20} {
		_, err = f.WriteAt([]byte("data"), off)
		require.NoError(t, err)
	}
	require.NoError(t, f.Truncate(64<<20))
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
	_, at := freeze(t, s)
	got := lstatT(t, filepath.Join(at, "sparse"))
	assert.EqualValues(t, 64<<20, got.Size)
	assert.Less(t, got.Blocks*512, int64(1<<20), "holes are kept")
	assert.True(t, get(t, p) == get(t, filepath.Join(at, "sparse")), "the content is the same")
}

// makeStore makes the files of a LevelDB store in dir.
func makeStore(t testing.TB, dir string, tables int) {
	put(t, filepath.Join(dir, "CURRENT"), "MANIFEST-000001\n")
	put(t, filepath.Join(dir, "MANIFEST-000001"), "x")
	for i := range tables {
		put(t, filepath.Join(dir, fmt.Sprintf("%06d.sst", i)), fmt.Sprintf("table %d", i))
	}
}

func TestTables(t *testing.T) {
	s := newSource(t, func(o *Options) { o.Method = "hardlink" })
	db := filepath.Join(s.Path, "db")
	makeStore(t, db, 3)
	put(t, filepath.Join(s.Path, "half", "CURRENT"), "no MANIFEST")
	put(t, filepath.Join(s.Path, "half", "000001.sst"), "x")
	makeStore(t, filepath.Join(s.Path, "x.wal", "deep"), 1)
	require.NoError(t, os.MkdirAll(filepath.Join(s.Path, "odd", "CURRENT"), 0o755)) // a directory of that name
	put(t, filepath.Join(s.Path, "odd", "MANIFEST-1"), "x")
	put(t, filepath.Join(s.Path, "odd", "000001.sst"), "x")
	want := map[string]string{
		"db/000000.sst": manifest.Hardlink, "db/000001.sst": manifest.Hardlink, "db/000002.sst": manifest.Hardlink, "db/CURRENT": manifest.Copy,
		"half/000001.sst": manifest.Copy, "x.wal/deep/000000.sst": manifest.Copy, "odd/000001.sst": manifest.Copy,
	}
	if os.Geteuid() == 0 {
		require.NoError(t, os.Lchown(filepath.Join(db, "000002.sst"), 1234, -1))
		want["db/000002.sst"] = manifest.Copy // not the store's owner's
	}
	before := lstatT(t, filepath.Join(db, "000000.sst"))
	rec, at := freeze(t, s)
	for p, method := range want {
		assert.Equal(t, method, entry(t, rec, p).Method, p)
		same := lstatT(t, filepath.Join(at, p)).Ino == lstatT(t, filepath.Join(s.Path, p)).Ino
		assert.Equal(t, method == manifest.Hardlink, same, p)
	}
	after := lstatT(t, filepath.Join(db, "000000.sst"))
	assert.Equal(t, [3]uint32{before.Mode, before.Uid, before.Gid}, [3]uint32{after.Mode, after.Uid, after.Gid})
	assert.Equal(t, before.Mtim, after.Mtim)

	// Links of the first are ours for the second, and only if it is told of the first.
	rec, _ = freeze(t, s, at)
	assert.Equal(t, manifest.Hardlink, entry(t, rec, "db/000000.sst").Method)
	rec, _ = freeze(t, s, at)
	assert.Equal(t, manifest.Copy, entry(t, rec, "db/000000.sst").Method, "the second one's link is a stranger's")
}

// The node isn't at rest: whatever changes under the copy is an error, never a torn snapshot.
func TestChangesDuringTheCopy(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, dir string){
		"grows": func(t *testing.T, dir string) {
			f, err := os.OpenFile(filepath.Join(dir, "z", "last"), os.O_APPEND|os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteString("more")
			require.NoError(t, errors.Join(err, f.Close()))
		},
		"rewritten in place": func(t *testing.T, dir string) { put(t, filepath.Join(dir, "z", "last"), "LAST") },
		"vanishes":           func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, "z", "last"))) },
		"appears":            func(t *testing.T, dir string) { put(t, filepath.Join(dir, "z", "new"), "x") },
		"replaced": func(t *testing.T, dir string) {
			put(t, filepath.Join(dir, "z", "tmp"), "last")
			require.NoError(t, os.Rename(filepath.Join(dir, "z", "tmp"), filepath.Join(dir, "z", "last")))
		},
		"link instead of the directory": func(t *testing.T, dir string) {
			require.NoError(t, os.Rename(filepath.Join(dir, "z"), filepath.Join(dir, "..", "moved")))
			require.NoError(t, os.Symlink("../moved", filepath.Join(dir, "z")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource(t)
			put(t, filepath.Join(s.Path, "z", "last"), "last")
			tick(t, filepath.Join(s.Path, "z", "last"))
			dir := t.TempDir()
			_, err := s.Freeze(context.Background(), manifest.Job{ID: "ID", Dir: dir, Room: func(...manifest.Need) error {
				change(t, s.Path) // between the listing and the copy
				return nil
			}})
			require.Error(t, err)
		})
	}
}

// tick waits until what is written gets another time stamp than path has: the kernel's clock for these has a grain.
func tick(t *testing.T, path string) {
	t.Helper()
	probe, written := filepath.Join(t.TempDir(), "probe"), lstatT(t, path).Mtim
	deadline := time.Now().Add(time.Minute)
	for put(t, probe, "x"); lstatT(t, probe).Mtim == written; put(t, probe, "x") {
		require.True(t, time.Now().Before(deadline), "the clock of time stamps stands still")
		time.Sleep(time.Millisecond)
	}
}

func TestForecast(t *testing.T) {
	s := newSource(t)
	makeStore(t, filepath.Join(s.Path, "db"), 2)
	e, err := s.Forecast(context.Background(), filepath.Join(filepath.Dir(s.Path), "not", "there", "yet"))
	require.NoError(t, err)
	assert.Contains(t, []string{manifest.Hardlink, manifest.Reflink}, e.Method)
	assert.False(t, e.CrossDevice)
	assert.Equal(t, 4, e.Files)
	require.Len(t, e.Needs, 1)
	assert.GreaterOrEqual(t, e.Needs[0].Bytes, e.Bytes, "links are counted in full")
	entries, err := os.ReadDir(filepath.Dir(s.Path))
	require.NoError(t, err)
	assert.Len(t, entries, 1, "a forecast leaves nothing behind")
}

func TestCancel(t *testing.T) {
	s := newSource(t)
	for i := range 200 {
		put(t, filepath.Join(s.Path, fmt.Sprint(i%20), fmt.Sprint(i)), strings.Repeat("x", 1000))
	}
	ctx, cancel := context.WithCancel(context.Background())
	_, err := s.Freeze(ctx, manifest.Job{ID: "ID", Dir: t.TempDir(), Room: func(...manifest.Need) error { cancel(); return nil }})
	require.ErrorIs(t, err, context.Canceled)
	rec, at := freeze(t, s)
	_, err = Verify(ctx, at, rec, true, nil)
	require.ErrorIs(t, err, context.Canceled)
	_, err = s.Finish(ctx, filepath.Dir(at), rec)
	require.ErrorIs(t, err, context.Canceled)
}

// Many files take one syncfs instead of an fsync each; what comes out is the same.
func TestManyFiles(t *testing.T) {
	s := newSource(t)
	for i := range 3 * syncEach {
		put(t, filepath.Join(s.Path, fmt.Sprintf("d%02d", i%80), fmt.Sprint(i)), fmt.Sprint(i))
	}
	rec, at := freeze(t, s)
	assert.Equal(t, 3*syncEach, rec.Files)
	faults, err := Verify(context.Background(), at, rec, true, nil)
	require.NoError(t, err)
	assert.Empty(t, faults)
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "file"), "x")
	require.NoError(t, os.Symlink("loop", filepath.Join(dir, "loop")))
	for name, o := range map[string]Options{
		"a file":       {Path: filepath.Join(dir, "file")},
		"a link loop":  {Path: filepath.Join(dir, "loop")},
		"bad patterns": {Path: dir, Exclude: []string{"[a"}},
	} {
		_, err := New(o)
		assert.Error(t, err, name)
	}
	s, err := New(Options{Path: filepath.Join(dir, "missing")})
	require.NoError(t, err, "a restore may be what it needs")
	assert.False(t, s.Present())
}

// Where the node's configuration calls the signer's state otherwise, it is one all the same.
func TestSignerFile(t *testing.T) {
	dir := t.TempDir()
	for file, want := range map[string]string{
		filepath.Join(dir, "data", "pvs.json"):      "pvs.json",
		filepath.Join(dir, "link", "sub", "p.json"): "sub/p.json",
		filepath.Join(dir, "elsewhere", "p.json"):   "",
	} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "data", "sub"), 0o755))
		os.Symlink("data", filepath.Join(dir, "link"))
		s, err := New(Options{Name: "data", Path: filepath.Join(dir, "data"), Method: "copy", SignerFile: file})
		require.NoError(t, err)
		assert.Equal(t, want, s.signerFile)
		if want != "" {
			put(t, filepath.Join(s.Path, want), "{}")
			rec, _ := freeze(t, s)
			assert.True(t, entry(t, rec, want).Signer)
		}
	}
}
