package child

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
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
		os.Exit(runHelper(helper))
	}
	if err := proc.BecomeSubreaper(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// runHelper is main of the helper programs; what they return is their exit code.
func runHelper(name string) int {
	switch name {
	case "tty-supervisor":
		return helperTTYSupervisor()
	case "tty-node":
		return helperTTYNode()
	case "epipe-tee": // a supervisor whose stdout's reader has gone
		return helperClosedStdout()
	}
	return 99
}

// helperTTYSupervisor runs on a terminal: it starts tty-node and reports how often Ctrl-C reached itself.
func helperTTYSupervisor() int {
	interrupts := make(chan os.Signal, 10)
	signal.Notify(interrupts, syscall.SIGINT)
	c, err := Start(Spec{
		Path: os.Args[0], Env: []string{helperEnv + "=tty-node"},
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Printf("shares=%v\n", c.SharesTerminal())
	for n := 0; ; {
		select {
		case <-interrupts:
			n++
			c.Terminate(0, 20*time.Second)
		case exit := <-c.Exited():
			fmt.Printf("supervisor interrupts=%d exit=%s\n", n, exit)
			return 0
		}
	}
}

// helperTTYNode reads a line, then counts interrupts until none has come for a while.
func helperTTYNode() int {
	interrupts := make(chan os.Signal, 10)
	signal.Notify(interrupts, syscall.SIGINT, syscall.SIGTERM)
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	fmt.Printf("node read %q %v\n", strings.TrimSpace(line), err)
	if err != nil {
		return 8
	}
	<-interrupts
	n := 1
	for {
		select {
		case <-interrupts:
			n++
		case <-time.After(300 * time.Millisecond):
			fmt.Printf("node interrupts=%d\n", n)
			return 7
		}
	}
}

// helperClosedStdout gives its (closed) stdout to a tee, and says on stderr what became of node and lines.
func helperClosedStdout() int {
	var lines bytes.Buffer
	c, err := Start(Spec{
		Path: "/bin/sh", Args: []string{"-c", "echo one; sleep 0.1; echo two; sleep 0.1; echo three; exit 5"},
		Stdout: os.Stdout, Lines: func(l []byte) { lines.Write(append(l, ' ')) },
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintf(os.Stderr, "%s, lines: %s", <-c.Exited(), lines.String())
	return 0
}

// helper is the command of a helper program.
func helper(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	return cmd
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

// startScript starts a node that is a shell script; whatever the test does, the node is gone at its end.
func startScript(t *testing.T, script string, change ...func(*Spec)) *Process {
	t.Helper()
	spec := Spec{Path: "/bin/sh", Args: []string{"-c", script}, Dir: t.TempDir()}
	for _, f := range change {
		f(&spec)
	}
	c, err := Start(spec)
	require.NoError(t, err)
	t.Cleanup(func() {
		c.Terminate(syscall.SIGKILL, 0)
		waitFor(t, 20*time.Second, "the node is gone", func() bool { return !alive(c.Pid()) && len(leftOf(c)) == 0 })
	})
	return c
}

// exitOfChild waits for the end of a node.
func exitOfChild(t *testing.T, c *Process) Exit {
	t.Helper()
	select {
	case e := <-c.Exited():
		return e
	case <-time.After(30 * time.Second):
		require.Fail(t, "the node doesn't end", "left: %v", leftOf(c))
		return Exit{}
	}
}

// leftOf lists what is waited for after the node's end: the members of its group and its adopted orphans.
func leftOf(c *Process) []int {
	var pids []int
	seen := map[int]bool{}
	c.eachOrphan(func(st proc.Stat) { pids, seen[st.Pid] = append(pids, st.Pid), true })
	all, _ := proc.Pids()
	for _, pid := range all {
		st, err := proc.ReadStat(pid)
		if err == nil && !c.shares && st.Group == c.pid && !st.Ended() && !seen[pid] {
			pids = append(pids, pid)
		}
	}
	return pids
}

func shell(script string) *exec.Cmd { return exec.Command("/bin/sh", "-c", script) }
