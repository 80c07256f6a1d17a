// Package atomicfile is the only way in which this program changes files that must survive a crash.
//
// A file is written to a temporary name in the same directory, synced, renamed over its target, and the directory is
// synced: after a power cut a reader finds the old content or the new one, never a mixture, and never nothing. A failed
// fsync is final for its descriptor (the kernel may have dropped the dirty pages: https://lwn.net/Articles/752063/), so
// the temporary file is removed and the caller writes anew from scratch.
//
// A process that runs as root gives what it makes the owner of the directory that it makes it in: an operator's
// `sudo supervisor …` must not leave files that the node's user can't read.
package atomicfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ErrNotRegular means that the target exists and is not what would be replaced (a directory, a socket, a device ...).
var ErrNotRegular = errors.New("not a regular file")

// tempPrefix marks the temporary names of this package; RemoveTemps finds left-overs by it.
const tempPrefix = ".atomic-"

// Durability says how much of a write must have reached the disk when it returns.
type Durability int

const (
	// Full syncs the file and its directory: after the return the new content is there for good.
	Full Durability = iota
	// Content syncs the file alone: a power cut may bring the old content back, but never a torn one. It is for
	// states whose loss costs nothing, in the time that the node is down.
	Content
)

// WriteFile replaces path with data, mode perm (exactly, whatever the umask), with Full durability.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return Write(path, perm, Full, func(w io.Writer) error { _, err := w.Write(data); return err })
}

// Write replaces path with what fill writes. Nothing of it is seen under path unless everything succeeded.
// A symlink at path is replaced, not followed; any other thing than a regular file is refused with ErrNotRegular.
func Write(path string, perm fs.FileMode, d Durability, fill func(io.Writer) error) (err error) {
	dir := filepath.Dir(path)
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() && info.Mode()&fs.ModeSymlink == 0 {
		return fmt.Errorf("cannot write %s: %w", path, ErrNotRegular)
	}
	f, err := os.CreateTemp(dir, tempPrefix+"*")
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("cannot write %s: %w", path, err)
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Chmod(perm); err != nil {
		return err
	}
	if err := adopt(f.Name(), dir); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if d == Content {
		return nil
	}
	return SyncDir(dir)
}

// Create makes the file path, which isn't there yet, in a directory that nobody looks into before it is renamed: so it needs
// no temporary name, and its content and its name are synced together. A failed one is left for the directory's end.
func Create(path string, data []byte, perm fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(perm), adopt(path, dir))
	if err == nil {
		named := make(chan error, 1)
		go func() { named <- SyncDir(dir) }()
		err = errors.Join(f.Sync(), <-named)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}

// Symlink makes path a symlink to target in one step, replacing an older symlink. Anything else at path is refused
// with ErrNotRegular: a link swap must never delete what it doesn't know.
func Symlink(target, path string) error {
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink == 0 {
		return fmt.Errorf("cannot link %s: %w", path, ErrNotRegular)
	}
	dir := filepath.Dir(path)
	temp := filepath.Join(dir, tempPrefix+rand.Text())
	if err := os.Symlink(target, temp); err != nil {
		return fmt.Errorf("cannot link %s: %w", path, err)
	}
	err := adopt(temp, dir)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return fmt.Errorf("cannot link %s: %w", path, err)
	}
	return SyncDir(dir)
}

// Rename moves a file or directory and syncs both parents. The caller has synced what is inside.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := SyncDir(filepath.Dir(to)); err != nil {
		return err
	}
	if filepath.Dir(from) == filepath.Dir(to) {
		return nil
	}
	return SyncDir(filepath.Dir(from))
}

// Aside is the name beside path under which what it held is kept: path.before-<UTC time, to the millisecond>.
func Aside(path string) string {
	return path + ".before-" + time.Now().UTC().Format("20060102T150405.000")
}

// MkdirAll makes path and what is missing above it, and syncs the parent of each directory that it made.
func MkdirAll(path string, perm fs.FileMode) error {
	if info, err := os.Stat(path); err == nil {
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
		}
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := adopt(path, parent); err != nil {
		return err
	}
	return SyncDir(parent)
}

// Remove deletes a file or an empty directory and syncs its parent. A missing one is no error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Sync makes durable what another program wrote to the file at path, and its name: one that is acted upon must still be
// there after a power cut.
func Sync(path string) error {
	if err := syncOpened(path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in dir durable.
func SyncDir(dir string) error { return syncOpened(dir) }

func syncOpened(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not block
	if err != nil {
		return err
	}
	err = f.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil // file systems that know no directory sync (FUSE, some network ones) order renames themselves
	}
	return errors.Join(err, f.Close())
}

// RemoveTemps deletes what interrupted writes left in dir. Only the holder of the home lock may call it.
func RemoveTemps(dir string) error { return RemoveOldTemps(dir, 0) }

// RemoveOldTemps is RemoveTemps for a directory that others write to, too: what is younger than age may be a write under way.
func RemoveOldTemps(dir string, age time.Duration) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) || e.IsDir() {
			continue
		}
		if info, ierr := e.Info(); age > 0 && (ierr != nil || time.Since(info.ModTime()) < age) {
			continue
		}
		if rerr := os.Remove(filepath.Join(dir, e.Name())); !errors.Is(rerr, fs.ErrNotExist) { // gone meanwhile: renamed, or removed by another
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// Adopt gives path the owner and group of the directory that it lies in, when the process is root and the directory
// isn't root's; a symlink itself, not what it points to. It is for files that aren't written by this package.
func Adopt(path string) error { return adopt(path, filepath.Dir(path)) }

// adopt gives path the owner and group of the directory dir, when the process is root and dir isn't root's.
func adopt(path, dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || (st.Uid == 0 && st.Gid == 0) {
		return nil
	}
	return os.Lchown(path, int(st.Uid), int(st.Gid))
}
