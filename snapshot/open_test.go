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
)

func TestOpenRefuses(t *testing.T) {
	home := newHome(t, 1)
	two := func(a, b string) func(*Options) {
		return func(o *Options) {
			o.Config.Sources = []SourceConfig{{Name: "a", Kind: "dir", Path: a}, {Name: "b", Kind: "dir", Path: b}}
		}
	}
	for name, change := range map[string]func(*Options){
		"home as source":       func(o *Options) { o.Config.Sources = []SourceConfig{{Name: "a", Kind: "dir", Path: "."}} },
		"store in source":      func(o *Options) { o.Config.Dir = "data/snapshots" },
		"source in store":      func(o *Options) { o.Config.Dir = "." },
		"nested":               two("data", "data/state.db"),
		"nested through links": two("data", "link/state.db"),
		"manifest's name": func(o *Options) {
			o.Config.Sources = []SourceConfig{{Name: "manifest.json", Kind: "dir", Path: "data"}}
		},
		"circle": func(o *Options) {
			o.Config.Sources = []SourceConfig{{Name: "a", Kind: "dir", Path: "data/a", After: []string{"b"}}, {Name: "b", Kind: "dir", Path: "data/b", After: []string{"a"}}}
		},
		"file as source": func(o *Options) {
			o.Config.Sources = []SourceConfig{{Name: "a", Kind: "dir", Path: "data/priv_validator_state.json"}}
		},
		"broken pattern": func(o *Options) {
			o.Config.Sources = []SourceConfig{{Name: "a", Kind: "dir", Path: "data", Exclude: []string{"["}}}
		},
		"broken min_free": func(o *Options) { o.Config.MinFree = "much" },
	} {
		t.Run(name, func(t *testing.T) {
			os.Remove(filepath.Join(home, "link"))
			require.NoError(t, os.Symlink("data", filepath.Join(home, "link")))
			o := Options{Config: DefaultConfig(), Home: home}
			change(&o)
			_, err := Open(o)
			assert.Error(t, err)
		})
	}
}

func TestSourcesThatAreNotThere(t *testing.T) {
	home := t.TempDir()
	s := open(t, home)
	require.NoError(t, s.Check(), "the default source may be missing")
	m, err := s.Get(create(t, s, "", 0))
	require.NoError(t, err)
	assert.Empty(t, m.Sources)
	fillData(t, filepath.Join(home, "data"), 3)
	m, err = s.Get(create(t, s, "", 0))
	require.NoError(t, err)
	assert.Len(t, m.Sources, 1, "the node made it meanwhile")

	s = open(t, home, func(o *Options) { o.Config.Sources = []SourceConfig{{Name: "x", Kind: "dir", Path: "gone"}} })
	err = s.Check()
	require.ErrorIs(t, err, fs.ErrNotExist)
	assert.NotEmpty(t, hint.Of(err))
	_, err = s.Forecast(context.Background())
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Error(t, s.Create(context.Background(), NewID(time.Now(), "", 0), "", 0))
}

// A source that is a link is what it leads to: never a link to live data in the snapshot.
func TestSourceBehindLinks(t *testing.T) {
	home := newHome(t, 8)
	big := filepath.Join(t.TempDir(), "disk", "simd")
	require.NoError(t, os.MkdirAll(filepath.Dir(big), 0o755))
	require.NoError(t, os.Rename(filepath.Join(home, "data"), big))
	require.NoError(t, os.Symlink(filepath.Dir(big), filepath.Join(home, "disk")))
	require.NoError(t, os.Symlink("disk/simd", filepath.Join(home, "data")))
	s := open(t, home)
	assert.Equal(t, map[string]string{"data": big}, s.Sources())
	want := content(t, big)
	id := completed(t, s, "", 8)
	assert.Equal(t, want, content(t, filepath.Join(s.Dir(), id, "data")))
	write(t, filepath.Join(big, "cs.wal", "wal"), "changed")
	_, err := s.Restore(context.Background(), id, RestoreOptions{})
	require.NoError(t, err)
	assert.Equal(t, want, content(t, big))
	target, err := os.Readlink(filepath.Join(home, "data"))
	require.NoError(t, err)
	assert.Equal(t, "disk/simd", target, "the link is untouched")
}
