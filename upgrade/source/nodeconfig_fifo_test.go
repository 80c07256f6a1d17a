package source

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A pipe in the place of a file that is read would block its reader for good.
func TestAPipeIsNotWaitedFor(t *testing.T) {
	home := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(home, "supervisor"), 0o755))
	path := filepath.Join(home, "supervisor", "height")
	require.NoError(t, unix.Mkfifo(path, 0o600))
	_, ok, err := LoadRecord(path)
	assert.False(t, ok)
	assert.ErrorContains(t, err, "not a regular file")
}
