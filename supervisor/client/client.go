package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"nodevisor/internal/hint"
)

// maxAnswer caps what is read of an answer, in bytes.
const maxAnswer = 64 << 20

// ErrNotRunning means that no supervisor listens on the socket: the command works on the files, under the home lock.
var ErrNotRunning = errors.New("no supervisor is running for this home")

// Client speaks to one supervisor.
type Client struct {
	socket string
	http   *http.Client
}

// New makes a client for the socket at path. It connects at the first call.
func New(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{socket: path, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status returns the status document as the supervisor wrote it.
func (c *Client) Status(ctx context.Context) (json.RawMessage, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://supervisor/v1/status", nil)
	if err != nil {
		return nil, err
	}
	return c.send(req)
}

// Do has an operation done and waits for its end.
func (c *Client) Do(ctx context.Context, op string, r Request) (Reply, error) {
	var reply Reply
	body, err := json.Marshal(r)
	if err != nil {
		return reply, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://supervisor/v1/"+op, bytes.NewReader(body))
	if err != nil {
		return reply, err
	}
	answer, err := c.send(req)
	if err != nil {
		return reply, err
	}
	return reply, json.Unmarshal(answer, &reply)
}

// send returns the body of a good answer; a bad one is a *Failure.
func (c *Client) send(req *http.Request) ([]byte, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("cannot read the supervisor's answer: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return body, nil
	}
	f := &Failure{}
	if err := json.Unmarshal(body, f); err != nil || f.Message == "" {
		f = &Failure{Message: "the supervisor answered " + resp.Status, Code: 1}
	}
	return nil, f
}

// unreachable tells a supervisor that isn't there from one that can't be reached, and from one that ended while it was at
// work: that work may be half done, and must not be begun again as if nobody had been asked.
func (c *Client) unreachable(err error) error {
	dial := new(net.OpError)
	dialled := !errors.As(err, &dial) || dial.Op != "dial"
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case dialled:
		return &hint.Error{Op: "get an answer of the supervisor at", Path: c.socket, Err: err, Hint: "supervisor status"}
	case errors.Is(err, os.ErrNotExist), refused(err):
		return ErrNotRunning
	}
	return &hint.Error{Op: "reach the supervisor at", Path: c.socket, Err: err, Hint: "run the command as the node's user, or as root"}
}
