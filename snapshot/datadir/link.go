package datadir

import (
	"errors"
	"path"

	"golang.org/x/sys/unix"

	"nodevisor/snapshot/manifest"
)

// link makes e in dst a second name of the table behind fd. false: it must be copied instead, for whatever reason
// there is to doubt that nobody will write to it.
//
// Neither mode nor owner of a link is ever touched: they are the live file's too.
func (c *copier) link(src, dst, fd int, it item, e *manifest.Entry, st *unix.Stat_t, peers []int) (bool, error) {
	name := path.Base(e.Path)
	if st.Dev != c.dev || !c.ours(st, it, peers) {
		return false, nil
	}
	// The store synced its table when it wrote it; this costs nothing then, and helps where it didn't. Not fsync: that
	// would flush the disk's cache for each of a thousand files. The directory's fsync flushes it once.
	unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER) //nolint:errcheck // an extra
	err := retry(func() error { return unix.Linkat(src, it.src, dst, name, 0) })
	switch {
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EPERM), errors.Is(err, unix.EMLINK), errors.Is(err, unix.EOPNOTSUPP):
		return false, nil // fs.protected_hardlinks, a mount in between, too many names
	case err != nil:
		return false, err
	}
	linked, err := statAt(dst, name)
	if err != nil {
		return false, err
	}
	if linked.Ino != st.Ino || linked.Dev != st.Dev || linked.Size != st.Size {
		return false, errChanged // the name was given to another file since we opened it
	}
	e.Method = manifest.Hardlink
	c.done.Add(e.Size)
	return true, nil
}

// ours tells whether every name of the file is the live one or one that an earlier snapshot gave it. Whoever holds
// another one may write through it.
func (c *copier) ours(st *unix.Stat_t, it item, peers []int) bool {
	known := uint64(1)
	for _, fd := range peers {
		if known >= uint64(st.Nlink) {
			break
		}
		if p, err := statAt(fd, path.Base(c.entries[it.entry].Path)); err == nil && p.Ino == st.Ino && p.Dev == st.Dev {
			known++
		}
	}
	return known == uint64(st.Nlink)
}

// openPeers opens the unit's directory in each earlier copy that has it.
func (c *copier) openPeers(u *unit) []int {
	var fds []int
	for _, peer := range c.peers {
		if fd, err := openBeneath(peer, u.rel); err == nil {
			fds = append(fds, fd)
		}
	}
	return fds
}
