package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// durable says whether the node syncs what it must not forget: its store and the signer's state, as real ones do. One
// that doesn't is for everything but power cuts: a kill loses nothing that was written, and a sync costs time.
type durable bool

// file syncs what was written to f.
func (d durable) file(f *os.File) error {
	if !d {
		return nil
	}
	return f.Sync()
}

// dir syncs the names in the directory at path.
func (d durable) dir(path string) error {
	if !d {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// replace writes a file under a temporary name and renames it: a kill leaves the old one or the new one, and so does a
// power cut if the node is durable.
func (d durable) replace(path string, data []byte, perm fs.FileMode) error {
	temp := path + ".tmp"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, d.file(f), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return d.dir(filepath.Dir(path))
}

// replaceFile replaces what may be lost in a power cut.
func replaceFile(path string, data []byte, perm fs.FileMode) error {
	return durable(false).replace(path, data, perm)
}
