package snapshot

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/internal/progress"
	"nodevisor/snapshot/manifest"
)

func TestRestoreRefusesDamage(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(dir string) error
		sealed bool // it is seen without digests too
	}{
		"bit flip": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "data", "state.db", "000010.log"), []byte("Log at 1"), 0o640)
		}, false},
		"missing file":       {func(dir string) error { return os.Remove(filepath.Join(dir, "data", "state.db", "CURRENT")) }, true},
		"extra file":         {func(dir string) error { return os.WriteFile(filepath.Join(dir, "data", "new"), nil, 0o600) }, true},
		"extra folder":       {func(dir string) error { return os.Mkdir(filepath.Join(dir, "other"), 0o700) }, true},
		"truncated file":     {func(dir string) error { return os.Truncate(filepath.Join(dir, "data", "state.db", "000010.log"), 2) }, true},
		"truncated manifest": {func(dir string) error { return os.Truncate(filepath.Join(dir, manifest.Name), 500) }, true},
		"empty manifest":     {func(dir string) error { return os.Truncate(filepath.Join(dir, manifest.Name), 0) }, true},
		"no manifest":        {func(dir string) error { return os.Remove(filepath.Join(dir, manifest.Name)) }, true},
		"another's manifest": {func(dir string) error {
			other := filepath.Join(filepath.Dir(dir), "20200101T000000Z-aaaa")
			return os.Rename(other+"/"+manifest.Name, filepath.Join(dir, manifest.Name))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, sealed := range []bool{true, false} {
				home := newHome(t, 1)
				s := open(t, home, func(o *Options) { o.Config.Method = "copy" })
				require.NoError(t, s.Create(context.Background(), "20200101T000000Z-aaaa", "", 1))
				id := create(t, s, "", 1)
				if !sealed {
					require.NoError(t, s.Complete(context.Background(), id))
				}
				require.NoError(t, c.damage(filepath.Join(s.Dir(), id)))
				if name != "no manifest" {
					r, err := s.Verify(context.Background(), id, false)
					require.NoError(t, err)
					assert.Equal(t, sealed && !c.sealed, r.OK)
				}
				if sealed && !c.sealed {
					continue
				}
				before := content(t, filepath.Join(home, "data"))
				for _, opt := range []RestoreOptions{{DryRun: true}, {}, {To: filepath.Join(t.TempDir(), "to")}} {
					_, err := s.Restore(context.Background(), id, opt)
					require.Error(t, err, "%+v", opt)
					assert.NotEmpty(t, hint.Of(err))
				}
				assert.Equal(t, before, content(t, filepath.Join(home, "data")))
				assertTidy(t, home)
			}
		})
	}
}

func TestRestoreSignerRefusals(t *testing.T) {
	home := newHome(t, 10)
	s := open(t, home)
	id := completed(t, s, "", 10)
	signer := filepath.Join(home, "data", signerDefault)
	refused := func(opt RestoreOptions) {
		t.Helper()
		before := content(t, filepath.Join(home, "data"))
		_, err := s.Restore(context.Background(), id, opt)
		require.Error(t, err)
		assert.Contains(t, hint.Of(err), "supervisor snapshot restore "+id+" --signer-state snapshot")
		assert.Equal(t, before, content(t, filepath.Join(home, "data")))
		assertTidy(t, home)
	}
	require.NoError(t, os.WriteFile(signer, []byte("{"), 0o600))
	refused(RestoreOptions{})
	refused(RestoreOptions{SignerStateFromSnapshot: true})
	refused(RestoreOptions{DryRun: true})
	require.NoError(t, os.Remove(signer))
	refused(RestoreOptions{})
	refused(RestoreOptions{To: filepath.Join(t.TempDir(), "x")})
	r, err := s.Restore(context.Background(), id, RestoreOptions{SignerStateFromSnapshot: true})
	require.NoError(t, err)
	assert.Equal(t, "snapshot", r.Sources[0].Signer[0].Winner)
	assert.FileExists(t, signer)
}

