package supervisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
)

// A socket that somebody removed is made again beside the running node, with the mode that it had, and said once. Who was
// connected stays so.
func TestControlSocketIsMadeAgain(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	r := h.start()
	h.awaitState(status.Running)
	waited := make(chan error, 1)
	go func() {
		_, err := h.do(client.OpHalt, client.Request{Height: 1000000, Wait: true})
		waited <- err
	}()
	h.awaitStatus("the halt", func(st *status.Document) bool { return st.Halt != nil })
	for n := range 2 {
		require.NoError(t, os.Remove(h.socket()))
		h.awaitState(status.Running)
		info, err := os.Stat(h.socket())
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
		assert.Equal(t, n+1, strings.Count(h.lines(), "the control socket was removed; it was made again"))
	}
	_, err := h.do(client.OpHalt, client.Request{Cancel: true})
	require.NoError(t, err)
	select {
	case err := <-waited:
		assert.ErrorContains(t, err, "the halt was taken off the schedule")
	case <-time.After(patience):
		require.Fail(t, "no answer")
	}
	r.stop()
	assert.NoFileExists(t, h.socket())
	h.singleNode()
}

// Something else at the socket's path is left alone, and a path that is too long is refused: the node runs without.
func TestControlSocketThatCannotBe(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*testHome) string{
		"a file": func(h *testHome) string {
			h.write("supervisor/control.sock", "precious")
			return "is no socket"
		},
		"too long": func(h *testHome) string {
			long := filepath.Join(h.dir, strings.Repeat("d", 100))
			require.NoError(h, os.Mkdir(long, 0o755))
			require.NoError(h, os.Symlink(filepath.Join(h.dir, "cosmovisor"), filepath.Join(long, "cosmovisor")))
			h.Home = long
			return "invalid argument"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHome(t)
			says := prepare(h)
			r := h.start()
			h.await(trace.FirstBlock, "v1")
			h.wait("the warning", func() bool { return strings.Contains(h.lines(), "the control socket can't be used") })
			assert.Contains(t, h.lines(), says)
			r.stop()
			if name == "a file" {
				assert.Equal(t, "precious", strings.TrimSpace(readFile(t, filepath.Join(h.dir, "supervisor/control.sock"))))
			}
		})
	}
}
