package snapshot

import (
	"context"
	"encoding/json"
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

	"nodevisor/internal/progress"
	"nodevisor/snapshot/manifest"
)

// newHome makes a home whose data looks like a CometBFT node's: stores with tables, a log written in place, a signer's
// state at height h.
func newHome(t testing.TB, h int64) string {
	t.Helper()
	home := filepath.Join(t.TempDir(), "home")
	fillData(t, filepath.Join(home, "data"), h)
	return home
}

// newSmallHome makes such a home on a disk of its own, of which it takes some hundredths, whatever the machine's has free.
func newSmallHome(t testing.TB, h int64) string {
	t.Helper()
	home := mount(t, filepath.Join(t.TempDir(), "home"), "size=8m")
	fillData(t, filepath.Join(home, "data"), h)
	return home
}

func fillData(t testing.TB, data string, h int64) {
	t.Helper()
	for _, db := range []string{"application.db", "state.db"} {
		dir := filepath.Join(data, db)
		require.NoError(t, os.MkdirAll(dir, 0o750))
		for i := range 12 {
			write(t, filepath.Join(dir, fmt.Sprintf("%06d.ldb", i)), strings.Repeat(fmt.Sprintf("%s-%d-%d;", db, i, h), 400))
		}
		write(t, filepath.Join(dir, "CURRENT"), "MANIFEST-000009\n")
		write(t, filepath.Join(dir, "MANIFEST-000009"), fmt.Sprintf("manifest at %d", h))
		write(t, filepath.Join(dir, "000010.log"), fmt.Sprintf("log at %d", h))
		write(t, filepath.Join(dir, "LOCK"), "")
	}
	write(t, filepath.Join(data, "cs.wal", "wal"), fmt.Sprintf("wal at %d", h))
	setSigner(t, data, h, 0, 3)
}

func write(t testing.TB, path, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o750))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o640))
}

func setSigner(t testing.TB, data string, height, round, step int64) {
	t.Helper()
	write(t, filepath.Join(data, signerDefault), signerJSON(height, round, step))
}

func signerJSON(height, round, step int64) string {
	return fmt.Sprintf(`{"height":"%d","round":%d,"step":%d,"signature":"c2ln"}`, height, round, step)
}

// open opens the store of a home as the configuration's defaults have it, but for the room that tests don't have.
func open(t testing.TB, home string, change ...func(*Options)) *Store {
	t.Helper()
	o := Options{Config: DefaultConfig(), Home: home}
	o.Config.MinFree = "0"
	for _, f := range change {
		f(&o)
	}
	require.NoError(t, o.Config.Validate())
	s, err := Open(o)
	require.NoError(t, err)
	return s
}

// create takes a snapshot and gives its id.
func create(t testing.TB, s *Store, label string, height int64) string {
	t.Helper()
	id := NewID(time.Now(), label, height)
	require.NoError(t, s.Create(context.Background(), id, label, height))
	return id
}

func completed(t testing.TB, s *Store, label string, height int64) string {
	t.Helper()
	id := create(t, s, label, height)
	require.NoError(t, s.Complete(context.Background(), id))
	return id
}

// content reads a tree: path → mode and content, or a link's target.
func content(t testing.TB, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		value := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			value += " " + string(data)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			value += " " + target
		}
		all[rel] = value
		return nil
	}))
	return all
}

func TestRoundTrip(t *testing.T) {
	for _, method := range []string{"auto", "hardlink", "copy"} {
		t.Run(method, func(t *testing.T) {
			home := newHome(t, 1200)
			data := filepath.Join(home, "data")
			s := open(t, home, func(o *Options) { o.Config.Method = method })
			want := content(t, data)
			id := create(t, s, "v2", 1200)
			m, err := s.Get(id)
			require.NoError(t, err)
			assert.Equal(t, manifest.Sealed, m.State)
			assert.EqualValues(t, 1200, *m.Height)
			assert.Equal(t, want, content(t, filepath.Join(s.Dir(), id, "data")))
			require.NoError(t, s.Create(context.Background(), id, "v2", 1200), "a sealed one is success")

			// The new version works on: tables come and go, logs are written in place, the signer signs.
			require.NoError(t, os.Remove(filepath.Join(data, "state.db", "000003.ldb")))
			write(t, filepath.Join(data, "state.db", "000777.ldb"), "new")
			write(t, filepath.Join(data, "cs.wal", "wal"), "overwritten in place")
			setSigner(t, data, 1201, 1, 2)
			assert.Equal(t, want, content(t, filepath.Join(s.Dir(), id, "data")), "the snapshot is what it was")

			require.NoError(t, s.Complete(context.Background(), id))
			r, err := s.Verify(context.Background(), id, false)
			require.NoError(t, err)
			assert.Equal(t, Report{ID: id, OK: true, Hashed: true, Errors: []manifest.Fault{}}, r)

			live := content(t, data)
			res, err := s.Restore(context.Background(), id, RestoreOptions{})
			require.NoError(t, err)
			require.Len(t, res.Sources, 1)
			require.NotNil(t, res.Sources[0].Before)
			assert.Equal(t, live, content(t, *res.Sources[0].Before), "the data of before is kept")
			assert.Equal(t, []manifest.Signer{{Path: signerDefault, Winner: "live", Height: 1201, Round: 1, Step: 2}}, res.Sources[0].Signer)
			got := content(t, data)
			assert.Equal(t, live[signerDefault], got[signerDefault], "the signer's state is not taken back")
			got[signerDefault] = want[signerDefault]
			assert.Equal(t, want, got)
			assertTidy(t, home)
			assertUnlinked(t, data)
		})
	}
}

