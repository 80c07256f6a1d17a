package supervisor

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/internal/proc"
	"nodevisor/internal/proctest"
	"nodevisor/supervisor/home"
)

// helperHost plays the host's init: it adopts what a killed supervisor leaves behind, so that no other test's supervisor
// does. Each "start" on stdin starts one `run` and prints "pid N", and at its end "exit CODE". At the end of stdin it
// kills what is left.
func helperHost([]string) int {
	if err := proc.BecomeSubreaper(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	proc.ReapOn(context.Background())
	env := []string{proctest.HelperEnv + "=run"}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, proctest.HelperEnv+"=") {
			env = append(env, kv)
		}
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		cmd := exec.Command(os.Args[0])
		cmd.Env, cmd.Stderr = env, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := proc.Start(cmd); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println("pid", cmd.Process.Pid)
		_ = proc.Wait(cmd)
		fmt.Println("exit", cmd.ProcessState.ExitCode())
	}
	for left := true; left; time.Sleep(time.Millisecond) {
		left = false
		_ = proc.EachOrphan(func(pid int) {
			left = true
			_ = syscall.Kill(pid, syscall.SIGKILL)
		})
	}
	return 0
}

// host is the machine of a home whose supervisor is killed.
type host struct {
	*testHome
	in  io.WriteCloser
	out *bufio.Reader
}

// newHost starts the host; it ends, with all that runs on it, at the test's end.
func newHost(h *testHome) *host {
	h.Helper()
	cmd := h.command()
	cmd.Env = append(cmd.Env, proctest.HelperEnv+"=host")
	in, err := cmd.StdinPipe()
	require.NoError(h, err)
	outR, outW, err := os.Pipe()
	require.NoError(h, err)
	cmd.Stdout = outW
	require.NoError(h, proc.Start(cmd))
	outW.Close()
	h.Cleanup(func() {
		in.Close()
		if info, err := home.ReadLock(h.layout().LockPath()); err == nil && info.Supervisor != nil {
			_ = syscall.Kill(info.Supervisor.Pid, syscall.SIGKILL)
		}
		_ = proc.Wait(cmd)
		outR.Close()
	})
	return &host{testHome: h, in: in, out: bufio.NewReader(outR)}
}

// word reads one answer of the host.
func (h *host) word(name string) int {
	h.Helper()
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		line, err := h.out.ReadString('\n')
		got <- answer{line, err}
	}()
	select {
	case a := <-got:
		require.NoError(h, a.err)
		text, ok := strings.CutPrefix(strings.TrimSpace(a.line), name+" ")
		require.True(h, ok, "%q, not %s", a.line, name)
		n, err := strconv.Atoi(text)
		require.NoError(h, err)
		return n
	case <-time.After(patience):
		require.Fail(h, "the host doesn't answer", "the log ends:\n%s", tailOf([]byte(h.lines()), 3000))
		return 0
	}
}

// boot starts `run` and returns its pid.
func (h *host) boot() int {
	h.Helper()
	_, err := io.WriteString(h.in, "start\n")
	require.NoError(h, err)
	return h.word("pid")
}

// exit waits for the end of `run`; -1 = it was killed.
func (h *host) exit() int {
	h.Helper()
	return h.word("exit")
}

// killRun kills `run` and, as a service manager does, waits for it.
func (h *host) killRun(pid int) {
	h.Helper()
	_ = syscall.Kill(pid, syscall.SIGKILL)
	h.exit()
}

// leftNode is the node that the killed supervisor left running, or 0: what holds the home's lock. The record may not name
// it yet.
func (h *host) leftNode() int {
	h.Helper()
	info, err := os.Stat(h.layout().LockPath())
	if os.IsNotExist(err) {
		return 0
	}
	require.NoError(h, err)
	pids := holders(info)
	// A supervisor that is killed amid a fork leaves a child that is still itself: once it executes its program it has the
	// lock no more, unless it is the node.
	h.wait("nothing is amid its fork", func() bool {
		pids = holders(info)
		return !slices.ContainsFunc(pids, isFork)
	})
	for _, pid := range pids {
		if proctest.Alive(pid) {
			return pid
		}
	}
	return 0
}

// isFork tells whether a process still runs the program that the supervisor is.
func isFork(pid int) bool {
	exe, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	self, serr := os.Stat("/proc/self/exe")
	return err == nil && serr == nil && os.SameFile(exe, self)
}

// holders finds the processes that have a file open, as far as we may look.
func holders(file os.FileInfo) (pids []int) {
	all, _ := proc.Pids()
	for _, pid := range all {
		open, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if slices.ContainsFunc(open, func(fd string) bool {
			info, err := os.Stat(fd)
			return err == nil && os.SameFile(info, file)
		}) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killNode kills a node and waits until it is gone, with all of its threads: then nothing holds the lock, and the trace
// says so.
func (h *host) killNode(pid int) {
	h.Helper()
	require.NoError(h, syscall.Kill(pid, syscall.SIGKILL))
	f, err := os.OpenFile(h.layout().LockPath(), os.O_RDWR, 0)
	require.NoError(h, err)
	defer f.Close()
	h.wait("the node is gone", func() bool {
		return !proctest.Alive(pid) && unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
	})
	require.NoError(h, trace.Append(h.trace, trace.Event{Kind: killed, Time: time.Now().UnixNano(), PID: pid}))
}
