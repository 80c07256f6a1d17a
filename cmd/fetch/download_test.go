package main

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fetch"
)

const node = "\x7fELF a node"

func answer(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
}

// answerTLS serves h over https and returns the environment in which the program trusts it.
func answerTLS(t *testing.T, h http.HandlerFunc) (url string, env []string) {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	require.NoError(t, os.WriteFile(file, block, 0o644))
	return s.URL, []string{"SSL_CERT_FILE=" + file}
}

func TestDownload(t *testing.T) {
	sum256, sum512 := sha256.Sum256([]byte(node)), sha512.Sum512([]byte(node))
	var asked atomic.Value
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Method + " " + r.URL.String())
		answer(node)(w, r)
	})
	for name, args := range map[string][]string{
		"plain":      nil,
		"sha256":     {"--checksum", "sha256:" + hex.EncodeToString(sum256[:])},
		"sha512":     {"--checksum", "sha512:" + hex.EncodeToString(sum512[:])},
		"upper case": {"--checksum", "sha256:" + strings.ToUpper(hex.EncodeToString(sum256[:]))},
	} {
		t.Run(name, func(t *testing.T) {
			// The order of the parameters is part of a signed URL in some places; an archive's name changes nothing here.
			o := invoke(t, append(args, "--url", url+"/a/simd.tar.gz?a=2&b=1")...)
			require.Equal(t, 0, o.code, "%+v %s", o.last, o.stderr)
			assert.Equal(t, filepath.Join(o.dir, "simd"), o.last.Path)
			assert.Equal(t, node, o.file(t))
			assert.Equal(t, int64(len(node)), o.last.Bytes)
			assert.Equal(t, hex.EncodeToString(sum256[:]), o.last.SHA256)
			assert.Equal(t, "GET /a/simd.tar.gz?a=2&b=1", asked.Load(), "one GET, no HEAD before it")
		})
	}
	t.Run("over https", func(t *testing.T) {
		url, env := answerTLS(t, answer(node))
		o := invokeWith(t, env, "--url", url)
		require.Equal(t, 0, o.code, "%+v %s", o.last, o.stderr)
		assert.Equal(t, node, o.file(t))
	})
}

func TestDownloadReportsProgress(t *testing.T) {
	told := make(chan struct{})
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "2000")
		_, _ = io.WriteString(w, strings.Repeat("x", 1000))
		w.(http.Flusher).Flush()
		select {
		case <-told:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, strings.Repeat("x", 1000))
	})
	cmd := exec.CommandContext(t.Context(), program, "--url", url, "--out", t.TempDir(), "--name", "simd")
	cmd.Env = []string{}
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	messages := json.NewDecoder(stdout)
	var m fetch.Message
	require.NoError(t, messages.Decode(&m))
	assert.Equal(t, fetch.Message{Done: 1000, Total: 2000}, m)
	close(told) // the rest comes when the half was reported, however slow that is
	for err == nil {
		err = messages.Decode(&m)
	}
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, cmd.Wait())
	assert.NotEmpty(t, m.Path)
}

// TestSourcesRefused: nothing but https, and http on this machine, is ever asked.
func TestSourcesRefused(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "priv_validator_key.json")
	require.NoError(t, os.WriteFile(secret, []byte("secret"), 0o600))
	for source, reason := range map[string]string{
		"file://" + secret:                    "no host",
		"file://localhost" + secret:           "scheme",
		secret:                                "no host",
		"git::https://example.com/a":          "no host",
		"git::file://" + secret:               "no host",
		"s3::https://s3.amazonaws.com/b/a":    "no host",
		"ftp://example.com/a":                 "scheme",
		"http://example.com/a":                "plain http",
		"http://127.0.0.1.example.com/a":      "plain http",
		"http://10.0.0.1/a":                   "plain http",
		"http://[::]/a":                       "plain http",
		"github.com/a/b":                      "no host",
		"https://":                            "no host",
		"https://127.0.0.1:1/a//b":            "empty element",
		"https://127.0.0.1:1/a?checksum=md5:": "not for the server",
		"https://127.0.0.1:1/a?archive=zip":   "not for the server",
		"https://127.0.0.1:1/%zz":             "malformed",
	} {
		t.Run(source, func(t *testing.T) {
			invoke(t, "--url", source).refusedWith(t, fetch.Refused, reason)
		})
	}
}

