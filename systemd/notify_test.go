package systemd

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestNobodyAsked(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	assert.Nil(t, New())
}

func TestDatagrams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)

	n := New()
	require.NotNil(t, n)
	n.Status("running")
	n.Status("running")
	n.Ready()
	n.Status("upgrading to v2: stopped reached")
	n.Stopping()

	for _, want := range []string{"STATUS=running", "READY=1", "STATUS=upgrading to v2: stopped reached", "STOPPING=1"} {
		buf := make([]byte, 256)
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
		length, err := conn.Read(buf)
		require.NoError(t, err)
		assert.Equal(t, want, string(buf[:length]))
	}
}

// A service manager that has gone away harms nobody.
func TestNobodyListens(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	New().Ready()
}
