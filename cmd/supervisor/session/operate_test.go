package session

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/console"
	"nodevisor/internal/hint"
	"nodevisor/internal/progress"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/home"
)

// A running supervisor is asked how far it is, until its answer to the operation is there.
func TestFollowingASupervisor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	var asked atomic.Int64
	over := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		n := asked.Add(1)
		if n == 1 {
			w.WriteHeader(http.StatusTeapot) // a question that isn't answered is asked again
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"progress": map[string]any{"phase": "snapshot", "done": n, "total": 1000}})
		if n == 3 {
			close(over)
		}
	})
	mux.HandleFunc("POST /v1/snapshots", func(w http.ResponseWriter, _ *http.Request) {
		<-over
		_, _ = w.Write([]byte(`{"message":"done"}`))
	})
	server := &http.Server{Handler: mux}
	go server.Serve(l) //nolint:errcheck // it ends with Close
	t.Cleanup(func() { server.Close() })

	var seen []progress.Event
	s := &Session{App: &cli.App{Meter: console.NewMeter(nil, nil, nil)}, Progress: func(e progress.Event) { seen = append(seen, e) }}
	s.Config.Control.Socket = path
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	reply, err := s.ask(ctx, client.OpSnapshots, client.Request{})
	require.NoError(t, err)
	assert.Equal(t, "done", reply.Message)
	require.NotEmpty(t, seen)
	assert.Equal(t, progress.Event{Phase: "snapshot", Done: 2, Total: 1000}, seen[0])
	time.Sleep(pollInterval) // a question that was under way may only be counted now
	before := asked.Load()
	time.Sleep(2 * pollInterval)
	assert.Equal(t, before, asked.Load(), "nobody asks any more")
}

// A supervisor that has the lock and no socket yet was just started: it is waited for, and nothing is done in its place.
func TestASocketIsWaitedFor(t *testing.T) {
	s := &Session{App: &cli.App{}}
	s.Layout.Home = t.TempDir()
	require.NoError(t, os.MkdirAll(s.Layout.State(), 0o750))
	lock, err := home.AcquireLock(s.Layout.LockPath())
	require.NoError(t, err)
	t.Cleanup(func() { lock.Close() })
	asked := 0
	live, err := s.Either(t.Context(), func() error {
		if asked++; asked < 3 {
			return client.ErrNotRunning
		}
		return nil
	}, func(*Offline) error {
		assert.Fail(t, "done beside it")
		return nil
	})
	require.NoError(t, err)
	assert.True(t, live)
	assert.Equal(t, 3, asked)
}

// A signal ends the wait. It says whether the supervisor has taken the operation: only then does it go on there.
func TestInterrupted(t *testing.T) {
	for says, takes := range map[string]bool{"goes on with it": true, "hasn't taken it, nothing was changed": false} {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		require.NoError(t, err)
		over := make(chan struct{})
		server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if takes {
				_, _ = io.ReadAll(r.Body)
			}
			assert.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
			<-over
		})}
		go server.Serve(l) //nolint:errcheck // it ends with Close
		s := &Session{App: &cli.App{}, joined: path}
		_, err = s.ask(t.Context(), client.OpHalt, client.Request{Now: true})
		close(over)
		require.NoError(t, server.Close())
		require.ErrorContains(t, err, "interrupted (SIGTERM); the running supervisor "+says)
		assert.Equal(t, "supervisor status", hint.Of(err))
		sig := (*cli.Interrupted)(nil)
		require.ErrorAs(t, err, &sig)
		assert.Equal(t, syscall.SIGTERM, sig.Signal)
	}
}
