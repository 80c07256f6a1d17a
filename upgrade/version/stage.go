package version

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
)

// probeTimeout bounds the trial run of a binary. One that takes longer is stopped and counts as able to run: the probe
// looks for what can't be executed, not for what is slow.
const probeTimeout = 10 * time.Second

const (
	// failedFor is how long a binary that failed isn't tried again; a mended one has another identity.
	failedFor = 2 * time.Second
	// clockTick is above the coarsest time stamp of a local file system: a jiffy, at most 10 ms.
	clockTick = 20 * time.Millisecond
)

// Readiness says whether a version could be switched to at this moment.
type Readiness struct {
	Version  Version
	SHA256   string   // of the binary, where it could be read
	Problems []string // empty = ready
	Hint     string   // the command that mends the first of them, where it isn't the binary's
	// Downloaded: the caller fetched the binary from the plan's info, so a changed info is a changed plan.
	Downloaded bool
	id         identity
	at         time.Time
}

// Ready tells whether nothing stands in the way.
func (r Readiness) Ready() bool { return len(r.Problems) == 0 }

// Next is the command that mends the first problem.
func (r Readiness) Next() string {
	if r.Hint != "" {
		return r.Hint
	}
	return "supervisor upgrade add " + hint.Argument(r.Version.Name()) + " BINARY"
}

// identity is what changes whenever a file's content does: nobody can set a ctime back.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64
}

func identify(info fs.FileInfo) identity {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{size: info.Size(), mtime: info.ModTime().UnixNano()}
	}
	return identity{
		dev: uint64(st.Dev), ino: st.Ino, size: st.Size, //nolint:unconvert // Dev's type differs by architecture
		mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(),
	}
}

// Checker verifies binaries before they are trusted with the node's place. It remembers what it verified by identity,
// so that a check in the time that the node is down costs one stat.
type Checker struct {
	layout Layout
	probe  []string
	env    []string
	runAs  *syscall.Credential
	trust  func(binary string) error
	log    *slog.Logger

	mu    sync.Mutex
	known map[Version]Readiness
}

// NewChecker makes a Checker. probe are the arguments of the trial run (none = no trial run), env its environment.
// trust refuses a binary that others may change.
func NewChecker(l Layout, probe, env []string, trust func(binary string) error, log *slog.Logger) *Checker {
	return &Checker{layout: l, probe: probe, env: env, trust: trust, log: log, known: map[Version]Readiness{}}
}

// RunAs has the trial run done by another user; nil = by this one.
func (c *Checker) RunAs(user *syscall.Credential) *Checker {
	c.runAs = user
	return c
}

// Check verifies v's binary: it is there, inside the tree, regular, executable (made so, as Cosmovisor does), trusted, built
// for this machine, its interpreter is there, and a trial run doesn't fail to execute. A verified binary that hasn't
// changed since isn't looked at again; one that changes meanwhile (also where only its owner, mode or number of links does)
// is looked at anew, a few times.
func (c *Checker) Check(ctx context.Context, v Version) Readiness {
	for try := 1; ; try++ {
		r, settled := c.check(ctx, v)
		if settled || try == checkTries || ctx.Err() != nil {
			return r
		}
	}
}

// checkTries bounds how often a binary that changes while it is verified is looked at.
const checkTries = 4

// check looks once; settled is false where the binary changed meanwhile.
func (c *Checker) check(ctx context.Context, v Version) (r Readiness, settled bool) {
	r.Version = v
	path := c.layout.Binary(v)
	info, err := c.inspect(v, path)
	if err != nil {
		r.Problems = append(r.Problems, err.Error())
		if similar := c.layout.Similar(v); similar != "" {
			r.Problems = append(r.Problems, fmt.Sprintf("the version %q is there, but the plan's exact name is %q", similar, v.Name()))
		}
		c.forget(v)
		return r, true
	}
	r.id = identify(info)
	c.mu.Lock()
	old, ok := c.known[v]
	c.mu.Unlock()
	// What isn't the binary's own fault can be mended around it (a missing loader, too little memory for the trial).
	if ok && old.id == r.id && (old.Ready() || time.Since(old.at) < failedFor) {
		return old, true
	}
	if r.SHA256, err = HashFile(ctx, path); err != nil {
		r.Problems = append(r.Problems, err.Error())
		return r, true
	}
	for _, check := range []func() error{
		func() error { return c.trust(path) },
		func() error { return runnable(path) },
		func() error { return c.trial(ctx, path) },
	} {
		if err := check(); err != nil {
			r.Problems = append(r.Problems, err.Error())
			break
		}
	}
	if err := unchanged(path, r.id); err != nil {
		r.Problems = append(r.Problems, err.Error())
		return r, false
	}
	// A file that was written a moment ago could be written again within the same tick of the file system's clock: then
	// its identity would not tell. It is looked at once more instead.
	if r.at = time.Now(); ctx.Err() == nil && r.at.Sub(time.Unix(0, r.id.ctime)) > clockTick {
		c.mu.Lock()
		c.known[v] = r
		c.mu.Unlock()
	}
	return r, true
}

// unchanged tells whether what was hashed and tried is still what lies there.
func unchanged(path string, id identity) error {
	if info, err := os.Stat(path); err != nil || identify(info) != id {
		return fmt.Errorf("%s was changed while it was verified", path)
	}
	return nil
}

func (c *Checker) forget(v Version) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.known, v)
}

