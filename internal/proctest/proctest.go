// Package proctest is what tests of processes share: a test binary that can be the supervisor or one of its test's own
// programs, and facts about processes that are waited for.
package proctest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"nodevisor/internal/proc"
)

// HelperEnv makes a test binary the helper program that it names, instead of running tests.
const HelperEnv = "SUPERVISOR_TEST_HELPER"

// patience is how long a file may take to be written on a busy machine.
const patience = 20 * time.Second

// Helper is main of a program that a test starts; what it returns is its exit code.
type Helper func(args []string) int

// Main is for TestMain: the process becomes the supervisor of the tests (a subreaper), or one of the helper programs. It
// doesn't return.
func Main(m *testing.M, helpers map[string]Helper) {
	if name := os.Getenv(HelperEnv); name != "" {
		run, ok := helpers[name]
		if !ok {
			fmt.Fprintln(os.Stderr, "no such helper:", name)
			os.Exit(99)
		}
		os.Exit(run(os.Args[1:]))
	}
	if err := proc.BecomeSubreaper(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// Command is the command of a helper program.
func Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), HelperEnv+"="+name)
	return cmd
}

// Shell is the command of a shell script.
func Shell(script string) *exec.Cmd { return exec.Command("/bin/sh", "-c", script) }

// WaitFor waits for a fact, at most d.
func WaitFor(t testing.TB, d time.Duration, what string, fact func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); !fact(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.Fail(t, "in vain", "%s after %s", what, d)
		}
	}
}

// Alive tells whether a process runs (a zombie doesn't).
func Alive(pid int) bool {
	st, err := proc.ReadStat(pid)
	return err == nil && !st.Ended()
}

// FileWith waits until a script has written a whole line to path, and returns it.
func FileWith(t testing.TB, path string) string {
	t.Helper()
	var data []byte
	WaitFor(t, patience, path+" is written", func() bool {
		data, _ = os.ReadFile(path)
		return bytes.HasSuffix(data, []byte("\n"))
	})
	return strings.TrimSpace(string(data))
}

// PidIn is FileWith for a process id.
func PidIn(t testing.TB, path string) int {
	t.Helper()
	pid, err := strconv.Atoi(FileWith(t, path))
	require.NoError(t, err)
	return pid
}

// Text is what a file holds.
func Text(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}
