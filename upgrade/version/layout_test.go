package version

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

func TestVersionNames(t *testing.T) {
	assert.Equal(t, Version("upgrades/my%20upgrade"), Of("my upgrade"))
	assert.Equal(t, "my upgrade", Of("my upgrade").Name())
	assert.Equal(t, "genesis", Genesis.Name())
	for in, want := range map[string]Version{"genesis": Genesis, "V2": "upgrades/v2", "upgrades/v2": "upgrades/v2", "my upgrade": "upgrades/my%20upgrade"} {
		got, err := Parse(in, true)
		require.NoError(t, err, in)
		assert.Equal(t, want, got)
	}
	for _, in := range []string{"", "..", "upgrades/..", "upgrades/../genesis", "upgrades/", "../genesis"} {
		_, err := Parse(in, true)
		require.ErrorIs(t, err, ErrInvalidName, in)
	}
}

// Every shape of the link that a home of Cosmovisor may have, and every damage. None falls back to genesis.
func TestCurrent(t *testing.T) {
	for name, c := range map[string]struct {
		target string // $ROOT and $ELSE are replaced
		want   Version
	}{
		"relative genesis":    {"genesis", Genesis},
		"relative":            {"upgrades/v2", "upgrades/v2"},
		"with a dot":          {"./upgrades/v2", "upgrades/v2"},
		"with a slash":        {"upgrades/v2/", "upgrades/v2"},
		"absolute":            {"$ROOT/upgrades/v2", "upgrades/v2"},
		"absolute genesis":    {"$ROOT/genesis", Genesis},
		"with a blank":        {"upgrades/my%20upgrade", "upgrades/my%20upgrade"},
		"dangling":            {"upgrades/v9", ""},
		"dangling, absolute":  {"$ROOT/upgrades/v9", ""},
		"to a file":           {"upgrades/file", ""},
		"to root":             {".", ""},
		"to upgrades":         {"upgrades", ""},
		"to bin":              {"upgrades/v2/bin", ""},
		"out of root":         {"../data", ""},
		"out, but back again": {"../../etc", ""},
		"elsewhere":           {"$ELSE", ""},
		"to the root of all":  {"/", ""},
		"hidden":              {"upgrades/.stage-1", ""},
		"to itself":           {"current", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.stage("upgrades/v2", "")
			h.stage("upgrades/my%20upgrade", "")
			h.write(filepath.Join(h.l.Root, "upgrades/file"), "")
			require.NoError(t, os.MkdirAll(filepath.Join(h.l.Root, "upgrades/.stage-1/bin"), 0o755))
			target := os.Expand(c.target, func(k string) string {
				return map[string]string{"ROOT": h.l.Root, "ELSE": t.TempDir()}[k]
			})
			require.NoError(t, os.Remove(h.l.Link()))
			require.NoError(t, os.Symlink(target, h.l.Link()))
			got, err := h.l.Current()
			if c.want == "" {
				require.ErrorIs(t, err, ErrBadLink)
				assert.Empty(t, got)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		})
	}
}

func TestCurrentThatIsNoLink(t *testing.T) {
	h := newHome(t)
	require.NoError(t, os.Remove(h.l.Link()))
	_, err := h.l.Current()
	require.ErrorIs(t, err, ErrNoLink)

	require.NoError(t, os.MkdirAll(filepath.Join(h.l.Link(), "bin"), 0o755))
	_, err = h.l.Current()
	require.ErrorIs(t, err, ErrBadLink, "a real directory")
	h.stage("upgrades/v2", "")
	require.Error(t, h.l.SwitchTo("upgrades/v2"), "a directory is never replaced by a link")
	assert.DirExists(t, filepath.Join(h.l.Link(), "bin"))
}

// Homes are reached through links, and links were written by tools that saw another path.
func TestCurrentThroughASymlinkedRoot(t *testing.T) {
	h := newHome(t)
	h.stage("upgrades/v2", "")
	alias := filepath.Join(t.TempDir(), "alias")
	require.NoError(t, os.Symlink(h.l.Home, alias))
	byAlias := layoutOf(alias)
	for _, target := range []string{filepath.Join(h.l.Root, "upgrades/v2"), filepath.Join(byAlias.Root, "upgrades/v2")} {
		for _, l := range []Layout{h.l, byAlias} {
			require.NoError(t, os.Remove(h.l.Link()))
			require.NoError(t, os.Symlink(target, h.l.Link()))
			got, err := l.Current()
			require.NoError(t, err, "%s seen from %s", target, l.Root)
			assert.Equal(t, Version("upgrades/v2"), got)
		}
	}
}