// The state's name comes from the node's own configuration, and a live state that the snapshot lacks is carried over.
func TestSignerOfConfiguration(t *testing.T) {
	home := newHome(t, 10)
	write(t, filepath.Join(home, "config", "config.toml"), "moniker = \"x\"\npriv_validator_state_file = \"data/keys/last.json\"\n[p2p]\nladdr = \"\"\n")
	require.NoError(t, os.Remove(filepath.Join(home, "data", signerDefault)))
	s := open(t, home)
	id := completed(t, s, "", 10)
	write(t, filepath.Join(home, "data", "keys", "last.json"), signerJSON(12, 0, 1))
	r, err := s.Restore(context.Background(), id, RestoreOptions{})
	require.NoError(t, err)
	assert.Equal(t, []manifest.Signer{{Path: "keys/last.json", Winner: "live", Height: 12, Step: 1}}, r.Sources[0].Signer)
	got, err := os.ReadFile(filepath.Join(home, "data", "keys", "last.json"))
	require.NoError(t, err)
	assert.JSONEq(t, signerJSON(12, 0, 1), string(got))
}

func TestRestoreElsewhere(t *testing.T) {
	home := newHome(t, 10)
	s := open(t, home)
	want := content(t, filepath.Join(home, "data"))
	id := completed(t, s, "", 10)
	setSigner(t, filepath.Join(home, "data"), 11, 0, 0)
	live := content(t, filepath.Join(home, "data"))
	to := filepath.Join(t.TempDir(), "new", "place")
	r, err := s.Restore(context.Background(), id, RestoreOptions{To: to})
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(to, "data"), r.Sources[0].Path)
	assert.Nil(t, r.Sources[0].Before)
	got := content(t, filepath.Join(to, "data"))
	assert.Equal(t, live[signerDefault], got[signerDefault], "a copy is soon run: it gets the newest state")
	got[signerDefault] = want[signerDefault]
	assert.Equal(t, want, got)
	assert.Equal(t, live, content(t, filepath.Join(home, "data")), "the live data is untouched")

	_, err = s.Restore(context.Background(), id, RestoreOptions{To: to})
	require.Error(t, err, "it isn't empty")
	require.NoError(t, os.MkdirAll(filepath.Join(to, "empty", "data"), 0o755))
	_, err = s.Restore(context.Background(), id, RestoreOptions{To: filepath.Join(to, "empty")})
	require.NoError(t, err)

	// From another disk, by path.
	moved := filepath.Join(t.TempDir(), "usb", "snapshot")
	copyTree(t, filepath.Join(s.Dir(), id), moved)
	_, err = s.Restore(context.Background(), moved, RestoreOptions{})
	require.NoError(t, err)
}

func TestDryRunChangesNothing(t *testing.T) {
	home := newHome(t, 10)
	s := open(t, home)
	id := completed(t, s, "", 10)
	setSigner(t, filepath.Join(home, "data"), 11, 0, 0)
	before := content(t, home)
	r, err := s.Restore(context.Background(), id, RestoreOptions{DryRun: true})
	require.NoError(t, err)
	assert.True(t, r.DryRun)
	assert.Equal(t, "live", r.Sources[0].Signer[0].Winner)
	assert.Positive(t, r.Sources[0].Bytes)
	assert.Equal(t, before, content(t, home))
}

// A source that isn't there is told of by name, but for one that the end of an interrupted restore puts back.
func TestMissing(t *testing.T) {
	home := newHome(t, 10)
	data := filepath.Join(home, "data")
	explicit := func(o *Options) { o.Config.Sources = []SourceConfig{{Name: "data", Kind: "dir", Path: "data"}} }
	s := open(t, home, explicit)
	id := completed(t, s, "", 10)
	assert.Empty(t, s.Missing())
	want := content(t, data)
	require.NoError(t, os.RemoveAll(data))
	assert.Empty(t, open(t, home).Missing(), "the default one may come later")
	assert.Contains(t, s.Missing(), "data", "gone since it was opened")
	s = open(t, home, explicit)
	require.ErrorIs(t, s.Missing()["data"], os.ErrNotExist)
	require.EqualError(t, s.Missing()["data"], s.Check().Error())

	src := s.source(s.slots[0])
	dir, m, err := s.find(id)
	require.NoError(t, err)
	parts, err := s.parts(t.Context(), dir, m, RestoreOptions{SignerStateFromSnapshot: true})
	require.NoError(t, err)
	require.NoError(t, src.Stage(t.Context(), parts[0].job))
	assert.Contains(t, open(t, home, explicit).Missing(), "data", "what is only staged is undone")
	require.NoError(t, src.Commit()) // and here the process dies
	s = open(t, home, explicit)
	assert.Empty(t, s.Missing())
	require.NoError(t, s.Recover(t.Context()))
	assert.Empty(t, s.Missing())
	assert.Equal(t, want, content(t, data))
	assertTidy(t, home)
}

