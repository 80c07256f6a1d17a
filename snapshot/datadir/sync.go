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

// sync brings a new file to the disk, or leaves that to the one syncfs at the end.
func (c *copier) sync(w *os.File) error {
	if c.syncAll.Load() || c.fresh.Add(1) > syncEach {
		c.syncAll.Store(true)
		return nil
	}
	return w.Sync()
}

// finish gives the directories their owner and mode, children first, and makes everything durable.
func (c *copier) finish() error {
	var dirs []*manifest.Entry
	for i := range c.entries {
		if c.entries[i].Type == manifest.Dir {
			dirs = append(dirs, &c.entries[i])
		}
	}
	open := make([]int, 0, min(len(dirs), syncEach+1))
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	root, err := openRoot(c.dst)
	if err != nil {
		return err
	}
	open = append(open, root)
	all := c.syncAll.Load() || len(dirs) > syncEach
	for i := len(dirs) - 1; i >= 0; i-- {
		fd, err := openBeneath(c.dst, dirs[i].Path)
		if err != nil {
			return fmt.Errorf("cannot write copy: %w", err)
		}
		err = applyMeta(fd, ".", dirs[i])
		if all {
			unix.Close(fd)
		} else {
			open = append(open, fd)
		}
		if err != nil {
			return fmt.Errorf("cannot write %s: %w", filepath.Join(c.dst, dirs[i].Path), err)
		}
	}
	if all {
		return c.failed(retry(func() error { return unix.Syncfs(root) }))
	}
	var g errgroup.Group
	g.SetLimit(c.workers)
	for _, fd := range open[1:] {
		g.Go(func() error { return fsyncDir(fd) })
	}
	return c.failed(g.Wait())
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
