package datadir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodevisor/snapshot/manifest"
)

// Every path below a tree's root is walked one name at a time from an open directory, links refused at each step: a
// name that was a directory when the tree was listed can't lead elsewhere when it is copied.

const dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// retry repeats what a signal interrupted: Go preempts threads by signals, and slow file systems then return EINTR.
func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// openAt opens name in the directory dirfd. O_NONBLOCK keeps a pipe from blocking us before fstat unmasks it.
func openAt(dirfd int, name string, flags int, perm uint32) (fd int, err error) {
	err = retry(func() (err error) {
		fd, err = unix.Openat(dirfd, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, perm)
		return err
	})
	return fd, err
}

// openRoot opens a directory by its full name, whose last component must be no link.
func openRoot(dir string) (fd int, err error) {
	err = retry(func() (err error) {
		fd, err = unix.Open(dir, dirFlags, 0)
		return err
	})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return fd, nil
}

// openBeneath opens the directory root/sub without following any link in sub.
func openBeneath(root, sub string) (int, error) {
	fd, err := openRoot(root)
	if err != nil || sub == "." {
		return fd, err
	}
	for name := range strings.SplitSeq(sub, "/") {
		next, err := openAt(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		unix.Close(fd)
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: filepath.Join(root, sub), Err: err}
		}
		fd = next
	}
	return fd, nil
}

// statAt reads what name is, itself.
func statAt(dirfd int, name string) (st unix.Stat_t, err error) {
	err = retry(func() error { return unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	return st, err
}

// lstat reads what path is, itself; its directories are followed.
func lstat(path string) (st unix.Stat_t, err error) {
	if err := retry(func() error { return unix.Lstat(path, &st) }); err != nil {
		return st, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return st, nil
}

func readlinkAt(dirfd int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dirfd, name, buf)
	if err != nil {
		return "", err
	}
	if n == len(buf) {
		return "", unix.ENAMETOOLONG
	}
	return string(buf[:n]), nil
}

// names lists a directory that stays open.
func names(dirfd int) ([]string, error) {
	fd, err := openAt(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close()
	return f.Readdirnames(-1)
}

// applyMeta gives an entry its owner (root alone can), mode and time. It is never called on a hard link: that would
// change the live file.
func applyMeta(dirfd int, name string, e *manifest.Entry) error {
	if os.Geteuid() == 0 {
		if err := unix.Fchownat(dirfd, name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("chown: %w", err)
		}
	}
	if e.Type != manifest.Link { // a link has no mode; fchmodat follows, but what it meets is our own new file
		if err := unix.Fchmodat(dirfd, name, uint32(e.Mode), 0); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
	}
	if err := unix.UtimesNanoAt(dirfd, name, timespecs(e.MTime), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

func timespecs(t time.Time) []unix.Timespec {
	ts := unix.NsecToTimespec(t.UnixNano())
	return []unix.Timespec{ts, ts}
}

func mtime(st *unix.Stat_t) time.Time { return time.Unix(st.Mtim.Unix()).UTC() }

// space is what a file takes on the disk: a sparse one takes less than its size.
func space(st *unix.Stat_t) int64 { return min(st.Blocks*512, st.Size+4096) }

func isType(st *unix.Stat_t, typ uint32) bool { return st.Mode&unix.S_IFMT == typ }
