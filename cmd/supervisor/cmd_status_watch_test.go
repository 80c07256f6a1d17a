package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What a terminal is told: ECMA-48 and xterm (console_codes(4)).
const (
	alternate = "\x1b[?1049h\x1b[?25l"
	ordinary  = "\x1b[?25h\x1b[?1049l"
	topLeft   = "\x1b[H"
	lineEnd   = "\x1b[K"
	screenEnd = "\x1b[J"
)

// screen collects what a terminal shows.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) copy(f *os.File) {
	buf := make([]byte, 4096)
	for {
		n, err := f.Read(buf)
		s.mu.Lock()
		s.b.Write(buf[:n])
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// watched starts `status --watch` for an empty home on a terminal of the given size, as testscript's commands do.
func watched(t *testing.T, size *pty.Winsize) (*exec.Cmd, *os.File, *screen, string) {
	t.Helper()
	home := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(home, "cosmovisor", "genesis", "bin"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(home, "supervisor"), 0o755))
	dir := t.TempDir()
	program := filepath.Join(dir, "supervisor") // testscript.Main tells the program by its name
	self, err := os.Executable()
	require.NoError(t, err)
	require.NoError(t, os.Symlink(self, program))
	cmd := exec.Command(program, "status", "--watch")
	cmd.Env = append(os.Environ(), "DAEMON_HOME="+home, "DAEMON_NAME=simd", "XDG_RUNTIME_DIR="+dir, "DAEMON_GRPC_ADDRESS=127.0.0.1:1")
	tty, err := pty.StartWithSize(cmd, size)
	require.NoError(t, err)
	shown := &screen{}
	go shown.copy(tty)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_, _ = cmd.Process.Wait()
		tty.Close()
	})
	return cmd, tty, shown, home
}

func await(t *testing.T, what string, fact func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !fact(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.Fail(t, "in vain", what)
		}
	}
}

// On a terminal the picture is redrawn in place, without clearing it first; Ctrl-C gives the terminal back as it was, and
// what was seen last stays.
func TestWatchOnATerminal(t *testing.T) {
	t.Parallel()
	cmd, tty, shown, home := watched(t, &pty.Winsize{Rows: 12, Cols: 60})
	await(t, "a picture", func() bool { return strings.Contains(shown.String(), "no supervisor is running") })
	assert.True(t, strings.HasPrefix(shown.String(), alternate))

	require.NoError(t, os.WriteFile(filepath.Join(home, "supervisor", "upgrade.json"), []byte("{"), 0o600))
	await(t, "the change", func() bool { return strings.Contains(shown.String(), "HELD") })
	assert.NotContains(t, shown.String(), "\x1b[2J", "nothing is cleared")
	for _, picture := range strings.Split(shown.String(), topLeft)[1:] {
		picture, _, whole := strings.Cut(picture, screenEnd)
		if !whole {
			continue // it is being read
		}
		lines := strings.Split(picture, "\r\n")
		assert.LessOrEqual(t, len(lines), 12)
		for _, line := range lines {
			line = strings.NewReplacer(lineEnd, "", "\r", "").Replace(line)
			assert.LessOrEqual(t, len([]rune(line)), 60, line)
		}
	}
	_, err := tty.WriteString("\x03")
	require.NoError(t, err)
	state, err := cmd.Process.Wait()
	require.NoError(t, err)
	assert.Equal(t, 0, state.ExitCode())
	await(t, "the end", func() bool { return strings.Contains(shown.String(), ordinary) })
	_, after, _ := strings.Cut(shown.String(), ordinary)
	await(t, "the last status", func() bool {
		_, after, _ = strings.Cut(shown.String(), ordinary)
		return strings.Contains(after, "HELD")
	})
	assert.NotContains(t, after, "\x1b[?25l")
}

// A terminal that is made larger gets a new picture at once.
func TestWatchResized(t *testing.T) {
	t.Parallel()
	_, tty, shown, _ := watched(t, &pty.Winsize{Rows: 1, Cols: 20})
	await(t, "a picture", func() bool { return strings.Contains(shown.String(), "state") })
	assert.NotContains(t, shown.String(), "no supervisor is running")
	require.NoError(t, pty.Setsize(tty, &pty.Winsize{Rows: 24, Cols: 80}))
	await(t, "the whole of it", func() bool { return strings.Contains(shown.String(), "no supervisor is running") })
}

// Where stdout is no terminal there is one block for a change, and none for what goes on by itself.
func TestWatchIntoAFile(t *testing.T) {
	t.Parallel()
	home, dir := t.TempDir(), t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(home, "cosmovisor", "genesis", "bin"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(home, "supervisor"), 0o755))
	program := filepath.Join(dir, "supervisor")
	self, err := os.Executable()
	require.NoError(t, err)
	require.NoError(t, os.Symlink(self, program))
	out, err := os.Create(filepath.Join(dir, "out"))
	require.NoError(t, err)
	t.Cleanup(func() { out.Close() })
	cmd := exec.Command(program, "status", "-w")
	cmd.Env = append(os.Environ(), "DAEMON_HOME="+home, "DAEMON_NAME=simd", "XDG_RUNTIME_DIR="+dir, "DAEMON_GRPC_ADDRESS=127.0.0.1:1")
	cmd.Stdout = out
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	text := func() string { data, _ := os.ReadFile(out.Name()); return string(data) }
	await(t, "a block", func() bool { return strings.Contains(text(), "\n\n") })
	height := filepath.Join(home, "supervisor", "height")
	require.NoError(t, os.WriteFile(height, []byte("7\n"), 0o600)) // whatever it says: a height alone is no change
	time.Sleep(2 * time.Second)                                    // nothing is to happen, which can't be waited for
	require.NoError(t, os.Remove(height))
	torn := filepath.Join(dir, "torn")
	require.NoError(t, os.WriteFile(torn, []byte("{"), 0o600))
	require.NoError(t, os.Rename(torn, filepath.Join(home, "supervisor", "upgrade.json"))) // an empty one would be a block of its own
	await(t, "the second block", func() bool { return strings.Contains(text(), "HELD") })
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait())
	assert.Equal(t, 2, strings.Count(text(), "state "))
	assert.NotContains(t, text(), "\x1b")
}
