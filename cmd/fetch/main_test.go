package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fetch"
)

// program is the downloader itself, built once: its limits would hold for the test process too.
var program string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "fetch-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "fetch")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// outcome is how one run of the program ended.
type outcome struct {
	code   int
	last   fetch.Message
	stderr string
	dir    string // --out
}

// file is the content of the result.
func (o outcome) file(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(o.last.Path)
	require.NoError(t, err)
	return string(data)
}

// invoke runs the program with a fresh --out; args may name another one.
func invoke(t *testing.T, args ...string) outcome {
	t.Helper()
	return invokeWith(t, nil, args...)
}

func invokeWith(t *testing.T, env []string, args ...string) outcome {
	t.Helper()
	o := outcome{dir: t.TempDir()}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"--out", o.dir, "--name", "simd"}, args...)...)
	cmd.Env = append([]string{}, env...) // not ours: an empty one
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	require.NoError(t, ctx.Err(), "the program hangs")
	o.code, o.stderr = cmd.ProcessState.ExitCode(), stderr.String()
	if o.code == 0 {
		require.NoError(t, err)
	}
	for _, line := range strings.Split(strings.TrimSpace(stdout.String()), "\n") {
		if line == "" {
			continue
		}
		o.last = fetch.Message{}
		require.NoError(t, json.Unmarshal([]byte(line), &o.last), "line %q", line)
	}
	return o
}

// refusedWith asserts a failure of a kind that names its reason and leaves nothing behind.
func (o outcome) refusedWith(t *testing.T, kind fetch.Kind, reason string) {
	t.Helper()
	assert.Equal(t, 1, o.code)
	assert.Equal(t, kind, o.last.Kind, "%+v %s", o.last, o.stderr)
	assert.Contains(t, o.last.Error, reason)
	assert.Empty(t, o.last.Path)
	entries, err := os.ReadDir(o.dir)
	require.NoError(t, err)
	assert.Empty(t, entries, "a failed run must leave nothing")
}