func TestRedirects(t *testing.T) {
	var stranger atomic.Int64 // requests that should never have been made
	plain := serve(t, func(w http.ResponseWriter, r *http.Request) {
		stranger.Add(1)
		answer(node)(w, r)
	})
	to := func(target string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", target)
			w.WriteHeader(http.StatusFound)
		}
	}
	secret := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(secret, []byte("secret"), 0o600))
	for name, c := range map[string]struct{ target, reason string }{
		"to a file":             {"file://" + secret, "redirected"},
		"to a file with a host": {"file://localhost" + secret, "scheme"},
		"to plain http":         {"http://example.com/a", "plain http"},
		"to another protocol":   {"ftp://127.0.0.1/a", "scheme"},
		"to a forced getter":    {"git::https://example.com/a", "redirected"},
	} {
		t.Run(name, func(t *testing.T) {
			invoke(t, "--url", serve(t, to(c.target))).refusedWith(t, fetch.Refused, c.reason)
		})
	}
	t.Run("from https down to http on this machine", func(t *testing.T) {
		url, env := answerTLS(t, to(plain))
		invokeWith(t, env, "--url", url).refusedWith(t, fetch.Refused, "from https to http")
		assert.Zero(t, stranger.Load())
	})
	t.Run("up to https and down again", func(t *testing.T) {
		url, env := answerTLS(t, to(plain))
		invokeWith(t, env, "--url", serve(t, to(url))).refusedWith(t, fetch.Refused, "from https to http")
		assert.Zero(t, stranger.Load())
	})
	t.Run("from http on this machine up to https", func(t *testing.T) {
		url, env := answerTLS(t, answer(node))
		o := invokeWith(t, env, "--url", serve(t, to(url)))
		require.Equal(t, 0, o.code, "%+v", o.last)
		assert.Equal(t, node, o.file(t))
	})
	t.Run("more than five", func(t *testing.T) {
		for hops, ok := range map[int]bool{maxRedirects: true, maxRedirects + 1: false} {
			var seen atomic.Int64
			o := invoke(t, "--url", serve(t, func(w http.ResponseWriter, r *http.Request) {
				if seen.Add(1) <= int64(hops) {
					http.Redirect(w, r, fmt.Sprintf("/hop%d", seen.Load()), http.StatusFound)
					return
				}
				answer(node)(w, r)
			}))
			if ok {
				assert.Equal(t, 0, o.code, "%+v", o.last)
			} else {
				o.refusedWith(t, fetch.Refused, "redirects")
			}
		}
	})
}

// TestTerraformHeader: a header that makes go-getter copy local files is nothing but a header.
func TestTerraformHeader(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "key"), []byte("secret"), 0o600))
	var asked atomic.Value
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.URL.String())
		w.Header().Set("X-Terraform-Get", "file://"+dir)
		answer(node)(w, r)
	})
	o := invoke(t, "--url", url+"/module/")
	require.Equal(t, 0, o.code, "%+v", o.last)
	assert.Equal(t, node, o.file(t))
	assert.Equal(t, "/module/", asked.Load())
}

func TestNoCredentialsAreSent(t *testing.T) {
	home := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(home, ".netrc"), []byte("machine 127.0.0.1 login me password secret\n"), 0o600))
	var header atomic.Value
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		header.Store(r.Header.Clone())
		answer(node)(w, r)
	})
	o := invokeWith(t, []string{"HOME=" + home, "NETRC=" + filepath.Join(home, ".netrc")}, "--url", url)
	require.Equal(t, 0, o.code, "%+v", o.last)
	assert.Equal(t, http.Header{"User-Agent": {"nodevisor-fetch"}, "Connection": {"close"}}, header.Load())
}

