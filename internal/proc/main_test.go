package proc

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMain makes the test process what the supervisor is: a subreaper. Without that no orphan would come to it.
func TestMain(m *testing.M) {
	if pidFile := os.Getenv("TEST_DYING"); pidFile != "" {
		dying(pidFile)
	}
	if err := BecomeSubreaper(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// dying runs a program that is to end with it, and waits to be killed.
func dying(pidFile string) {
	cmd := sh("echo $$ > " + pidFile + "; exec sleep 60")
	EndWithUs(cmd)
	_, err := Output(context.Background(), cmd, 0)
	fmt.Fprintln(os.Stderr, "it ended first:", err)
	os.Exit(1)
}

func sh(script string) *exec.Cmd { return exec.Command("/bin/sh", "-c", script) }

// waitFor waits for a fact, at most d.
func waitFor(t *testing.T, d time.Duration, what string, fact func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); !fact(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.Fail(t, "in vain", "%s after %s", what, d)
		}
	}
}

// startOrphan leaves a process in a session of its own behind, which sleeps, and returns its pid; it is killed and
// reaped when the test ends.
func startOrphan(t *testing.T) int {
	t.Helper()
	pidFile := filepath.Join(t.TempDir(), "pid")
	require.NoError(t, Run(sh(`setsid sh -c 'echo $$ > `+pidFile+`; exec sleep 60' & while ! [ -s `+pidFile+` ]; do sleep 0.01; done`)))
	pid := readPid(t, pidFile)
	t.Cleanup(func() { endOrphan(t, pid) })
	waitFor(t, 20*time.Second, "the orphan is adopted", func() bool {
		st, err := ReadStat(pid)
		return err == nil && st.Parent == os.Getpid()
	})
	return pid
}

// endOrphan kills pid if it is (still) our orphan.
func endOrphan(t *testing.T, pid int) {
	_ = EachOrphan(func(p int) {
		if p == pid {
			if proc, err := os.FindProcess(p); err == nil {
				_ = proc.Kill()
			}
		}
	})
	waitFor(t, 20*time.Second, "the orphan is gone", func() bool {
		Reap()
		_, err := ReadStat(pid)
		return err != nil
	})
}
