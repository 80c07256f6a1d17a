package version

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/hint"
)

// asideOf lists what Place kept aside below dir.
func asideOf(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var kept []string
	for _, e := range entries {
		if strings.Contains(e.Name(), ".before-") {
			kept = append(kept, filepath.Join(dir, e.Name()))
		}
	}
	return kept
}

// requireNoLeftOvers looks for what an interrupted or failed placement could leave.
func requireNoLeftOvers(t *testing.T, root string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		assert.NotContains(t, path, ".atomic-")
		assert.NotContains(t, path, ".stage-")
		return err
	}))
}

func TestPlaceABinary(t *testing.T) {
	h := newHome(t)
	from := filepath.Join(t.TempDir(), "simd-v2-linux")
	h.write(from, "#!/bin/sh\n# one\n")
	sum, err := HashFile(t.Context(), from)
	require.NoError(t, err)
	p := Placement{Version: staged, From: from, SHA256: strings.ToUpper(sum)}

	placed, err := Place(t.Context(), h.l, p)
	require.NoError(t, err)
	assert.True(t, placed)
	assert.Equal(t, "#!/bin/sh\n# one\n", h.read(h.l.Binary(staged)))
	info, err := os.Stat(h.l.Binary(staged))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o755), info.Mode().Perm(), "whatever the mode of its source and the umask")

	placed, err = Place(t.Context(), h.l, p)
	require.NoError(t, err, "the same binary again changes nothing")
	assert.False(t, placed)

	h.write(from, "#!/bin/sh\n# two\n")
	p.SHA256 = ""
	_, err = Place(t.Context(), h.l, p)
	require.ErrorIs(t, err, ErrExists)
	assert.Contains(t, hint.Of(err), "--force")
	assert.Contains(t, h.read(h.l.Binary(staged)), "one")

	p.Force = true
	placed, err = Place(t.Context(), h.l, p)
	require.NoError(t, err)
	assert.True(t, placed)
	assert.Contains(t, h.read(h.l.Binary(staged)), "two")
	kept := asideOf(t, filepath.Dir(h.l.Binary(staged)))
	require.Len(t, kept, 1)
	assert.Contains(t, h.read(kept[0]), "one", "the old one is kept aside")
	assert.Equal(t, []Version{Genesis, staged}, h.l.Versions(), "and is no version")
	requireNoLeftOvers(t, h.l.Root)
}

func TestPlaceComparesTheDigest(t *testing.T) {
	h := newHome(t)
	from := filepath.Join(t.TempDir(), "simd")
	h.write(from, "#!/bin/sh\n")
	_, err := Place(t.Context(), h.l, Placement{Version: staged, From: from, SHA256: strings.Repeat("0", 64)})
	require.ErrorContains(t, err, "its sha256 is")
	assert.NoDirExists(t, h.l.Dir(staged))

	err = copyTo(t.Context(), from, filepath.Join(t.TempDir(), "simd"), strings.Repeat("0", 64))
	require.ErrorContains(t, err, "was changed while it was copied", "also where it is replaced between hashing and copying")
}

func TestPlaceADirectory(t *testing.T) {
	h := newHome(t)
	from := t.TempDir()
	h.write(filepath.Join(from, "bin", "simd"), "#!/bin/sh\n# one\n")
	h.write(filepath.Join(from, "lib", "libwasm.so"), "wasm")
	h.link(filepath.Join(from, "lib", "libwasm.so.1"), "libwasm.so")
	alias := filepath.Join(t.TempDir(), "latest")
	require.NoError(t, os.Symlink(from, alias))

	placed, err := Place(t.Context(), h.l, Placement{Version: staged, From: alias})
	require.NoError(t, err)
	assert.True(t, placed)
	assert.Equal(t, "wasm", h.read(filepath.Join(h.l.Dir(staged), "lib", "libwasm.so.1")))
	info, err := os.Stat(h.l.Dir(staged))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o755), info.Mode().Perm())

	h.write(filepath.Join(from, "bin", "simd"), "#!/bin/sh\n# two\n")
	_, err = Place(t.Context(), h.l, Placement{Version: staged, From: from})
	require.ErrorIs(t, err, ErrExists)
	_, err = Place(t.Context(), h.l, Placement{Version: staged, From: from, Force: true})
	require.NoError(t, err)
	assert.Contains(t, h.read(h.l.Binary(staged)), "two")
	kept := asideOf(t, filepath.Join(h.l.Root, "upgrades"))
	require.Len(t, kept, 1)
	assert.Contains(t, h.read(filepath.Join(kept[0], "bin", "simd")), "one")
	assert.Equal(t, []Version{Genesis, staged}, h.l.Versions())
	requireNoLeftOvers(t, h.l.Root)
}

