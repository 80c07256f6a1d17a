// Package host tells which supervisors there are on this host, and what configures each: so that a command that is told
// nothing finds the one `run` that is meant, and sees what that run sees.
//
// There are two ways to know of one. A `run` that lives has registered itself in a runtime directory (Entry), where only
// what its own user wrote of processes of that user is believed. One that doesn't live has its unit (Unit): systemd, or the
// unit's file, tells its environment and its command. The sockets of a home lie where the registrations do, if its own path
// is too long.
package host

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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

	"nodevisor/cmd/supervisor/config"
	"nodevisor/internal/atomicfile"
	"nodevisor/internal/capped"
	"nodevisor/internal/proc"
)

// Entry is one `run` of this host, as it registered itself.
type Entry struct {
	Home   string `json:"home"`
	Config string `json:"config"` // the supervisor.toml it read; "" = none
	Pid    int    `json:"pid"`
	Socket string `json:"socket"` // of its control socket
	Start  uint64 `json:"start"`  // of the process, in clock ticks since boot: proc_pid_stat(5), field 22
	Boot   string `json:"boot"`   // random id of the boot: /tmp may outlive one, and pids begin anew
	UID    uint32 `json:"-"`      // who runs it, by the owner of the process; the file can't lie about it
}

// registry is where runs register, and how they are told to be alive.
type registry struct {
	dir  string   // ours
	more []string // other users', which root sees too
}

// staleAfter is the age at which a temporary name in a shared directory is no write under way any more: one takes milliseconds.
const staleAfter = time.Hour

// runtimeDir is the directory for what lives as long as the process: sockets and registrations.
func runtimeDir(environ []string) string {
	uid := os.Geteuid()
	if uid == 0 {
		return "/run/nodevisor"
	}
	if dir := config.Variables(environ)["XDG_RUNTIME_DIR"]; filepath.IsAbs(dir) {
		return filepath.Join(dir, "nodevisor")
	}
	return filepath.Join(os.TempDir(), "nodevisor-"+strconv.Itoa(uid))
}

// serviceDir is the runtime directory that systemd gave this service alone (RuntimeDirectory=, systemd.exec(5)), else
// runtimeDir: with PrivateTmp= nobody else would see the latter.
func serviceDir(environ []string) string {
	if dir, _, _ := strings.Cut(config.Variables(environ)["RUNTIME_DIRECTORY"], ":"); filepath.IsAbs(dir) {
		return dir
	}
	return runtimeDir(environ)
}

func newRegistry(environ []string) registry {
	r := registry{dir: serviceDir(environ)}
	r.more, _ = filepath.Glob("/run/nodevisor-*") // of services; one that we may not read is passed over
	if os.Geteuid() == 0 {
		users, _ := filepath.Glob("/run/user/*/nodevisor") // the pattern is well-formed: no error
		temps, _ := filepath.Glob(filepath.Join(os.TempDir(), "nodevisor-*"))
		r.more = append(r.more, append(users, temps...)...)
	}
	return r
}

// ControlSocket is where commands ask the run of a home: where that run listens by its registration, whatever the configuration
// says by now; without one, where a run of this configuration would listen.
func ControlSocket(c config.Config, environ []string) string {
	if e, ok := RunOf(environ, c.Node.Home, ""); ok {
		return e.Socket
	}
	return OwnSocket(c, environ)
}

// OwnSocket is where a run of this configuration listens: the configured path, else <home>/supervisor/control.sock, else
// (where that is too long for a socket) a short one in the runtime directory: a service has one of its own, of which other
// commands learn by the registration alone.
func OwnSocket(c config.Config, environ []string) string {
	if c.Control.Socket != "" {
		return c.UnderHome(c.Control.Socket)
	}
	if path := filepath.Join(c.Node.Home, "supervisor", "control.sock"); len(path) <= config.MaxSocketPath {
		return path
	}
	return filepath.Join(serviceDir(environ), homeDigest(c.Node.Home)+".sock")
}

// RunOf is the registered run of a home; where home is "", that of a configuration file.
func RunOf(environ []string, home, config string) (Entry, bool) {
	return newRegistry(environ).runOf(home, config)
}

// runOf believes only the home's owner, root and ourselves.
func (r registry) runOf(home, config string) (Entry, bool) {
	for _, dir := range append([]string{r.dir}, r.more...) {
		for _, e := range r.list(dir) {
			meant := home != "" && e.Home == filepath.Clean(home) || home == "" && config != "" && e.Config == config
			var st syscall.Stat_t
			if !meant || e.Socket == "" {
				continue
			}
			if e.UID == 0 || e.UID == uint32(os.Geteuid()) || syscall.Stat(e.Home, &st) == nil && e.UID == st.Uid {
				return e, true
			}
		}
	}
	return Entry{}, false
}

