// Package home keeps a home to one supervisor and one node: a lock that the node inherits, and a look for nodes that hold
// none. For a validator a second node is a double sign.
//
// The lock outlives a supervisor that was killed, because its node has it open; the file says who that is. A node that
// another tool started, Cosmovisor for one, has no lock of ours: it is found by the program that it runs, or by the lock of
// a store under the data.
package home

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
)

// ErrLocked means that another process holds the home.
var ErrLocked = errors.New("the home is locked")

// lockSize is the size of the lock file's content, in bytes: always the same, so that a rewrite needs no new room on a
// full disk, and one write replaces all of it.
const lockSize = 512

// Lock is the exclusive right to act on a home: one home, one supervisor, one node.
//
// It is a flock(2) on an open file description that the node inherits. The kernel holds it until the last descriptor
// is closed, so a node whose supervisor was killed keeps the next supervisor from starting a second one. It is
// never released by LOCK_UN, and the file never unlinked: both would free it for a second holder while the first lives.
type Lock struct {
	mu     sync.Mutex
	file   *os.File
	record LockInfo
}

// LockInfo is what the lock file says. Each of them is nil where there is none.
type LockInfo struct {
	Supervisor *proc.Identity `json:"supervisor"`
	Node       *proc.Identity `json:"node"`
	// Args are what the supervisor's `run` was given for the node; nil: nothing, so the configuration's hold, or too much
	// to be kept.
	Args []string `json:"args,omitempty"`
}

// LockRole is what the holder of a lock is.
type LockRole string

// The roles of a lock's holder.
const (
	RoleSupervisor LockRole = "supervisor" // another command of this program at work, as a rule `run`
	RoleNode       LockRole = "node"       // the node of an earlier supervisor
	RoleOther      LockRole = "other"      // a process that inherited the lock, as a rule the node's child
	RoleProgram    LockRole = "program"    // what an earlier supervisor ran for an upgrade, or what that started: see BeginProgram
	RoleUnknown    LockRole = "unknown"    // it can't be seen from here
)

// LockedError says who holds the lock. It wraps ErrLocked, and comes inside a *hint.Error.
type LockedError struct {
	Role   LockRole
	Holder Foreign  // Pid 0 where the role is unknown
	Args   []string // of the node, as LockInfo has them
}

// Error names the holder.
func (e *LockedError) Error() string {
	pid := e.Holder.Pid
	switch e.Role {
	case RoleSupervisor:
		return fmt.Sprintf("another supervisor, process %d, has it", pid)
	case RoleNode:
		return fmt.Sprintf("node pid %d of an earlier supervisor still runs", pid)
	case RoleOther:
		return fmt.Sprintf("process %d (%s), left by an earlier node, still holds it", pid, e.Holder.Name())
	case RoleProgram:
		return fmt.Sprintf("process %d (%s), which an earlier supervisor ran for the upgrade, is still at work", pid, e.Holder.Name())
	}
	return "a process that can't be seen from here holds it"
}

// Unwrap makes errors.Is(err, ErrLocked) true.
func (e *LockedError) Unwrap() error { return ErrLocked }

// Left tells whether the holder was left behind by an earlier supervisor: such a one may be stopped with StopForeign.
func (e *LockedError) Left() bool {
	return e.Role == RoleNode || e.Role == RoleOther || e.Role == RoleProgram
}

// Takeover is the command that stops what an earlier supervisor left behind, with what that one was given for the node.
func Takeover(args []string) string {
	command := "supervisor --takeover run"
	for _, arg := range args {
		command += " " + hint.Quote(arg)
	}
	return command + "    # stops it gracefully and goes on"
}

func (e *LockedError) hint() string {
	switch e.Role {
	case RoleSupervisor:
		return "supervisor status"
	case RoleNode:
		return Takeover(e.Args)
	case RoleOther:
		return fmt.Sprintf("end process %d, or: %s", e.Holder.Pid, Takeover(e.Args))
	case RoleProgram:
		return "let it end; where it hangs: " + Takeover(e.Args)
	}
	return "as root: supervisor doctor; look in other containers that use this home"
}

// AcquireLock takes the lock at path, without waiting. It makes the file where it is missing, 0600 and with the
// directory's owner, but not the directory. The error is a *hint.Error; a *LockedError is inside where the home is
// held, also by a recorded node that lives and has closed the descriptor that it inherited, or by a program of an upgrade.
func AcquireLock(path string) (*Lock, error) {
	fail := func(err error, next string) (*Lock, error) {
		return nil, &hint.Error{Op: "lock", Path: path, Err: err, Hint: next}
	}
	f, err := openLock(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fail(err, "supervisor init")
	case errors.Is(err, ErrNetworkFS):
		return fail(err, "put the home on a local file system, or a bind mount of one over "+path)
	case err != nil:
		return fail(err, cmp.Or(hint.OfSystem(err), "supervisor doctor"))
	}
	held, args := whoHolds(f)
	if held == nil {
		held, err = programAtWork(ProgramLock(path))
	}
	if err != nil {
		f.Close()
		return fail(err, cmp.Or(hint.OfSystem(err), "supervisor doctor"))
	}
	if held != nil {
		f.Close()
		held.Args = args
		return fail(held, held.hint())
	}
	self, err := proc.Identify(os.Getpid())
	l := &Lock{file: f, record: LockInfo{Supervisor: &self}}
	if err == nil {
		err = l.write()
	}
	if err != nil {
		f.Close()
		return fail(err, cmp.Or(hint.OfSystem(err), "supervisor doctor"))
	}
	return l, nil
}