// serve answers every request with h, on a loopback address.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestUsage(t *testing.T) {
	full := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(full, "old"), []byte("old"), 0o600))
	for name, args := range map[string][]string{
		"neither mode":         {},
		"both modes":           {"--url", "https://a/b", "--unpack", "/x"},
		"a name with a path":   {"--url", "https://a/b", "--name", "../simd"},
		"a name that is dots":  {"--url", "https://a/b", "--name", ".."},
		"no limit":             {"--url", "https://a/b", "--max-bytes", "0"},
		"a negative limit":     {"--url", "https://a/b", "--max-files", "-1"},
		"no deadline":          {"--url", "https://a/b", "--deadline", "0s"},
		"a relative directory": {"--url", "https://a/b", "--out", "here"},
		"a missing directory":  {"--url", "https://a/b", "--out", "/nonexistent/dir"},
		"a full directory":     {"--url", "https://a/b", "--out", full},
		"an unknown flag":      {"--url", "https://a/b", "--insecure"},
		"an argument too many": {"--url", "https://a/b", "more"},
	} {
		t.Run(name, func(t *testing.T) {
			o := invoke(t, args...)
			assert.Equal(t, 2, o.code, o.stderr)
			assert.NotEmpty(t, o.stderr)
			assert.Empty(t, o.last, "a usage error says nothing on stdout")
		})
	}
	data, err := os.ReadFile(filepath.Join(full, "old"))
	require.NoError(t, err)
	assert.Equal(t, "old", string(data))
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	require.NoError(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

// TestUnpack: what the program makes of an archive's outcome; the archives themselves are unpack's tests.
func TestUnpack(t *testing.T) {
	file := filepath.Join(t.TempDir(), "body")
	packed := func(text string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		require.NoError(t, w.WriteHeader(&tar.Header{Name: "bin/simd", Typeflag: tar.TypeReg, Mode: 0o6755, Size: int64(len(text))}))
		_, err := w.Write([]byte(text))
		require.NoError(t, errors.Join(err, w.Close()))
		return gzipped(t, b.Bytes())
	}
	whole := packed(node)
	take := func(data []byte, args ...string) outcome {
		require.NoError(t, os.WriteFile(file, data, 0o600))
		return invoke(t, append(args, "--unpack", file)...)
	}
	for name, data := range map[string][]byte{"an archive": whole, "not an archive": []byte(node)} {
		o := take(data)
		require.Equal(t, 0, o.code, "%s: %+v %s", name, o.last, o.stderr)
		assert.Equal(t, filepath.Join(o.dir, "simd"), o.last.Path)
		assert.Equal(t, node, o.file(t))
		assert.EqualValues(t, len(node), o.last.Bytes)
		assert.Equal(t, fmt.Sprintf("%x", sha256.Sum256([]byte(node))), o.last.SHA256)
	}
	take(whole[:len(whole)-1]).refusedWith(t, fetch.Refused, "damaged archive")
	take(packed(strings.Repeat("x", 2000)), "--max-bytes", "1000").refusedWith(t, fetch.TooLarge, "more than 1000 bytes")
	// RFC 8878, 3.1.1.1.2: a window descriptor of exponent 31 stands for terabytes, far above the limit of the memory.
	take([]byte("\x28\xb5\x2f\xfd\x00\xf8\x01\x00\x00")).refusedWith(t, fetch.Refused, "window")
	invoke(t, "--unpack", filepath.Join(t.TempDir(), "absent")).refusedWith(t, fetch.Refused, "no such file")
}

// TestLifeline: when the holder of the pipe dies, the downloader does, however busy it is.
func TestLifeline(t *testing.T) {
	arrived, gone := make(chan struct{}), make(chan struct{})
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
		close(gone)
	})
	read, write, err := os.Pipe()
	require.NoError(t, err)
	defer write.Close()
	cmd := exec.CommandContext(t.Context(), program, "--url", url, "--out", t.TempDir(), "--name", "simd", "--lifeline", "3")
	cmd.ExtraFiles = []*os.File{read}
	require.NoError(t, cmd.Start())
	read.Close()
	await(t, arrived)
	write.Close()
	await(t, gone)
	assert.Error(t, cmd.Wait())
}

func await(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(time.Minute):
		require.FailNow(t, "waited too long")
	}
}

// TestConfined reads the limits of a program that is at work.
func TestConfined(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-release
		fmt.Fprint(w, "node")
	})
	cmd := exec.CommandContext(t.Context(), program, "--url", url, "--out", t.TempDir(), "--name", "simd", "--max-bytes", "1000")
	cmd.Env = []string{}
	require.NoError(t, cmd.Start())
	await(t, arrived)
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", cmd.Process.Pid))
	require.NoError(t, err)
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", cmd.Process.Pid))
	require.NoError(t, err)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	require.NoError(t, err)
	close(release)
	require.NoError(t, cmd.Wait())

	row := func(name string) []string {
		for _, line := range strings.Split(string(limits), "\n") {
			if strings.HasPrefix(line, name) {
				return strings.Fields(strings.TrimPrefix(line, name))[:2]
			}
		}
		return nil
	}
	assert.Equal(t, []string{"0", "0"}, row("Max core file size"))
	assert.Equal(t, []string{fmt.Sprint(1000 + slack), fmt.Sprint(1000 + slack)}, row("Max file size"))
	assert.Equal(t, []string{fmt.Sprint(int64(maxAddresses)), fmt.Sprint(int64(maxAddresses))}, row("Max address space"))
	assert.Equal(t, []string{fmt.Sprint(maxMemory), fmt.Sprint(maxMemory)}, row("Max data size"))
	assert.Equal(t, []string{fmt.Sprint(maxCPU), fmt.Sprint(maxCPU)}, row("Max cpu time"))
	assert.NotEmpty(t, tasks)
	assert.Contains(t, string(status), "NoNewPrivs:\t1")
	for _, line := range strings.Split(string(status), "\n") {
		if rss, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			t.Log("resident at most, while downloading:", strings.TrimSpace(rss))
		}
	}
}