// inspect looks at the file without reading it. The version's directories must lie in the tree (os.Root refuses links
// that leave it); the binary itself may be a link to anywhere, as operators of Cosmovisor have it.
func (c *Checker) inspect(v Version, path string) (fs.FileInfo, error) {
	root, err := os.OpenRoot(c.layout.Root)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", c.layout.Root, err)
	}
	defer root.Close()
	if _, err := root.Stat(filepath.Join(string(v), "bin")); err != nil {
		return nil, fmt.Errorf("no binary %s: %w", path, hint.Cause(err))
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("no binary %s: %w", path, hint.Cause(err))
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case info.Size() == 0:
		return nil, fmt.Errorf("%s is empty", path)
	}
	if want := info.Mode().Perm() | 0o111; info.Mode().Perm() != want {
		if err := os.Chmod(path, want); err != nil {
			return nil, fmt.Errorf("%s is not executable: %w", path, hint.Cause(err))
		}
		return os.Stat(path)
	}
	return info, nil
}

// Glance tells why v certainly can't run here, by the kind of its file alone: it is neither hashed nor tried, and nothing is
// changed. It is for who asks often; Check decides.
func (l Layout) Glance(v Version) error { return runnable(l.Binary(v)) }

// HashFile returns the hex SHA-256 of a file.
func HashFile(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, contextReader{ctx, f}); err != nil {
		return "", fmt.Errorf("cannot read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// contextReader ends a long read when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// machines are the ELF machines that a Go architecture's kernel runs.
var machines = map[string]elf.Machine{
	"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "riscv64": elf.EM_RISCV, "ppc64le": elf.EM_PPC64, "s390x": elf.EM_S390,
	"386": elf.EM_386, "arm": elf.EM_ARM, "loong64": elf.EM_LOONGARCH,
}

// runnable finds by the file's head what execve would answer at the halt height: a foreign machine, a missing dynamic
// loader, a script without an interpreter. A file system that is mounted noexec is known to the kernel alone.
func runnable(path string) error {
	if err := unix.Access(path, unix.X_OK); err != nil {
		return fmt.Errorf("%s can't be executed, look for a noexec mount: %w", path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	head, err := bufio.NewReaderSize(f, 4096).Peek(4096)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("cannot read %s: %w", path, err)
	}
	switch {
	case bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		return elfRunnable(path)
	case bytes.HasPrefix(head, []byte("#!")):
		return scriptRunnable(path, head)
	}
	return fmt.Errorf("%s is neither an ELF executable nor a script with an interpreter line", path)
}

func elfRunnable(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s is a damaged ELF file: %w", path, err)
	}
	defer f.Close()
	if want, ok := machines[runtime.GOARCH]; ok && f.Machine != want {
		return fmt.Errorf("%s is built for %s, this machine is %s", path, f.Machine, want)
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return fmt.Errorf("%s is no executable (%s)", path, f.Type)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		if p.Filesz > 4096 {
			return fmt.Errorf("%s is a damaged ELF file: its interpreter's name is too long", path)
		}
		name, err := io.ReadAll(p.Open())
		if err != nil {
			return fmt.Errorf("%s is a damaged ELF file: %w", path, err)
		}
		interp := strings.TrimRight(string(name), "\x00")
		if _, err := os.Stat(interp); err != nil {
			return fmt.Errorf("%s needs the dynamic loader %s, which is missing here", path, interp)
		}
	}
	return nil
}

func scriptRunnable(path string, head []byte) error {
	line, _, _ := bytes.Cut(head[2:], []byte("\n"))
	words := strings.FieldsFunc(string(line), func(r rune) bool { return r == ' ' || r == '\t' }) // as execve: a \r is part of the name
	if len(words) == 0 {
		return fmt.Errorf("%s names no interpreter", path)
	}
	if _, err := os.Stat(words[0]); err != nil {
		return fmt.Errorf("%s needs the interpreter %q, which is missing here", path, words[0])
	}
	return nil
}

// trial runs the binary with the probe's arguments. It fails only on what says "this can't run here": cannot execute,
// the shell's 126 and 127, or an end by a signal. Any other code is the binary's own business.
func (c *Checker) trial(ctx context.Context, path string) error {
	if len(c.probe) == 0 {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cmd := exec.Command(path, c.probe...)
	cmd.Env, cmd.Dir, cmd.SysProcAttr = c.env, c.layout.Root, &syscall.SysProcAttr{Credential: c.runAs}
	proc.EndWithUs(cmd) // else one that hangs would count as a foreign node for the next run
	res, err := proc.Output(bounded, cmd, 0)
	ended := new(proc.ExitError)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case bounded.Err() != nil:
		c.log.Warn("the trial run of a binary took too long and was stopped", "binary", path, "args", c.probe)
		return nil
	case err != nil && !errors.As(err, &ended):
		return fmt.Errorf("%s can't be executed: %w", path, hint.Cause(err))
	}
	how := ""
	switch {
	case res.Signal != 0:
		how = "was ended by " + res.Signal.String()
	case res.Code == 126 || res.Code == 127:
		how = fmt.Sprintf("ended with %d", res.Code)
	default:
		return nil
	}
	if line := proc.LastLine(res.Stderr); line != "" {
		how += ": " + line
	}
	return fmt.Errorf("%s %s %s", path, strings.Join(c.probe, " "), how)
}
