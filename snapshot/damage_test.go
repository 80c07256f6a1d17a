package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/snapshot/manifest"
)

// only gives the list's line of one snapshot, from a store that is opened anew: as after a restart.
func only(t *testing.T, home, id string) Info {
	t.Helper()
	all, err := open(t, home).List()
	require.NoError(t, err)
	for _, i := range all {
		if i.ID == id {
			return i
		}
	}
	require.Fail(t, "not listed", id)
	return Info{}
}

// Case 47: what a comparison proved is kept with the snapshot, which counts as no good one any more, until it is right again.
func TestDamageIsRecorded(t *testing.T) {
	file := func(dir string) string { return filepath.Join(dir, "data", "cs.wal", "wal") }
	for name, c := range map[string]struct{ harm, mend func(dir string) error }{
		"a flipped bit": {
			func(dir string) error { return flip(file(dir)) }, func(dir string) error { return flip(file(dir)) },
		},
		"a missing file": {
			func(dir string) error { return os.Rename(file(dir), dir+".wal") }, func(dir string) error { return os.Rename(dir+".wal", file(dir)) },
		},
		"a file more": {
			func(dir string) error { return os.WriteFile(file(dir)+".more", nil, 0o600) }, func(dir string) error { return os.Remove(file(dir) + ".more") },
		},
		"a folder more": {
			func(dir string) error { return os.Mkdir(filepath.Join(dir, "more"), 0o700) }, func(dir string) error { return os.Remove(filepath.Join(dir, "more")) },
		},
		"a link in the place of a file": {
			func(dir string) error {
				return errors.Join(os.Rename(file(dir), dir+".wal"), os.Symlink(dir+".wal", file(dir)))
			},
			func(dir string) error { return os.Rename(dir+".wal", file(dir)) },
		},
		"a link in the place of the source": {
			func(dir string) error {
				return errors.Join(os.Rename(filepath.Join(dir, "data"), dir+".data"), os.Symlink(dir+".data", filepath.Join(dir, "data")))
			},
			func(dir string) error {
				return errors.Join(os.Remove(filepath.Join(dir, "data")), os.Rename(dir+".data", filepath.Join(dir, "data")))
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			home := newHome(t, 1)
			one := func(o *Options) { o.Config.Method, o.Config.Keep = "copy", 1 }
			good := completed(t, open(t, home), "good", 1)
			bad := create(t, open(t, home, func(o *Options) { o.Config.Method = "copy" }), "bad", 2)
			require.NoError(t, open(t, home).Complete(t.Context(), bad)) // keeps two
			dir := filepath.Join(open(t, home).Dir(), bad)
			require.NoError(t, c.harm(dir))
			r, err := open(t, home).Verify(t.Context(), bad, false)
			require.NoError(t, err)
			require.False(t, r.OK)

			i := only(t, home, bad)
			assert.Equal(t, manifest.Damaged, i.State)
			assert.Nil(t, i.VerifiedAt)
			if assert.NotNil(t, i.Error) {
				assert.Contains(t, *i.Error, r.Errors[0].Error())
			}
			m, err := open(t, home).Get(bad)
			require.NoError(t, err)
			assert.Equal(t, manifest.Damaged, m.State)
			assert.Equal(t, i.Error, m.Error)
			assert.Equal(t, manifest.Verified, only(t, home, good).State)
			damaged, err := open(t, home).Damaged()
			require.NoError(t, err)
			assert.Equal(t, []Info{i}, damaged)
			gone, err := open(t, home, one).Prune(t.Context(), false)
			require.NoError(t, err)
			assert.Empty(t, gone, "the last good one stays, and what is newer")
			again, err := open(t, home).Verify(t.Context(), bad, false)
			require.NoError(t, err)
			assert.Equal(t, r, again, "the record is no fault of its own")

			require.NoError(t, c.mend(dir))
			r, err = open(t, home).Verify(t.Context(), bad, false)
			require.NoError(t, err)
			require.True(t, r.OK, "%v", r.Errors)
			i = only(t, home, bad)
			assert.Equal(t, manifest.Verified, i.State)
			assert.NotNil(t, i.VerifiedAt)
			assert.Nil(t, i.Error)
			gone, err = open(t, home, one).Prune(t.Context(), false)
			require.NoError(t, err)
			assert.Equal(t, []string{good}, gone)
		})
	}
}

