package home

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"nodevisor/internal/proc"
)

// The store walk's bounds: LOCK files lie at data/LOCK (rare), data/STORE/LOCK and one below.
const (
	lockDepth   = 3
	lockEntries = 4096 // of one directory; a store's own directory isn't listed
)

// storeHolders maps the processes that hold a LOCK file under data to that file's path.
func storeHolders(data string) map[int]string {
	stores := map[uint64]string{} // by inode number
	infos := map[uint64]fs.FileInfo{}
	if data != "" {
		findLocks(resolved(data), lockDepth, func(path string, info fs.FileInfo) {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				stores[st.Ino], infos[st.Ino] = path, info
			}
		})
	}
	held := map[int]string{}
	// Reading /proc/locks waits for a grace period of the kernel (10 to 100 ms, while the node is down), so it is read
	// only to name who holds a lock that is known to be held.
	for number, path := range stores {
		if !maybeLocked(path) {
			delete(stores, number)
		}
	}
	if len(stores) == 0 {
		return held
	}
	for number, pids := range lockOwners() {
		path, ok := stores[number]
		if !ok {
			continue
		}
		info, seen := infos[number], false
		for _, pid := range pids {
			if has, err := hasOpen(pid, info); has || errors.Is(err, fs.ErrPermission) {
				held[pid], seen = path, true
			}
		}
		if !seen { // an flock that was taken by a process that has ended, and inherited
			for _, pid := range fileHolders(info) {
				held[pid] = path
			}
		}
	}
	return held
}

// maybeLocked tells whether anybody holds a lock on the file, by asking for one without waiting; true where that can't be
// told. Nothing is kept: whatever was taken for the moment ends with the descriptor.
func maybeLocked(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	record := unix.Flock_t{Type: unix.F_WRLCK} // the whole file: POSIX locks and those of open descriptions
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &record); err != nil || record.Type != unix.F_UNLCK {
		return true
	}
	return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil
}

// findLocks calls found for each file named LOCK, down to depth directories below dir. A directory that has one is a
// store: its other entries, often very many, aren't looked at.
func findLocks(dir string, depth int, found func(string, fs.FileInfo)) {
	path := filepath.Join(dir, "LOCK")
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
		found(path, info)
		return
	}
	if depth--; depth == 0 {
		return
	}
	d, err := os.Open(dir)
	if err != nil {
		return
	}
	entries, _ := d.ReadDir(lockEntries)
	d.Close()
	for _, e := range entries {
		if e.IsDir() {
			findLocks(filepath.Join(dir, e.Name()), depth, found)
		}
	}
}

// lockOwners reads /proc/locks (proc_locks(5)): by inode number, the processes that took a lock of any kind. The device
// is not compared, for btrfs and overlayfs show another one there than stat does; hasOpen settles it.
func lockOwners() map[uint64][]int {
	owners := map[uint64][]int{}
	f, err := os.Open("/proc/locks")
	if err != nil {
		return owners
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// "1: FLOCK  ADVISORY  WRITE 123 08:01:4711 0 EOF"; "1: -> ..." waits for it
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[1] == "->" {
			continue
		}
		pid, err1 := strconv.Atoi(fields[4])
		number, err2 := strconv.ParseUint(fields[5][strings.LastIndexByte(fields[5], ':')+1:], 10, 64)
		if err1 == nil && err2 == nil {
			owners[number] = append(owners[number], pid)
		}
	}
	return owners
}

// fileHolders finds the processes that have a file open, as far as we may look. It reads every descriptor there is.
func fileHolders(info fs.FileInfo) []int {
	var pids []int
	all, _ := proc.Pids()
	for _, pid := range all {
		if has, _ := hasOpen(pid, info); has {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

func hasOpen(pid int, info fs.FileInfo) (bool, error) {
	dir := procPath(pid, "fd")
	d, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if open, err := os.Stat(dir + "/" + name); err == nil && os.SameFile(open, info) {
			return true, nil
		}
	}
	return false, nil
}
