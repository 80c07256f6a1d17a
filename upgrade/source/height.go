package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Names of the sources of a height, in the order in which they are asked.
const (
	SourceURL    = "url"    // [height] url and path
	SourceGRPC   = "grpc"   // the SDK's gRPC
	SourceLog    = "log"    // the node's lines
	SourceRPC    = "rpc"    // CometBFT's RPC
	SourceStatus = "status" // the node binary's own status command
)

const (
	// askTimeout bounds one question. A node answers its own host within milliseconds, or it hangs.
	askTimeout = 2 * time.Second
	// A source that failed is left alone for a while, so that a dead port isn't asked at every tick, and a hanging one
	// doesn't cost every reading its timeout.
	firstPause = time.Second
	maxPause   = 15 * time.Second
)

// ErrUnknown means that no source knows the height now. It is never to be taken as a low height.
var ErrUnknown = errors.New("the height is not known")

// Reading is one answer.
type Reading struct {
	Height     int64
	Source     string        // which of the Source constants
	At         time.Time     // when it was true: for a line of the log when the line came, and for status up to 10 s ago
	Latency    time.Duration // how long the source took
	CatchingUp *bool         // whether the node is still syncing; nil = the source doesn't say
}

// Options are what Heights needs to know of the node.
type Options struct {
	Home   string
	Binary func() string       // the current binary, asked anew each time: it changes with an upgrade; nil = no status command
	Args   func() []string     // the node's arguments: --rpc.laddr and --grpc.address win over its files; nil = none
	Env    []string            // for the status command, as for the node
	RunAs  *syscall.Credential // whom the status command runs as; nil = as this user
	Lines  *Lines              // nil = the node's lines aren't read
	Log    *slog.Logger
}

// Heights reads the node's height.
type Heights struct {
	log    *slog.Logger
	asking chan struct{} // holds one token: one reading at a time, and waiting for it ends with the context
	asked  []*asked
	last   string // the source that answered last
	stale  atomic.Bool
}

// source is one way to a height. One that does not apply to this node, now, answers with an error that wraps errOff.
type source interface {
	read(ctx context.Context) (Reading, error)
	close()
}

// errOff means that a source is not configured or has nothing to read; asking again costs nothing.
var errOff = errors.New("off")

// asked is a source with what is remembered of it.
type asked struct {
	source
	name    string
	timeout time.Duration
	every   time.Duration // it is asked at most so often; in between its last answer holds
	pause   time.Duration // grows while it fails
	next    time.Time     // not before
	last    Reading
	err     error
}

// NewHeights returns the sources of cfg, which has been validated. Close releases their connections.
func NewHeights(cfg Config, opt Options) *Heights {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Args == nil {
		opt.Args = func() []string { return nil }
	}
	if opt.Binary == nil {
		opt.Binary = func() string { return "" }
	}
	h := &Heights{log: opt.Log, asking: make(chan struct{}, 1)}
	add := func(name string, s source) *asked {
		a := &asked{source: s, name: name, timeout: askTimeout}
		h.asked = append(h.asked, a)
		return a
	}
	if cfg.URL != "" {
		add(SourceURL, newURLSource(cfg))
	}
	if cfg.GRPC != "" {
		add(SourceGRPC, newGRPCSource(cfg, opt))
	}
	if opt.Lines != nil {
		add(SourceLog, logSource{opt.Lines})
	}
	add(SourceRPC, newRPCSource(opt))
	status := add(SourceStatus, statusSource{opt})
	status.timeout, status.every = statusTimeout, statusEvery
	return h
}

// Read asks the sources in their order and returns the first answer. Where none has one, the error is ErrUnknown and says
// of each source why. It may take the sum of the timeouts; callers that must not wait call it from a goroutine.
func (h *Heights) Read(ctx context.Context) (Reading, error) {
	select {
	case h.asking <- struct{}{}:
		defer func() { <-h.asking }()
	case <-ctx.Done():
		return Reading{}, fmt.Errorf("cannot read the height: %w", ctx.Err())
	}
	if h.stale.Swap(false) {
		h.forget()
	}
	var why unknownError
	for _, a := range h.asked {
		r, err := a.ask(ctx)
		if ctx.Err() != nil && err != nil {
			return Reading{}, fmt.Errorf("cannot read the height: %w", ctx.Err())
		}
		if err != nil {
			why = append(why, fmt.Errorf("%s: %w", a.name, err))
			continue
		}
		if h.last != a.name {
			h.log.Info("reading the node's height", "source", a.name, "height", r.Height)
			h.last = a.name
		}
		return r, nil
	}
	return Reading{}, why
}

// Reset forgets which sources failed, and every answer: for when another process of the node was started. It never
// blocks; a reading that is under way may still return what the old process said.
func (h *Heights) Reset() { h.stale.Store(true) }

func (h *Heights) forget() {
	for _, a := range h.asked {
		a.pause, a.next, a.last, a.err = 0, time.Time{}, Reading{}, nil
	}
}

// Close releases what the sources hold. Read may still be called, and connects again.
func (h *Heights) Close() {
	h.asking <- struct{}{}
	defer func() { <-h.asking }()
	for _, a := range h.asked {
		a.close()
	}
}

func (a *asked) ask(ctx context.Context) (Reading, error) {
	start := time.Now()
	if start.Before(a.next) {
		return a.last, a.err
	}
	asking, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	r, err := a.read(asking)
	switch {
	case err == nil:
		r.Source, r.Latency = a.name, time.Since(start)
		if r.At.IsZero() {
			r.At = time.Now()
		}
		a.pause = 0
	case ctx.Err() != nil || errors.Is(err, errOff):
		return Reading{}, err // says nothing of the source
	case errors.Is(err, errNoBlock):
		a.pause = 0 // up, and about to know
	default:
		a.pause = min(max(2*a.pause, firstPause), maxPause)
	}
	a.last, a.err = r, err
	a.next = time.Now().Add(max(a.pause, a.every))
	return r, err
}

// unknownError is ErrUnknown with the reason of each source.
type unknownError []error

func (e unknownError) Error() string {
	reasons := make([]string, len(e))
	for i, err := range e {
		reasons[i] = err.Error()
	}
	return ErrUnknown.Error() + " (" + strings.Join(reasons, "; ") + ")"
}

func (e unknownError) Unwrap() []error { return append([]error{ErrUnknown}, e...) }

// logSource is what Lines saw last.
type logSource struct{ lines *Lines }

func (s logSource) read(context.Context) (Reading, error) {
	height, at, ok := s.lines.Height()
	if !ok {
		return Reading{}, fmt.Errorf("%w: no line with a height yet", errOff)
	}
	return Reading{Height: height, At: at}, nil
}

func (logSource) close() {}
