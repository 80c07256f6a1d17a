package fetch

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/internal/progress"
)

// downloader is the real program, built once.
var downloader string

// victim, set in its environment, makes the test binary a supervisor that downloads from there until it is killed.
const victim = "FETCH_TEST_VICTIM"

func TestMain(m *testing.M) {
	if request := os.Getenv(victim); request != "" {
		var req Request
		fmt.Sscan(request, &req.Program, &req.URL, &req.Dir)
		req.Name = "simd"
		_, _, err := Binary(context.Background(), req)
		fmt.Fprintln(os.Stderr, "not killed:", err)
		os.Exit(1)
	}
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() != "" { // fuzz tests start no downloader, and their workers come by here
		os.Exit(m.Run())
	}
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "fetch-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // it is run as another user too
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	downloader = filepath.Join(dir, "fetch")
	if out, err := exec.Command("go", "build", "-o", downloader, "nodevisor/cmd/fetch").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

const node = "\x7fELF a node"

func sum256(data string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(data))) }
func sum512(data string) string { return fmt.Sprintf("%x", sha512.Sum512([]byte(data))) }

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func answer(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

// request is one for url in a directory of its own, that doesn't wait long between attempts.
func request(t *testing.T, url string) Request {
	t.Helper()
	return Request{URL: url, Name: "simd", Dir: t.TempDir(), Backoff: time.Millisecond, Program: downloader}
}

// nothingLeft asserts that a failed download left neither a binary nor a staging directory.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, entries)
}

func targz(t *testing.T, files ...string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for i := 0; i < len(files); i += 2 {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: files[i], Typeflag: tar.TypeReg, Mode: 0o6777, Size: int64(len(files[i+1]))}))
		_, err := io.WriteString(w, files[i+1])
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	require.NoError(t, z.Close())
	return b.String()
}

func TestBinary(t *testing.T) {
	archive := targz(t, "README", "read", "bin/simd", node)
	for name, c := range map[string]struct{ body, query string }{
		"itself, sha256":     {node, "?checksum=sha256:" + sum256(node)},
		"itself, sha512":     {node, "?checksum=sha512:" + sum512(node)},
		"in an archive":      {archive, "/simd.tar.gz?checksum=sha256:" + sum256(archive)},
		"in a nameless one":  {archive, "/download?archive=tar.gz&checksum=sha256:" + sum256(archive)},
		"with other queries": {node, "/?a=1&checksum=sha256:" + sum256(node) + "&b=2"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			req := request(t, serve(t, answer(c.body))+c.query)
			req.Log = slog.New(slog.NewTextHandler(&log, nil))
			file, sum, err := Binary(t.Context(), req)
			require.NoError(t, err)

			data, err := os.ReadFile(file)
			require.NoError(t, err)
			assert.Equal(t, node, string(data))
			assert.Equal(t, sum256(node), sum, "the digest of the binary, not of the archive")
			assert.Equal(t, "simd", filepath.Base(file))
			assert.Equal(t, req.Dir, filepath.Dir(filepath.Dir(file)))
			info, err := os.Lstat(file)
			require.NoError(t, err)
			assert.Equal(t, os.FileMode(0o755), info.Mode())
			entries, err := os.ReadDir(filepath.Dir(file))
			require.NoError(t, err)
			assert.Len(t, entries, 1, "nothing but the binary")
			info, err = os.Stat(filepath.Dir(file))
			require.NoError(t, err)
			assert.Equal(t, os.FileMode(0o700)|os.ModeDir, info.Mode(), "nobody runs it before it is published")
			assert.Contains(t, log.String(), "binary downloaded and verified")
		})
	}
}

