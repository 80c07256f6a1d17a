package datadir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"nodevisor/snapshot/manifest"
)

// syncers is how many files are synced at the same time. Waiting for the disk takes no processor, and those that wait
// together share one commit of the file system's journal.
const syncers = 16

// keep takes a new file that is to be synced with the others at the end, and closed then. Its writing begins now.
func (c *copier) keep(w *os.File) {
	unix.SyncFileRange(int(w.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE) //nolint:errcheck // its sync tells
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unsynced = append(c.unsynced, w)
	c.bound(0)
}

// bound decides for the one syncfs where the new files and these directories are too many. It needs mu, or to be alone.
func (c *copier) bound(dirs int) {
	if c.syncAll = c.syncAll || len(c.unsynced)+dirs > syncEach; c.syncAll {
		c.release()
	}
}

func (c *copier) release() {
	for _, w := range c.unsynced {
		w.Close()
	}
	c.unsynced = nil
}

// finish gives the directories their owner and mode, children first, and makes everything durable.
func (c *copier) finish() error {
	root, err := openRoot(c.dst)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	var dirs []*manifest.Entry
	for i := range c.entries {
		if c.entries[i].Type == manifest.Dir {
			dirs = append(dirs, &c.entries[i])
		}
	}
	c.bound(len(dirs))
	var open []int
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	for i := len(dirs) - 1; i >= 0; i-- {
		fd, err := openBeneath(c.dst, dirs[i].Path)
		if err != nil {
			return fmt.Errorf("cannot write copy: %w", err)
		}
		err = applyMeta(fd, ".", dirs[i])
		if c.syncAll {
			unix.Close(fd)
		} else {
			open = append(open, fd)
		}
		if err != nil {
			return fmt.Errorf("cannot write %s: %w", filepath.Join(c.dst, dirs[i].Path), err)
		}
	}
	if c.syncAll {
		return c.failed(retry(func() error { return unix.Syncfs(root) }))
	}
	return c.failed(c.syncTogether(open))
}

// syncTogether syncs the new files and the open directories side by side: their data is on its way since they were
// written (keep), and those that wait together share a commit of the file system's journal.
func (c *copier) syncTogether(dirs []int) error {
	var g errgroup.Group
	g.SetLimit(syncers)
	for _, w := range c.unsynced {
		g.Go(w.Sync)
	}
	for _, fd := range dirs {
		g.Go(func() error { return fsyncDir(fd) })
	}
	return g.Wait()
}

func (c *copier) failed(err error) error {
	if err != nil {
		return fmt.Errorf("cannot sync %s: %w", c.dst, err)
	}
	return nil
}

// fsyncDir makes a directory's names durable. File systems that know no such thing order them by themselves.
func fsyncDir(fd int) error {
	err := retry(func() error { return unix.Fsync(fd) })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}
