//go:build loopfs

package snapshot

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/snapshot/manifest"
)

// These tests need root, loop devices, and the packages xfsprogs and btrfs-progs; what is missing fails them, by name:
//
//	go test -tags loopfs -run LoopFS ./snapshot

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), out)
}

func loop(t *testing.T, mkfs ...string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	run(t, "truncate", "-s", "400M", image)
	run(t, mkfs[0], append(mkfs[1:], image)...)
	dir := filepath.Join(t.TempDir(), "mnt")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	run(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { run(t, "umount", dir) })
	return dir
}

func TestLoopFSReflink(t *testing.T) {
	for _, mkfs := range [][]string{{"mkfs.xfs", "-q", "-m", "reflink=1"}, {"mkfs.btrfs", "-q"}} {
		t.Run(mkfs[0], func(t *testing.T) {
			home := filepath.Join(loop(t, mkfs...), "home")
			data := filepath.Join(home, "data")
			fillData(t, data, 1)
			want := content(t, data)
			for _, method := range []string{"auto", "reflink"} {
				s := open(t, home, func(o *Options) { o.Config.Method = method })
				f, err := s.Forecast(context.Background())
				require.NoError(t, err)
				assert.Equal(t, manifest.Reflink, f.Method)
				id := create(t, s, "", 1)
				m, err := s.Get(id)
				require.NoError(t, err)
				assert.Equal(t, manifest.Reflink, m.Sources[0].Method)
				write(t, filepath.Join(data, "cs.wal", "wal"), "changed")
				require.NoError(t, s.Complete(context.Background(), id))
				_, err = s.Restore(context.Background(), id, RestoreOptions{})
				require.NoError(t, err)
				assert.Equal(t, want, content(t, data))
				all, err := s.List()
				require.NoError(t, err)
				assert.Nil(t, all[0].ExclusiveBytes, "clones make it unknowable")
			}
		})
	}
}

// A data directory that is a btrfs subvolume, the snapshots in another one: device numbers differ, clones work.
func TestLoopFSSubvolume(t *testing.T) {
	mnt := loop(t, "mkfs.btrfs", "-q")
	home := filepath.Join(mnt, "home")
	require.NoError(t, os.MkdirAll(home, 0o755))
	run(t, "btrfs", "subvolume", "create", filepath.Join(home, "data"))
	run(t, "btrfs", "subvolume", "create", filepath.Join(mnt, "backup"))
	fillData(t, filepath.Join(home, "data"), 1)
	want := content(t, filepath.Join(home, "data"))
	s := open(t, home, func(o *Options) { o.Config.Dir = filepath.Join(mnt, "backup") })
	id := completed(t, s, "", 1)
	m, err := s.Get(id)
	require.NoError(t, err)
	assert.Equal(t, manifest.Reflink, m.Sources[0].Method)
	write(t, filepath.Join(home, "data", "cs.wal", "wal"), "changed")
	_, err = s.Restore(context.Background(), id, RestoreOptions{})
	require.NoError(t, err)
	assert.Equal(t, want, content(t, filepath.Join(home, "data")))
	assertTidy(t, home)
}

// Where clones are asked for and not to be had, nothing else is done in their place.
func TestLoopFSNoReflink(t *testing.T) {
	home := filepath.Join(loop(t, "mkfs.ext4", "-q"), "home")
	fillData(t, filepath.Join(home, "data"), 1)
	s := open(t, home, func(o *Options) { o.Config.Method = "reflink" })
	_, err := s.Forecast(context.Background())
	require.Error(t, err)
	require.Error(t, s.Create(context.Background(), "20260101T000000Z-aaaa", "", 1))
	assertTidy(t, home)
}