func TestBinaryReportsProgress(t *testing.T) {
	var mu sync.Mutex
	var events []progress.Event
	req := request(t, serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "2000")
		_, _ = io.WriteString(w, strings.Repeat("x", 1000))
		w.(http.Flusher).Flush()
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			mu.Lock()
			seen := len(events)
			mu.Unlock()
			if seen > 0 {
				break
			}
		}
		_, _ = io.WriteString(w, strings.Repeat("x", 1000))
	})+"?checksum=sha256:"+sum256(strings.Repeat("x", 2000)))
	req.Observe = func(e progress.Event) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e)
	}
	_, _, err := Binary(t.Context(), req)
	require.NoError(t, err)
	mu.Lock()
	defer mu.Unlock()
	assert.Contains(t, events, progress.Event{Phase: "download", Done: 1000, Total: 2000})
}

// TestBinaryChecksum: Cosmovisor runs a binary whose checksum was wrong at its next start. Here nothing of it is left.
func TestBinaryChecksum(t *testing.T) {
	var asked atomic.Int64
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		answer(node)(w, r)
	})
	for name, c := range map[string]struct {
		query, reason string
		asked         int64
	}{
		"wrong sha256":   {"?checksum=sha256:" + sum256("another"), "checksum mismatch", 1},
		"wrong sha512":   {"?checksum=sha512:" + sum512("another"), "checksum mismatch", 1},
		"missing":        {"", "missing checksum", 0},
		"md5":            {"?checksum=md5:d41d8cd98f00b204e9800998ecf8427e", "want sha256 or sha512", 0},
		"a file of sums": {"?checksum=file:" + url + "/sums", "want sha256 or sha512", 0},
	} {
		t.Run(name, func(t *testing.T) {
			asked.Store(0)
			req := request(t, url+c.query)
			_, _, err := Binary(t.Context(), req)
			require.ErrorContains(t, err, c.reason)
			assert.Contains(t, hint.Of(err), "upgrade add")
			assert.Equal(t, c.asked, asked.Load(), "a wrong digest is not tried again")
			nothingLeft(t, req.Dir)
		})
	}
	t.Run("is the sentinel", func(t *testing.T) {
		_, _, err := Binary(t.Context(), request(t, url+"?checksum=sha256:"+sum256("another")))
		require.ErrorIs(t, err, ErrChecksum)
	})
	t.Run("before unpacking", func(t *testing.T) {
		archive := targz(t, "simd", node, "simd", "twice")
		_, _, err := Binary(t.Context(), request(t, serve(t, answer(archive))+"?checksum=sha256:"+sum256("another")))
		require.ErrorIs(t, err, ErrChecksum, "a hostile archive isn't even opened")
	})
}

func TestBinaryRetries(t *testing.T) {
	truncated := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	reset := func(w http.ResponseWriter) { // amid the answer: what isn't sent yet is dropped, and RST is
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_, err = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
		}
		assert.NoError(t, errors.Join(err, conn.(*net.TCPConn).SetLinger(0), conn.Close()))
	}
	status := func(code int) func(http.ResponseWriter) { return func(w http.ResponseWriter) { w.WriteHeader(code) } }
	for name, c := range map[string]struct {
		trouble func(http.ResponseWriter)
		times   int64 // it answers so, then well
		asked   int64
		reason  string // "" = it succeeds
	}{
		"500 once":           {status(500), 1, 2, ""},
		"503 three times":    {status(503), 3, 4, ""},
		"503 for ever":       {status(503), 99, 4, "503"},
		"truncated once":     {truncated, 1, 2, ""},
		"truncated for ever": {truncated, 99, 4, "EOF"},
		"hung up once":       {func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, 1, 2, ""},
		"reset once":         {reset, 1, 2, ""},
		"reset for ever":     {reset, 99, 4, "connection reset by peer"},
		"404":                {status(404), 99, 1, "404"},
		"403":                {status(403), 99, 1, "403"},
		"redirect to a file": {func(w http.ResponseWriter) { w.Header().Set("Location", "file:///etc/passwd"); w.WriteHeader(302) }, 99, 1, "redirected"},
		"redirect to http":   {func(w http.ResponseWriter) { w.Header().Set("Location", "http://example.com/"); w.WriteHeader(302) }, 99, 1, "plain http"},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			req := request(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1) <= c.times {
					c.trouble(w)
					return
				}
				answer(node)(w, r)
			})+"?checksum=sha256:"+sum256(node))
			file, sum, err := Binary(t.Context(), req)
			assert.Equal(t, c.asked, asked.Load())
			if c.reason == "" {
				require.NoError(t, err)
				assert.Equal(t, sum256(node), sum)
				assert.FileExists(t, file)
				return
			}
			require.ErrorContains(t, err, c.reason)
			assert.Contains(t, hint.Of(err), "upgrade add")
			nothingLeft(t, req.Dir)
		})
	}
}

