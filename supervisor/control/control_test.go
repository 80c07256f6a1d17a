package control

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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
