package child

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"nodevisor/internal/proc"
	"nodevisor/internal/proctest"
)

func TestMain(m *testing.M) {
	proctest.Main(m, map[string]proctest.Helper{
		"tty-supervisor": helperTTYSupervisor,
		"tty-node":       helperTTYNode,
		"epipe-tee":      helperClosedStdout, // a supervisor whose stdout's reader has gone
	})
}

// helperTTYSupervisor runs on a terminal: it starts tty-node and reports how often Ctrl-C reached itself.
func helperTTYSupervisor([]string) int {
	interrupts := make(chan os.Signal, 10)
	signal.Notify(interrupts, syscall.SIGINT)
	c, err := Start(Spec{
		Path: os.Args[0], Env: []string{proctest.HelperEnv + "=tty-node"},
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
func helperTTYNode([]string) int {
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
func helperClosedStdout([]string) int {
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
		proctest.WaitFor(t, 20*time.Second, "the node is gone", func() bool { return !proctest.Alive(c.Pid()) && len(leftOf(c)) == 0 })
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
