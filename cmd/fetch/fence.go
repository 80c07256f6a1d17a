package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nodevisor/internal/fetch"
)

const (
	maxRedirects = 5
	minRate      = 512 // bytes a second, on average over a stall window: 100 MB at that rate take more than two days

	connectTimeout = 15 * time.Second
	headerTimeout  = 30 * time.Second
	maxHeader      = 64 << 10

	tick = 500 * time.Millisecond // between two reports of progress
)

// fence is the only way to the network: each request and each answer passes here, redirects too.
type fence struct {
	https, loopback *http.Transport
	out             string
	maxBytes        int64
	meter           *meter
}

func newFence(o options, m *meter) *fence {
	transport := func(d net.Dialer, proxy func(*http.Request) (*url.URL, error)) *http.Transport {
		d.Timeout = connectTimeout
		return &http.Transport{
			Proxy: proxy, DialContext: d.DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    connectTimeout,
			ResponseHeaderTimeout:  headerTimeout,
			MaxResponseHeaderBytes: maxHeader,
			DisableKeepAlives:      true,
			DisableCompression:     true, // the digest is that of the file as it is stored
		}
	}
	return &fence{
		https:    transport(net.Dialer{}, http.ProxyFromEnvironment),
		loopback: transport(net.Dialer{Control: onlyLoopback}, nil),
		out:      o.out, maxBytes: o.maxBytes, meter: m,
	}
}

// onlyLoopback refuses to connect to an address that isn't this machine's, whatever its name promised.
func onlyLoopback(_, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil || !addr.Addr().Unmap().IsLoopback() {
		return refusal("plain http to %s: only https is allowed", address)
	}
	return nil
}

// RoundTrip makes one request. A redirect goes back to the client; any other answer than 200 is a failure.
func (f *fence) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := fetch.AllowedURL(req.URL); err != nil {
		return nil, refusal("%w", err)
	}
	transport := f.https
	if req.URL.Scheme == "http" {
		transport = f.loopback
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		var cert *tls.CertificateVerificationError
		if errors.As(err, &cert) {
			return nil, refusal("%w", err)
		}
		return nil, err
	}
	if err := f.admit(resp); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// admit refuses an answer that can't become a file, and puts the meter into the body of one that can.
func (f *fence) admit(resp *http.Response) error {
	switch code := resp.StatusCode; {
	case code == http.StatusOK:
	case code == 301, code == 302, code == 303, code == 307, code == 308:
		return nil
	case code >= 500, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		return temporary("the server answered %s", resp.Status)
	default: // among them 206: nobody asked for a part
		return refusal("the server answered %s", resp.Status)
	}
	size := resp.ContentLength // -1 = not told
	if size > f.maxBytes {
		return tooLarge("the file is of %d bytes, the limit is %d", size, f.maxBytes)
	}
	if err := room(f.out, size); err != nil {
		return err
	}
	f.meter.done.Store(0)
	f.meter.total.Store(max(size, 0))
	resp.Body = &body{ReadCloser: resp.Body, meter: f.meter, max: f.maxBytes}
	return nil
}

// room refuses what doesn't fit onto the file system of dir, before it fills it. An archive needs more room than it
// takes itself; how much, only unpacking tells.
func room(dir string, size int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return refusal("cannot read free space of %s: %w", dir, err)
	}
	block := fs.Frsize // zero on file systems that know no fragments
	if block == 0 {
		block = fs.Bsize
	}
	if free := int64(fs.Bavail) * block; size > free {
		return &failed{fetch.NoSpace, fmt.Errorf("no space left on device: %d bytes needed, %d free", size, free)}
	}
	return nil
}

// checkRedirect follows at most maxRedirects, never from https to http, and to http only where all of the way is on this
// machine.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return refusal("more than %d redirects", maxRedirects)
	}
	if err := fetch.AllowedURL(req.URL); err != nil {
		return refusal("redirected: %w", err)
	}
	for _, before := range via {
		if before.URL.Scheme == "https" && req.URL.Scheme != "https" {
			return refusal("redirected from https to %s", req.URL.Scheme)
		}
	}
	return nil
}

// body counts what is read, and ends with an error where there is more than max.
type body struct {
	io.ReadCloser
	meter *meter
	max   int64
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.meter.done.Add(int64(n)) > b.max {
		return n, tooLarge("more than %d bytes", b.max)
	}
	return n, err
}

// meter counts the bytes of the body that came.
type meter struct{ done, total atomic.Int64 }

// watch tells progress, and cancels when less than minRate came over a window. The first window holds the connecting too.
// A server that sends a byte now and then would otherwise keep the download until the deadline, past the upgrade's height.
func (m *meter) watch(ctx context.Context, window time.Duration, cancel context.CancelCauseFunc, say *speaker) {
	progress := time.NewTicker(min(tick, window))
	defer progress.Stop()
	stall := time.NewTicker(window)
	defer stall.Stop()
	var told, before int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-progress.C:
			if done := m.done.Load(); done != told {
				told = done
				say.message(fetch.Message{Done: done, Total: m.total.Load()})
			}
		case <-stall.C:
			done := m.done.Load()
			if float64(done-before) < minRate*window.Seconds() {
				cancel(temporary("stalled: %d bytes in %s", done-before, window))
				return
			}
			before = done
		}
	}
}