// ErrNetworkFS means that the home lies where no lock of ours is worth anything.
var ErrNetworkFS = errors.New("a lock on NFS is not inherited by the node")

// openLock opens the lock file, and makes sure that it is a place where the lock means what it must.
func openLock(path string) (*os.File, error) {
	const flags = os.O_RDWR | syscall.O_NOFOLLOW | syscall.O_NONBLOCK // a fifo must not block us; os.File sets CLOEXEC
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if f, err = os.OpenFile(path, flags|os.O_CREATE, 0o600); err == nil {
			err = atomicfile.Adopt(path)
		}
	}
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = atomicfile.ErrNotRegular
	}
	var on unix.Statfs_t
	if err == nil {
		if err = unix.Fstatfs(int(f.Fd()), &on); err == nil {
			err = lockableFS(int64(on.Type))
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lockableFS refuses NFS: since Linux 2.6.12 it turns flock into a byte-range lock of the process (flock(2), NFS
// details), which the node doesn't inherit and any close of the file by the supervisor drops.
func lockableFS(magic int64) error {
	if magic == unix.NFS_SUPER_MAGIC {
		return ErrNetworkFS
	}
	return nil
}

// whoHolds takes the flock, or says who has it, and with which arguments the node was run last.
func whoHolds(f *os.File) (held *LockedError, args []string) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	record, _ := readRecord(f) // torn: the previous holder died amid it, or the present one is about to write
	if err != nil {
		return holder(f, record), record.Args
	}
	// Free, and yet the recorded node may live: programs that make daemons of themselves close what they inherited.
	if record.Node != nil && record.Node.Alive() {
		return &LockedError{Role: RoleNode, Holder: foreignOf(*record.Node, "is the recorded node")}, record.Args
	}
	return nil, record.Args
}

func holder(f *os.File, record LockInfo) *LockedError {
	if id := record.Supervisor; id != nil && id.Alive() {
		return &LockedError{Role: RoleSupervisor, Holder: foreignOf(*id, "is the recorded supervisor")}
	}
	if id := record.Node; id != nil && id.Alive() {
		return &LockedError{Role: RoleNode, Holder: foreignOf(*id, "is the recorded node")}
	}
	info, err := f.Stat()
	if err != nil {
		return &LockedError{Role: RoleUnknown}
	}
	for _, pid := range fileHolders(info) {
		if pid == os.Getpid() {
			continue // our own attempt
		}
		id, err := proc.Identify(pid)
		if err != nil {
			continue
		}
		role := RoleOther
		if sameProgram(pid) {
			role = RoleSupervisor // it has the lock and is about to write its record
		}
		return &LockedError{Role: role, Holder: foreignOf(id, "holds the lock")}
	}
	return &LockedError{Role: RoleUnknown}
}

// ReadLock reads who is recorded at path, without taking the lock, and leaves out who is no longer alive. A missing
// file is no error: nobody is recorded. A torn content likewise.
func ReadLock(path string) (LockInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return LockInfo{}, nil
	}
	if err != nil {
		return LockInfo{}, fmt.Errorf("cannot read lock: %w", err)
	}
	defer f.Close()
	info, ok := readRecord(f)
	for try := 0; !ok && try < 3; try++ { // a rewrite may have been under way
		info, ok = readRecord(f)
	}
	if info.Supervisor != nil && !info.Supervisor.Alive() {
		info.Supervisor = nil
	}
	if info.Node != nil && !info.Node.Alive() {
		info.Node = nil
	}
	return info, nil
}

func readRecord(f *os.File) (info LockInfo, ok bool) {
	data, err := io.ReadAll(io.NewSectionReader(f, 0, lockSize))
	if err != nil || json.Unmarshal(data, &info) != nil {
		return LockInfo{}, false
	}
	return info, true
}

// write replaces the content in place, against the rule that a file is changed by rename alone: the lock is on the
// inode, a renamed file would be a second one that is free. Readers must live with a torn content. It isn't synced:
// after a power cut nobody of that boot runs any more.
func (l *Lock) write() error {
	data, err := json.Marshal(l.record)
	if err != nil {
		return err
	}
	if len(data) >= lockSize && l.record.Args != nil {
		l.record.Args = nil // they only spare a person some typing
		return l.write()
	}
	if len(data) >= lockSize {
		return fmt.Errorf("cannot write lock: %d bytes are too many", len(data))
	}
	padded := make([]byte, lockSize)
	for i := range padded[copy(padded, data) : lockSize-1] {
		padded[len(data)+i] = ' '
	}
	padded[lockSize-1] = '\n'
	if _, err := l.file.WriteAt(padded, 0); err != nil {
		return fmt.Errorf("cannot write lock: %w", err)
	}
	return l.file.Truncate(lockSize)
}

// File is the locked descriptor, for child.Spec.Lock alone: who inherits it holds the lock.
func (l *Lock) File() *os.File { return l.file }

// SetNode records the node's process, for those who find the lock held. The node holds the lock with or without it.
func (l *Lock) SetNode(pid int) error {
	id, err := proc.Identify(pid)
	if err != nil {
		return err
	}
	return l.setNode(&id)
}

// SetArgs records what `run` was given for the node, for who takes over from it.
func (l *Lock) SetArgs(args []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record.Args = args
	return l.write()
}

// ClearNode records that no node runs.
func (l *Lock) ClearNode() error { return l.setNode(nil) }

func (l *Lock) setNode(id *proc.Identity) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record.Node = id
	return l.write()
}

// Close gives up this process's hold. While the node (or what it left) has the descriptor, the home stays locked.
func (l *Lock) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record.Supervisor = nil
	return errors.Join(l.write(), l.file.Close())
}
