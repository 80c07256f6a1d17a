package source

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// maxAnswer bounds what is read of an HTTP answer, 1 MiB: an answer that holds a height has a few hundred bytes.
const maxAnswer = 1 << 20

// endpoint is where a node listens, as its own configuration writes it.
type endpoint struct {
	network, address string // as net.Dial takes them
	tls              bool
}

// parseEndpoint reads "host:port", "tcp://host:port", "http://…", "https://…" (TLS), "unix:///path" and "unix:path". An
// unspecified host (0.0.0.0, [::], none) is where the node listens, not where it can be reached: net.Dial takes it as
// the local system.
func parseEndpoint(s string) (endpoint, error) {
	scheme, rest, ok := strings.Cut(strings.TrimSpace(s), "://")
	if !ok {
		if path, isUnix := strings.CutPrefix(scheme, "unix:"); isUnix {
			scheme, rest = "unix", path
		} else {
			scheme, rest = "tcp", scheme
		}
	}
	switch scheme {
	case "dns": // gRPC's own spelling, dns:///host:port
		rest = strings.TrimPrefix(rest, "/")
		fallthrough
	case "tcp", "http", "https":
		rest, _, _ = strings.Cut(rest, "/")
		if _, port, err := net.SplitHostPort(rest); err != nil || port == "" {
			return endpoint{}, fmt.Errorf("address %q is no host:port", s)
		}
		return endpoint{network: "tcp", address: rest, tls: scheme == "https"}, nil
	case "unix":
		if rest == "" {
			return endpoint{}, fmt.Errorf("address %q names no socket", s)
		}
		return endpoint{network: "unix", address: rest}, nil
	}
	return endpoint{}, fmt.Errorf("address %q has an unknown scheme", s)
}

// base is the URL of e for net/http, which needs a host even where the dialler looks at none.
func (e endpoint) base() string {
	scheme, host := "http", e.address
	if e.tls {
		scheme = "https"
	}
	if e.network == "unix" {
		host = "localhost"
	} else if strings.HasPrefix(host, ":") {
		host = "localhost" + host
	}
	return scheme + "://" + host
}

// transport reaches e and nothing else: no proxy, few connections, none of them kept for long.
func (e endpoint) transport() *http.Transport {
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, e.network, e.address)
		},
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
		MaxIdleConns:    1,
		IdleConnTimeout: 15 * time.Second,
	}
}

// exchange performs req and returns its body, at most maxAnswer. Errors don't repeat the address: it may hold a password or
// a key, and who asked knows it.
func exchange(client *http.Client, req *http.Request) ([]byte, error) {
	resp, err := client.Do(req)
	if err != nil {
		if ue := new(url.Error); errors.As(err, &ue) {
			return nil, ue.Err
		}
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the answer is %s", resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the answer: %w", err)
	}
	if len(body) > maxAnswer {
		return nil, fmt.Errorf("the answer is larger than %d bytes", maxAnswer)
	}
	return body, nil
}
