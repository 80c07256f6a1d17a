//go:build faults

package faults

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodevisor/internal/proc"
)

// What is tried, and how much of it. A sampled run takes every kth place, from a random first one that it prints; the
// same seed takes the same places.
var (
	every   = flag.Int("every", 1, "try every `k`th place")
	seed    = flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the sample and of random moments")
	soak    = flag.Duration("soak", 20*time.Second, "how long TestSoak kills at random")
	workers = flag.Int("workers", 4, "upgrades side by side; most of one is waiting")
)

// envNamespace is set in the process that has mounts of its own.
const envNamespace = "FAULTS_TEST_NAMESPACE"

// programs are built once, before the first test.
var programs struct{ supervisor, faultfs, faultdisk string }

// The tests mount file systems. They do so in a mount namespace of their own (an unprivileged user's, too), which goes
// with the process: whatever happens, nothing stays mounted.
func TestMain(m *testing.M) {
	if os.Getenv(envNamespace) == "" {
		os.Exit(inNamespace())
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	flag.Parse()
	dir, err := os.MkdirTemp("", "faults-")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir) // faultfs knows the program by what /proc says
	}
	if err == nil {
		defer os.RemoveAll(dir)
		// What a killed supervisor leaves behind becomes a child of this process, as it would of the host's init.
		err = errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), proc.BecomeSubreaper())
	}
	if err == nil {
		programs.supervisor, programs.faultfs, programs.faultdisk = filepath.Join(dir, "supervisor"), filepath.Join(dir, "faultfs"), filepath.Join(dir, "faultdisk")
		err = errors.Join(build("..", programs.supervisor, "./cmd/supervisor"),
			build("faultfs", programs.faultfs, "."), build("faultfs", programs.faultdisk, "./faultdisk"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		return 1
	}
	proc.ReapOn(context.Background())
	return m.Run()
}

func build(dir, to, what string) error {
	cmd := exec.Command("go", "build", "-o", to, what)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build %s: %w\n%s", to, err, out)
	}
	return nil
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
		fmt.Fprintln(os.Stderr, "faults: a mount namespace is needed (root, or user namespaces allowed):", err)
		return 1
	}
	return 0
}