// flip turns the first bit of a file around, and its modification time stays.
func flip(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	data[0] ^= 1
	return errors.Join(os.WriteFile(path, data, 0o600), os.Chtimes(path, info.ModTime(), info.ModTime()))
}

// A restore that finds damage records it, in whichever of its steps; so does its dry run.
func TestRestoreRecordsDamage(t *testing.T) {
	for name, c := range map[string]struct {
		harm func(path string) error
		opt  RestoreOptions
	}{
		"a file is missing":          {os.Remove, RestoreOptions{}},
		"found on the copy":          {flip, RestoreOptions{}},
		"found on a copy elsewhere":  {flip, RestoreOptions{To: filepath.Join(t.TempDir(), "to")}},
		"found by comparing, dryly":  {flip, RestoreOptions{DryRun: true}},
		"a missing file, elsewhere":  {os.Remove, RestoreOptions{To: filepath.Join(t.TempDir(), "to")}},
		"a missing file, dryly":      {os.Remove, RestoreOptions{DryRun: true}},
		"found under a restore name": {flip, RestoreOptions{Once: "way"}},
	} {
		t.Run(name, func(t *testing.T) {
			home := newHome(t, 1)
			s := open(t, home, func(o *Options) { o.Config.Method = "copy" })
			id := completed(t, s, "", 1)
			before := content(t, filepath.Join(home, "data"))
			require.NoError(t, c.harm(filepath.Join(s.Dir(), id, "data", "cs.wal", "wal")))
			_, err := s.Restore(t.Context(), id, c.opt)
			require.ErrorContains(t, err, "it is damaged: data/cs.wal/wal: want ")
			i := only(t, home, id)
			assert.Equal(t, manifest.Damaged, i.State)
			assert.Contains(t, *i.Error, "data/cs.wal/wal")
			assert.Equal(t, before, content(t, filepath.Join(home, "data")))
		})
	}
}

// What isn't proven is reported and not recorded: a sector that can't be read, what a write left that is under way, a
// comparison that was broken off.
func TestUnprovenIsNotRecorded(t *testing.T) {
	home := newHome(t, 1)
	empty := filepath.Join(home, "data", "empty")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	s := open(t, home, func(o *Options) { o.Config.Method = "copy" })
	id := completed(t, s, "", 1)
	dir := filepath.Join(s.Dir(), id)
	verified := func(why string) {
		t.Helper()
		i := only(t, home, id)
		assert.Equal(t, manifest.Verified, i.State, why)
		assert.Nil(t, i.Error, why)
	}

	// A regular file without size, whose reading fails with EIO.
	at := filepath.Join(dir, "data", "empty")
	require.NoError(t, unix.Mount("/proc/self/mem", at, "", unix.MS_BIND, ""))
	r, err := s.Verify(t.Context(), id, false)
	_, rerr := s.Restore(t.Context(), id, RestoreOptions{DryRun: true})
	require.NoError(t, unix.Unmount(at, 0))
	require.NoError(t, err)
	require.Error(t, rerr)
	require.Len(t, r.Errors, 1)
	assert.Contains(t, r.Errors[0].Got, "input/output error")
	verified("EIO")

	temp := filepath.Join(dir, ".atomic-1")
	require.NoError(t, os.WriteFile(temp, nil, 0o600))
	r, err = s.Verify(t.Context(), id, false)
	require.NoError(t, err)
	assert.False(t, r.OK)
	require.NoError(t, os.Remove(temp))
	verified("a write under way")

	require.NoError(t, flip(filepath.Join(dir, "data", "cs.wal", "wal")))
	broken, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Verify(broken, id, false)
	require.ErrorIs(t, err, context.Canceled)
	verified("broken off")
}

// The disk with a frozen copy isn't mounted: that is no damage of the snapshot.
func TestFrozenCopyOutOfReachIsNoDamage(t *testing.T) {
	home := newHome(t, 1)
	dir := mount(t, filepath.Join(t.TempDir(), "backup"), "size=8m")
	s := open(t, home, func(o *Options) { o.Config.Dir = dir })
	id := create(t, s, "", 1)
	m, err := s.Get(id)
	require.NoError(t, err)
	require.NotNil(t, m.Sources[0].Frozen)
	frozen := *m.Sources[0].Frozen
	require.NoError(t, os.Rename(frozen, frozen+".away"))
	r, err := s.Verify(t.Context(), id, false)
	require.NoError(t, err)
	assert.False(t, r.OK)
	require.NoError(t, os.Rename(frozen+".away", frozen))
	require.NoError(t, s.Complete(t.Context(), id))
	assert.NoFileExists(t, filepath.Join(dir, id, manifest.DamageName))
}