func TestBinaryRefuses(t *testing.T) {
	ask := func(body string, change func(*Request)) (string, error) {
		req := request(t, serve(t, answer(body))+"?checksum=sha256:"+sum256(body))
		if change != nil {
			change(&req)
		}
		_, _, err := Binary(t.Context(), req)
		return req.Dir, err
	}
	nothing := func(*Request) {}
	for name, c := range map[string]struct {
		body   string
		change func(*Request)
		reason string
	}{
		"too large":       {node, func(r *Request) { r.MaxBytes = 3 }, "limit is 3"},
		"a bomb":          {targz(t, "simd", strings.Repeat("\x00", 1<<20)), func(r *Request) { r.MaxBytes = 1 << 19 }, "more than 524288 bytes"},
		"too many files":  {targz(t, "a", "", "b", "", "simd", node), func(r *Request) { r.MaxFiles = 2 }, "more than 2 entries"},
		"two binaries":    {targz(t, "simd", node, "bin/simd", node), nothing, "2 binaries"},
		"no binary":       {targz(t, "a", "x", "b", "x"), nothing, "holds neither"},
		"zip-slip":        {targz(t, "../simd", node), nothing, "leads out"},
		"an empty body":   {"", nothing, "empty file"},
		"a name with /":   {node, func(r *Request) { r.Name = "../simd" }, "not a file name"},
		"no name":         {node, func(r *Request) { r.Name = "" }, "not a file name"},
		"file:":           {node, func(r *Request) { r.URL = "file:///bin/sh?checksum=sha256:" + sum256(node) }, "no host"},
		"http elsewhere":  {node, func(r *Request) { r.URL = "http://example.com/?checksum=sha256:" + sum256(node) }, "only https"},
		"git":             {node, func(r *Request) { r.URL = "git::https://h/r?checksum=sha256:" + sum256(node) }, "no host"},
		"no such program": {node, func(r *Request) { r.Program = filepath.Join(r.Dir, "absent") }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := ask(c.body, c.change)
			require.ErrorContains(t, err, c.reason)
			nothingLeft(t, dir)
		})
	}
}

func TestBinaryDeadline(t *testing.T) {
	stuck := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "x")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
	t.Run("passes", func(t *testing.T) {
		req := request(t, serve(t, stuck)+"?checksum=sha256:"+sum256(node))
		req.Deadline = 500 * time.Millisecond
		_, _, err := Binary(t.Context(), req)
		require.ErrorContains(t, err, "not done within 500ms")
		nothingLeft(t, req.Dir)
	})
	t.Run("cancelled by the caller", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req := request(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
			cancel()
			stuck(w, r)
		})+"?checksum=sha256:"+sum256(node))
		_, _, err := Binary(ctx, req)
		require.ErrorIs(t, err, context.Canceled)
		assert.Empty(t, hint.Of(err), "there is nothing to mend")
		nothingLeft(t, req.Dir)
	})
	t.Run("cancelled between attempts", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req := request(t, serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(503)
			time.AfterFunc(300*time.Millisecond, cancel)
		})+"?checksum=sha256:"+sum256(node))
		req.Backoff = time.Hour
		_, _, err := Binary(ctx, req)
		require.ErrorIs(t, err, context.Canceled)
		nothingLeft(t, req.Dir)
	})
}

func await(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(30 * time.Second):
		require.FailNow(t, "waited too long")
	}
}
