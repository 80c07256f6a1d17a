package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fetch"
)

func TestSizes(t *testing.T) {
	chunked := func(n int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush() // no Content-Length any more
			_, _ = io.WriteString(w, strings.Repeat("x", n))
		}
	}
	promise := func(told string, sent int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", told)
			_, _ = io.WriteString(w, strings.Repeat("x", sent))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
	}
	t.Run("just within the limit", func(t *testing.T) {
		o := invoke(t, "--url", serve(t, chunked(1000)), "--max-bytes", "1000")
		assert.Equal(t, 0, o.code, "%+v", o.last)
	})
	t.Run("one byte more, and it was said", func(t *testing.T) {
		o := invoke(t, "--url", serve(t, answer(strings.Repeat("x", 1001))), "--max-bytes", "1000")
		o.refusedWith(t, fetch.TooLarge, "the limit is 1000")
	})
	t.Run("one byte more, unsaid", func(t *testing.T) {
		o := invoke(t, "--url", serve(t, chunked(1001)), "--max-bytes", "1000")
		o.refusedWith(t, fetch.TooLarge, "more than 1000 bytes")
	})
	t.Run("endless", func(t *testing.T) {
		o := invoke(t, "--url", serve(t, func(w http.ResponseWriter, _ *http.Request) {
			for piece := make([]byte, 64<<10); ; {
				if _, err := w.Write(piece); err != nil {
					return
				}
			}
		}), "--max-bytes", "3000000")
		o.refusedWith(t, fetch.TooLarge, "more than 3000000 bytes")
	})
	t.Run("truncated", func(t *testing.T) {
		o := invoke(t, "--url", serve(t, promise("1000", 500)))
		o.refusedWith(t, fetch.Temporary, "EOF")
	})
	t.Run("reset before the answer", func(t *testing.T) {
		o := invoke(t, "--url", serve(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
		o.refusedWith(t, fetch.Temporary, "EOF")
	})
	t.Run("empty", func(t *testing.T) {
		invoke(t, "--url", serve(t, answer(""))).refusedWith(t, fetch.Refused, "empty file")
	})
	t.Run("larger than the disk", func(t *testing.T) {
		o := invoke(t, "--url", serve(t, promise("4000000000000000000", 0)), "--max-bytes", "4000000000000000001")
		o.refusedWith(t, fetch.NoSpace, "4000000000000000000 bytes needed")
	})
}

// TestFullDisk: a disk that gets full meanwhile, which no server's word foretells; it is said, and nothing is left on it.
func TestFullDisk(t *testing.T) {
	big := strings.Repeat("x", 4<<20)
	endless := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.(http.Flusher).Flush() // no Content-Length any more
		_, _ = io.WriteString(w, big)
	})
	archive := filepath.Join(t.TempDir(), "body")
	require.NoError(t, os.WriteFile(archive, gzipped(t, []byte(big)), 0o600))
	for name, args := range map[string][]string{"downloading": {"--url", endless}, "unpacking": {"--unpack", archive}} {
		t.Run(name, func(t *testing.T) {
			// A file system of its own, in a mount namespace that goes with the program.
			const script = `mount -t tmpfs -o size=1m none "$0"; code=0; "$@" || code=$?; ls -A "$0" >&2; exit $code`
			dir := t.TempDir()
			cmd := exec.CommandContext(t.Context(), "unshare", append([]string{
				"-Urm", "sh", "-ec", script, dir, program, "--name", "simd", "--out", dir,
			}, args...)...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			require.Error(t, cmd.Run())
			assert.Equal(t, 1, cmd.ProcessState.ExitCode())
			lines := strings.Split(strings.TrimSpace(stdout.String()), "\n")
			var last fetch.Message
			require.NoError(t, json.Unmarshal([]byte(lines[len(lines)-1]), &last), "%s %s", &stdout, &stderr)
			assert.Equal(t, fetch.NoSpace, last.Kind, last.Error)
			assert.Empty(t, stderr.String(), "left over")
		})
	}
}