// The data is gone: what an operator needs a restore for most.
func TestRestoreOfLostData(t *testing.T) {
	home := newHome(t, 10)
	want := content(t, filepath.Join(home, "data"))
	explicit := func(o *Options) { o.Config.Sources = []SourceConfig{{Name: "data", Kind: "dir", Path: "data"}} }
	id := completed(t, open(t, home, explicit), "", 10)
	require.NoError(t, os.RemoveAll(filepath.Join(home, "data")))
	s := open(t, home, explicit)
	require.Error(t, s.Check())
	_, err := s.Restore(context.Background(), id, RestoreOptions{})
	require.Error(t, err, "nobody knows what the key has signed")
	r, err := s.Restore(context.Background(), id, RestoreOptions{SignerStateFromSnapshot: true})
	require.NoError(t, err)
	assert.Nil(t, r.Sources[0].Before)
	assert.Equal(t, want, content(t, filepath.Join(home, "data")))
	require.NoError(t, s.Check())
}

func twoSources(o *Options) {
	o.Config.Sources = []SourceConfig{{Name: "app", Kind: "dir", Path: "app", After: []string{"data"}}, {Name: "data", Kind: "dir", Path: "data"}}
}

func TestSeveralSources(t *testing.T) {
	home := newHome(t, 10)
	write(t, filepath.Join(home, "app", "state"), "old")
	s := open(t, home, twoSources)
	id := completed(t, s, "", 10)
	m, err := s.Get(id)
	require.NoError(t, err)
	assert.Equal(t, "data", m.Sources[0].Name, "app waits for it")
	write(t, filepath.Join(home, "app", "state"), "new")
	write(t, filepath.Join(home, "data", "cs.wal", "wal"), "new")
	_, err = s.Restore(context.Background(), id, RestoreOptions{})
	require.NoError(t, err)
	assert.Equal(t, "-rw-r----- old", content(t, home)["app/state"])
	assert.Equal(t, "-rw-r----- wal at 10", content(t, home)["data/cs.wal/wal"])
	assertTidy(t, home)

	_, err = open(t, home).Restore(context.Background(), id, RestoreOptions{})
	require.Error(t, err, "a source that isn't configured here")
}

// All or none: the second source can't be staged, so the first stays.
func TestSeveralSourcesAllOrNone(t *testing.T) {
	home := newHome(t, 10)
	write(t, filepath.Join(home, "app", "state"), "old")
	s := open(t, home, twoSources)
	id := completed(t, s, "", 10)
	write(t, filepath.Join(home, "data", "cs.wal", "wal"), "new")
	before := content(t, filepath.Join(home, "data"))
	require.NoError(t, os.WriteFile(filepath.Join(s.Dir(), id, "app", "state"), []byte("olD"), 0o640))
	_, err := s.Restore(context.Background(), id, RestoreOptions{})
	require.Error(t, err)
	assert.Equal(t, before, content(t, filepath.Join(home, "data")))
	assertTidy(t, home)
}

func TestCancelledRestore(t *testing.T) {
	home := newHome(t, 10)
	ctx, cancel := context.WithCancel(context.Background())
	s := open(t, home, func(o *Options) {
		o.Observe = func(e progress.Event) {
			if e.Phase == "restore" {
				cancel()
			}
		}
	})
	id := completed(t, s, "", 10)
	before := content(t, filepath.Join(home, "data"))
	_, err := s.Restore(ctx, id, RestoreOptions{})
	require.ErrorIs(t, err, context.Canceled)
	assert.Equal(t, before, content(t, filepath.Join(home, "data")))
	assertTidy(t, home)
}

