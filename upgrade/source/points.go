package source

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// identity tells one directory from another that has taken its name.
type identity struct{ dev, ino uint64 }

// point is one name in one real directory whose change can change what a path means.
type point struct {
	dir  string // no component of it is a symlink
	id   identity
	name string
}

func (p point) path() string { return filepath.Join(p.dir, p.name) }

// maxLinks is the kernel's own limit of symlinks in one path (path_resolution(7)).
const maxLinks = 40

// pointsOf follows path as the kernel would and returns every name at which it could come to mean something else: each
// symlink on the way, and the last name, or the first one that is missing. Their directories are all there, so they can
// be watched; real directories on the way are not among them, their replacement is found by the watch on themselves.
func pointsOf(path string) []point {
	var found []point
	cur := point{dir: "/", id: identityOf("/")}
	rest := strings.Split(filepath.Clean(path), "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			cur.dir = filepath.Dir(cur.dir)
			cur.id = identityOf(cur.dir)
			continue
		}
		p := point{cur.dir, cur.id, name}
		info, err := os.Lstat(p.path())
		switch {
		case err != nil:
			return append(found, p)
		case info.Mode()&os.ModeSymlink != 0:
			found = append(found, p)
			target, err := os.Readlink(p.path())
			if links++; err != nil || links > maxLinks {
				return found
			}
			if filepath.IsAbs(target) {
				cur = point{dir: "/", id: identityOf("/")}
			}
			// Not cleaned: "link/.." is the parent of what the link names.
			rest = slices.Concat(strings.Split(target, "/"), rest)
		case len(rest) == 0 || !info.IsDir():
			return append(found, p)
		default:
			cur = point{dir: p.path(), id: identityOfInfo(info)}
		}
	}
	return found
}

func identityOf(path string) identity {
	info, err := os.Stat(path)
	if err != nil {
		return identity{}
	}
	return identityOfInfo(info)
}

func identityOfInfo(info os.FileInfo) identity {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}
	}
	return identity{uint64(st.Dev), st.Ino}
}

// signature tells one state of a file from the next; the zero value is a missing file.
type signature struct {
	id           identity
	size         int64
	mode         uint32
	mtime, ctime syscall.Timespec
}

func signatureOf(path string) signature {
	info, err := os.Stat(path)
	if err != nil {
		return signature{}
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return signature{}
	}
	return signature{identityOfInfo(info), st.Size, st.Mode, st.Mtim, st.Ctim}
}

// remoteKinds are the file systems whose files change without this kernel's doing, so that inotify alone could miss it
// (inotify(7), "Limitations and caveats"); the numbers are those of statfs(2). Overlay is not among them: what is written
// through the mount point is seen.
var remoteKinds = map[uint32]string{
	unix.NFS_SUPER_MAGIC:   "NFS",
	unix.SMB_SUPER_MAGIC:   "SMB",
	unix.SMB2_SUPER_MAGIC:  "SMB",
	unix.CIFS_SUPER_MAGIC:  "CIFS",
	unix.FUSE_SUPER_MAGIC:  "FUSE",
	unix.V9FS_MAGIC:        "9p",
	unix.CEPH_SUPER_MAGIC:  "Ceph",
	unix.AFS_SUPER_MAGIC:   "AFS",
	unix.AFS_FS_MAGIC:      "AFS",
	unix.CODA_SUPER_MAGIC:  "Coda",
	unix.OCFS2_SUPER_MAGIC: "OCFS2",
	0x01161970:             "GFS2",
	0x0bd00bd0:             "Lustre",
	0x786f4256:             "VirtualBox shared folder",
}

// remoteKind names dir's file system where it is one of remoteKinds, else "".
func remoteKind(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return ""
	}
	return remoteKinds[uint32(st.Type)]
}
