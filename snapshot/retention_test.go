package snapshot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/hint"
	"nodevisor/internal/progress"
	"nodevisor/snapshot/manifest"
)

func listed(t *testing.T, s *Store) (ids []string) {
	t.Helper()
	all, err := s.List()
	require.NoError(t, err)
	for _, i := range all {
		ids = append(ids, i.ID)
	}
	return ids
}

func TestPruneKeeps(t *testing.T) {
	home := newHome(t, 1)
	s := open(t, home, func(o *Options) { o.Config.Keep = 100 }) // completing prunes: not yet
	var v []string
	for i := range 5 {
		v = append(v, completed(t, s, fmt.Sprint(i), 1))
	}
	stale := create(t, s, "stale", 1) // sealed, will be older than what is kept
	v = append(v, completed(t, s, "5", 1), completed(t, s, "6", 1))
	fresh := create(t, s, "fresh", 1)
	require.NoError(t, s.Pin(v[0]))
	damaged := filepath.Join(s.Dir(), v[1], manifest.Name)
	require.NoError(t, os.Truncate(damaged, 100))

	s = open(t, home, func(o *Options) { o.Protect = func() []string { return []string{v[2]} } })
	would, err := s.Prune(context.Background(), true, v[3])
	require.NoError(t, err)
	assert.Equal(t, []string{v[4], stale}, would, "oldest first; not the pinned, damaged, protected ones, not what is on its way")
	assert.Len(t, listed(t, s), 9, "a dry run deletes nothing")
	gone, err := s.Prune(context.Background(), false, v[3])
	require.NoError(t, err)
	assert.Equal(t, would, gone)
	assert.Equal(t, []string{fresh, v[6], v[5], v[3], v[2], v[1], v[0]}, listed(t, s))
	gone, err = s.Prune(context.Background(), false)
	require.NoError(t, err)
	assert.Equal(t, []string{v[3]}, gone, "its protection has ended")
	assertTidy(t, home)
}

// Retention goes by the numbers that the store gives: not by a clock that was set back between two snapshots, nor by the
// times of files, which a copy changes.
func TestPruneGoesByNumber(t *testing.T) {
	home := newHome(t, 1)
	s := open(t, home, func(o *Options) { o.Config.Keep = 100 })
	now := time.Now()
	var ids []string
	for i := range 4 {
		at := now.Add(-time.Duration(i) * time.Hour)
		id := NewID(at, "same", 1)
		require.NoError(t, s.Create(t.Context(), id, "same", 1))
		require.NoError(t, s.Complete(t.Context(), id))
		for _, path := range []string{filepath.Join(s.Dir(), id, manifest.Name), filepath.Join(s.Dir(), id)} {
			require.NoError(t, os.Chtimes(path, at, at))
		}
		ids = append(ids, id)
	}
	gone, err := open(t, home, func(o *Options) { o.Config.Keep = 1 }).Prune(t.Context(), false)
	require.NoError(t, err)
	assert.Equal(t, ids[:3], gone, "the oldest first")
	assert.Equal(t, ids[3:], listed(t, s))
}

func TestCompletePrunes(t *testing.T) {
	s := open(t, newHome(t, 1), func(o *Options) { o.Config.Keep = 1 })
	completed(t, s, "a", 1)
	b := completed(t, s, "b", 1)
	assert.Equal(t, []string{b}, listed(t, s))
	require.NoError(t, s.Complete(context.Background(), b), "done again")
	assert.Equal(t, []string{b}, listed(t, s), "never the last verified one")
}

// Below min_free the oldest go first, and the newest verified one never.
func TestPruneForSpace(t *testing.T) {
	home := newHome(t, 1)
	dir := mount(t, filepath.Join(t.TempDir(), "backup"), "size=8m")
	write(t, filepath.Join(home, "data", "big"), strings.Repeat("x", 1<<20))
	use := func(minFree string) *Store {
		return open(t, home, func(o *Options) {
			o.Config.Dir, o.Config.Method, o.Config.Keep, o.Config.MinFree = dir, "copy", 10, minFree
		})
	}
	s := use("0")
	var ids []string
	for i := range 4 {
		ids = append(ids, completed(t, s, fmt.Sprint(i), 1))
	}
	gone, err := s.Prune(context.Background(), false)
	require.NoError(t, err)
	assert.Empty(t, gone)
	s = use("60%")
	would, err := s.Prune(context.Background(), true)
	require.NoError(t, err)
	gone, err = s.Prune(context.Background(), false)
	require.NoError(t, err)
	assert.Equal(t, ids[:2], gone, "no more than needed")
	assert.Equal(t, gone, would)
	s = use("99%")
	gone, err = s.Prune(context.Background(), false)
	require.NoError(t, err)
	assert.Equal(t, ids[2:3], gone)
	assert.Equal(t, ids[3:], listed(t, s))
}

