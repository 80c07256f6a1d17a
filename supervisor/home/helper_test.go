package home

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/proc"
	"nodevisor/internal/proctest"
	"nodevisor/supervisor/child"
)

func TestMain(m *testing.M) {
	proctest.Main(m, map[string]proctest.Helper{"holder": helperHolder, "posix-lock": helperPosixLock})
}

// helperPosixLock is a node with a Pebble or RocksDB store, whose lock is at args[0].
func helperPosixLock(args []string) int {
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

// helperHolder is a supervisor: it takes the lock at args[0], starts a node that inherits it, prints the node's pid, and
// lives until it is killed.
func helperHolder(args []string) int {
	lock, err := AcquireLock(args[0])
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

// copyProgram copies an executable, so that it is another program than the tests' own.
func copyProgram(t *testing.T, from, to string) string {
	t.Helper()
	data, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
	require.NoError(t, os.WriteFile(to, data, 0o755))
	return to
}
