package home

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/proc"
	"nodevisor/supervisor/child"
)

// helperEnv makes the test binary one of the programs below, instead of running tests.
const helperEnv = "SUPERVISOR_TEST_HELPER"

// TestMain is the supervisor of the tests (a subreaper, with the reaper at work), or a helper program.
func TestMain(m *testing.M) {
	if helper := os.Getenv(helperEnv); helper != "" {
		os.Exit(runHelper(helper, os.Args[1:]))
	}
	if err := proc.BecomeSubreaper(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// runHelper is main of the helper programs; what they return is their exit code.
func runHelper(name string, args []string) int {
	switch name {
	case "holder": // a supervisor: takes the lock at args[0], starts a node that inherits it, and waits
		return helperHolder(args[0])
	case "posix-lock": // a node with a Pebble or RocksDB store
		f, err := os.OpenFile(args[0], os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println("locked")
		select {}
	}
	return 99
}

// helperHolder prints the node's pid, and lives until it is killed.
func helperHolder(path string) int {
	lock, err := AcquireLock(path)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	c, err := child.Start(child.Spec{Path: "/bin/sleep", Args: []string{"60"}, Lock: lock.File()})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if err := lock.SetNode(c.Pid()); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(c.Pid())
	select {}
}

// helper is the command of a helper program.
func helper(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	return cmd
}

// startHelper starts it, killed and waited for at the test's end, and returns its first line of output.
func startHelper(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	cmd.Stdout = w
	require.NoError(t, proc.Start(cmd))
	w.Close()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = proc.Wait(cmd)
		r.Close()
	})
	require.NoError(t, r.SetReadDeadline(time.Now().Add(20*time.Second)))
	line, err := bufio.NewReader(r).ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line)
}

// waitFor waits for a fact, at most d.
func waitFor(t *testing.T, d time.Duration, what string, fact func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); !fact(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.Fail(t, "in vain", "%s after %s", what, d)
		}
	}
}

// alive tells whether a process runs (a zombie doesn't).
func alive(pid int) bool {
	st, err := proc.ReadStat(pid)
	return err == nil && !st.Ended()
}

// fileWith waits until a script has written a whole line to path, and returns it.
func fileWith(t *testing.T, path string) string {
	t.Helper()
	var data []byte
	waitFor(t, 20*time.Second, path+" is written", func() bool {
		data, _ = os.ReadFile(path)
		return bytes.HasSuffix(data, []byte("\n"))
	})
	return strings.TrimSpace(string(data))
}

func pidIn(t *testing.T, path string) int {
	t.Helper()
	pid, err := strconv.Atoi(fileWith(t, path))
	require.NoError(t, err)
	return pid
}

// copyProgram copies an executable, so that it is another program than the tests' own.
func copyProgram(t *testing.T, from, to string) string {
	t.Helper()
	data, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
	require.NoError(t, os.WriteFile(to, data, 0o755))
	return to
}

func shell(script string) *exec.Cmd { return exec.Command("/bin/sh", "-c", script) }

func readAll(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}