func TestAnswers(t *testing.T) {
	for code, kind := range map[int]fetch.Kind{
		206: fetch.Refused, 204: fetch.Refused, 304: fetch.Refused,
		401: fetch.Refused, 403: fetch.Refused, 404: fetch.Refused, 410: fetch.Refused,
		408: fetch.Temporary, 429: fetch.Temporary,
		500: fetch.Temporary, 502: fetch.Temporary, 503: fetch.Temporary,
	} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			o := invoke(t, "--url", serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }))
			o.refusedWith(t, kind, fmt.Sprint(code))
		})
	}
	t.Run("connection refused", func(t *testing.T) {
		s := httptest.NewServer(answer(node))
		s.Close()
		invoke(t, "--url", s.URL).refusedWith(t, fetch.Temporary, "refused")
	})
	t.Run("a certificate nobody vouches for", func(t *testing.T) {
		url, _ := answerTLS(t, answer(node))
		invoke(t, "--url", url).refusedWith(t, fetch.Refused, "certificate")
	})
	t.Run("wrong digest", func(t *testing.T) {
		o := invoke(t, "--url", serve(t, answer(node)), "--checksum", "sha256:"+strings.Repeat("0", 64))
		o.refusedWith(t, fetch.Refused, "checksum mismatch")
	})
	t.Run("digest of an unknown kind", func(t *testing.T) {
		o := invoke(t, "--url", serve(t, answer(node)), "--checksum", "md5:d41d8cd98f00b204e9800998ecf8427e")
		o.refusedWith(t, fetch.Refused, "checksum mismatch")
	})
	t.Run("secrets of the URL stay out of the error", func(t *testing.T) {
		s := httptest.NewServer(answer(node))
		s.Close()
		url := strings.Replace(s.URL, "http://", "http://me:hunter2@", 1) + "/a?token=hunter2"
		o := invoke(t, "--url", url)
		o.refusedWith(t, fetch.Temporary, "refused")
		assert.NotContains(t, o.last.Error+o.stderr, "hunter2")
	})
}

// TestSlowLoris: a server that keeps the connection and sends next to nothing.
func TestSlowLoris(t *testing.T) {
	drip := func(w http.ResponseWriter, r *http.Request) {
		for {
			_, _ = io.WriteString(w, "x")
			w.(http.Flusher).Flush()
			select {
			case <-time.After(50 * time.Millisecond):
			case <-r.Context().Done():
				return
			}
		}
	}
	silent := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for name, h := range map[string]http.HandlerFunc{"drips": drip, "is silent": silent} {
		t.Run(name, func(t *testing.T) {
			o := invoke(t, "--url", serve(t, h), "--stall", "1s")
			o.refusedWith(t, fetch.Temporary, "stalled")
		})
		t.Run(name+" until the deadline", func(t *testing.T) {
			o := invoke(t, "--url", serve(t, h), "--deadline", "1s")
			o.refusedWith(t, fetch.Refused, "not done within 1s")
		})
	}
}

// TestProxy: https goes through the operator's proxy; plain http stays on this machine.
func TestProxy(t *testing.T) {
	var asked atomic.Value
	asked.Store("")
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Method + " " + r.Host)
		w.WriteHeader(http.StatusForbidden)
	})
	env := []string{"HTTPS_PROXY=" + proxy, "HTTP_PROXY=" + proxy, "http_proxy=" + proxy}
	invokeWith(t, env, "--url", "https://nodes.example.com/simd").refusedWith(t, fetch.Refused, "Forbidden")
	assert.Equal(t, "CONNECT nodes.example.com:443", asked.Load())

	asked.Store("")
	o := invokeWith(t, env, "--url", serve(t, answer(node)))
	require.Equal(t, 0, o.code, "%+v", o.last)
	assert.Empty(t, asked.Load())
}

// TestLongHeader: the head of an answer is bounded too.
func TestLongHeader(t *testing.T) {
	o := invoke(t, "--url", serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Long", strings.Repeat("x", 2*maxHeader))
		_, _ = io.WriteString(w, node)
	}))
	o.refusedWith(t, fetch.Refused, "exceeded")
}

// TestStoredAsSent: the digest is that of the file on the server, so nothing is decoded on the way.
func TestStoredAsSent(t *testing.T) {
	packed := string(gzipped(t, []byte(node)))
	o := invoke(t, "--url", serve(t, func(w http.ResponseWriter, r *http.Request) {
		assert.Empty(t, r.Header.Get("Accept-Encoding"))
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = io.WriteString(w, packed)
	}))
	require.Equal(t, 0, o.code, "%+v", o.last)
	assert.Equal(t, packed, o.file(t))
}
