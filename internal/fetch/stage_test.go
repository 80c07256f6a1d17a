package fetch

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestKilledSupervisor: after kill -9 the downloader goes too, no binary is there, and what is left is removed by the next.
func TestKilledSupervisor(t *testing.T) {
	arrived, gone := make(chan struct{}), make(chan struct{})
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		close(arrived)
		<-r.Context().Done()
		close(gone)
	})
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s", victim, downloader, url+"?checksum=sha256:"+sum256(node), dir))
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	await(t, arrived)
	require.NoError(t, cmd.Process.Signal(syscall.SIGKILL))
	await(t, gone)

	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	assert.True(t, strings.HasPrefix(entries[0].Name(), stagePrefix))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "simd"), []byte("old"), 0o755))
	require.NoError(t, RemoveStale(dir))
	entries, err = os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	assert.Equal(t, "simd", entries[0].Name(), "nothing else is removed")
	require.NoError(t, RemoveStale(filepath.Join(dir, "absent")))
}

func TestStage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "upgrades", "deep")
	one, err := newStage(dir)
	require.NoError(t, err)
	defer one.remove()
	two, err := newStage(dir)
	require.NoError(t, err)
	defer two.remove()
	assert.NotEqual(t, one.path, two.path, "two downloads never share a directory")
	info, err := os.Stat(one.path)
	require.NoError(t, err)
	assert.Equal(t, os.ModeDir|0o700, info.Mode())

	body, err := one.fresh(bodyDir)
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(one.path, bodyDir), body)
	require.NoError(t, os.WriteFile(filepath.Join(body, "half"), []byte("x"), 0o600))
	_, err = one.fresh(bodyDir)
	require.NoError(t, err)
	nothingLeft(t, body)

	path := one.path
	one.remove()
	one.remove()
	assert.NoDirExists(t, path)
	assert.DirExists(t, two.path)
}

func TestStageNeedsADirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, dir := range []string{file, filepath.Join(file, "below"), "/proc/nowhere"} {
		_, err := newStage(dir)
		require.ErrorContains(t, err, "cannot make staging directory in "+dir)
	}
}

// TestStageKeepsWithin: whatever the downloader puts in the way, nothing outside is read or removed.
func TestStageKeepsWithin(t *testing.T) {
	outside := t.TempDir()
	precious := filepath.Join(outside, "simd")
	require.NoError(t, os.WriteFile(precious, []byte(node), 0o600))
	s, err := newStage(t.TempDir())
	require.NoError(t, err)
	defer s.remove()

	require.NoError(t, os.Symlink(outside, filepath.Join(s.path, outDir)))
	_, _, err = s.take(outDir, "simd", 1000, 0o755)
	require.Error(t, err)
	_, err = s.fresh(outDir)
	require.NoError(t, err)
	require.NoError(t, os.Link(precious, filepath.Join(s.path, outDir, "simd")))
	_, _, err = s.take(outDir, "simd", 1000, 0o755)
	require.ErrorContains(t, err, "second name")

	s.remove()
	info, err := os.Stat(precious)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode(), "its mode too is what it was")
}

func TestTake(t *testing.T) {
	s, err := newStage(t.TempDir())
	require.NoError(t, err)
	defer s.remove()
	dir, err := s.fresh(outDir)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "simd"), []byte(node), 0o600))
	require.NoError(t, os.Chmod(filepath.Join(dir, "simd"), os.ModeSetuid|0o777))

	_, _, err = s.take(outDir, "simd", int64(len(node)-1), 0o755)
	require.ErrorContains(t, err, "more than the limit")
	file, sum, err := s.take(outDir, "simd", int64(len(node)), 0o755)
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(s.path, "simd"), file)
	assert.Equal(t, sum256(node), sum)
	info, err := os.Stat(file)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o755), info.Mode(), "no setuid bit, nothing others may write")
}

func TestRemoveStaleKeepsFilesAndLinks(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "kept"), nil, 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(dir, stagePrefix+"link")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, stagePrefix+"file"), nil, 0o600))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, stagePrefix+"dir", "deep"), 0o700))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "v2"), 0o700))
	require.NoError(t, RemoveStale(dir))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	assert.ElementsMatch(t, []string{stagePrefix + "link", stagePrefix + "file", "v2"}, names)
	assert.FileExists(t, filepath.Join(outside, "kept"))
}
