package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// RemoveTree deletes path and everything below it, also directories that their owner made read-only, and syncs the
// parent. It follows no links. A missing path is no error; interrupted, it is simply called again.
func RemoveTree(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err := os.RemoveAll(path)
	if errors.Is(err, fs.ErrPermission) {
		filepath.WalkDir(path, func(p string, d fs.DirEntry, _ error) error { //nolint:errcheck // RemoveAll's error counts
			if d != nil && d.IsDir() {
				os.Chmod(p, 0o700) //nolint:errcheck,gosec // likewise
			}
			return nil
		})
		err = os.RemoveAll(path)
	}
	if err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}
