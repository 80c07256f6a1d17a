package datadir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/snapshot/manifest"
)

func TestVerifyNames(t *testing.T) {
	for name, c := range map[string]struct {
		damage    func(at string) error
		path      string
		want, got string
	}{
		"flip":         {func(at string) error { return os.WriteFile(filepath.Join(at, "dir/file"), []byte("contenT"), 0o644) }, "data/dir/file", "sha256 ed7002b4", "sha256 "},
		"shorter":      {func(at string) error { return os.Truncate(filepath.Join(at, "dir/file"), 3) }, "data/dir/file", "7 bytes", "3 bytes"},
		"missing":      {func(at string) error { return os.Remove(filepath.Join(at, "dir/file")) }, "data/dir/file", "file of 7 bytes", "nothing"},
		"extra":        {func(at string) error { return os.WriteFile(filepath.Join(at, "dir/new"), nil, 0o644) }, "data/dir/new", "nothing", "file"},
		"extra folder": {func(at string) error { return os.Mkdir(filepath.Join(at, "new"), 0o755) }, "data/new", "nothing", "dir"},
		"mode":         {func(at string) error { return os.Chmod(filepath.Join(at, "dir/file"), 0o600) }, "data/dir/file", "mode 0644", "mode 0600"},
		"folder mode":  {func(at string) error { return os.Chmod(filepath.Join(at, "dir"), 0o700) }, "data/dir", "mode 0755", "mode 0700"},
		"link": {func(at string) error {
			return errors.Join(os.Remove(filepath.Join(at, "link")), os.Symlink("/etc", filepath.Join(at, "link")))
		}, "data/link", "link to dir", "link to /etc"},
		"file for link": {func(at string) error {
			return errors.Join(os.Remove(filepath.Join(at, "link")), os.WriteFile(filepath.Join(at, "link"), nil, 0o644))
		}, "data/link", "link", "file"},
		"link for file": {func(at string) error {
			return errors.Join(os.Remove(filepath.Join(at, "dir/file")), os.Symlink("/etc/hostname", filepath.Join(at, "dir/file")))
		}, "data/dir/file", "file", "link"},
		"all": {os.RemoveAll, "data", "a directory", "nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource(t)
			put(t, filepath.Join(s.Path, "dir", "file"), "content")
			require.NoError(t, os.Symlink("dir", filepath.Join(s.Path, "link")))
			rec, at := freeze(t, s)
			rec, err := s.Finish(context.Background(), filepath.Dir(at), rec)
			require.NoError(t, err)
			require.NoError(t, c.damage(at))
			faults, err := Verify(context.Background(), at, rec, true, nil)
			require.NoError(t, err)
			require.Len(t, faults, 1)
			assert.Equal(t, c.path, faults[0].Path)
			assert.Contains(t, faults[0].Want, c.want)
			assert.Contains(t, faults[0].Got, c.got)
		})
	}
}

// A copy that went wrong on its way is no damage of the snapshot: what differs is read again where it came from.
func TestExplainTellsTheCopyFromTheSnapshot(t *testing.T) {
	s := newSource(t)
	for _, name := range []string{"a", "b"} {
		require.NoError(t, os.WriteFile(filepath.Join(s.Where(), name), []byte(name), 0o600))
	}
	rec, at := freeze(t, s)
	require.NoError(t, hashAll(t.Context(), at, rec.Entries, 1, func(int64) {}))
	r := manifest.Restore{ID: "ID", From: at, Record: rec}
	copied := []manifest.Fault{{Path: "data/a", Want: "sha256 1", Got: "sha256 2"}}
	damage := (*manifest.Damage)(nil)
	err := explain(t.Context(), r, copied)
	require.ErrorContains(t, err, "the snapshot is right")
	require.NotErrorAs(t, err, &damage)

	require.NoError(t, os.WriteFile(filepath.Join(at, "a"), []byte("x"), 0o600))
	err = explain(t.Context(), r, copied)
	require.ErrorAs(t, err, &damage)
	assert.Equal(t, "data/a", damage.Faults[0].Path)
	assert.Equal(t, 1, damage.Count)
}