func TestPlaceADirectoryOfTheLongestName(t *testing.T) {
	h := newHome(t)
	from := t.TempDir()
	v := Of(strings.Repeat("x", maxNameBytes))
	for _, content := range []string{"one", "two"} {
		h.write(filepath.Join(from, "bin", "simd"), "#!/bin/sh\n# "+content+"\n")
		_, err := Place(t.Context(), h.l, Placement{Version: v, From: from, Force: true})
		require.NoError(t, err)
		assert.Contains(t, h.read(h.l.Binary(v)), content)
	}
	require.Len(t, asideOf(t, filepath.Join(h.l.Root, "upgrades")), 1, "the replaced tree has a place, too")
}

func TestPlaceRefuses(t *testing.T) {
	dir := func(t *testing.T, fill func(h *home, dir string)) string {
		from := t.TempDir()
		h := &home{t: t}
		h.write(filepath.Join(from, "bin", "simd"), "#!/bin/sh\n")
		fill(h, from)
		return from
	}
	for name, c := range map[string]struct {
		from func(t *testing.T) string
		want string
	}{
		"missing":         {func(t *testing.T) string { return filepath.Join(t.TempDir(), "none") }, "invalid executable path"},
		"a device":        {func(*testing.T) string { return "/dev/null" }, "neither a file nor a directory"},
		"nothing in it":   {func(t *testing.T) string { return t.TempDir() }, "neither bin/simd nor simd"},
		"a link out":      {func(t *testing.T) string { return dir(t, func(h *home, d string) { h.link(d+"/conf", "../../etc") }) }, "leaves the directory"},
		"an absolute one": {func(t *testing.T) string { return dir(t, func(h *home, d string) { h.link(d+"/conf", "/etc") }) }, "leaves the directory"},
		"a FIFO": {func(t *testing.T) string {
			return dir(t, func(_ *home, d string) { require.NoError(t, unix.Mkfifo(d+"/p", 0o600)) })
		}, "neither a file, a directory nor a link"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			placed, err := Place(t.Context(), h.l, Placement{Version: staged, From: c.from(t)})
			require.ErrorContains(t, err, c.want)
			assert.False(t, placed)
			assert.NoDirExists(t, h.l.Dir(staged))
			requireNoLeftOvers(t, h.l.Root)
		})
	}
}

// A directory without bin/ is where somebody keeps files: all but the binary stays where it is.
func TestPlaceABinaryAmongOtherFiles(t *testing.T) {
	h := newHome(t)
	from := filepath.Dir(h.l.Home) // it contains the tree, too
	h.write(filepath.Join(from, "simd"), "#!/bin/sh\n# two\n")
	h.write(filepath.Join(from, "mnemonic.txt"), "secret")
	placed, err := Place(t.Context(), h.l, Placement{Version: staged, From: from})
	require.NoError(t, err)
	assert.True(t, placed)
	assert.Contains(t, h.read(h.l.Binary(staged)), "two")
	entries, err := os.ReadDir(h.l.Dir(staged))
	require.NoError(t, err)
	require.Len(t, entries, 1, "bin alone")
}

// A copy of a directory into itself would never end, and one from within the tree could be of the version that runs.
func TestPlaceRefusesADirectoryAroundOrInTheTree(t *testing.T) {
	h := newHome(t)
	above := filepath.Dir(h.l.Home)
	h.write(filepath.Join(above, "bin", "simd"), "#!/bin/sh\n# two\n")
	h.write(filepath.Join(h.l.Root, "bin", "simd"), "#!/bin/sh\n# two\n")
	alias := filepath.Join(t.TempDir(), "alias")
	require.NoError(t, os.Symlink(above, alias))
	for from, want := range map[string]string{
		above: "the directory contains the tree", alias: "the directory contains the tree",
		h.l.Root: "the directory contains the tree", h.l.Dir(Genesis): "the directory lies in the tree",
	} {
		_, err := Place(t.Context(), h.l, Placement{Version: staged, From: from})
		require.ErrorContains(t, err, want, from)
		assert.NoDirExists(t, h.l.Dir(staged))
		requireNoLeftOvers(t, h.l.Root)
	}
}

func TestPlaceRefusesFarMoreThanAVersion(t *testing.T) {
	h := newHome(t)
	from := t.TempDir()
	h.write(filepath.Join(from, "bin", "simd"), "#!/bin/sh\n")
	h.write(filepath.Join(from, "chain.db"), "")
	require.NoError(t, os.Truncate(filepath.Join(from, "chain.db"), maxTreeBytes))
	_, err := Place(t.Context(), h.l, Placement{Version: staged, From: from})
	require.ErrorContains(t, err, "it holds more than a version does")
	requireNoLeftOvers(t, h.l.Root)
}