func TestDelete(t *testing.T) {
	home := newHome(t, 1)
	protected := ""
	s := open(t, home, func(o *Options) { o.Protect = func() []string { return []string{protected} } })
	id := create(t, s, "", 1)
	require.NoError(t, s.Pin(id))
	require.Error(t, s.Delete(id))
	require.NoError(t, s.Unpin(id))
	protected = id
	require.Error(t, s.Delete(id))
	protected = ""
	require.NoError(t, s.Delete(id))
	assert.Empty(t, listed(t, s))
	for _, bad := range []string{id, "", "..", "data", "../../data"} {
		require.Error(t, s.Delete(bad), bad)
	}
	assert.DirExists(t, filepath.Join(home, "data"))

	id = create(t, s, "", 1)
	require.NoError(t, os.Truncate(filepath.Join(s.Dir(), id, manifest.Name), 10))
	require.NoError(t, s.Delete(id), "a damaged one can be deleted")
	assertTidy(t, home)
}

// A directory that others use too: what isn't ours stays.
func TestSharedDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backups")
	shared := func(o *Options) { o.Config.Dir, o.Config.Keep = dir, 1 }
	homeA, homeB := newHome(t, 1), newHome(t, 2)
	a, b := open(t, homeA, shared), open(t, homeB, shared)
	write(t, filepath.Join(dir, "data-backup-2024-1-1", "CURRENT"), "another program's")
	write(t, filepath.Join(dir, "film.partial", "x"), "another program's")
	write(t, filepath.Join(dir, "20260101T000000Z-notes-aaaa", "x"), "called like one, without a manifest")
	idA, idB := completed(t, a, "", 1), completed(t, b, "", 2)
	completed(t, a, "", 1)
	assert.Len(t, listed(t, a), 1, "kept: one")
	assert.NotContains(t, listed(t, a), idA)
	assert.Equal(t, []string{idB}, listed(t, b), "the other home's are not counted")

	// While B makes one, A recovers.
	id := NewID(time.Now(), "", 2)
	lock, err := b.makePartial(id)
	require.NoError(t, err)
	require.NoError(t, a.Recover(context.Background()))
	assert.DirExists(t, filepath.Join(dir, id+".partial"))
	require.NoError(t, lock.Close())
	require.NoError(t, a.Recover(context.Background()))
	assert.NoDirExists(t, filepath.Join(dir, id+".partial"), "its maker is gone")
	for _, name := range []string{"data-backup-2024-1-1/CURRENT", "film.partial/x", "20260101T000000Z-notes-aaaa/x"} {
		assert.FileExists(t, filepath.Join(dir, name))
	}
}

// W14: a full disk is refused before anything is copied, and nothing stays behind when it fills up all the same.
func TestFullDisk(t *testing.T) {
	home := newHome(t, 1)
	write(t, filepath.Join(home, "data", "big"), strings.Repeat("x", 2<<20))
	dir := mount(t, filepath.Join(t.TempDir(), "backup"), "size=1m")
	for _, method := range []string{"copy", "auto"} {
		s := open(t, home, func(o *Options) { o.Config.Dir, o.Config.Method = dir, method })
		f, err := s.Forecast(context.Background())
		require.NoError(t, err)
		assert.Greater(t, f.Needed, f.Free)
		assert.Equal(t, method == "auto", f.CrossDevice)
		require.Error(t, f.Err())
		assert.Contains(t, hint.Of(f.Err()), "prune")
		err = s.Create(context.Background(), NewID(time.Now(), "", 1), "", 1)
		require.Error(t, err)
		assert.Contains(t, hint.Of(err), "prune")
		assertTidy(t, dir)
		assertTidy(t, home)
	}
	// Inodes can't be forecast: here the copy itself fails.
	few := mount(t, filepath.Join(t.TempDir(), "few"), "size=16m,nr_inodes=12")
	s := open(t, home, func(o *Options) { o.Config.Dir, o.Config.Method = few, "copy" })
	err := s.Create(context.Background(), NewID(time.Now(), "", 1), "", 1)
	require.ErrorIs(t, err, unix.ENOSPC)
	entries, err := os.ReadDir(few)
	require.NoError(t, err)
	assert.Empty(t, entries, "no full disk is left behind")
}

