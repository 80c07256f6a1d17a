//go:build e2e

package systemd

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/build"
	"nodevisor/internal/fakenode/trace"
)

// A stop in the middle of a download is heeded at once, leaves nothing half-made, and the next start begins it again.
func TestStopInADownload(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab)
	require.NoError(t, os.RemoveAll(filepath.Join(n.dir, "cosmovisor", "upgrades")))
	binary, err := os.ReadFile(build.Binary(t, "v2"))
	require.NoError(t, err)
	sum := sha256.Sum256(binary)

	var asked atomic.Int32
	var listener net.Listener
	require.NoError(t, n.inside(func() (err error) {
		listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		return err
	}))
	server := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead && asked.Add(1) == 1 {
			_, _ = w.Write(binary[:len(binary)/2])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done() // the rest never comes
			return
		}
		http.ServeFile(w, r, build.Binary(t, "v2"))
	})}
	t.Cleanup(func() { _ = server.Close() })
	go func() { _ = server.Serve(listener) }()

	n.Env["UPGRADE"] = fmt.Sprintf(`v2@60:{"binaries":{"any":"http://%s/simd?checksum=sha256:%s"}}`, listener.Addr(), hex.EncodeToString(sum[:]))
	n.Tables["upgrade"] = "allow_download = true"
	n.install()
	n.systemctl("start", "--no-block")
	wait(t, "the download", func() bool { return asked.Load() > 0 })
	n.await(trace.FirstBlock, "v1")
	begun := time.Now()
	n.systemctl("stop")
	assert.Less(t, time.Since(begun), 30*time.Second, "the rest never comes")
	require.Equal(t, "success", n.property("Result"))
	require.Empty(t, n.processes())
	assert.NoFileExists(t, filepath.Join(n.dir, "cosmovisor", "upgrades", "v2", "bin", "simd"))
	n.systemctl("start", "--no-block")
	wait(t, "a committed upgrade", n.committed)
	n.oneNode()
	n.systemctl("stop")
}
