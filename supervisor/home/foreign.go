package home

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
)

// ErrForeign means that a node runs which this supervisor didn't start.
var ErrForeign = errors.New("a foreign node runs")

// The waits for a process that was told to end: short at first, for most end at once, and never long.
const (
	firstLook = time.Millisecond
	lastLook  = 50 * time.Millisecond
)

// Foreign is a process that uses the home and isn't ours.
type Foreign struct {
	Pid     int
	Exe     string // "" where it can't be read
	Cmdline string // cut to 200 bytes
	Why     string // reads on from the process's name: "runs a binary of the tree"
	Since   time.Time
	start   uint64 // tells it from a later process with its pid
}

// Name is what the process is called for people: its program, or what can be seen of it from here.
func (f Foreign) Name() string {
	switch {
	case f.Exe != "":
		return f.Exe
	case f.Cmdline != "":
		return f.Cmdline
	}
	return "unknown program"
}

// ForeignError lists foreign nodes. It wraps ErrForeign.
type ForeignError struct{ Found []Foreign }

// Error names each process.
func (e *ForeignError) Error() string {
	parts := make([]string, len(e.Found))
	for i, f := range e.Found {
		parts[i] = fmt.Sprintf("process %d (%s) %s, since %s", f.Pid, f.Name(), f.Why, f.Since.UTC().Format(time.RFC3339))
	}
	return strings.Join(parts, "; ")
}

// Unwrap makes errors.Is(err, ErrForeign) true.
func (e *ForeignError) Unwrap() error { return ErrForeign }

