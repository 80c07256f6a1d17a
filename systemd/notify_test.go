package systemd

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// listen is a service manager's end, and the address that it gives its services.
func listen(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

// take reads one message; "" where nothing is there.
func take(t *testing.T, conn *net.UnixConn, patience time.Duration) string {
	t.Helper()
	buf := make([]byte, 8192)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
	n, err := conn.Read(buf)
	if err != nil {
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	return string(buf[:n])
}

func TestNobodyAsked(t *testing.T) {
	for _, address := range []string{"", "relative", "vsock:2:1234"} {
		t.Setenv("NOTIFY_SOCKET", address)
		assert.Nil(t, New(), address)
	}
}

func TestMessages(t *testing.T) {
	conn := listen(t)
	t.Setenv("WATCHDOG_USEC", "3000000")
	t.Setenv("container", "")
	n := New()
	require.NotNil(t, n)
	assert.Equal(t, 1500*time.Millisecond, n.Every())
	n.Status("running")
	n.Status("running")
	n.Ready()
	n.Status("one\nMAINPID=1\x1b[31m" + strings.Repeat("ü", 2000))
	n.Alive(0)
	n.Alive(90 * time.Second)
	n.Stopping()
	for _, want := range []string{
		"STATUS=running",
		fmt.Sprintf("READY=1\nMAINPID=%d", os.Getpid()),
		"STATUS=one MAINPID=1 [31m" + strings.Repeat("ü", (maxStatus-18)/2),
		"WATCHDOG=1",
		"WATCHDOG=1\nEXTEND_TIMEOUT_USEC=90000000",
		"STOPPING=1",
		"",
	} {
		assert.Equal(t, want, take(t, conn, 50*time.Millisecond))
	}
}

// In a container the manager outside knows us by another pid.
func TestNoPidOutOfAContainer(t *testing.T) {
	conn := listen(t)
	t.Setenv("container", "podman")
	New().Ready()
	assert.Equal(t, "READY=1", take(t, conn, time.Second))
}

func TestWatchdogIsOurs(t *testing.T) {
	conn := listen(t)
	for pid, want := range map[string]string{fmt.Sprint(os.Getpid()): "WATCHDOG=1", "1": ""} {
		t.Setenv("WATCHDOG_USEC", "60000000")
		t.Setenv("WATCHDOG_PID", pid)
		n := New()
		n.Alive(0)
		assert.Equal(t, want, take(t, conn, 50*time.Millisecond))
		assert.Equal(t, notifyEvery, n.Every())
	}
}

// A manager that doesn't read, as systemd while it reloads, never blocks us; what must be said is said later, once, and a
// status that was overtaken is not.
func TestNobodyReads(t *testing.T) {
	conn := listen(t)
	n := New()
	filled := 0
	for ; unix.Sendto(n.fd, []byte("x"), unix.MSG_DONTWAIT, n.to) == nil; filled++ {
		require.Less(t, filled, 100_000)
	}
	begun := time.Now()
	n.Status("first")
	n.Ready()
	n.Status("second")
	n.Alive(time.Second)
	assert.Less(t, time.Since(begun), 10*time.Second)
	for range filled {
		require.Equal(t, "x", take(t, conn, time.Second))
	}
	assert.Empty(t, take(t, conn, 20*time.Millisecond))
	n.Alive(0)
	got := take(t, conn, time.Second)
	assert.Contains(t, got, "READY=1")
	assert.Contains(t, got, "STATUS=second")
	assert.NotContains(t, got, "first")
	assert.NotContains(t, got, "EXTEND", "it was true for that moment")
	n.Alive(0)
	assert.Empty(t, take(t, conn, 20*time.Millisecond))
}

// A service manager that has gone away harms nobody.
func TestNobodyListens(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	n := New()
	n.Ready()
	n.Close(time.Minute)
}

// Close waits for whoever takes the messages in, and not for ever.
func TestBarrier(t *testing.T) {
	conn := listen(t)
	n := New()
	n.Status("the last word")
	closed := make(chan struct{})
	go func() {
		n.Close(time.Minute)
		close(closed)
	}()
	assert.Equal(t, "STATUS=the last word", take(t, conn, time.Second))
	buf, oob := make([]byte, 64), make([]byte, 256)
	length, nc, _, _, err := conn.ReadMsgUnix(buf, oob)
	require.NoError(t, err)
	require.Equal(t, "BARRIER=1", string(buf[:length]))
	_, fds := unpack(oob[:nc])
	require.Len(t, fds, 1)
	select {
	case <-closed:
		require.Fail(t, "it didn't wait")
	case <-time.After(50 * time.Millisecond):
	}
	require.NoError(t, unix.Close(fds[0]))
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		require.Fail(t, "it waits still")
	}

	begun := time.Now()
	New().Close(30 * time.Millisecond)
	assert.Less(t, time.Since(begun), 5*time.Second)
}

// The node's socket: who speaks is told by the kernel, what doesn't concern us isn't passed on, and the sender's barrier
// falls only after its message was taken in.
func TestNodeSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	left, err := ListenNode(path)
	require.NoError(t, err)
	left.conn.Close() // its process was killed
	s, err := ListenNode(path)
	require.NoError(t, err)
	assert.Equal(t, path, s.Path())
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	said := make(chan string, 16)
	ended := make(chan struct{})
	go func() {
		s.Serve(func(pid int, ready bool, status string) { said <- fmt.Sprint(pid, ready, status) })
		close(ended)
	}()
	t.Setenv("NOTIFY_SOCKET", path)
	conn, err := net.Dial("unixgram", path)
	require.NoError(t, err)
	defer conn.Close()
	for _, text := range []string{
		"WATCHDOG=1\nMAINPID=1\nFDSTORE=1", "READY=0", "READY=1\nSTATUS=a\tb", strings.Repeat("READY=1\n", 2000), "STATUS=", "STATUS=c\nSTOPPING=1",
	} {
		_, err := conn.Write([]byte(text))
		require.NoError(t, err)
	}
	New().Close(10 * time.Second)
	pid := os.Getpid()
	for _, want := range []string{fmt.Sprint(pid, true, "a b"), fmt.Sprint(pid, false, ""), fmt.Sprint(pid, false, "c")} {
		select {
		case got := <-said:
			assert.Equal(t, want, got)
		default:
			require.Fail(t, "not said when the barrier fell", want)
		}
	}
	assert.Empty(t, said)

	cmd := exec.Command("systemd-notify", "--ready", "--status=from a script")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	assert.NotEmpty(t, said, "systemd-notify(1) waits for its barrier, too")

	require.NoError(t, s.Close())
	<-ended
	assert.NoFileExists(t, path)
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err = ListenNode(path)
	assert.EqualError(t, err, "cannot listen for the node: "+path+" is there and is no socket")
}
