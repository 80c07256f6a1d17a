package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ticks is the unit of the kernel's start times, per second: USER_HZ, 100 on every architecture that Go runs Linux on
// (proc_pid_stat(5), field 22).
const ticks = 100

// Stat is what this program needs of /proc/PID/stat (proc_pid_stat(5)).
type Stat struct {
	Pid       int
	Name      string // the file name of the executable, cut to 15 bytes
	State     byte   // 'R', 'S', 'D', 'Z' ...
	Parent    int
	Group     int
	StartTime uint64 // in ticks of 10 ms since the boot
}

// Ended tells whether the process is a zombie: it runs no more, and holds no file, lock or memory.
func (s Stat) Ended() bool { return s.State == 'Z' || s.State == 'X' }

// Since is the wall-clock time of the start, to about 10 ms.
func (s Stat) Since() time.Time {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(s.StartTime)*(time.Second/ticks) - time.Duration(now.Nano()))
}

// ReadStat reads the state of a process; the error is fs.ErrNotExist where there is none.
func ReadStat(pid int) (Stat, error) { return readStat("/proc", pid) }

func readStat(procfs string, pid int) (Stat, error) {
	data, err := readFile(filepath.Join(procfs, strconv.Itoa(pid), "stat"))
	if errors.Is(err, syscall.ESRCH) { // it ended between open and read
		err = &fs.PathError{Op: "read", Path: "stat", Err: fs.ErrNotExist}
	}
	if err != nil {
		return Stat{}, fmt.Errorf("cannot read process %d: %w", pid, err)
	}
	return parseStat(data)
}

// parseStat finds the name by its last parenthesis: a process may call itself "a) Z 1 (b".
func parseStat(data []byte) (Stat, error) {
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 0 || end < open {
		return Stat{}, fmt.Errorf("cannot parse process state %.80q", data)
	}
	rest := strings.Fields(string(data[end+1:])) // from field 3 on
	if len(rest) < 20 || len(rest[0]) != 1 {
		return Stat{}, fmt.Errorf("cannot parse process state %.80q", data)
	}
	pid, err1 := strconv.Atoi(strings.TrimSpace(string(data[:open])))
	parent, err2 := strconv.Atoi(rest[1])
	group, err3 := strconv.Atoi(rest[2])
	start, err4 := strconv.ParseUint(rest[19], 10, 64)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return Stat{}, fmt.Errorf("cannot parse process state: %w", err)
	}
	return Stat{Pid: pid, Name: string(data[open+1 : end]), State: rest[0][0], Parent: parent, Group: group, StartTime: start}, nil
}

// Pids lists the processes that can be seen, in no order.
func Pids() ([]int, error) { return pidsIn("/proc") }

func pidsIn(procfs string) ([]int, error) {
	dir, err := os.Open(procfs)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// EachExecutable calls f for every process that can be seen, in no order, with the path of its executable, or with why
// that can't be read: fs.ErrPermission for another user's, fs.ErrNotExist for the kernel's own. It is read from the open
// directory of /proc, for it is done while the node is down, and a host has hundreds of processes.
func EachExecutable(f func(pid int, exe string, err error)) error {
	dir, err := os.Open("/proc")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	fd, buf := int(dir.Fd()), make([]byte, unix.PathMax)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		n, err := unix.Readlinkat(fd, name+"/exe", buf)
		f(pid, string(buf[:max(0, n)]), err)
	}
	return nil
}

// Identity names one process for good: a pid alone is given to another process sooner or later, after a reboot at once.
type Identity struct {
	Pid       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // ticks of 10 ms since the boot
	BootID    string `json:"boot_id"`    // /proc/sys/kernel/random/boot_id
}

// Identify reads the identity of a process that lives (or is a zombie); fs.ErrNotExist where there is none.
func Identify(pid int) (Identity, error) {
	st, err := ReadStat(pid)
	if err != nil {
		return Identity{}, err
	}
	boot, err := bootID()
	if err != nil {
		return Identity{}, err
	}
	return Identity{Pid: pid, StartTime: st.StartTime, BootID: boot}, nil
}

// Alive tells whether this very process still runs; a zombie doesn't. What can't be read counts as not alive, but for
// a process whose state is hidden from us.
func (i Identity) Alive() bool {
	if i.Pid <= 0 {
		return false
	}
	if boot, err := bootID(); err != nil || boot != i.BootID {
		return false
	}
	st, err := ReadStat(i.Pid)
	if err == nil {
		return st.StartTime == i.StartTime && !st.Ended()
	}
	// With hidepid=1 another user's process can be signalled at (EPERM), and not be read.
	return !errors.Is(err, fs.ErrNotExist) && errors.Is(syscall.Kill(i.Pid, 0), syscall.EPERM)
}

func bootID() (string, error) {
	data, err := readFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot read the boot's id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// readFile reads a file of /proc. Package os asks first whether it can be polled, which is six system calls more for each;
// walks read dozens, some of them while the node is down.
func readFile(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	data := make([]byte, 0, 512)
	for {
		n, err := unix.Read(fd, data[len(data):cap(data)])
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			return data, nil
		default:
			data = slices.Grow(data[:len(data)+n], 256)
		}
	}
}