// FindForeign looks for nodes that this supervisor didn't start: processes whose executable lies under root (also one
// replaced since), and those that hold a lock on a file named LOCK under data, as LevelDB, Pebble and RocksDB do.
// Left out are this process, its own children, other commands of this program, and the pids in self. Executables of
// other users can only be seen by root; for them argv[0] stands in.
func FindForeign(root, data string, self ...int) ([]Foreign, error) {
	skip := func(pid int) bool {
		return pid == os.Getpid() || slices.Contains(self, pid) || proc.Owns(pid) || sameProgram(pid)
	}
	why := map[int]string{}
	roots := treeNames(root)
	err := proc.EachExecutable(func(pid int, exe string, err error) {
		if runsFrom(pid, exe, err, roots) && !skip(pid) {
			why[pid] = "runs a binary of the tree"
		}
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	for pid, path := range storeHolders(data) {
		if _, known := why[pid]; !known && !skip(pid) {
			why[pid] = "holds " + path
		}
	}
	var found []Foreign
	for pid, w := range why {
		if id, err := proc.Identify(pid); err == nil {
			found = append(found, foreignOf(id, w))
		}
	}
	slices.SortFunc(found, func(a, b Foreign) int { return a.Pid - b.Pid })
	return found, nil
}

// treeNames are the names under which root's files may be seen: as given, and without links.
func treeNames(root string) []string {
	var names []string
	for _, r := range []string{root, resolved(root)} {
		if r = filepath.Clean(r); root != "" && r != "/" && !slices.Contains(names, r+"/") {
			names = append(names, r+"/")
		}
	}
	return names
}

func resolved(path string) string {
	if r, err := filepath.EvalSymlinks(path); err == nil {
		return r
	}
	return path
}

// runsFrom tells whether pid's executable, as far as it could be read, lies under one of roots (each with a final slash).
func runsFrom(pid int, exe string, err error, roots []string) bool {
	under := func(path string) bool {
		return slices.ContainsFunc(roots, func(root string) bool { return strings.HasPrefix(path, root) })
	}
	if errors.Is(err, fs.ErrPermission) {
		return under(argv0(pid))
	}
	return err == nil && under(exe) && sameMounts(pid, exe)
}

// sameMounts guards against a container whose own tree happens to have our path: there the path is another file.
func sameMounts(pid int, exe string) bool {
	mine, err1 := os.Readlink("/proc/self/ns/mnt")
	its, err2 := os.Readlink(procPath(pid, "ns/mnt"))
	if err1 != nil || err2 != nil || mine == its {
		return true
	}
	a, err1 := os.Stat(procPath(pid, "exe"))
	b, err2 := os.Stat(exe)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// sameProgram tells whether pid runs the executable that we run.
func sameProgram(pid int) bool {
	its, err1 := os.Stat(procPath(pid, "exe"))
	ours, err2 := os.Stat("/proc/self/exe")
	return err1 == nil && err2 == nil && os.SameFile(its, ours)
}

func procPath(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

// foreignOf describes a process.
func foreignOf(id proc.Identity, why string) Foreign {
	f := Foreign{Pid: id.Pid, Why: why, start: id.StartTime}
	f.Exe, _ = os.Readlink(procPath(id.Pid, "exe"))
	f.Cmdline = string(bytes.TrimSpace(bytes.ReplaceAll(cmdline(id.Pid), []byte{0}, []byte{' '})))
	f.Since = proc.Stat{StartTime: id.StartTime}.Since()
	return f
}

func argv0(pid int) string {
	first, _, _ := bytes.Cut(cmdline(pid), []byte{0})
	return string(first)
}

func cmdline(pid int) []byte {
	f, err := os.Open(procPath(pid, "cmdline"))
	if err != nil {
		return nil
	}
	defer f.Close()
	data, _ := io.ReadAll(io.LimitReader(f, 200))
	return data
}

// WaitNoForeign returns nil once no foreign node runs, and looks for at most patience: a query with a binary of the
// tree takes a moment, and must not keep the node down. The error is a *hint.Error with a *ForeignError inside, or
// ctx's; where processes can't be listed, that: not knowing is not none.
func WaitNoForeign(ctx context.Context, root, data string, patience time.Duration, self ...int) error {
	// Short at first: a child of our own that is being started is no stranger a moment later, and the node is down.
	look := 2 * time.Millisecond
	for deadline := time.Now().Add(patience); ; look = min(2*look, 100*time.Millisecond) {
		found, err := FindForeign(root, data, self...)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return &hint.Error{
				Op: "start a node beside another on", Path: root, Err: &ForeignError{Found: found},
				Hint: Takeover(nil),
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(min(look, left)):
		}
	}
}

// StopForeign stops a node that isn't our child: sig, then SIGKILL after timeout, each to the process alone, for its
// group may hold others. It returns once the process is gone, or with ctx's error. forced tells that SIGKILL was sent.
func StopForeign(ctx context.Context, f Foreign, sig syscall.Signal, timeout time.Duration) (forced bool, err error) {
	p, err := os.FindProcess(f.Pid) // holds a pidfd from here on, so the process can't change under us
	if err != nil || f.gone() {
		return false, nil
	}
	defer func() { _ = p.Release() }()
	send := func(sig syscall.Signal) error {
		if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return &hint.Error{Op: "stop process", Path: strconv.Itoa(f.Pid), Err: err, Hint: "run as root, or stop it yourself"}
		}
		return nil
	}
	if err := errors.Join(send(sig), send(syscall.SIGCONT)); err != nil {
		return false, err
	}
	for deadline, wait := time.Now().Add(timeout), firstLook; !f.gone(); wait = min(2*wait, lastLook) {
		if !forced && !time.Now().Before(deadline) {
			forced = true
			if err := send(syscall.SIGKILL); err != nil {
				return true, err
			}
		}
		select {
		case <-ctx.Done():
			return forced, fmt.Errorf("cannot wait for process %d: %w", f.Pid, context.Cause(ctx))
		case <-time.After(wait):
		}
	}
	return forced, nil
}

// gone tells whether the process has ended: a zombie holds neither files nor locks.
func (f Foreign) gone() bool {
	st, err := proc.ReadStat(f.Pid)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return st.Ended() || st.StartTime != f.start
}
