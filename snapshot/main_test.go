package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	envNamespace = "SNAPSHOT_TEST_NAMESPACE" // set in the process that has its own mounts
	envChild     = "SNAPSHOT_TEST_CHILD"     // what a child is to do, until it is killed
)

// The tests mount file systems. They do so in a mount namespace of their own (of an unprivileged user too), which goes
// with the process: whatever happens, nothing stays mounted.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(envChild) != "":
		os.Exit(child(os.Getenv(envChild)))
	case os.Getenv(envNamespace) != "":
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, "cannot make mounts private:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	os.Exit(inNamespace())
}

func inNamespace() int {
	runtime.LockOSThread() // Pdeathsig is sent when the thread ends, not the process
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), envNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "these tests need a mount namespace (root, or user namespaces allowed):", err)
		return 1
	}
	return 0
}

// mount mounts a tmpfs at a directory that it makes.
func mount(t testing.TB, dir, options string) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, options))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// child does one thing to the store of a home, and is killed meanwhile.
func child(what string) int {
	home, id := os.Getenv("SNAPSHOT_TEST_HOME"), os.Getenv("SNAPSHOT_TEST_ID")
	o := Options{Config: DefaultConfig(), Home: home}
	o.Config.MinFree = "0"
	o.Config.Dir = os.Getenv("SNAPSHOT_TEST_DIR")
	if text := os.Getenv("SNAPSHOT_TEST_SOURCES"); text != "" {
		if err := json.Unmarshal([]byte(text), &o.Config.Sources); err != nil {
			panic(err)
		}
	}
	s, err := Open(o)
	if err == nil {
		fmt.Println(os.Getpid()) // the parent counts from here
		err = map[string]func() error{
			"create":   func() error { return s.Create(context.Background(), id, "crash", 1200) },
			"complete": func() error { return s.Complete(context.Background(), id) },
			"delete":   func() error { return s.Delete(id) },
			"recover":  func() error { return s.Recover(context.Background()) },
			"restore": func() error {
				_, err := s.Restore(context.Background(), id, RestoreOptions{Once: "way"})
				return err
			},
		}[what]()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// slowed are the system calls that change something: each takes long enough to be killed before, in and after it.
const slowed = "mkdirat,linkat,symlinkat,renameat,renameat2,unlinkat,fsync,syncfs,copy_file_range,fchmodat,ioctl:delay_enter=1000"

// runChild lets a child do what to a store, and kills it after the given time; 0: never. It tells how long the child
// took, and whether it came to its end.
func runChild(t testing.TB, what, home, dir, id string, after time.Duration) (took time.Duration, ended bool) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	require.NoError(t, err, "crash tests slow the process down with strace: install it")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // only a hanging one takes so long
	defer cancel()
	cmd := exec.CommandContext(ctx, strace, "-f", "-qqq", "-o", "/dev/null", "-e", "trace=none", "-e", "inject="+slowed, "--", "/proc/self/exe")
	cmd.Args[len(cmd.Args)-1], err = os.Executable()
	require.NoError(t, err)
	cmd.Env = append(os.Environ(), envChild+"="+what, "SNAPSHOT_TEST_HOME="+home, "SNAPSHOT_TEST_DIR="+dir, "SNAPSHOT_TEST_ID="+id)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	stderr := new(limited)
	cmd.Stderr = stderr
	require.NoError(t, cmd.Start())
	var pid int
	_, err = fmt.Fscan(out, &pid)
	require.NoError(t, err, "the child didn't begin: %s", stderr)
	begin := time.Now()
	if after > 0 {
		timer := time.AfterFunc(after, func() { syscall.Kill(pid, syscall.SIGKILL) })
		defer timer.Stop()
	}
	err = cmd.Wait()
	took = time.Since(begin)
	if after == 0 {
		require.NoError(t, err, "%s: %s", what, stderr)
	}
	return took, err == nil
}

// limited keeps the first of what a child says.
type limited struct{ text []byte }

func (l *limited) Write(p []byte) (int, error) {
	if len(l.text) < 4096 {
		l.text = append(l.text, p...)
	}
	return len(p), nil
}

func (l *limited) String() string { return string(l.text) }

// copyTree copies a fixture.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
	out, err := exec.Command("cp", "-a", from, to).CombinedOutput()
	require.NoError(t, err, "%s", out)
}
