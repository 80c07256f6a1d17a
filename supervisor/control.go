package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/supervisor/client"
)

const (
	// maxRequest caps what is read of a request, in bytes, and requestTimeout the time that its head may take.
	maxRequest     = 1 << 20
	requestTimeout = 10 * time.Second
	// busyPatience is how long an operation waits for a job before it is refused: most are over in a moment.
	busyPatience = 2 * time.Second
	busyPause    = 50 * time.Millisecond
)

// control serves the control socket: HTTP over a unix socket that only its owner can reach. Peers are asked for their
// credentials as well, because a directory's mode may be changed behind our back.
type control struct {
	server   *http.Server
	listener net.Listener
	path     string
}

// listen opens the control socket. A socket that an earlier supervisor left behind is removed: the home lock says that
// it is gone. Anything else at that path is refused.
func (s *Supervisor) listen() (*control, error) {
	path := s.o.Socket
	if path == "" {
		return nil, errors.New("no path is configured")
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("%s is there and is no socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	// Between bind and chmod others may connect, at most: who they are is asked of every peer anyway.
	if err := errors.Join(atomicfile.Adopt(path), shareSocket(path, s.o.SocketMode, s.o.SocketGroup)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	c := &control{listener: l, path: path}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", s.serveStatus)
	mux.HandleFunc("POST /v1/{op}", s.serveOperation)
	c.server = &http.Server{
		Handler: mux, ReadHeaderTimeout: requestTimeout, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, peerOf(conn))
		},
	}
	go c.server.Serve(l) //nolint:errcheck // it ends with Close
	return c, nil
}

// Close ends the server and removes the socket. Answers that are under way get a moment to arrive.
func (c *control) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if c.server.Shutdown(ctx) != nil {
		c.server.Close() //nolint:errcheck // the process ends
	}
	os.Remove(c.path) //nolint:errcheck // the listener has removed it already, as a rule
}

type peerKey struct{}

// peerOf returns the uid at the other end, or -1.
func peerOf(conn net.Conn) int {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return -1
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return -1
	}
	uid := -1
	raw.Control(func(fd uintptr) { //nolint:errcheck // uid stays -1
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid = int(cred.Uid)
		}
	})
	return uid
}

// shareSocket lets the members of [control] group connect; gid -1 is nobody's. They may read the status, nothing else.
func shareSocket(path string, mode os.FileMode, gid int) error {
	if gid >= 0 { // first: a mode for a group must not be another group's for a moment
		if err := os.Chown(path, -1, gid); err != nil {
			return err
		}
	}
	return os.Chmod(path, mode)
}

// allowed tells whether the peer may ask for operations: root, and the supervisor's own user.
func allowed(r *http.Request) bool {
	uid, ok := r.Context().Value(peerKey{}).(int)
	return ok && (uid == 0 || uid == os.Geteuid())
}

// serveStatus answers whoever the socket's mode lets in.
func (s *Supervisor) serveStatus(w http.ResponseWriter, _ *http.Request) {
	answer(w, s.Status())
}

func (s *Supervisor) serveOperation(w http.ResponseWriter, r *http.Request) {
	if !allowed(r) {
		fail(w, http.StatusForbidden, errors.New("only root and the supervisor's own user may ask"))
		return
	}
	var body client.Request
	data, err := io.ReadAll(io.LimitReader(r.Body, maxRequest+1))
	if err == nil && len(data) > maxRequest {
		err = errors.New("the request is larger than 1 MiB")
	}
	if err == nil && len(strings.TrimSpace(string(data))) > 0 {
		err = json.Unmarshal(data, &body)
	}
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	reply, err := s.operate(r.PathValue("op"), body)
	switch {
	case errors.Is(err, errOver):
		fail(w, http.StatusServiceUnavailable, err)
	case err != nil:
		fail(w, http.StatusConflict, err)
	default:
		answer(w, reply)
	}
}

// errOver means that nobody will answer any more.
var errOver = errors.New("the supervisor ended before it was done; see supervisor status")

// operate has the loop do one operation, and waits for its answer. It returns also where the loop ends before that.
func (s *Supervisor) operate(op string, body client.Request) (client.Reply, error) {
	type outcome struct {
		reply client.Reply
		err   error
	}
	for deadline := time.Now().Add(busyPatience); ; time.Sleep(busyPause) {
		done := make(chan outcome, 1)
		req := request{op: op, body: body, answer: func(reply client.Reply, err error) { done <- outcome{reply, err} }}
		select {
		case s.requests <- req:
		case <-s.over:
			return client.Reply{}, errOver
		}
		select {
		case o := <-done:
			if !errors.Is(o.err, ErrBusy) || time.Now().After(deadline) {
				return o.reply, o.err
			}
		case <-s.over:
			select {
			case o := <-done: // the answer came with the end
				return o.reply, o.err
			default:
				return client.Reply{}, errOver
			}
		}
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) //nolint:errcheck // the peer is gone
}

func fail(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(client.Failure{Message: err.Error(), Hint: hint.Of(err), Code: 1}) //nolint:errcheck // the peer is gone
}
