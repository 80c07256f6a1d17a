package snapshot

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/snapshot/manifest"
)

// strace counts injected faults per thread, so "the N-th rename" is none in a Go program. Instead each call that changes
// something is slowed down, and the process is killed at many moments spread evenly over its life.
// SNAPSHOT_TEST_MOMENTS asks for more of them, as a nightly run may.
func moments() int {
	if n, err := strconv.Atoi(os.Getenv("SNAPSHOT_TEST_MOMENTS")); err == nil {
		return n
	}
	if testing.Short() {
		return 6
	}
	return 14
}

// crash kills a child at spread moments of what; prepare makes a fresh home, check looks at what is left after Recover.
func crash(t *testing.T, what string, prepare func(t *testing.T) (home, dir, id string), check func(t *testing.T, home, dir, id string, ended bool)) {
	home, dir, id := prepare(t)
	whole, _ := runChild(t, what, home, dir, id, 0)
	recovered(t, home, dir)
	check(t, home, dir, id, true)
	killed := 0
	for i := range moments() {
		home, dir, id := prepare(t)
		after := whole * time.Duration(2*i+1) / time.Duration(2*moments())
		took, ended := runChild(t, what, home, dir, id, after)
		if ended {
			whole = min(whole, took) // the disk was slower when it was measured: the moments that follow lie within this life
		} else {
			killed++
		}
		if i%3 == 0 { // a second kill, in the recovery
			runChild(t, "recover", home, dir, id, time.Duration(1+i)*time.Millisecond)
		}
		recovered(t, home, dir)
		check(t, home, dir, id, ended)
		if t.Failed() {
			t.Fatalf("%s, killed after %v of %v", what, after, whole)
		}
	}
	assert.GreaterOrEqual(t, killed, moments()/4, "enough were killed in the middle")
}

// recovered recovers, twice: the second time finds nothing to do.
func recovered(t *testing.T, home, dir string) *Store {
	s := open(t, home, func(o *Options) { o.Config.Dir = dir })
	for range 2 {
		require.NoError(t, s.Recover(context.Background()))
	}
	for _, root := range []string{home, s.Dir()} {
		if _, err := os.Stat(root); os.IsNotExist(err) {
			continue // killed before the store was made
		}
		assertTidyBut(t, root, frozenOf(t, s))
	}
	return s
}

// frozenOf lists the frozen copies that manifests name: these are no left-overs.
func frozenOf(t *testing.T, s *Store) (all []string) {
	infos, err := s.List()
	require.NoError(t, err)
	for _, i := range infos {
		m, err := s.Get(i.ID)
		require.NoError(t, err)
		for _, rec := range m.Sources {
			if rec.Frozen != nil {
				all = append(all, *rec.Frozen)
			}
		}
	}
	return all
}

func assertTidyBut(t *testing.T, root string, frozen []string) {
	require.NoError(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		name := filepath.Base(path)
		bad := strings.HasSuffix(name, ".partial") || strings.HasPrefix(name, ".atomic-") || strings.HasPrefix(name, "stage-") || strings.HasPrefix(name, "restore")
		if d != nil && d.IsDir() && isID(name) && strings.Contains(path, ".supervisor") && !slices.ContainsFunc(frozen, func(f string) bool { return filepath.Dir(f) == path }) {
			bad = true
		}
		assert.False(t, bad, "left over: %s", path)
		return err
	}))
}

func TestCrashInCreate(t *testing.T) {
	fixture := newHome(t, 1200)
	want := content(t, filepath.Join(fixture, "data"))
	crash(t, "create", func(t *testing.T) (string, string, string) {
		home := filepath.Join(t.TempDir(), "home")
		copyTree(t, fixture, home)
		return home, "", NewID(time.Now(), "crash", 1200)
	}, func(t *testing.T, home, dir, id string, ended bool) {
		assert.Equal(t, want, content(t, filepath.Join(home, "data")), "the source is untouched")
		assertSealedOrNone(t, open(t, home), id, want, ended)
	})
}

// assertSealedOrNone: there is a whole snapshot, or none; and with Create there is one.
func assertSealedOrNone(t *testing.T, s *Store, id string, want map[string]string, ended bool) {
	all, err := s.List()
	require.NoError(t, err)
	assert.LessOrEqual(t, len(all), 1)
	if ended {
		assert.Len(t, all, 1)
	}
	for range 2 {
		require.NoError(t, s.Create(context.Background(), id, "crash", 1200))
		m, err := s.Get(id)
		require.NoError(t, err)
		require.Len(t, m.Sources, 1)
		at, err := s.placeOf(filepath.Join(s.Dir(), id), &m, m.Sources[0])
		require.NoError(t, err)
		assert.Equal(t, want, content(t, at))
	}
	r, err := s.Verify(context.Background(), id, false)
	require.NoError(t, err)
	assert.True(t, r.OK, "%v", r.Errors)
}

// A snapshot that is there already may have got its name from a process that was killed before that was durable.
func TestCreateAgainSyncsTheName(t *testing.T) {
	home := newHome(t, 1200)
	s := open(t, home)
	id := create(t, s, "crash", 1200)
	trace := filepath.Join(t.TempDir(), "trace")
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), "strace", "-f", "-qqq", "-y", "-o", trace, "-e", "trace=fsync", self)
	cmd.Env = append(os.Environ(), envChild+"=create", "SNAPSHOT_TEST_HOME="+home, "SNAPSHOT_TEST_ID="+id)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	calls, err := os.ReadFile(trace)
	require.NoError(t, err)
	assert.Contains(t, string(calls), "<"+s.Dir()+">")
}

