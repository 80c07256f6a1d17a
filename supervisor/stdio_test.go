package supervisor

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/supervisor/restart"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// script makes the node of a home a shell script.
func (h *testHome) script(text string) {
	h.Helper()
	path := filepath.Join(h.dir, "cosmovisor/genesis/bin/simd")
	require.NoError(h, os.Remove(path))
	h.write("cosmovisor/genesis/bin/simd", "#!/bin/sh\n"+text)
	require.NoError(h, os.Chmod(path, 0o755))
}

// On a terminal a line reaches the node's stdin, and one Ctrl-C stops node and supervisor: the node gets it once, and
// `run` ends with 0.
func TestRunOnATerminal(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.set("STDIN_ECHO", "true")
	cmd := h.command()
	terminal, tty, err := pty.Open()
	require.NoError(t, err)
	defer terminal.Close()
	cmd.Stdin, cmd.Stdout = tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	r := h.startCommand(cmd)
	tty.Close()
	lines := make(chan string, 1000)
	go func() {
		for in := bufio.NewScanner(terminal); in.Scan(); {
			lines <- in.Text()
		}
		close(lines)
	}()
	h.await(trace.FirstBlock, "v1")
	_, err = terminal.WriteString("hello\n")
	require.NoError(t, err)
	timeout := time.After(patience)
	for seen := false; !seen; {
		select {
		case line := <-lines:
			seen = strings.HasPrefix(line, "stdin: hello")
		case <-timeout:
			require.Fail(t, "the line doesn't reach the node")
		}
	}
	_, err = terminal.Write([]byte{3}) // Ctrl-C
	require.NoError(t, err)
	require.Equal(t, 0, r.exit())
	assert.Equal(t, []string{"interrupt"}, h.signals())
	assert.Equal(t, 1, h.count(trace.Exit, "v1"))
}

// The node's stdout is its own, byte for byte, with and without somebody reading along; the supervisor's words are on
// stderr alone.
func TestStdoutIsTheNodes(t *testing.T) {
	t.Parallel()
	for _, tee := range []bool{false, true} {
		t.Run(fmt.Sprintf("tee %v", tee), func(t *testing.T) {
			t.Parallel()
			h := newHome(t)
			h.Node.Restart = restart.Never
			if tee {
				h.Height.Log = "height=(?P<height>[0-9]+)"
			}
			data := bytes.Repeat([]byte("a\x00\xff\r\nheight=7\n\x1b[31m"), 20000)
			data = append(data, "no end of line"...)
			h.write("bytes", string(data))
			h.script("cat " + h.dir + "/bytes\nwhile [ ! -e " + h.dir + "/end ]; do sleep 0.05; done\nexit 5\n")
			cmd := h.command()
			out, err := os.Create(filepath.Join(h.dir, "out"))
			require.NoError(t, err)
			defer out.Close()
			cmd.Stdout = out
			r := h.startCommand(cmd)
			if tee {
				h.awaitStatus("a height", func(st *status.Document) bool {
					return st.HeightSource != nil && *st.HeightSource == "log" && *st.Height == 7
				})
			}
			h.write("end", "")
			require.Equal(t, 5, r.exit())
			got, err := os.ReadFile(out.Name())
			require.NoError(t, err)
			assert.True(t, bytes.Equal(data, got), "%d bytes of %d", len(got), len(data))
			assert.Contains(t, h.lines(), "the node ended")
		})
	}
}

// A closed stdout, or a reader of it that has gone, is the node's affair: the supervisor lives on.
func TestStdoutGone(t *testing.T) {
	t.Parallel()
	for _, tee := range []bool{false, true} {
		t.Run(fmt.Sprintf("tee %v", tee), func(t *testing.T) {
			t.Parallel()
			h := newHome(t)
			h.set("LOG_HEIGHT", "true")
			if tee {
				h.Height.Log = "committed state height=(?P<height>[0-9]+)"
			}
			r, w, err := os.Pipe()
			require.NoError(t, err)
			cmd := h.command()
			cmd.Stdout = w
			run := h.startCommand(cmd)
			w.Close()
			h.await(trace.FirstBlock, "v1")
			r.Close()
			if !tee { // the node itself gets the broken pipe, and dies of it as without a supervisor
				h.awaitCount(2, trace.Start, "v1")
			} else {
				h.awaitState(status.Running)
				assert.Equal(t, 1, h.count(trace.Start, ""))
			}
			run.stop()
		})
	}
}

// The whole program with a stderr that nobody reads: its log is lost, and nothing else. Signals, upgrades and the end are
// as always.
func TestStderrIsFull(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	path := h.program()
	h.set("UPGRADE", "v2@40")
	h.set("LOG_HEIGHT", "false")
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	require.NoError(t, syscall.SetNonblock(int(w.Fd()), false))
	require.NoError(t, fill(w))
	cmd := exec.Command(path, "run", "start")
	cmd.Env = append(h.Env, "DAEMON_NAME=simd", "SUPERVISOR_UPGRADE_PROBATION_UP=100ms", "DAEMON_GRPC_ADDRESS=127.0.0.1:1")
	cmd.Stderr = w
	devNull, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer devNull.Close()
	cmd.Stdout = devNull
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	run := h.startCommand(cmd)
	w.Close()
	h.await(trace.FirstBlock, "v2")
	h.awaitResult(upgrade.ResultCommitted)
	run.stop()
}

// Stdin that is closed or at its end is no reason to end.
func TestStdinAtItsEnd(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.set("STDIN_ECHO", "true")
	cmd := h.command()
	out, in, err := os.Pipe()
	require.NoError(t, err)
	defer out.Close()
	cmd.Stdout = in
	run := h.startCommand(cmd)
	in.Close()
	seen := make(chan bool, 1)
	go func() {
		data := bufio.NewScanner(out)
		for data.Scan() && data.Text() != "stdin: EOF" {
		}
		seen <- data.Text() == "stdin: EOF"
		_, _ = io.Copy(io.Discard, out)
	}()
	select {
	case ok := <-seen:
		assert.True(t, ok)
	case <-time.After(patience):
		require.Fail(t, "the end of stdin doesn't reach the node")
	}
	run.stop()
}

// Started without stdin, stdout and stderr at all it does its work: no file of its own takes their numbers.
func TestNoStreamsAtAll(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	cmd := h.command()
	cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `exec "$0" <&- >&- 2>&-`, cmd.Path}
	r := h.startCommand(cmd)
	h.awaitResult(upgrade.ResultCommitted)
	r.stop()
	h.singleNode()
	h.journal()
}

// fill makes a pipe full without blocking.
func fill(w *os.File) error {
	conn, err := w.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Control(func(fd uintptr) {
		for {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			if n, _ := unix.Poll(fds, 0); n == 0 {
				return
			}
			_, _ = unix.Write(int(fd), make([]byte, 4096)) // a pipe that polls as writable takes so much at once
		}
	})
}