// A snapshot that is completed while it is compared is judged by neither state.
func TestChangedWhileCompared(t *testing.T) {
	home := newHome(t, 1)
	s := open(t, home, func(o *Options) { o.Config.Method = "copy" })
	id := create(t, s, "", 1)
	sealed, err := s.Get(id)
	require.NoError(t, err)
	require.NoError(t, s.Complete(t.Context(), id))
	err = s.record(filepath.Join(s.Dir(), id), &sealed, manifest.NewDamage([]manifest.Fault{{Path: "data/x", Want: "a", Got: "b"}}, false))
	require.ErrorContains(t, err, "it was changed meanwhile")
	assert.Equal(t, manifest.Verified, only(t, home, id).State)
}

// A record that can't be read still says that there is damage, and files that are right say nothing of a database.
func TestRecordsOfDamage(t *testing.T) {
	home := newHome(t, 1)
	s := open(t, home)
	id := completed(t, s, "", 1)
	dir := filepath.Join(s.Dir(), id)
	verify := func(deep bool) string {
		t.Helper()
		r, err := s.Verify(t.Context(), id, deep)
		require.NoError(t, err)
		assert.True(t, r.OK, "%v", r.Errors)
		return only(t, home, id).State
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, manifest.DamageName), []byte("{"), 0o600))
	assert.Equal(t, manifest.Damaged, only(t, home, id).State)
	assert.Equal(t, manifest.Verified, verify(false))

	rows := []manifest.Fault{{Path: "blocks/public.blocks", Want: "3 rows", Got: "2 rows"}}
	require.NoError(t, manifest.WriteDamage(dir, manifest.NewDamage(rows, true)))
	assert.Equal(t, manifest.Damaged, verify(false))
	assert.Contains(t, *only(t, home, id).Error, "verify --deep")
	assert.Equal(t, manifest.Verified, verify(true))

	many := make([]manifest.Fault, 5000)
	for i := range many {
		many[i] = manifest.Fault{Path: "data/x", Want: "nothing", Got: "file"}
	}
	require.NoError(t, manifest.WriteDamage(dir, manifest.NewDamage(many, false)))
	assert.Contains(t, *only(t, home, id).Error, "and 4999 more")
	require.NoError(t, s.Delete(id), "a damaged one can be deleted")
	assertTidy(t, home)
}

// A damaged snapshot doesn't count for keep. It goes once enough good ones are newer, or for room, and then before any of
// those.
func TestPruneDamaged(t *testing.T) {
	home := newSmallHome(t, 1)
	keep := func(n int, minFree string) *Store {
		return open(t, home, func(o *Options) { o.Config.Method, o.Config.Keep, o.Config.MinFree = "copy", n, minFree })
	}
	s := keep(100, "0")
	a, b, c := completed(t, s, "a", 1), completed(t, s, "b", 2), completed(t, s, "c", 3)
	d, e := completed(t, s, "d", 4), completed(t, s, "e", 5)
	for _, id := range []string{b, c, e} {
		require.NoError(t, flip(filepath.Join(s.Dir(), id, "data", "cs.wal", "wal")))
		_, err := s.Verify(t.Context(), id, false)
		require.NoError(t, err)
	}
	require.NoError(t, s.Pin(c))
	would := func(s *Store) []string {
		t.Helper()
		gone, err := s.Prune(t.Context(), true)
		require.NoError(t, err)
		return gone
	}
	assert.Empty(t, would(keep(2, "0")), "a and d are the two good ones")
	assert.Equal(t, []string{a, b}, would(keep(1, "0")), "beyond d; c is pinned, e is newer than the last good one")
	assert.Equal(t, []string{b, a}, would(keep(2, "99%")), "for room the damaged one goes before the good one")
	assert.Equal(t, []string{e, d, c, b, a}, listed(t, s))
}