func TestSwitchTo(t *testing.T) {
	h := newHome(t)
	h.stage("upgrades/v2", "")
	require.NoError(t, h.l.SwitchTo("upgrades/v2"))
	target, err := os.Readlink(h.l.Link())
	require.NoError(t, err)
	assert.Equal(t, "upgrades/v2", target, "relative, so that a home can be moved or mounted elsewhere")

	before, err := os.Lstat(h.l.Link())
	require.NoError(t, err)
	require.NoError(t, h.l.SwitchTo("upgrades/v2"))
	after, err := os.Lstat(h.l.Link())
	require.NoError(t, err)
	assert.True(t, os.SameFile(before, after), "done twice it is the same link")

	require.NoError(t, os.Remove(h.l.Link()))
	require.NoError(t, os.Symlink(filepath.Join(h.l.Root, "upgrades/v2"), h.l.Link()))
	require.NoError(t, h.l.SwitchTo("upgrades/v2"))
	target, err = os.Readlink(h.l.Link())
	require.NoError(t, err)
	assert.Equal(t, "upgrades/v2", target, "an absolute link becomes a relative one")

	err = h.l.SwitchTo("upgrades/v9")
	require.Error(t, err)
	assert.Contains(t, hint.Of(err), "upgrade add v9")
	require.NoError(t, os.MkdirAll(h.l.Binary("upgrades/v8"), 0o755))
	require.Error(t, h.l.SwitchTo("upgrades/v8"), "a directory in the place of the binary")
	assert.Equal(t, Version("upgrades/v2"), h.current(), "a refused switch leaves the link alone")
}

// Readers see the old version or the new one at every moment, never none.
func TestSwitchToIsAtomicForReaders(t *testing.T) {
	h := newHome(t)
	h.stage("upgrades/v2", "")
	stop, gaps := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				gaps <- n
				return
			default:
				if _, err := os.Stat(filepath.Join(h.l.Link(), "bin", "simd")); err != nil {
					n++
				}
			}
		}
	}()
	for range 50 {
		require.NoError(t, h.l.SwitchTo("upgrades/v2"))
		require.NoError(t, h.l.SwitchTo(Genesis))
	}
	close(stop)
	assert.Zero(t, <-gaps)
}

func TestVersionsAndSimilar(t *testing.T) {
	h := newHome(t)
	for _, v := range []Version{"upgrades/v3", "upgrades/v2-demo", "upgrades/my%20upgrade"} {
		h.stage(v, "")
	}
	h.stage("upgrades/.stage-1", "")
	require.NoError(t, os.MkdirAll(h.l.Dir("upgrades/empty"), 0o755))
	assert.Equal(t, []Version{Genesis, "upgrades/my%20upgrade", "upgrades/v2-demo", "upgrades/v3"}, h.l.Versions())
	assert.True(t, h.l.HasBinary("upgrades/v3"))
	assert.False(t, h.l.HasBinary("upgrades/empty"))

	assert.Equal(t, "v2-demo", h.l.Similar(Of("V2_Demo")))
	assert.Empty(t, h.l.Similar("upgrades/v2-demo"), "itself is not similar")
	assert.Empty(t, h.l.Similar(Of("v4")))
}

func TestTidyRemovesOnlyInterruptedWrites(t *testing.T) {
	h := newHome(t)
	h.stage("upgrades/v2", "")
	dirs := []string{h.l.State(), h.l.HistoryDir(), h.l.Root, h.l.Dir("upgrades/v2"), h.l.DataDir()}
	for _, dir := range dirs {
		h.write(filepath.Join(dir, ".atomic-123"), "torn")
		h.write(filepath.Join(dir, "kept"), "")
	}
	require.NoError(t, h.l.Tidy())
	for _, dir := range dirs {
		assert.NoFileExists(t, filepath.Join(dir, ".atomic-123"))
		assert.FileExists(t, filepath.Join(dir, "kept"))
	}
	require.NoError(t, layoutOf(filepath.Join(t.TempDir(), "none")).Tidy())
}