// NotifySocket is where the node of a home reports its readiness: in the runtime directory, where the path is short. The
// directory is made, and refused where another user could put sockets into it.
func NotifySocket(environ []string, home string) (string, error) {
	dir := serviceDir(environ)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if _, err := privateDir(dir); err != nil {
		return "", err
	}
	return filepath.Join(dir, homeDigest(home)+".notify"), nil
}

func homeDigest(home string) string {
	sum := sha256.Sum256([]byte(filepath.Clean(home)))
	return hex.EncodeToString(sum[:8])
}

// Register tells other commands of this host that process pid supervises home. release withdraws it; a process that is
// killed needs no release, because dead entries are ignored. A `run` that can't register still runs: the error is for
// a warning.
func Register(environ []string, home, config string, pid int, socket string) (release func(), err error) {
	return newRegistry(environ).register(Entry{Home: filepath.Clean(home), Config: config, Pid: pid, Socket: socket})
}

// Registered lists the runs of this host that are alive: all of them for root, else one's own. Dead entries of ours are
// removed. Entries of other users (UID) are what those users wrote: root must show them before acting on them.
func Registered(environ []string) []Entry {
	r := newRegistry(environ)
	entries := r.list(r.dir)
	for _, dir := range r.more {
		entries = append(entries, r.list(dir)...)
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Home, b.Home) })
	return entries
}

func (r registry) register(e Entry) (release func(), err error) {
	if e.Start, err = startTime(e.Pid); err != nil {
		return func() {}, fmt.Errorf("cannot register: %w", err)
	}
	e.Boot = bootID()
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return func() {}, fmt.Errorf("cannot register: %w", err)
	}
	if uid, err := privateDir(r.dir); err != nil {
		return func() {}, fmt.Errorf("cannot register: %w", err)
	} else if uid != uint32(os.Geteuid()) {
		return func() {}, fmt.Errorf("cannot register: %s belongs to user %d", r.dir, uid)
	}
	// What killed runs left, of every home; that some of it can't be removed is no reason not to register.
	_ = atomicfile.RemoveOldTemps(r.dir, staleAfter)
	data, err := json.Marshal(e)
	if err != nil {
		return func() {}, fmt.Errorf("cannot register: %w", err)
	}
	path := filepath.Join(r.dir, homeDigest(e.Home)+".json")
	// It needn't survive a crash, but a reader must never see half of it.
	if err := atomicfile.WriteFile(path, data, 0o600); err != nil {
		return func() {}, fmt.Errorf("cannot register: %w", err)
	}
	return func() {
		if now, err := readEntry(path); err == nil && now.Pid == e.Pid && now.Start == e.Start {
			os.Remove(path)
		}
	}, nil
}

// list reads the live entries of one directory. Of a directory that another user could have prepared, only what its
// owner's own processes say of themselves is believed.
func (r registry) list(dir string) (entries []Entry) {
	owner, err := privateDir(dir)
	if err != nil {
		return nil
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, name := range names {
		path := filepath.Join(dir, name.Name())
		if filepath.Ext(path) != ".json" || !name.Type().IsRegular() {
			continue
		}
		e, err := readEntry(path)
		if err == nil && e.alive(owner) {
			entries = append(entries, e)
		} else if dir == r.dir && !errors.Is(err, fs.ErrNotExist) {
			os.Remove(path)
		}
	}
	return entries
}

// alive tells whether the very process that registered still runs, as the user to whom the entry belongs.
func (e *Entry) alive(owner uint32) bool {
	start, err := startTime(e.Pid)
	if err != nil || start != e.Start || e.Boot != bootID() || !filepath.IsAbs(e.Home) {
		return false
	}
	e.UID, err = userOf(e.Pid)
	return err == nil && (e.UID == owner || owner == 0)
}

// userOf is the user that a process acts as. It is read from the status, because the folder of a process with file
// capabilities belongs to root: proc(5).
func userOf(pid int) (uint32, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(data), "\nUid:")
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return 0, fmt.Errorf("process %d has no user", pid)
	}
	uid, err := strconv.ParseUint(fields[1], 10, 32)
	return uint32(uid), err
}

func readEntry(path string) (e Entry, err error) {
	text, err := capped.ReadFile(path, 64<<10)
	if err != nil {
		return e, err
	}
	return e, json.Unmarshal([]byte(text), &e)
}

// privateDir returns the owner of dir, if it is a real directory that nobody else may write to.
func privateDir(dir string) (uid uint32, err error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(dir, &st); err != nil {
		return 0, &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR || st.Mode&0o022 != 0 {
		return st.Uid, &fs.PathError{Op: "trust", Path: dir, Err: fs.ErrPermission}
	}
	return st.Uid, nil
}

// startTime reads when a process began, in clock ticks since boot. With the pid it names a process for good.
func startTime(pid int) (uint64, error) {
	st, err := proc.ReadStat(pid)
	if err == nil && st.Ended() {
		err = fmt.Errorf("process %d has ended", pid)
	}
	return st.StartTime, err
}

// bootID is empty where the kernel tells none; then all are equal, and pid and start time decide.
func bootID() string {
	data, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data))
}