// assertTidy fails if work was left lying about.
func assertTidy(t testing.TB, home string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(home, func(path string, d fs.DirEntry, err error) error {
		name := filepath.Base(path)
		if strings.HasSuffix(name, ".partial") || strings.HasPrefix(name, ".atomic-") || strings.HasPrefix(name, ".supervisor-frozen") || strings.HasPrefix(name, "stage-") {
			t.Errorf("left over: %s", path)
		}
		return err
	}))
}

func assertUnlinked(t testing.TB, data string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			assert.EqualValues(t, 1, stat(t, path).Nlink, "a restore never links back: %s", path)
		}
		return err
	}))
}

func TestMethods(t *testing.T) {
	home := newHome(t, 1)
	db := filepath.Join(home, "data", "application.db")
	require.NoError(t, os.Link(filepath.Join(db, "000000.ldb"), filepath.Join(home, "foreign")), "another name of a table")
	write(t, filepath.Join(home, "data", "cs.wal", "CURRENT"), "x")
	write(t, filepath.Join(home, "data", "cs.wal", "MANIFEST-1"), "x")
	write(t, filepath.Join(home, "data", "cs.wal", "1.ldb"), "below *.wal nothing is a table")
	write(t, filepath.Join(home, "data", "loose.ldb"), "no store around it")
	s := open(t, home, func(o *Options) { o.Config.Method = "hardlink" })
	for range 3 { // the second and third meet the links of the first: ours
		m, err := s.Get(create(t, s, "", 0))
		require.NoError(t, err)
		require.Len(t, m.Sources, 1)
		assert.Equal(t, manifest.Hardlink, m.Sources[0].Method)
		require.NotNil(t, m.Sources[0].Note, "it says what links are worth")
		assert.Nil(t, m.Height, "unknown is not zero")
		methods := map[string]string{}
		for _, e := range m.Sources[0].Entries {
			methods[e.Path] = e.Method
		}
		for path, want := range map[string]string{
			"application.db/000001.ldb":      manifest.Hardlink,
			"application.db/000000.ldb":      manifest.Copy, // a link that is not ours
			"application.db/MANIFEST-000009": manifest.Copy,
			"application.db/000010.log":      manifest.Copy,
			"cs.wal/1.ldb":                   manifest.Copy,
			"loose.ldb":                      manifest.Copy,
			signerDefault:                    manifest.Copy,
		} {
			assert.Equal(t, want, methods[path], path)
		}
	}
}

func TestNewID(t *testing.T) {
	at := time.Date(2026, 11, 22, 1, 2, 3, 0, time.FixedZone("", 3600))
	assert.Regexp(t, `^20261122T000203Z-v2-1200-[a-z2-7]{4}$`, NewID(at, "v2", 1200))
	assert.Regexp(t, `^20261122T000203Z-[a-z2-7]{4}$`, NewID(at, "", 0))
	for _, label := range []string{"", "../../etc", "a b\nc", "ünïcode", strings.Repeat("x", 300), "-", "v1.2.3-rc.1", ".partial"} {
		id := NewID(at, label, 7)
		assert.True(t, isID(id), "%q → %q", label, id)
		assert.Equal(t, id, filepath.Base(id))
		assert.Less(t, len(id), 100)
	}
	for _, bad := range []string{"", ".", "..", "a/b", "20261122T000203Z", "20261122T000203Z-x-y.partial", "/etc", "20261122T000203Z-../../x-aaaa"} {
		assert.False(t, isID(bad), bad)
	}
}

