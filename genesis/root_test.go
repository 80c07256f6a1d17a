package genesis

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

// newRoot is a root that may be set up, with what may be there before.
func newRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range ours {
		require.NoError(t, os.Mkdir(filepath.Join(root, dir), 0o755))
	}
	return root
}

func TestMarkerIsReadAsItWasWritten(t *testing.T) {
	root := newRoot(t)
	m, err := ReadMarker(root)
	require.NoError(t, err)
	assert.Nil(t, m, "a root as any other")
	want := &Marker{Phase: Restoring, Kind: Kwil, Version: "v0.9", Files: []string{"genesis.json"}, StateHash: "ab", Database: &MarkerDatabase{DSN: "dbname=x"}}
	require.NoError(t, want.Write(root))
	m, err = ReadMarker(root)
	require.NoError(t, err)
	assert.Equal(t, want, m)
	for start := range 3 {
		again, err := m.BeginStart(root)
		require.NoError(t, err)
		assert.Equal(t, start > 0, again)
		if m, err = ReadMarker(root); err == nil { // also after a crash
			assert.Equal(t, start+1, m.Starts)
		}
		require.NoError(t, err)
	}
	require.NoError(t, RemoveMarker(root))
	require.NoError(t, RemoveMarker(root), "a second time")
	m, err = ReadMarker(root)
	require.NoError(t, err)
	assert.Nil(t, m)
}

// A marker that can't be read is never taken for none: a node would start on half a state.
func TestDamagedMarkerIsAnError(t *testing.T) {
	root := newRoot(t)
	path := filepath.Join(root, MarkerFile)
	for _, text := range []string{"", "{", `{"schema":2,"phase":"restoring"}`, `{"schema":1,"phase":"done"}`, `{"schema":1,"phase":"preparing","files":["../x"]}`} {
		write(t, path, text)
		_, err := ReadMarker(root)
		require.Error(t, err, text)
		assert.NotEmpty(t, hint.Of(err))
		_, err = CheckRoot(root)
		require.Error(t, err, text)
	}
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(path, 0o755))
	_, err := ReadMarker(root)
	require.Error(t, err)
}

func TestCheckRoot(t *testing.T) {
	root := newRoot(t)
	_, err := CheckRoot(filepath.Join(root, "none"))
	require.NoError(t, err)
	interrupted, err := CheckRoot(root)
	require.NoError(t, err)
	assert.Nil(t, interrupted)
	_, err = CheckRoot(write(t, filepath.Join(t.TempDir(), "file"), ""))
	require.Error(t, err)

	write(t, filepath.Join(root, "genesis.json"), "{}")
	_, err = CheckRoot(root)
	require.ErrorContains(t, err, "there is genesis.json in it")
	// What an interrupted init left is its own to take away, and nothing else.
	m := &Marker{Phase: Preparing, Files: []string{"genesis.json"}}
	require.NoError(t, m.Write(root))
	write(t, filepath.Join(root, ".atomic-1"), "half")
	interrupted, err = CheckRoot(root)
	require.NoError(t, err)
	assert.Equal(t, Preparing, interrupted.Phase)
	write(t, filepath.Join(root, "private_key"), "x")
	_, err = CheckRoot(root)
	require.ErrorContains(t, err, "private_key")
	m.Phase = Restoring
	require.NoError(t, m.Write(root))
	_, err = CheckRoot(root)
	require.ErrorContains(t, err, "set up already")
}

func TestWriteRootBeginsFromClean(t *testing.T) {
	root := newRoot(t)
	state := write(t, filepath.Join(t.TempDir(), "state"), "state")
	sum, err := SumFile(state)
	require.NoError(t, err)
	files := []RootFile{{Name: "genesis.json", Data: []byte("{}")}, {Name: StateName, From: state, Sum: sum}, {Name: "config.toml", Data: []byte("x")}}
	m := &Marker{Kind: Kwil}

	// The file changed after it was verified: nothing of it is kept, and the marker says that the root isn't whole.
	write(t, state, "other")
	require.ErrorContains(t, WriteRoot(root, m, files), "sha256: want")
	assert.NoFileExists(t, filepath.Join(root, StateName))
	assert.NoFileExists(t, filepath.Join(root, "config.toml"))
	left, err := ReadMarker(root)
	require.NoError(t, err)
	assert.Equal(t, Preparing, left.Phase)
	assert.Equal(t, []string{"genesis.json", StateName, "config.toml"}, left.Files)

	write(t, state, "state")
	write(t, filepath.Join(root, ".atomic-1"), "half")
	write(t, filepath.Join(root, "config.toml"), "an older one")
	require.NoError(t, WriteRoot(root, m, files))
	assert.NoFileExists(t, filepath.Join(root, ".atomic-1"))
	for _, f := range files {
		info, err := os.Stat(filepath.Join(root, f.Name))
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode(), f.Name)
	}
}

func TestCheckSum(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "genesis.json"), "{}")
	sum, err := SumFile(file)
	require.NoError(t, err)
	require.NoError(t, CheckSum(file, sum, ""))
	require.NoError(t, CheckSum(file, sum, strings.ToUpper(sum)))
	zero := strings.Repeat("0", 64)
	require.ErrorContains(t, CheckSum(file, sum, zero), "the command line says")
	for list, fine := range map[string]bool{
		sum + "  genesis.json\n": true, sum + " *genesis.json": true, zero + "  other\n": true, "": true,
		zero + "  genesis.json\n": false, zero + " *genesis.json": false, sum + "  x\n" + zero + "  genesis.json\n": false,
	} {
		write(t, filepath.Join(dir, SumsName), list)
		if err := CheckSum(file, sum, ""); fine {
			require.NoError(t, err, list)
		} else {
			require.ErrorContains(t, err, "SHA256SUMS says", list)
		}
	}
	assert.True(t, IsSum(zero))
	assert.False(t, IsSum(zero[1:]))
	assert.False(t, IsSum(strings.Repeat("x", 64)))
}
