package supervisor

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"nodevisor/internal/proc"
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
	case "run":
		return helperRun()
	case "host":
		return helperHost()
	case "notify": // a program of the node's that speaks to systemd
		return helperNotify(args[0])
	}
	return 99
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