// Order and uniqueness hold while the clock is set back.
// A snapshot is sealed only once its taker is ready: asked for when all is copied, and one that isn't leaves nothing behind.
func TestSealedOnlyWhenReady(t *testing.T) {
	home := newHome(t, 5)
	s := open(t, home)
	id := NewID(time.Now(), "v2", 5)
	final := filepath.Join(s.Dir(), id)
	asked := 0
	look := func(answer error) func() error {
		return func() error {
			asked++
			assert.NoDirExists(t, final, "sealed before it was asked")
			_, err := manifest.Read(final + partialSuffix)
			require.NoError(t, err, "asked before all is copied")
			return answer
		}
	}
	notReady := errors.New("not ready")
	require.ErrorIs(t, s.CreateWhen(t.Context(), id, "v2", 5, look(notReady)), notReady)
	assert.NoDirExists(t, final)
	assert.NoDirExists(t, final+partialSuffix)
	require.NoError(t, s.CreateWhen(t.Context(), id, "v2", 5, look(nil)))
	assert.DirExists(t, final)
	assert.Equal(t, 2, asked)
	require.NoError(t, s.CreateWhen(t.Context(), id, "v2", 5, look(notReady)), "it is sealed already")
}

func TestSequence(t *testing.T) {
	home := newHome(t, 1)
	s := open(t, home)
	now := time.Now()
	var want []string
	for i := range 3 {
		id := NewID(now.Add(-time.Duration(i)*time.Hour), "same", 5)
		require.NoError(t, s.Create(context.Background(), id, "same", 5))
		want = append([]string{id}, want...)
		if i == 1 {
			s = open(t, home) // the numbers go on after a restart
		}
	}
	all, err := s.List()
	require.NoError(t, err)
	var got []string
	for _, i := range all {
		got = append(got, i.ID)
	}
	assert.Equal(t, want, got, "newest first, whatever the clock says")
}

func TestListJSON(t *testing.T) {
	home := newHome(t, 1)
	s := open(t, home, func(o *Options) { o.Config.Method = "copy" })
	id := create(t, s, "v2", 1200)
	all, err := s.List()
	require.NoError(t, err)
	data, err := json.Marshal(all)
	require.NoError(t, err)
	var got []map[string]any
	require.NoError(t, json.Unmarshal(data, &got))
	require.Len(t, got, 1)
	for _, key := range []string{"id", "label", "height", "created_at", "bytes", "exclusive_bytes", "duration_ms", "state", "verified_at", "pinned", "sources"} {
		assert.Contains(t, got[0], key)
	}
	assert.Equal(t, id, got[0]["id"])
	assert.Nil(t, got[0]["verified_at"])
	assert.Equal(t, got[0]["bytes"], got[0]["exclusive_bytes"], "copies are its own")
	src := got[0]["sources"].([]any)[0].(map[string]any)
	assert.Equal(t, map[string]any{"name": "data", "kind": "dir", "method": "copy", "bytes": got[0]["bytes"], "files": src["files"]}, src)

	s = open(t, t.TempDir())
	all, err = s.List()
	require.NoError(t, err)
	assert.NotNil(t, all, "an empty list, not null")
}

// A hard link's bytes become the snapshot's own once the store deletes its table.
func TestExclusiveBytes(t *testing.T) {
	home := newHome(t, 1)
	s := open(t, home, func(o *Options) { o.Config.Method = "hardlink" })
	create(t, s, "", 1)
	before, err := s.List()
	require.NoError(t, err)
	table := filepath.Join(home, "data", "state.db", "000004.ldb")
	size := stat(t, table).Size
	require.NoError(t, os.Remove(table))
	after, err := s.List()
	require.NoError(t, err)
	assert.Equal(t, *before[0].ExclusiveBytes+size, *after[0].ExclusiveBytes)
}

func TestProgress(t *testing.T) {
	home := newHome(t, 1)
	last := map[string]progress.Event{}
	s := open(t, home, func(o *Options) {
		o.Config.Method = "copy"
		lock := make(chan struct{}, 1)
		o.Observe = func(e progress.Event) {
			lock <- struct{}{}
			if e.Done >= last[e.Phase].Done {
				last[e.Phase] = e
			}
			<-lock
		}
	})
	completed(t, s, "", 1)
	for _, phase := range []string{"snapshot", "snapshot hash"} {
		assert.Equal(t, last[phase].Total, last[phase].Done, phase)
		assert.Positive(t, last[phase].Done, phase)
	}
}
