package atomicfile

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRemoveTree(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	require.NoError(t, os.WriteFile(outside, nil, 0o600))
	tree := filepath.Join(dir, "tree")
	require.NoError(t, os.MkdirAll(filepath.Join(tree, "a", "b"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(tree, "a", "b", "file"), nil, 0o400))
	require.NoError(t, os.Symlink(outside, filepath.Join(tree, "link")))
	require.NoError(t, os.Chmod(filepath.Join(tree, "a", "b"), 0o500))

	require.NoError(t, RemoveTree(tree))
	require.NoDirExists(t, tree)
	require.FileExists(t, outside, "links are not followed")
	require.NoError(t, RemoveTree(tree), "a missing tree is no error")
}
