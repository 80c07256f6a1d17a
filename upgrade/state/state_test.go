package state

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What is written can be read again, and what could not be is not written.
func TestCapsInBothDirections(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	for _, size := range []int{0, maxBytes / 2, maxBytes - 4} { // two quotes, the line's end, and one byte below the cap
		data, err := Encode(strings.Repeat("x", size))
		require.NoError(t, err, size)
		require.NoError(t, os.WriteFile(path, data, 0o600))
		back, err := Read(path)
		require.NoError(t, err, size)
		assert.Len(t, back, size+3)
	}
	_, err := Encode(strings.Repeat("x", maxBytes))
	require.ErrorIs(t, err, errTooLarge)
	require.NoError(t, os.Truncate(path, maxBytes+1))
	_, err = Read(path)
	require.ErrorContains(t, err, "larger than 8388608 bytes")
	_, err = Read(filepath.Join(path, "none"))
	require.Error(t, err)
	require.NoError(t, syscall.Mkfifo(path+".pipe", 0o600))
	_, err = Read(path + ".pipe") // it would wait for a writer for ever
	require.ErrorContains(t, err, "not a regular file")
}