// The source is a mount point: it can't be renamed, and fsck's folder stays where it is.
func TestRestoreOfMountPoint(t *testing.T) {
	home := t.TempDir()
	data := mount(t, filepath.Join(home, "data"), "size=8m")
	fillData(t, data, 10)
	require.NoError(t, os.Mkdir(filepath.Join(data, "lost+found"), 0o700))
	s := open(t, home, func(o *Options) { o.Config.Dir = filepath.Join(home, "supervisor", "snapshots") })
	id := create(t, s, "", 10)
	m, err := s.Get(id)
	require.NoError(t, err)
	require.NotNil(t, m.Sources[0].Frozen, "the frozen copy lies on the source's own file system")
	assert.Equal(t, filepath.Join(data, ".supervisor", id, "data"), *m.Sources[0].Frozen)
	assert.Equal(t, manifest.Hardlink, m.Sources[0].Method)
	assert.Contains(t, m.Sources[0].Skipped, manifest.Skipped{Path: "lost+found", Type: "lost+found"})
	setSigner(t, data, 11, 0, 0)
	write(t, filepath.Join(data, "cs.wal", "wal"), "new")

	for range 2 { // from the frozen copy, then from the fetched one
		r, err := s.Restore(context.Background(), id, RestoreOptions{})
		require.NoError(t, err)
		require.NotNil(t, r.Sources[0].Before)
		assert.Equal(t, filepath.Join(data, ".supervisor"), filepath.Dir(*r.Sources[0].Before))
		got := content(t, data)
		assert.Equal(t, "-rw-r----- wal at 10", got["cs.wal/wal"])
		assert.Contains(t, got[signerDefault], `"height":"11"`)
		assert.DirExists(t, filepath.Join(data, "lost+found"))
		require.NoError(t, s.Complete(context.Background(), id))
		m, err = s.Get(id)
		require.NoError(t, err)
		assert.Nil(t, m.Sources[0].Frozen)
		assert.NoDirExists(t, filepath.Join(data, ".supervisor", id))
	}
	again, err := s.Get(create(t, s, "", 11))
	require.NoError(t, err)
	for _, e := range again.Sources[0].Entries {
		assert.NotContains(t, e.Path, ".supervisor", "our folder is not in a snapshot")
	}
}

// A file system within the source is copied as plain content.
func TestMountPointInTheSource(t *testing.T) {
	home := newHome(t, 1)
	inner := mount(t, filepath.Join(home, "data", "fast.db"), "size=4m")
	write(t, filepath.Join(inner, "CURRENT"), "MANIFEST-1")
	write(t, filepath.Join(inner, "MANIFEST-1"), "x")
	write(t, filepath.Join(inner, "000001.sst"), "table")
	s := open(t, home, func(o *Options) { o.Config.Method = "hardlink" })
	id := completed(t, s, "", 1)
	m, err := s.Get(id)
	require.NoError(t, err)
	assert.Equal(t, []string{"fast.db"}, m.Sources[0].Mounts)
	for _, e := range m.Sources[0].Entries {
		if e.Path == "fast.db/000001.sst" {
			assert.Equal(t, manifest.Copy, e.Method)
		}
	}
}

func TestRestoreUnknown(t *testing.T) {
	s := open(t, newHome(t, 1))
	for _, id := range []string{"", "nope", "../../etc", NewID(time.Now(), "", 0), "/etc"} {
		_, err := s.Restore(context.Background(), id, RestoreOptions{})
		require.ErrorIs(t, err, fs.ErrNotExist, id)
		assert.NotEmpty(t, hint.Of(err))
	}
}

// A caller that dies between the restore and its record of it asks again, under the same name.
func TestRestoreOnce(t *testing.T) {
	home := newHome(t, 1)
	s := open(t, home)
	id := completed(t, s, "", 1)
	restore := func(name string) int {
		r, err := s.Restore(context.Background(), id, RestoreOptions{Once: name})
		require.NoError(t, err)
		return len(r.Sources)
	}
	assert.Equal(t, 1, restore("a"))
	assert.Zero(t, restore("a"), "done already")
	assert.Equal(t, 1, restore("b"), "another decision")
	assert.Equal(t, 1, restore("a"), "only the last one is remembered: since then the data was replaced")
	assert.Equal(t, 1, restore(""))
	assert.Equal(t, 1, restore("a"), "a restore without a name is another one, too")
	require.NoError(t, os.WriteFile(s.oncePath(), []byte("{"), 0o600))
	assert.Equal(t, 1, restore("a"), "a damaged record is none")
}
