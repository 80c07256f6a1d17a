package version

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// mountEnv makes a re-executed test process mount a file system over the directory that follows, and try something there
// instead of running the tests: "full DIR", "noexec DIR" or "mounted DIR".
const mountEnv = "VERSION_TEST_MOUNT"

func TestMain(m *testing.M) {
	what, dir, mounts := strings.Cut(os.Getenv(mountEnv), " ")
	if !mounts {
		os.Exit(m.Run())
	}
	if err := map[string]func(string) error{"full": fullDisk, "noexec": noexec, "mounted": mounted}[what](dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// onAMount tries something on a file system of its own, in a process with a mount namespace: no test needs to be root's.
func onAMount(t *testing.T, what string) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), mountEnv+"="+what+" "+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// staged is the version that the tests place, check and switch to.
const staged = Version("upgrades/v2")

// home is a node's home with a tree of versions.
type home struct {
	t     testing.TB
	l     Layout
	probe []string
}

// newHome makes a home whose node is called simd, with the version genesis and the link to it.
func newHome(t testing.TB) *home {
	t.Helper()
	h := &home{t: t, l: layoutOf(t.TempDir())}
	for _, dir := range []string{h.l.DataDir(), h.l.State()} {
		require.NoError(t, os.MkdirAll(dir, 0o755))
	}
	h.stage(Genesis, "exit 0")
	require.NoError(t, os.Symlink("genesis", h.l.Link()))
	return h
}

func layoutOf(dir string) Layout {
	return Layout{Home: dir, Root: filepath.Join(dir, "cosmovisor"), Node: "simd", Plan: filepath.Join(dir, "data", "upgrade-info.json")}
}

func (h *home) write(path, text string) {
	h.t.Helper()
	require.NoError(h.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(h.t, os.WriteFile(path, []byte(text), 0o644))
}

func (h *home) read(path string) string {
	h.t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(h.t, err)
	return string(data)
}

func (h *home) link(path, target string) {
	h.t.Helper()
	require.NoError(h.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(h.t, os.Symlink(target, path))
}

// stage puts a shell script in the place of the version's binary. It is made aside and renamed, as a binary that is
// written in place could be busy in another test's fork.
func (h *home) stage(v Version, body string) {
	h.t.Helper()
	script(h.t, h.l.Binary(v), body)
}

func script(t testing.TB, path, body string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path+".new", []byte("#!/bin/sh\n"+body+"\n"), 0o755))
	require.NoError(t, os.Rename(path+".new", path))
}

// current reads the link.
func (h *home) current() Version {
	h.t.Helper()
	v, err := h.l.Current()
	require.NoError(h.t, err)
	return v
}

// checker makes a checker that knows nothing yet. It trusts what not everyone may write.
func (h *home) checker() *Checker {
	trust := func(path string) error {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o002 != 0 {
			return errors.Join(err, errors.New("cannot trust "+path))
		}
		return nil
	}
	return NewChecker(h.l, h.probe, os.Environ(), trust, slog.New(slog.DiscardHandler))
}

// lines counts the lines of a file; a missing one has none.
func lines(path string) int {
	data, _ := os.ReadFile(path) //nolint:errcheck // said above
	return strings.Count(string(data), "\n")
}

// within waits for a fact.
func within(t testing.TB, d time.Duration, fact func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); !fact(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.Fail(t, "in vain")
		}
	}
}

// fullDisk replaces a binary on a disk that has room for the old one alone.
func fullDisk(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	l := layoutOf(dir)
	old := "#!/bin/sh\n" + strings.Repeat("#", 100<<10)
	if err := errors.Join(os.MkdirAll(filepath.Dir(l.Binary("upgrades/v2")), 0o755), os.WriteFile(l.Binary("upgrades/v2"), []byte(old), 0o755)); err != nil {
		return err
	}
	self, err := os.Executable() // megabytes
	if err != nil {
		return err
	}
	_, err = Place(context.Background(), l, Placement{Version: "upgrades/v2", From: self, Force: true})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), " MB are needed, 0 MB are free") {
		return fmt.Errorf("want ENOSPC, and what is needed, got %w", err)
	}
	if data, err := os.ReadFile(l.Binary("upgrades/v2")); err != nil || string(data) != old {
		return fmt.Errorf("the old binary is gone: %w", err)
	}
	left, err := os.ReadDir(filepath.Dir(l.Binary("upgrades/v2")))
	if err != nil || len(left) != 1 {
		return fmt.Errorf("left over: %v %w", left, err)
	}
	_, err = Place(context.Background(), l, Placement{Version: "upgrades/v3", From: self})
	if _, serr := os.Stat(l.Dir("upgrades/v3")); !errors.Is(err, unix.ENOSPC) || !errors.Is(serr, os.ErrNotExist) {
		return fmt.Errorf("of a new version something is left: %w %w", err, serr)
	}
	return nil
}

// noexec checks a binary on a file system from which nothing may be executed, with and without a trial run.
func noexec(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	l := layoutOf(dir)
	if err := errors.Join(os.MkdirAll(filepath.Dir(l.Binary(staged)), 0o755), os.WriteFile(l.Binary(staged), []byte("#!/bin/sh\n"), 0o755)); err != nil {
		return err
	}
	for _, probe := range [][]string{nil, {"version"}} {
		r := NewChecker(l, probe, nil, func(string) error { return nil }, slog.New(slog.DiscardHandler)).Check(context.Background(), staged)
		if r.Ready() || !strings.Contains(r.Problems[0], "noexec") {
			return fmt.Errorf("probe %q: %q", probe, r.Problems)
		}
	}
	return nil
}

// mounted tries to place a binary where a file system is mounted: another one, and the same once more.
func mounted(dir string) error {
	l := layoutOf(dir)
	from := filepath.Join(dir, "downloaded")
	if err := errors.Join(os.MkdirAll(filepath.Join(l.Root, "upgrades"), 0o755), os.WriteFile(from, []byte("#!/bin/sh\n"), 0o755)); err != nil {
		return err
	}
	for i, at := range []string{l.Dir(staged), filepath.Dir(l.Binary(staged))} {
		for j, how := range []uintptr{0, unix.MS_BIND} {
			source := filepath.Join(dir, fmt.Sprint("source", i, j))
			if err := errors.Join(os.MkdirAll(at, 0o755), os.Mkdir(source, 0o755), unix.Mount(source, at, "tmpfs", how, "")); err != nil {
				return fmt.Errorf("mount: %w", err)
			}
			_, err := Place(context.Background(), l, Placement{Version: staged, From: from})
			for _, err := range []error{err, Publish(l, staged, from)} {
				if err == nil || !strings.Contains(err.Error(), "staging must be on the same file system as upgrades/, and "+at+" is on another") {
					return fmt.Errorf("%s, flags %d: %w", at, how, err)
				}
			}
			if left, err := os.ReadDir(at); err != nil || len(left) > 0 {
				return fmt.Errorf("left over: %v %w", left, err)
			}
			if err := unix.Unmount(at, 0); err != nil {
				return err
			}
		}
	}
	_, err := Place(context.Background(), l, Placement{Version: staged, From: from})
	return err
}
