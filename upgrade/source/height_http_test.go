package source

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	rpcStatus  = `{"jsonrpc":"2.0","id":-1,"result":{"node_info":{"network":"demo"},"sync_info":{"latest_block_height":"%d","catching_up":true}}}`
	bareStatus = `{"node_info":{"network":"demo"},"sync_info":{"latest_block_height":"%d","catching_up":false}}`
	oldStatus  = `{"NodeInfo":{"network":"demo"},"SyncInfo":{"latest_block_height":"%d","catching_up":false}}`
)

func newHeights(t *testing.T, cfg Config, opt Options) *Heights {
	if opt.Home == "" {
		opt.Home = t.TempDir()
	}
	h := NewHeights(cfg, opt)
	t.Cleanup(h.Close)
	return h
}

func serve(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server
}

func TestReadFromURL(t *testing.T) {
	checkLeaks(t)
	body, empty := `{"jsonrpc":"2.0","method":"eth_blockNumber","params":[],"id":1}`, ""
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		sent, _ := io.ReadAll(r.Body)
		switch {
		case r.URL.Path == "/get" && r.Method == http.MethodGet && len(sent) == 0:
			fmt.Fprint(w, `{"best_block_height":12}`)
		case r.URL.Path == "/eth" && r.Method == http.MethodPost && string(sent) == body && r.Header.Get("Content-Type") == "application/json":
			fmt.Fprint(w, `{"jsonrpc":"2.0","id":1,"result":"0xff"}`)
		case r.URL.Path == "/empty" && r.Method == http.MethodPost && len(sent) == 0:
			fmt.Fprint(w, `[{"height":"7"}]`)
		default:
			http.Error(w, "unexpected", http.StatusBadRequest)
		}
	})
	for _, c := range []struct {
		cfg  Config
		want int64
	}{
		{Config{URL: server.URL + "/get", Path: "best_block_height"}, 12},
		{Config{URL: server.URL + "/eth", Path: "result", Body: &body}, 255},
		{Config{URL: server.URL + "/empty", Path: "[0].height", Body: &empty}, 7},
	} {
		require.NoError(t, c.cfg.Validate())
		h := newHeights(t, c.cfg, Options{})
		for range 2 {
			r, err := h.Read(testContext(t))
			require.NoError(t, err)
			assert.Equal(t, c.want, r.Height)
			assert.Equal(t, SourceURL, r.Source)
			assert.Positive(t, r.Latency)
		}
	}
}

func TestReadFromURLSurvivesBadAnswers(t *testing.T) {
	checkLeaks(t)
	stop := make(chan struct{})
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"404":        {http.NotFound, "404"},
		"500":        {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, `{"height":5}`, 500) }, "500"},
		"no content": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, "204"},
		"html":       {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, "no JSON"},
		"wrong type": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"height":{"n":5}}`) }, "neither a number nor a string"},
		"missing":    {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"error":{"code":-32603}}`) }, "height: not in the answer"},
		"not synced": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"height":0}`) }, "no block yet"},
		"truncated": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, `{"height":5}`)
		}, "unexpected EOF"},
		"hangs up": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
		"huge": {func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"height":5,"x":"%s"}`, strings.Repeat("x", maxAnswer))
		}, "larger than"},
		"endless":     {func(w http.ResponseWriter, _ *http.Request) { endless(w) }, "larger than"},
		"never comes": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "deadline exceeded"},
		"slow drip":   {func(w http.ResponseWriter, r *http.Request) { drip(w, r, stop) }, "deadline exceeded"},
		"loops":       {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, "10 redirects"},
	} {
		t.Run(name, func(t *testing.T) {
			server := serve(t, c.answer)
			h := newHeights(t, Config{URL: server.URL + "/?key=secret", Path: "height"}, Options{})
			for _, a := range h.asked {
				if a.timeout = patience; c.want == "deadline exceeded" {
					a.timeout = 300 * time.Millisecond
				}
			}
			began := time.Now()
			r, err := h.Read(testContext(t))
			require.ErrorIs(t, err, ErrUnknown)
			assert.ErrorContains(t, err, c.want)
			assert.NotContains(t, err.Error(), "secret", "the address may hold a key")
			assert.Zero(t, r.Height)
			assert.Less(t, time.Since(began), 2*patience)
		})
	}
	close(stop)
}

