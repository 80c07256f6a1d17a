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
	"sync/atomic"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
)

const (
	// maxAnswer caps what is read of an answer, in bytes.
	maxAnswer = 64 << 20
	// patience is how long a supervisor may take to answer a question, or to take an operation. It answers within
	// milliseconds: one that takes longer is stopped (SIGSTOP), hangs, or waits for a disk.
	patience = 10 * time.Second
)

var (
	// ErrNotRunning means that no supervisor listens on the socket: the command works on the files, under the home lock.
	ErrNotRunning = errors.New("no supervisor is running for this home")
	// ErrNoAnswer means that one listens and didn't answer in time. What was asked of it is not done later, either.
	ErrNoAnswer = errors.New("no answer")
	// ErrTaken means that the supervisor has taken an operation, and goes on with it although nobody waits for its end.
	ErrTaken = errors.New("the running supervisor goes on with it")
)

// Client speaks to one supervisor.
type Client struct {
	socket   string
	http     *http.Client
	patience time.Duration
	peer     atomic.Int64 // the pid of the supervisor; 0 = not known
}

// New makes a client for the socket at path. It connects at the first call.
func New(path string) *Client {
	c := &Client{socket: path, patience: patience}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: c.dial, DisableKeepAlives: true,
		ExpectContinueTimeout: time.Hour, // never without being asked for: see offer
	}}
	return c
}

func (c *Client) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err == nil {
		c.peer.Store(int64(listener(conn)))
	}
	return conn, err
}

// Status returns the status document as the supervisor wrote it.
func (c *Client) Status(ctx context.Context) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.patience, ErrNoAnswer)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://supervisor/v1/status", nil)
	if err != nil {
		return nil, err
	}
	return c.send(req)
}

// Do has an operation done and waits for its end, which may take hours: only that it is taken has a limit. Where ctx ends
// after that the error is ErrTaken.
func (c *Client) Do(ctx context.Context, op string, r Request) (Reply, error) {
	var reply Reply
	body, err := json.Marshal(r)
	if err != nil {
		return reply, err
	}
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	o := &offer{body: bytes.NewReader(body)}
	defer time.AfterFunc(c.patience, func() {
		if o.withdraw() {
			giveUp(ErrNoAnswer)
		}
	}).Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://supervisor/v1/"+op, o)
	if err != nil {
		return reply, err
	}
	req.ContentLength = int64(len(body))
	req.Header.Set("Expect", "100-continue")
	answer, err := c.send(req)
	switch {
	case err == nil:
		return reply, json.Unmarshal(answer, &reply)
	case ctx.Err() != nil && !o.withdraw():
		return reply, fmt.Errorf("%w: %w", ErrTaken, err)
	}
	return reply, err
}

// send returns the body of a good answer; a bad one is a *Failure.
func (c *Client) send(req *http.Request) ([]byte, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err, context.Cause(req.Context()))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, c.unreachable(err, context.Cause(req.Context()))
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
// work: that work may be half done, and must not be begun again as if nobody had been asked. cause is why nobody waits for
// the answer any more; nil = somebody does.
func (c *Client) unreachable(err, cause error) error {
	dial := new(net.OpError)
	dialled := !errors.As(err, &dial) || dial.Op != "dial"
	switch {
	case errors.Is(cause, ErrNoAnswer):
		return c.silent()
	case cause != nil:
		return cause
	case dialled:
		return &hint.Error{Op: "get an answer of the supervisor at", Path: c.socket, Err: err, Hint: "supervisor status"}
	case errors.Is(err, os.ErrNotExist), refused(err):
		return ErrNotRunning
	}
	return &hint.Error{Op: "reach the supervisor at", Path: c.socket, Err: err, Hint: "run the command as the node's user, or as root"}
}

// silent says which process doesn't answer, and what can be done about it.
func (c *Client) silent() error {
	e := &hint.Error{
		Op: "reach the supervisor at", Path: c.socket, Err: fmt.Errorf("%w within %s; nothing was changed", ErrNoAnswer, c.patience),
		Hint: "restart its service, if it stays so",
	}
	pid := int(c.peer.Load())
	if pid == 0 {
		return e
	}
	e.Err = fmt.Errorf("%w of process %d within %s; nothing was changed", ErrNoAnswer, pid, c.patience)
	e.Hint = fmt.Sprintf("ps -o pid,stat,wchan,args -p %d; if it stays so: kill -ABRT %d (stops the node gracefully, shows where it hangs, ends)", pid, pid)
	if stat, err := proc.ReadStat(pid); err == nil && stat.State == 'T' {
		e.Err = fmt.Errorf("%w: process %d is stopped (SIGSTOP); nothing was changed", ErrNoAnswer, pid)
		e.Hint = fmt.Sprintf("kill -CONT %d", pid)
	}
	return e
}
