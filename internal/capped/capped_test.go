package capped

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(path, []byte("1234"), 0o600))
	text, err := ReadFile(path, 4)
	require.NoError(t, err)
	assert.Equal(t, "1234", text)
	data, err := ReadBytes(path, 4)
	require.NoError(t, err)
	assert.Equal(t, []byte("1234"), data)
	_, err = ReadFile(path, 3)
	require.EqualError(t, err, "read "+path+": larger than 3 bytes")
	_, err = ReadFile(path+"2", 3)
	require.ErrorIs(t, err, fs.ErrNotExist)

	_, err = ReadFile(dir, 4)
	require.EqualError(t, err, "read "+dir+": not a regular file")
	require.NoError(t, unix.Mkfifo(path+"ifo", 0o600))
	_, err = ReadFile(path+"ifo", 4) // it would wait for a writer for ever
	require.EqualError(t, err, "read "+path+"ifo: not a regular file")
}

func TestLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	assert.Empty(t, Lines(path))
	require.NoError(t, os.WriteFile(path, []byte("a\nb"), 0o600))
	assert.Equal(t, []string{"a", "b"}, Lines(path))
	require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("x\n", maxLines)), 0o600))
	assert.Empty(t, Lines(path), "too large")
}
