package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

// Nobody is there: no socket, or one that was left behind. Only then may a command work on the files by itself.
func TestNotRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	_, err := New(path).Status(t.Context())
	require.ErrorIs(t, err, ErrNotRunning)
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	_, err = New(path).Do(t.Context(), OpHalt, Request{Now: true})
	require.ErrorIs(t, err, ErrNotRunning)
}

// A supervisor that ends while it is at work is something else, also where its socket is gone by then: the work may be
// half done, and mustn't be begun again.
func TestEndedAmidAnOperation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Read(make([]byte, 1024))
		l.Close() // removes the socket
		conn.Close()
	}()
	_, err = New(path).Do(t.Context(), OpApply, Request{Name: "v2"})
	require.Error(t, err)
	assert.NotErrorIs(t, err, ErrNotRunning)
	assert.Equal(t, "supervisor status", hint.Of(err))
}

// A supervisor that listens and doesn't answer is named with its pid, and what was asked of it is never sent: it can't be
// done later.
func TestNoAnswer(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()
	c := New(path)
	c.patience = time.Second
	_, err = c.Status(t.Context())
	require.ErrorIs(t, err, ErrNoAnswer)
	_, err = c.Do(t.Context(), OpHalt, Request{Name: "secret-of-the-body"})
	require.ErrorIs(t, err, ErrNoAnswer)
	assert.Contains(t, err.Error(), fmt.Sprintf("no answer of process %d within 1s; nothing was changed", os.Getpid()))
	assert.Contains(t, hint.Of(err), fmt.Sprintf("-p %d", os.Getpid()))
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("by hand"))
	_, err = c.Do(ctx, OpHalt, Request{})
	require.EqualError(t, err, "by hand")
	for range 2 { // the question, and the operation
		conn, err := l.Accept()
		require.NoError(t, err)
		sent, err := io.ReadAll(conn)
		require.NoError(t, err)
		assert.Contains(t, string(sent), "/v1/")
		assert.NotContains(t, string(sent), "secret-of-the-body")
		conn.Close()
	}
}

// An operation that was taken has no limit, and goes on without whoever asked for it.
func TestTaken(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	seen, over := make(chan string, 1), make(chan struct{})
	server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		seen <- string(body)
		<-over
	})}
	go server.Serve(l) //nolint:errcheck // it ends with Close
	t.Cleanup(func() { server.Close() })
	t.Cleanup(func() { close(over) })
	c := New(path)
	c.patience = 2 * time.Second // it must be taken within that
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := c.Do(ctx, OpApply, Request{Name: "v2"})
		done <- err
	}()
	assert.JSONEq(t, `{"name":"v2"}`, <-seen)
	select {
	case err := <-done:
		require.Fail(t, "it is still under way", "%v", err)
	case <-time.After(c.patience + 100*time.Millisecond):
	}
	gone := errors.New("by hand")
	cancel(gone)
	err = <-done
	require.ErrorIs(t, err, ErrTaken)
	assert.ErrorIs(t, err, gone)
}

// Answers: a document, a failure with its hint, something that is neither, and none in time.
func TestAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"schema":1}`)) }) //nolint:errcheck
	mux.HandleFunc("POST /v1/halt", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		w.Write([]byte(`{"message":"cannot halt: busy","hint":"supervisor status","code":1}`)) //nolint:errcheck
	})
	mux.HandleFunc("POST /v1/add", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	mux.HandleFunc("POST /v1/apply", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	server := &http.Server{Handler: mux}
	go server.Serve(l) //nolint:errcheck // it ends with Close
	t.Cleanup(func() { server.Close() })
	c := New(path)
	status, err := c.Status(t.Context())
	require.NoError(t, err)
	assert.JSONEq(t, `{"schema":1}`, string(status))
	_, err = c.Do(t.Context(), OpHalt, Request{})
	assert.Equal(t, &Failure{Message: "cannot halt: busy", Hint: "supervisor status", Code: 1}, err)
	_, err = c.Do(t.Context(), OpAdd, Request{})
	assert.ErrorContains(t, err, "418")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = c.Do(ctx, OpApply, Request{})
	assert.ErrorIs(t, err, context.DeadlineExceeded)
}