func endless(w io.Writer) {
	block := []byte(strings.Repeat(" ", 64<<10))
	for range 1000 {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

func drip(w http.ResponseWriter, r *http.Request, stop chan struct{}) {
	fmt.Fprint(w, `{"height":`)
	for {
		select {
		case <-r.Context().Done():
			return
		case <-stop:
			return
		case <-time.After(20 * time.Millisecond):
			fmt.Fprint(w, " ")
			_ = http.NewResponseController(w).Flush()
		}
	}
}

// rpcHome makes a home whose node listens at addr.
func rpcHome(t *testing.T, addr string) string {
	home := t.TempDir()
	write(t, cometPath(home), fmt.Sprintf("moniker = \"demo\"\n[rpc]\nladdr = %q\n[p2p]\nladdr = \"tcp://0.0.0.0:1\"\n", addr))
	return home
}

func status(format string, height int64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/status" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, format, height)
	}
}

func TestReadFromRPC(t *testing.T) {
	checkLeaks(t)
	server := serve(t, status(rpcStatus, 1234))
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	require.NoError(t, err)
	for _, addr := range []string{"tcp://127.0.0.1:" + port, "tcp://0.0.0.0:" + port, "tcp://:" + port, "http://127.0.0.1:" + port, "127.0.0.1:" + port} {
		h := newHeights(t, Config{}, Options{Home: rpcHome(t, addr)})
		r, err := h.Read(testContext(t))
		require.NoError(t, err, addr)
		assert.EqualValues(t, 1234, r.Height)
		assert.Equal(t, SourceRPC, r.Source)
		require.NotNil(t, r.CatchingUp)
		assert.True(t, *r.CatchingUp)
	}

	bare := serve(t, status(bareStatus, 77))
	h := newHeights(t, Config{}, Options{Home: rpcHome(t, strings.Replace(bare.URL, "http", "tcp", 1))})
	r, err := h.Read(testContext(t))
	require.NoError(t, err)
	assert.EqualValues(t, 77, r.Height)
	assert.False(t, *r.CatchingUp)
}

func TestReadFromRPCOverUnixSocket(t *testing.T) {
	checkLeaks(t)
	dir, err := os.MkdirTemp("", "rpc") // short: a socket's path has at most 107 bytes
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	listener, err := net.Listen("unix", filepath.Join(dir, "rpc.sock"))
	require.NoError(t, err)
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: status(rpcStatus, 9)}}
	server.Start()
	t.Cleanup(server.Close)
	h := newHeights(t, Config{}, Options{Home: rpcHome(t, "unix://"+dir+"/rpc.sock")})
	r, err := h.Read(testContext(t))
	require.NoError(t, err)
	assert.EqualValues(t, 9, r.Height)
}

// The node's arguments win over its file, and a changed file is followed.
func TestReadFromRPCFindsTheAddress(t *testing.T) {
	checkLeaks(t)
	one, two := serve(t, status(rpcStatus, 1)), serve(t, status(rpcStatus, 2))
	tcp := func(s *httptest.Server) string { return strings.Replace(s.URL, "http", "tcp", 1) }
	home := rpcHome(t, tcp(one))
	args := []string{"start"}
	h := newHeights(t, Config{}, Options{Home: home, Args: func() []string { return args }})
	read := func() int64 {
		h.Reset()
		r, err := h.Read(testContext(t))
		require.NoError(t, err)
		return r.Height
	}
	assert.EqualValues(t, 1, read())
	args = []string{"start", "--rpc.laddr", tcp(two)}
	assert.EqualValues(t, 2, read())
	args = []string{"start", "--rpc.laddr=" + tcp(one), "--x"}
	assert.EqualValues(t, 1, read())
	args = []string{"start"}
	write(t, cometPath(home), "# changed\n[rpc]\nladdr = \""+tcp(two)+"\"\n")
	assert.EqualValues(t, 2, read())

	for name, c := range map[string]struct{ config, want string }{
		"no RPC":     {"[rpc]\nladdr = \"\"\n", "no RPC"},
		"no address": {"[rpc]\nladdr = \"localhost\"\n", "no host:port"},
		"no TOML":    {"[rpc\n", "cannot read"},
		"huge":       {"#" + strings.Repeat("x", maxNodeConfig), "larger than"},
	} {
		write(t, cometPath(home), c.config)
		h.Reset()
		_, err := h.Read(testContext(t))
		require.ErrorIs(t, err, ErrUnknown, name)
		assert.ErrorContains(t, err, c.want, name)
	}
}

func TestReadFromRPCKeepsOneConnection(t *testing.T) {
	checkLeaks(t)
	connections := 0
	server := httptest.NewUnstartedServer(status(rpcStatus, 5))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections++
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	h := newHeights(t, Config{}, Options{Home: rpcHome(t, strings.Replace(server.URL, "http", "tcp", 1))})
	for range 20 {
		_, err := h.Read(testContext(t))
		require.NoError(t, err)
	}
	h.Close()
	server.Close()
	assert.Equal(t, 1, connections)
}

// A node that was restarted has closed the connection; the next reading must not fail for that.
func TestReadFromRPCAfterARestart(t *testing.T) {
	checkLeaks(t)
	server := serve(t, status(rpcStatus, 5))
	addr := server.Listener.Addr().String()
	h := newHeights(t, Config{}, Options{Home: rpcHome(t, "tcp://"+addr)})
	_, err := h.Read(testContext(t))
	require.NoError(t, err)
	server.Close()
	_, err = h.Read(testContext(t))
	require.ErrorIs(t, err, ErrUnknown)

	listener, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	again := &httptest.Server{Listener: listener, Config: &http.Server{Handler: status(rpcStatus, 6)}}
	again.Start()
	t.Cleanup(again.Close)
	h.Reset()
	r, err := h.Read(testContext(t))
	require.NoError(t, err)
	assert.EqualValues(t, 6, r.Height)
}

