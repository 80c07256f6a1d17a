package child

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
	"nodevisor/internal/proctest"
)

func TestChildExitCodesAndSignals(t *testing.T) {
	for _, code := range []int{0, 1, 2, 78, 255} {
		exit := exitOfChild(t, startScript(t, "exit "+strconv.Itoa(code)))
		assert.Equal(t, code, exit.Code)
		assert.Equal(t, code, exit.ExitCode())
		assert.Zero(t, exit.Signal)
		assert.Equal(t, code == 0, exit.Success())
		assert.False(t, exit.Forced)
		assert.False(t, exit.Swept)
		assert.Equal(t, "exit code "+strconv.Itoa(code), exit.String())
	}
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGTERM} {
		exit := exitOfChild(t, startScript(t, "kill -"+strconv.Itoa(int(sig))+" $$"))
		assert.Equal(t, sig, exit.Signal)
		assert.Equal(t, -1, exit.Code)
		assert.Equal(t, 128+int(sig), exit.ExitCode())
		assert.False(t, exit.Success())
		assert.False(t, exit.Forced, "nobody asked for a stop")
	}
	assert.Equal(t, "killed by SIGSEGV", Exit{Code: -1, Signal: syscall.SIGSEGV}.String())
	assert.Equal(t, "killed by signal 60", Exit{Code: -1, Signal: 60}.String())
	assert.Equal(t, 1, Exit{Code: -1}.ExitCode(), "unknown is not success")
}

// With a reaper at work no code may be lost, and an end where nothing is left must cost no wait.
func TestChildEndsBesideTheReaperWithoutDelay(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := proc.ReapOn(ctx)
	t.Cleanup(func() { cancel(); <-done })
	fastest := time.Hour
	for n := range 40 {
		exit := exitOfChild(t, startScript(t, "( : & ) ; exit "+strconv.Itoa(n)))
		require.Equal(t, n, exit.Code)
	}
	for range 20 {
		exit := exitOfChild(t, startScript(t, "exit 0"))
		fastest = min(fastest, exit.Gone.Sub(exit.At))
	}
	assert.Less(t, fastest, 20*time.Millisecond, "the check for left-behind processes waits")
}

func TestChildStartFailures(t *testing.T) {
	dir := t.TempDir()
	path := func(name string, mode os.FileMode, content string) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, []byte(content), mode))
		return p
	}
	for name, tc := range map[string]struct {
		path, hint string
		is         error
	}{
		"missing":        {filepath.Join(dir, "none"), "supervisor init", os.ErrNotExist},
		"no interpreter": {path("script", 0o755, "#!/no/such/interpreter\n"), "interpreter", os.ErrNotExist},
		"not executable": {path("plain", 0o644, "#!/bin/sh\n"), "chmod +x", os.ErrPermission},
		"wrong format":   {path("garbage", 0o755, "\x7fELF no"), "another machine", syscall.ENOEXEC},
	} {
		t.Run(name, func(t *testing.T) {
			for _, lines := range []func([]byte){nil, func([]byte) {}} {
				c, err := Start(Spec{Path: tc.path, Lines: lines})
				require.ErrorIs(t, err, tc.is)
				assert.Nil(t, c)
				assert.Contains(t, hint.Of(err), tc.hint)
				assert.Contains(t, err.Error(), "cannot start node "+tc.path)
			}
		})
	}
}

func TestChildEnvironment(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/notify")
	t.Setenv("WATCHDOG_PID", "1")
	t.Setenv("WATCHDOG_USEC", "1000")
	t.Setenv("WATCHDOG_USECX", "kept")
	t.Setenv("KEPT", "from us")
	for name, env := range map[string][]string{"inherited": nil, "given": append(os.Environ(), "KEPT=from us")} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "env")
			c := startScript(t, "env > "+out+"; echo NO_FD_3=$([ -e /proc/self/fd/3 ] && echo no || echo yes) >> "+out, func(s *Spec) { s.Env = env })
			exitOfChild(t, c)
			data, err := os.ReadFile(out)
			require.NoError(t, err)
			assert.NotContains(t, string(data), "NOTIFY_SOCKET")
			assert.NotContains(t, string(data), "WATCHDOG_PID")
			assert.NotContains(t, string(data), "WATCHDOG_USEC=")
			assert.Contains(t, string(data), "WATCHDOG_USECX=kept")
			assert.Contains(t, string(data), "KEPT=from us")
		})
	}
}