func TestCrashInCreateAcrossDevices(t *testing.T) {
	fixture := newHome(t, 1200)
	want := content(t, filepath.Join(fixture, "data"))
	crash(t, "create", func(t *testing.T) (string, string, string) {
		home := filepath.Join(t.TempDir(), "home")
		copyTree(t, fixture, home)
		return home, mount(t, filepath.Join(t.TempDir(), "backup"), "size=8m"), NewID(time.Now(), "crash", 1200)
	}, func(t *testing.T, home, dir, id string, ended bool) {
		assert.Equal(t, want, content(t, filepath.Join(home, "data")), "the source is untouched")
		assertSealedOrNone(t, open(t, home, func(o *Options) { o.Config.Dir = dir }), id, want, ended)
	})
}

func TestCrashInComplete(t *testing.T) {
	fixture := newHome(t, 1200)
	want := content(t, filepath.Join(fixture, "data"))
	crash(t, "complete", func(t *testing.T) (string, string, string) {
		home := filepath.Join(t.TempDir(), "home")
		copyTree(t, fixture, home)
		dir := mount(t, filepath.Join(t.TempDir(), "backup"), "size=8m")
		return home, dir, create(t, open(t, home, func(o *Options) { o.Config.Dir = dir }), "crash", 1200)
	}, func(t *testing.T, home, dir, id string, ended bool) {
		s := open(t, home, func(o *Options) { o.Config.Dir = dir })
		m, err := s.Get(id)
		require.NoError(t, err)
		if ended {
			assert.Equal(t, manifest.Verified, m.State)
		}
		r, err := s.Verify(context.Background(), id, false)
		require.NoError(t, err)
		assert.True(t, r.OK, "before it is completed again: %v", r.Errors)
		require.NoError(t, s.Complete(context.Background(), id))
		r, err = s.Verify(context.Background(), id, false)
		require.NoError(t, err)
		assert.True(t, r.OK && r.Hashed, "%v", r.Errors)
		assert.Equal(t, want, content(t, filepath.Join(dir, id, "data")))
		assert.NoDirExists(t, filepath.Join(home, ".supervisor-frozen"))
	})
}

func TestCrashInDelete(t *testing.T) {
	fixture := newHome(t, 1200)
	crash(t, "delete", func(t *testing.T) (string, string, string) {
		home := filepath.Join(t.TempDir(), "home")
		copyTree(t, fixture, home)
		return home, "", create(t, open(t, home), "crash", 1200)
	}, func(t *testing.T, home, dir, id string, ended bool) {
		s := open(t, home)
		all, err := s.List()
		require.NoError(t, err)
		if ended {
			assert.Empty(t, all)
		}
		for _, i := range all {
			r, err := s.Verify(context.Background(), i.ID, false)
			require.NoError(t, err)
			assert.True(t, r.OK, "what is still listed is whole: %v", r.Errors)
		}
	})
}

func TestCrashInRestore(t *testing.T) {
	crashInRestore(t, false)
}

// A mount point can't be renamed: its entries are swapped one by one.
func TestCrashInRestoreOfMountPoint(t *testing.T) {
	crashInRestore(t, true)
}

func crashInRestore(t *testing.T, mounted bool) {
	snap, live := newHome(t, 1200), newHome(t, 1300)
	require.NoError(t, os.Remove(filepath.Join(live, "data", "state.db", "000001.ldb")))
	write(t, filepath.Join(live, "data", "only-live"), "x")
	before := content(t, filepath.Join(live, "data"))
	after := content(t, filepath.Join(snap, "data"))
	after[signerDefault] = before[signerDefault] // never taken back
	crash(t, "restore", func(t *testing.T) (string, string, string) {
		home := filepath.Join(t.TempDir(), "home")
		data := filepath.Join(home, "data")
		if mounted {
			mount(t, data, "size=8m")
			require.NoError(t, os.Chmod(data, 0o750))
		}
		copyTree(t, filepath.Join(snap, "data")+"/.", data)
		id := completed(t, open(t, home), "crash", 1200)
		require.NoError(t, clearDir(data))
		copyTree(t, filepath.Join(live, "data")+"/.", data)
		return home, "", id
	}, func(t *testing.T, home, dir, id string, ended bool) {
		data := filepath.Join(home, "data")
		got := content(t, data)
		var aside []string
		for path := range got {
			if path == ".supervisor" || strings.HasPrefix(path, ".supervisor/") {
				delete(got, path)
			}
		}
		for _, pattern := range []string{data + ".before-*", filepath.Join(data, ".supervisor", "before-*")} {
			found, err := filepath.Glob(pattern)
			require.NoError(t, err)
			aside = append(aside, found...)
		}
		state := strings.SplitN(got[signerDefault], " ", 2)[1]
		assert.JSONEq(t, signerJSON(1300, 0, 3), state, "the signer's state")
		if len(aside) == 0 {
			assert.False(t, ended)
			assert.Equal(t, before, got, "undone: the data of before")
			return
		}
		require.Len(t, aside, 1)
		assert.Equal(t, after, got, "finished: the snapshot's data")
		r, err := open(t, home).Restore(context.Background(), id, RestoreOptions{Once: "way"})
		require.NoError(t, err)
		assert.Empty(t, r.Sources, "done again it has no effect: the data isn't put aside a second time")
		old := content(t, aside[0])
		old["."] = before["."] // in a mount point it is a folder of ours
		assert.Equal(t, before, old, "the data of before is kept whole")
	})
}

func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if err == nil {
			err = os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
	return err
}