// What an addition left that was killed is removed by the next one; what another one is filling is not.
func TestPlaceRemovesWhatWasLeftBehind(t *testing.T) {
	h := newHome(t)
	left, busy := filepath.Join(h.l.Root, "upgrades", ".stage-1"), filepath.Join(h.l.Root, "upgrades", ".stage-2")
	h.write(filepath.Join(left, "bin", "simd"), "#!/bin/sh\n")
	h.write(filepath.Join(busy, "bin", "simd"), "#!/bin/sh\n")
	claim, err := claimStage(busy)
	require.NoError(t, err)
	defer claim.Close()
	outside := t.TempDir()
	h.write(filepath.Join(outside, "precious"), "x")
	h.link(filepath.Join(h.l.Root, "upgrades", ".stage-3"), outside)
	from := t.TempDir()
	h.write(filepath.Join(from, "bin", "simd"), "#!/bin/sh\n")
	_, err = Place(t.Context(), h.l, Placement{Version: staged, From: from})
	require.NoError(t, err)
	assert.NoDirExists(t, left)
	assert.DirExists(t, busy)
	assert.FileExists(t, filepath.Join(outside, "precious"), "a link of such a name was followed")
}

// Nothing is ever written through a link that leaves the tree.
func TestPlaceStaysInTheTree(t *testing.T) {
	from := filepath.Join(t.TempDir(), "simd")
	require.NoError(t, os.WriteFile(from, []byte("#!/bin/sh\n"), 0o755))
	for name, at := range map[string]string{"version": "upgrades/v2", "bin": "upgrades/v2/bin", "upgrades": "upgrades"} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			target := t.TempDir()
			h.link(filepath.Join(h.l.Root, at), target)
			_, err := Place(t.Context(), h.l, Placement{Version: staged, From: from, Force: true})
			require.ErrorContains(t, err, "escapes")
			require.ErrorContains(t, Publish(h.l, staged, from), "escapes")
			left, err := os.ReadDir(target)
			require.NoError(t, err)
			assert.Empty(t, left)
		})
	}
}

// A download is published by one rename, and what it replaces is kept aside as well.
func TestPublish(t *testing.T) {
	h := newHome(t)
	for _, text := range []string{"#!/bin/sh\n# one\n", "#!/bin/sh\n# two\n"} {
		file := filepath.Join(h.l.Root, "upgrades", "downloaded")
		h.write(file, text)
		require.NoError(t, Publish(h.l, staged, file))
		assert.NoFileExists(t, file)
		assert.Equal(t, text, h.read(h.l.Binary(staged)))
	}
	kept := asideOf(t, filepath.Dir(h.l.Binary(staged)))
	require.Len(t, kept, 1)
	assert.Contains(t, h.read(kept[0]), "one")
	require.ErrorIs(t, Publish(h.l, staged, filepath.Join(h.l.Root, "none")), os.ErrNotExist)
	assert.Equal(t, kept, asideOf(t, filepath.Dir(h.l.Binary(staged))), "of a failed one nothing is left")
	assert.Contains(t, h.read(h.l.Binary(staged)), "two")
}

// A version on another file system, or on a mount of the same one, is refused: the doctor says the same of it.
func TestPlaceStaysOnTheFileSystem(t *testing.T) {
	onAMount(t, "mounted")
}

// A node that is started at any moment of a replacement finds a whole binary, the old one or the new one.
func TestPlaceNeverShowsAPartialBinary(t *testing.T) {
	h := newHome(t)
	contents := []string{"#!/bin/sh\n#" + strings.Repeat("a", 1<<20), "#!/bin/sh\n#" + strings.Repeat("b", 1<<20)}
	from := filepath.Join(t.TempDir(), "simd")
	h.write(from, contents[0])
	_, err := Place(t.Context(), h.l, Placement{Version: staged, From: from})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	partial := make(chan int, 1)
	go func() {
		n := 0
		for ctx.Err() == nil {
			if data, err := os.ReadFile(h.l.Binary(staged)); err != nil || !bytes.Equal(data, []byte(contents[0])) && !bytes.Equal(data, []byte(contents[1])) {
				n++
			}
		}
		partial <- n
	}()
	for i := range 6 {
		h.write(from, contents[(i+1)%2])
		_, err := Place(t.Context(), h.l, Placement{Version: staged, From: from, Force: true})
		require.NoError(t, err)
		time.Sleep(2 * time.Millisecond) // the names of what is kept aside have milliseconds
	}
	cancel()
	assert.Zero(t, <-partial)
}

// A disk that is full while a binary is replaced leaves the old one in its place, and nothing else. The disk is a small
// tmpfs in a mount namespace of its own.
func TestPlaceOnAFullDisk(t *testing.T) {
	onAMount(t, "full")
}
