//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// tailLines is how much of a log a failed test shows.
const tailLines = 50

// daemon is a long-running process of a test, with its two streams in files: stdout carries the node's own lines,
// stderr those of whoever supervises it.
type daemon struct {
	cmd    *exec.Cmd
	stdout string
	stderr string
	ended  chan struct{} // closed once the process was waited for
	err    error         // of Wait; read after ended
}

// start runs command with the network's environment and registers its end. The daemons of one network append to the
// same two files, so a log tells the whole story of a home.
func (n *network) start(t *testing.T, command string, args ...string) *daemon {
	t.Helper()
	d := &daemon{stdout: n.nodeLog(), stderr: n.supervisorLog(), ended: make(chan struct{})}
	stdout, err := os.OpenFile(d.stdout, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	defer stdout.Close()
	stderr, err := os.OpenFile(d.stderr, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	defer stderr.Close()

	d.cmd = exec.Command(command, args...)
	d.cmd.Env, d.cmd.Dir = n.env(), n.base
	d.cmd.Stdout, d.cmd.Stderr = stdout, stderr
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C reaches the tests, which then clean up
	require.NoError(t, d.cmd.Start())
	go func() {
		d.err = d.cmd.Wait()
		close(d.ended)
	}()
	t.Cleanup(func() { d.stop(time.Minute) }) // longer than the grace: what is killed leaves its node
	return d
}

// signal sends s; a process that has ended already is no error.
func (d *daemon) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(s); !errors.Is(err, os.ErrProcessDone) {
		require.NoError(t, err)
	}
}

// stop ends the process gracefully, and by force after the grace.
func (d *daemon) stop(grace time.Duration) {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(grace):
		_ = d.cmd.Process.Kill()
		<-d.ended
	}
}

// exitCode waits for the end and gives the code; -1 for a signal.
func (d *daemon) exitCode(t *testing.T, within time.Duration) int {
	t.Helper()
	select {
	case <-d.ended:
		return d.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		require.FailNow(t, "process still runs", "pid %d, after %s", d.cmd.Process.Pid, within)
		return 0
	}
}

// running says whether the process has not ended yet.
func (d *daemon) running() bool {
	select {
	case <-d.ended:
		return false
	default:
		return true
	}
}

// orphans gives the living descendants of this test process that carry home in their environment: what a supervisor
// left behind. They are found by parentage (the tests are a subreaper), never by name.
func orphans(home string) []int {
	return descendants(os.Getpid(), func(pid int) bool {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		return err == nil && strings.Contains("\x00"+string(env), "\x00DAEMON_HOME="+home+"\x00")
	})
}

func descendants(pid int, match func(int) bool) []int {
	var found []int
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		content, err := os.ReadFile(list)
		if err != nil {
			continue // the thread ended meanwhile
		}
		for _, field := range strings.Fields(string(content)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				continue
			}
			if match(child) {
				found = append(found, child)
			}
			found = append(found, descendants(child, match)...)
		}
	}
	return found
}

// killOrphans ends what the test left behind. It fails the test if there was anything: a supervisor that ended in an
// orderly way leaves no node.
func (n *network) killOrphans(t *testing.T) {
	for _, pid := range orphans(n.home) {
		t.Errorf("process %d outlived its supervisor", pid)
		_ = syscall.Kill(pid, syscall.SIGKILL)
		// Ours by adoption, unless a parent in between still lives.
		_, _ = syscall.Wait4(pid, nil, 0, nil)
	}
}

// tail gives the last lines of a file, for a failed test's output.
func tail(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(content), "\n"), "\n")
	if len(lines) > tailLines {
		lines = lines[len(lines)-tailLines:]
	}
	return strings.Join(lines, "\n")
}
