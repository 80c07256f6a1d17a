package fetch

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

func TestFind(t *testing.T) {
	write := func(t *testing.T, path string, mode os.FileMode) string {
		t.Helper()
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755))
		require.NoError(t, os.Chmod(path, mode))
		return path
	}
	// Only what lies under the test's own directory: the host may have the package installed.
	own := func(prefix string) []string {
		paths := candidates(filepath.Join(prefix, "bin"))
		require.Len(t, paths, 5)
		return []string{paths[0], paths[1], paths[4]}
	}
	t.Run("missing", func(t *testing.T) {
		_, err := find(own(t.TempDir()))
		require.ErrorContains(t, err, "cannot find downloader")
		assert.Contains(t, hint.Of(err), "supervisor upgrade add NAME BINARY")
	})
	t.Run("in this order", func(t *testing.T) {
		prefix := t.TempDir()
		for _, name := range []string{"bin/fetch", "libexec/nodevisor/fetch", "bin/supervisor-fetch"} {
			want := write(t, filepath.Join(prefix, name), 0o755)
			got, err := find(own(prefix))
			require.NoError(t, err)
			assert.Equal(t, want, got)
		}
	})
	t.Run("a directory of that name is not it", func(t *testing.T) {
		prefix := t.TempDir()
		require.NoError(t, os.MkdirAll(filepath.Join(prefix, "bin", "fetch"), 0o755))
		_, err := find(own(prefix))
		require.ErrorContains(t, err, "not installed")
	})
	for name, mode := range map[string]os.FileMode{"not executable": 0o644, "writable by everybody": 0o757} {
		t.Run(name, func(t *testing.T) {
			prefix := t.TempDir()
			path := write(t, filepath.Join(prefix, "bin", "fetch"), mode)
			_, err := find(own(prefix))
			require.ErrorContains(t, err, path)
			assert.NotEmpty(t, hint.Of(err))
		})
	}
}

// TestProgramIgnoresEnvironment: neither PATH nor the working directory choose what a supervisor runs.
func TestProgramIgnoresEnvironment(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"fetch", "supervisor-fetch"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755))
	}
	t.Setenv("PATH", dir)
	t.Chdir(dir)
	path, err := Program()
	if err == nil { // the host has it installed
		assert.NotEqual(t, dir, filepath.Dir(path))
		return
	}
	assert.ErrorContains(t, err, "cannot find downloader")
}