func TestParseStatusOutput(t *testing.T) {
	for name, out := range map[string]string{
		"rpc": fmt.Sprintf(rpcStatus, 5), "bare": fmt.Sprintf(bareStatus, 5), "old": fmt.Sprintf(oldStatus, 5) + "\n",
		"after warnings": "WARN: deprecated\n{not json\n" + fmt.Sprintf(bareStatus, 5) + "\nbye\n",
		"indented":       "{\n \"sync_info\": {\n  \"latest_block_height\": \"5\"\n }\n}\n",
		"number":         `{"sync_info":{"latest_block_height":5}}`,
	} {
		r, err := parseStatusOutput([]byte(out))
		require.NoError(t, err, name)
		assert.EqualValues(t, 5, r.Height, name)
	}
	for name, out := range map[string]string{
		"empty": "", "text": "Error: no RPC\n", "no sync info": `{"result":{}}`, "no height": `{"sync_info":{}}`, "null": `{"sync_info":null}`,
		"null height": `{"sync_info":{"latest_block_height":null}}`, "list": `{"sync_info":[1]}`, "zero": fmt.Sprintf(bareStatus, 0), "negative": fmt.Sprintf(bareStatus, -1),
	} {
		_, err := parseStatusOutput([]byte(out))
		assert.Error(t, err, name)
	}
}

// script makes an executable node that answers to `status --home HOME` alone.
func script(t *testing.T, body string) string {
	path := filepath.Join(t.TempDir(), "simd")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n[ \"$1 $2 $#\" = 'status --home 3' ] || exit 9\n"+body+"\n"), 0o755))
	return path
}

func TestReadFromTheStatusCommand(t *testing.T) {
	checkLeaks(t)
	home := t.TempDir()
	for name, c := range map[string]struct{ body, want string }{
		"stdout":         {`echo '` + fmt.Sprintf(bareStatus, 5) + `'`, ""},
		"stderr":         {`echo '` + fmt.Sprintf(oldStatus, 5) + `' >&2`, ""},
		"noise":          {`echo 'some warning' >&2; echo '` + fmt.Sprintf(bareStatus, 5) + `'`, ""},
		"environment":    {`echo "{\"sync_info\":{\"latest_block_height\":\"$HEIGHT\"}}"; [ "$3" = '` + home + `' ]`, ""},
		"fails":          {`echo 'Error: connection refused' >&2; exit 1`, "connection refused"},
		"prints nothing": {`exit 0`, "no JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			binary := script(t, c.body)
			h := newHeights(t, Config{}, Options{Home: home, Binary: func() string { return binary }, Env: append(os.Environ(), "HEIGHT=5")})
			r, err := h.Read(testContext(t))
			if c.want != "" {
				require.ErrorIs(t, err, ErrUnknown)
				assert.ErrorContains(t, err, c.want)
				return
			}
			require.NoError(t, err)
			assert.EqualValues(t, 5, r.Height)
			assert.Equal(t, SourceStatus, r.Source)
		})
	}
}

// The binary changes with an upgrade (Cosmovisor goes on asking the one it was started with), and it may hang.
func TestStatusCommandAsksTheCurrentBinary(t *testing.T) {
	checkLeaks(t)
	binary := ""
	h := newHeights(t, Config{}, Options{Binary: func() string { return binary }})
	_, err := h.Read(testContext(t))
	require.ErrorContains(t, err, "no binary")
	binary = script(t, `echo '`+fmt.Sprintf(bareStatus, 5)+`'`)
	r, err := h.Read(testContext(t))
	require.NoError(t, err)
	assert.EqualValues(t, 5, r.Height)
	binary = script(t, `echo '`+fmt.Sprintf(bareStatus, 6)+`'`)
	h.Reset()
	r, err = h.Read(testContext(t))
	require.NoError(t, err)
	assert.EqualValues(t, 6, r.Height)

	pidFile := filepath.Join(t.TempDir(), "pid")
	binary = script(t, `sleep 600 & echo $! >`+pidFile+`; wait`)
	h.Reset()
	ctx, cancel := context.WithCancel(testContext(t))
	var pid int
	go func() {
		defer cancel()
		for ctx.Err() == nil {
			if text, err := os.ReadFile(pidFile); err == nil {
				if _, err := fmt.Sscanln(string(text), &pid); err == nil {
					return
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	_, err = h.Read(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.Positive(t, pid)
	require.Eventually(t, func() bool { return gone(pid) }, patience, 5*time.Millisecond, "its children end with it")
}

func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}