func TestChildInheritsItsFilesAndDirectory(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "in")
	require.NoError(t, os.WriteFile(in, []byte("a line\n"), 0o600))
	stdin, err := os.Open(in)
	require.NoError(t, err)
	defer stdin.Close()
	stdout, err := os.Create(filepath.Join(dir, "out"))
	require.NoError(t, err)
	defer stdout.Close()
	stderr, err := os.Create(filepath.Join(dir, "err"))
	require.NoError(t, err)
	defer stderr.Close()
	c := startScript(t, "read l; echo $l; pwd; echo err >&2", func(s *Spec) {
		s.Stdin, s.Stdout, s.Stderr, s.Dir = stdin, stdout, stderr, "/usr"
	})
	assert.False(t, c.SharesTerminal())
	assert.Zero(t, exitOfChild(t, c).Code)
	assert.Equal(t, "a line\n/usr\n", proctest.Text(t, stdout.Name()))
	assert.Equal(t, "err\n", proctest.Text(t, stderr.Name()))
}

// Nothing of a child stays behind in the supervisor: neither goroutines nor descriptors.
func TestChildLeaksNothing(t *testing.T) {
	run := func() {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		defer r.Close()
		defer w.Close()
		c := startScript(t, "echo a; echo b >&2; ( : & ); exit 0", func(s *Spec) {
			s.Stdout, s.Stderr, s.Lines = w, w, func([]byte) {}
		})
		exitOfChild(t, c)
	}
	run()
	count := func() (int, int) {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return runtime.NumGoroutine(), len(fds)
	}
	goroutines, fds := count()
	for range 10 {
		run()
	}
	proctest.WaitFor(t, 10*time.Second, "goroutines and descriptors are back to what they were", func() bool {
		g, f := count()
		return g <= goroutines && f <= fds
	})
}

func TestChildMethodsSideBySide(t *testing.T) {
	c := startScript(t, `trap "" USR1; trap 'exit 0' TERM; echo up > up; while :; do sleep 0.02; done`)
	proctest.FileWith(t, filepath.Join(c.cmd.Dir, "up"))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if err := c.Signal(syscall.SIGUSR1); err != nil && !errors.Is(err, os.ErrProcessDone) {
						assert.NoError(t, err)
						return
					}
					_, _ = c.Pid(), c.StartedAt()
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	c.Terminate(syscall.SIGTERM, 20*time.Second)
	exit := exitOfChild(t, c)
	close(stop)
	wg.Wait()
	assert.Zero(t, exit.Code)
}

// On a terminal, as its foreground group: the node reads what is typed, and Ctrl-C reaches node and supervisor once.
func TestChildOnATerminal(t *testing.T) {
	terminal, shows := onTerminal(t, proctest.Command("tty-supervisor"))
	shows("shares=true")
	_, err := terminal.WriteString("hello node\n")
	require.NoError(t, err)
	shows(`node read "hello node" <nil>`)
	_, err = terminal.Write([]byte{3}) // Ctrl-C
	require.NoError(t, err)
	shows("node interrupts=1")
	shows("supervisor interrupts=1 exit=exit code 7")
}

// In the terminal's background the node gets no stdin that would stop it: it reads the end of the file.
func TestChildInATerminalsBackground(t *testing.T) {
	cmd := proctest.Shell(`set -m; "$0" & wait`)
	cmd.Args = append(cmd.Args, os.Args[0])
	cmd.Env = append(os.Environ(), proctest.HelperEnv+"=tty-supervisor")
	_, shows := onTerminal(t, cmd)
	shows("shares=false")
	shows(`node read "" EOF`)
	shows("supervisor interrupts=0 exit=exit code 8")
}

// onTerminal starts a program on a terminal of its own, and returns the terminal and what waits for a text on it.
func onTerminal(t *testing.T, cmd *exec.Cmd) (*os.File, func(text string)) {
	t.Helper()
	terminal, err := pty.Start(cmd)
	require.NoError(t, err)
	var mu sync.Mutex
	var screen bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 1024)
		for {
			n, err := terminal.Read(buf)
			mu.Lock()
			screen.Write(buf[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		terminal.Close()
		select {
		case <-read:
		case <-time.After(5 * time.Second): // something that failed to end has the terminal open
		}
	})
	return terminal, func(text string) {
		proctest.WaitFor(t, 20*time.Second, "the terminal shows "+text, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return strings.Contains(screen.String(), text)
		})
	}
}

func TestPlaceOf(t *testing.T) {
	assert.Equal(t, elsewhere, placeOf(nil))
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	assert.Equal(t, elsewhere, placeOf(null))
	master, tty, err := pty.Open()
	require.NoError(t, err)
	defer master.Close()
	defer tty.Close()
	assert.Equal(t, elsewhere, placeOf(tty), "a terminal that doesn't control us sends no job control signals")
}