// A directory that can't be written to is found by the forecast, which is made before a node is stopped.
func TestReadOnlyDirectory(t *testing.T) {
	home := newHome(t, 1)
	dir := mount(t, filepath.Join(t.TempDir(), "backup"), "size=1m")
	for _, at := range []string{dir, filepath.Join(dir, "not", "there")} {
		s := open(t, home, func(o *Options) { o.Config.Dir = at })
		_, err := s.Forecast(t.Context())
		require.NoError(t, err)
		require.NoError(t, unix.Mount("tmpfs", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "size=1m"))
		_, err = s.Forecast(t.Context())
		require.ErrorIs(t, err, unix.EROFS)
		assert.Contains(t, hint.Of(err), "read-write")
		require.NoError(t, unix.Mount("tmpfs", dir, "", unix.MS_REMOUNT, "size=1m"))
	}
}

func TestMinFree(t *testing.T) {
	home := newSmallHome(t, 1)
	for minFree, ok := range map[string]bool{"0": true, "1": true, "0%": true, "99%": false, "1000T": false} {
		s := open(t, home, func(o *Options) { o.Config.MinFree = minFree })
		f, err := s.Forecast(context.Background())
		require.NoError(t, err)
		assert.Equal(t, ok, f.Err() == nil, minFree)
		err = s.Create(context.Background(), NewID(time.Now(), "", 1), "", 1)
		assert.Equal(t, ok, err == nil, minFree)
	}
}

func TestCancelledCreate(t *testing.T) {
	home := newHome(t, 1)
	ctx, cancel := context.WithCancel(context.Background())
	s := open(t, home, func(o *Options) { o.Observe = func(progress.Event) { cancel() } })
	id := NewID(time.Now(), "", 1)
	require.ErrorIs(t, s.Create(ctx, id, "", 1), context.Canceled)
	assert.Empty(t, listed(t, s))
	assert.DirExists(t, filepath.Join(s.Dir(), id+".partial"))
	require.NoError(t, s.Create(context.Background(), id, "", 1), "begun anew")
	assert.Equal(t, []string{id}, listed(t, s))
	assertTidy(t, home)
}

func TestDropFrozen(t *testing.T) {
	home := newHome(t, 1)
	dir := mount(t, filepath.Join(t.TempDir(), "backup"), "size=8m")
	s := open(t, home, func(o *Options) { o.Config.Dir = dir })
	kept := completed(t, s, "kept", 1)
	create(t, s, "frozen", 1)
	require.DirExists(t, filepath.Join(home, ".supervisor-frozen"))
	require.NoError(t, s.DropFrozen(context.Background()))
	assert.Equal(t, []string{kept}, listed(t, s))
	assert.NoDirExists(t, filepath.Join(home, ".supervisor-frozen"))
	r, err := s.Verify(context.Background(), kept, true)
	require.NoError(t, err)
	assert.True(t, r.OK)
}

// The disk with the store isn't mounted: frozen copies are not taken for left-overs.
func TestRecoverWithoutTheStoresDisk(t *testing.T) {
	home := newHome(t, 1)
	dir := filepath.Join(t.TempDir(), "backup")
	mount(t, dir, "size=8m")
	s := open(t, home, func(o *Options) { o.Config.Dir = dir })
	id := create(t, s, "", 1)
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""), "hides what is there")
	require.NoError(t, s.Recover(context.Background()))
	require.NoError(t, unix.Unmount(dir, 0))
	r, err := s.Verify(context.Background(), id, false)
	require.NoError(t, err)
	assert.True(t, r.OK)
}

// A manifest that names a place outside is believed only where a configured source would have put it.
func TestFrozenElsewhereIsRefused(t *testing.T) {
	home := newHome(t, 1)
	s := open(t, home)
	id := create(t, s, "", 1)
	m, err := s.Get(id)
	require.NoError(t, err)
	at := filepath.Join(home, "config")
	m.Sources[0].Frozen = &at
	require.NoError(t, manifest.Write(filepath.Join(s.Dir(), id), &m))
	_, err = s.Restore(context.Background(), id, RestoreOptions{})
	require.Error(t, err)
	_, err = s.Verify(context.Background(), id, false)
	require.Error(t, err)
}
