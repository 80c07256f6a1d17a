package control

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/supervisor/client"
)

// Who isn't known may not operate. That another user may not either is tested where `run` is.
func TestOperationsAreTheOwners(t *testing.T) {
	s := &Server{}
	w := httptest.NewRecorder()
	s.serveOperation(w, httptest.NewRequest(http.MethodPost, "/v1/stop", http.NoBody))
	assert.Equal(t, http.StatusForbidden, w.Code, "nobody is known")
}

// What was asked for is dropped where the asker has closed its connection before it was looked at; one that only sends no
// more still waits for its answer.
func TestOperationWithoutAnAsker(t *testing.T) {
	asked := 0
	s := &Server{o: Options{Log: slog.New(slog.DiscardHandler), Operate: func(string, client.Request) (client.Reply, error) {
		asked++
		return client.Reply{Message: "done"}, nil
	}}}
	ask := func(conn net.Conn, body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/v1/halt", strings.NewReader(body))
		s.serveOperation(w, r.WithContext(context.WithValue(r.Context(), connKey{}, conn)))
		return w
	}
	asker, conn := connected(t)
	assert.Contains(t, ask(conn, `{"now":true}`).Body.String(), "done")
	require.NoError(t, asker.CloseWrite())
	assert.Contains(t, ask(conn, `{"now":true}`).Body.String(), "done")
	assert.Equal(t, 2, asked)
	require.NoError(t, asker.Close())
	assert.Empty(t, ask(conn, `{"now":true}`).Body.String())
	assert.Empty(t, ask(conn, `{"now":tr`).Body.String())
	assert.Equal(t, 2, asked, "it has gone")
}

// connected returns the two ends of a connection: the asker's and the server's.
func connected(t *testing.T) (*net.UnixConn, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	asker, err := net.Dial("unix", l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { asker.Close() })
	conn, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return asker.(*net.UnixConn), conn
}

// A socket that Close has removed stays so: a look for a removed one may come after it.
func TestClosedSocketIsNotMadeAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, err := Listen(Options{Path: path, Mode: 0o600, Group: -1, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	s.restore()
	assert.FileExists(t, path)
	var looks sync.WaitGroup
	looks.Go(s.restore)
	s.Close()
	looks.Wait()
	s.restore()
	assert.NoFileExists(t, path)
}

// A group that the socket can't be given to leaves it to its owner alone, and is said with what mends it.
func TestSocketWithoutItsGroup(t *testing.T) {
	var log bytes.Buffer
	path := filepath.Join(t.TempDir(), "s")
	groups, err := os.Getgroups()
	require.NoError(t, err)
	foreign := os.Getegid() + 1
	for slices.Contains(groups, foreign) {
		foreign++
	}
	listening := make(chan *Server)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine, and nothing else runs without the right
		dropChown(t)
		s, err := Listen(Options{Path: path, Mode: 0o660, Group: foreign, Log: slog.New(slog.NewTextHandler(&log, nil))})
		assert.NoError(t, err)
		listening <- s
	}()
	s := <-listening
	require.NotNil(t, s)
	t.Cleanup(s.Close)
	info, err := os.Lstat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	assert.Contains(t, log.String(), "can't be given to [control] group")
	assert.Contains(t, log.String(), "usermod -aG")
}

// dropChown takes from this thread the right to give files to groups that it isn't in: root has it (capabilities(7)).
func dropChown(t *testing.T) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	assert.NoError(t, unix.Capget(&header, &data[0]))
	data[0].Effective &^= 1 << unix.CAP_CHOWN
	assert.NoError(t, unix.Capset(&header, &data[0]))
}

// A server that another one takes the place of, at another path and at its own again, answers who asked it.
func TestRetire(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	waits, asked := make(chan struct{}), make(chan struct{})
	listen := func() *Server {
		s, err := Listen(Options{Path: path, Mode: 0o600, Group: -1, Log: slog.New(slog.DiscardHandler), Operate: func(string, client.Request) (client.Reply, error) {
			close(asked)
			<-waits
			return client.Reply{Message: "late"}, nil
		}})
		require.NoError(t, err)
		return s
	}
	old := listen()
	answer := make(chan client.Reply, 1)
	go func() {
		reply, err := client.New(path).Do(context.Background(), "resume", client.Request{})
		assert.NoError(t, err)
		answer <- reply
	}()
	<-asked
	old.Retire()
	assert.NoFileExists(t, path)
	fresh := listen()
	t.Cleanup(fresh.Close)
	close(waits)
	assert.Equal(t, "late", (<-answer).Message)
	assert.FileExists(t, path, "the new one's")
}
