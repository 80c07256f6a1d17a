package alert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodevisor/internal/proc"
)

const (
	// maxOutput caps what is kept of a command's stdout, and maxAnswer what is read of a webhook's answer, in bytes.
	maxOutput = 4 << 10
	maxAnswer = 4 << 10
)

// command runs a program for each event: the event in its environment, and as JSON on its stdin.
type command struct{ argv []string }

func (c command) send(ctx context.Context, a Alert) error {
	body, err := json.Marshal(a)
	if err != nil {
		return err
	}
	// A file, not a pipe: a program that never reads its stdin must not be waited for.
	stdin, err := fileOf(append(body, '\n'))
	if err != nil {
		return fmt.Errorf("cannot hand the event over: %w", err)
	}
	defer stdin.Close()
	cmd := exec.Command(c.argv[0], c.argv[1:]...)
	cmd.Stdin, cmd.Dir = stdin, "/"
	cmd.Env = append(environ(),
		"SUPERVISOR_EVENT="+a.Event, "SUPERVISOR_EVENT_DETAIL="+clean(a.Detail), "SUPERVISOR_EVENT_TEXT="+clean(a.Text),
		"SUPERVISOR_EVENT_NODE="+a.Node, "SUPERVISOR_EVENT_HOME="+a.Home, "SUPERVISOR_EVENT_HOST="+a.Host,
		"SUPERVISOR_EVENT_TIME="+a.Time.Format(time.RFC3339))
	_, err = proc.Output(ctx, cmd, maxOutput)
	return err
}

// environ is the little that a program needs of the supervisor's environment, which may hold a node's secrets.
func environ() []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// clean drops what no environment variable can hold.
func clean(s string) string { return strings.ReplaceAll(s, "\x00", "") }

// fileOf returns a file in memory that reads as data (memfd_create(2)): what tells of a full disk must not need one.
func fileOf(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("event", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "event")
	_, err = f.Write(data)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// webhook posts each event. Its address is a secret: it is in no error and no log.
type webhook struct {
	address string
	client  *http.Client
}

func newWebhook(address string) *webhook {
	return &webhook{address: address, client: &http.Client{
		// Not followed: the body is for the one who was named, and a POST would become a GET (RFC 9110, 15.4).
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		// A connection for each event: they are rare, and an idle one would be kept for nothing.
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, TLSHandshakeTimeout: timeout},
	}}
}

func (w *webhook) send(ctx context.Context, a Alert) error {
	body, err := json.Marshal(a)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.address, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("cannot post: %w", w.hide(err))
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "nodevisor")
	resp, err := w.client.Do(req)
	if err != nil {
		return fmt.Errorf("cannot post: %w", w.hide(err))
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) // what it says may repeat the address
	switch code := resp.StatusCode; {
	case code < 300:
		return nil
	case code == http.StatusRequestTimeout, code == http.StatusTooManyRequests, code >= 500:
		return fmt.Errorf("the receiver answered %d", code)
	case code < 400:
		return fmt.Errorf("%w: the receiver answered %d, a redirect, which is not followed", errFinal, code)
	default:
		return fmt.Errorf("%w: the receiver answered %d", errFinal, code)
	}
}

// hide makes an error that doesn't name the address in any part: host names hold secrets, too.
func (w *webhook) hide(err error) error {
	dns, op, timed := new(net.DNSError), new(net.OpError), net.Error(nil)
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.As(err, &timed) && timed.Timeout():
		return errors.New("no answer in time")
	case errors.As(err, &dns):
		return errors.New("its host name can't be resolved")
	case errors.As(err, &op):
		return fmt.Errorf("%s: %w", op.Op, op.Err)
	}
	if wrapped := new(url.Error); errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	text := err.Error()
	if u, perr := url.Parse(w.address); perr == nil {
		for _, part := range []string{w.address, u.RequestURI(), u.RawQuery, u.User.String(), u.Host, u.Hostname()} {
			if len(part) > 1 {
				text = strings.ReplaceAll(text, part, "…")
			}
		}
	}
	return errors.New(text)
}
