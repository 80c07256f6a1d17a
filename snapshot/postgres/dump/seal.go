package dump

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"nodevisor/internal/atomicfile"
	"nodevisor/snapshot/manifest"
)

// Seal makes an archive durable and lists it: private, as all that a snapshot holds.
func Seal(dir string, rec *manifest.Source) error {
	rec.Method, rec.Bytes, rec.Files, rec.Entries = manifest.Dump, 0, 0, nil
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		e, err := sealOne(dir, path, d.IsDir())
		if err != nil {
			return err
		}
		if rec.Entries = append(rec.Entries, e); e.Type == manifest.File {
			rec.Bytes += e.Size
			rec.Files++
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot seal archive: %w", err)
	}
	return atomicfile.SyncDir(filepath.Dir(dir))
}

func sealOne(root, path string, isDir bool) (manifest.Entry, error) {
	e := manifest.Entry{Type: manifest.File, Mode: 0o600, Method: manifest.Dump}
	if isDir {
		e.Type, e.Mode, e.Method = manifest.Dir, 0o700, ""
	}
	f, err := os.OpenFile(path, os.O_RDONLY|openNoFollow, 0)
	if err != nil {
		return e, err
	}
	defer f.Close()
	if err := f.Chmod(e.Mode.FileMode()); err != nil {
		return e, err
	}
	if err := atomicfile.Adopt(path); err != nil {
		return e, err
	}
	if err := f.Sync(); err != nil {
		return e, err
	}
	info, err := f.Stat()
	if err != nil {
		return e, err
	}
	if !isDir {
		if !info.Mode().IsRegular() {
			return e, fmt.Errorf("%s is not a regular file", path)
		}
		e.Size = info.Size()
	}
	e.UID, e.GID = ownerOf(info)
	e.MTime = info.ModTime().UTC()
	if e.Path, err = filepath.Rel(root, path); err != nil {
		return e, err
	}
	return e, nil
}
