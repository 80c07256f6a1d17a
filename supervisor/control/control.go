// Package control serves the control socket: HTTP over a unix socket, JSON in and out; package client is its other end, and
// says what goes through it. Whoever the socket's mode lets in may read the status; to operate, root and the supervisor's
// own user alone. Peers are asked for their credentials, because a directory's mode may be changed behind our back.
package control

import (
	"cmp"
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
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade/state"
)

const (
	// maxRequest caps what is read of a request, in bytes, and requestTimeout the time that its head may take.
	maxRequest     = 1 << 20
	requestTimeout = 10 * time.Second
)

// keepEvery is how often the server looks whether its socket is still there: one lstat(2).
const keepEvery = 5 * time.Second

// Options is what a Server is made of.
type Options struct {
	Path    string // of the socket; a unix socket's has at most 107 bytes
	Mode    os.FileMode
	Group   int // its members may read the status; -1 = none
	Status  func() *status.Document
	Operate func(op string, body client.Request) (client.Reply, error) // it returns ErrOver where nobody answers any more
	Log     *slog.Logger
}

// ErrOver means that nobody will answer any more.
var ErrOver = errors.New("the supervisor ended before it was done; see supervisor status")

// Server listens on one socket.
type Server struct {
	o    Options
	http *http.Server
	over chan struct{} // closed by Close

	mu       sync.Mutex        // guards what follows, and o.Mode and o.Group
	listener *net.UnixListener // nil: closed
	trouble  string            // what was last said of a socket that can't be made again
}

// Listen opens the control socket and serves it until Close. A socket that an earlier supervisor left behind is removed:
// the home lock says that it is gone. Anything else at that path is refused.
func Listen(o Options) (*Server, error) {
	if o.Path == "" {
		return nil, errors.New("no path is configured")
	}
	s := &Server{o: o, over: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", s.serveStatus)
	mux.HandleFunc("POST /v1/{op}", s.serveOperation)
	s.http = &http.Server{
		Handler: mux, ReadHeaderTimeout: requestTimeout, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, conn)
		},
	}
	if err := s.bind(); err != nil {
		return nil, err
	}
	go s.keep()
	return s, nil
}

// bind makes the socket and begins to serve it.
func (s *Server) bind() error {
	path := s.o.Path
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return fmt.Errorf("%s is there and is no socket", path)
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	// Between bind and chmod others may connect, at most: who they are is asked of every peer anyway.
	if err := errors.Join(atomicfile.Adopt(path), s.share()); err != nil {
		return errors.Join(err, l.Close())
	}
	s.listener = l
	go s.http.Serve(l) //nolint:errcheck // it ends with Close, or with its listener
	return nil
}

// ownMode is the mode of a socket that is nobody else's.
const ownMode = 0o600

// share gives a new socket its mode and group. A group that it can't be given to is no reason to leave the supervisor without
// a socket: then it is nobody else's.
func (s *Server) share() error {
	err := share(s.o.Path, s.o.Mode, s.o.Group)
	if err == nil || s.o.Group < 0 {
		return err
	}
	s.o.Log.Warn("the control socket can't be given to [control] group; only root and this user can read the status",
		"path", s.o.Path, "group", s.o.Group, "error", err,
		"hint", "make the user that run runs as a member of the group (usermod -aG, or SupplementaryGroups= in the unit), and restart it")
	return os.Chmod(s.o.Path, ownMode)
}

// keep makes the socket again where somebody has removed its file: without it nobody could ask this supervisor anything
// until it is restarted, and its node with it.
func (s *Server) keep() {
	for tick := time.NewTicker(keepEvery); ; {
		select {
		case <-tick.C:
			s.restore()
		case <-s.over:
			tick.Stop()
			return
		}
	}
}

// restore is one look of keep. Connections that are open stay.
func (s *Server) restore() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := os.Lstat(s.o.Path); s.listener == nil || !errors.Is(err, fs.ErrNotExist) {
		return
	}
	old := s.listener
	if err := s.bind(); err != nil {
		if s.trouble != err.Error() {
			s.trouble = err.Error()
			s.o.Log.Warn("the control socket is gone and can't be made again", "path", s.o.Path, "error", err)
		}
		return
	}
	old.SetUnlinkOnClose(false) // its path is the new one's
	old.Close()                 //nolint:errcheck // nothing can reach it any more
	s.trouble = ""
	s.o.Log.Warn("the control socket was removed; it was made again", "path", s.o.Path)
}

// Close ends the server and removes the socket. Answers that are under way get a moment to arrive.
func (s *Server) Close() {
	s.stopListening()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		s.http.Close() //nolint:errcheck // the process ends
	}
}

// Retire removes the socket; what was asked at it is answered as long as the process lives.
func (s *Server) Retire() {
	s.stopListening()
	go s.http.Shutdown(context.Background()) //nolint:errcheck // it ends with its last connection
}

func (s *Server) stopListening() {
	close(s.over)
	s.mu.Lock()
	l := s.listener
	s.listener = nil // whoever still looks for a removed socket leaves this one removed
	s.mu.Unlock()
	if l != nil {
		l.Close() //nolint:errcheck // it removes the socket, too
	}
}

// connKey is where a request's context has its connection.
type connKey struct{}

// withPeer gives the descriptor of a request's connection to f; without one nothing is done.
func withPeer(r *http.Request, f func(fd int)) {
	conn, ok := r.Context().Value(connKey{}).(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := conn.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { f(int(fd)) }) //nolint:errcheck // then f isn't called
	}
}

// Share changes the socket's mode and group to those of a new configuration; where that fails both stay as they were.
func (s *Server) Share(mode os.FileMode, gid int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if mode == s.o.Mode && gid == s.o.Group {
		return nil
	}
	if err := share(s.o.Path, mode, gid); err != nil {
		return errors.Join(err, share(s.o.Path, s.o.Mode, s.o.Group))
	}
	s.o.Mode, s.o.Group = mode, gid
	return nil
}

// share sets the socket's mode, and lets the members of [control] group connect; gid -1 is nobody's. They may read the status, nothing else.
func share(path string, mode os.FileMode, gid int) error {
	if gid >= 0 { // first: a mode for a group must not be another group's for a moment
		if err := os.Chown(path, -1, gid); err != nil {
			return err
		}
	}
	return os.Chmod(path, mode)
}

// allowed tells whether the peer may ask for operations: root, and the supervisor's own user.
func allowed(r *http.Request) (yes bool) {
	withPeer(r, func(fd int) {
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		yes = err == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid())
	})
	return yes
}

// gone tells that the peer has closed its connection: it has given up, and what it asked for must not be done behind its
// back. A program that was stopped (SIGSTOP) finds such requests when it goes on.
func gone(r *http.Request) (yes bool) {
	withPeer(r, func(fd int) {
		poll := []unix.PollFd{{Fd: int32(fd)}} // a hang-up is always told (poll(2)); one that only sends no more isn't one
		n, err := unix.Poll(poll, 0)
		yes = err == nil && n == 1 && poll[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return yes
}

// serveStatus answers whoever the socket's mode lets in.
func (s *Server) serveStatus(w http.ResponseWriter, _ *http.Request) {
	answer(w, s.o.Status())
}

func (s *Server) serveOperation(w http.ResponseWriter, r *http.Request) {
	if !allowed(r) {
		fail(w, http.StatusForbidden, errors.New("only root and the supervisor's own user may ask"))
		return
	}
	var body client.Request
	data, err := io.ReadAll(io.LimitReader(r.Body, maxRequest+1))
	if gone(r) {
		s.o.Log.Warn("an operation was dropped: who asked for it has gone", "operation", r.PathValue("op"))
		return
	}
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
	reply, err := s.o.Operate(r.PathValue("op"), body)
	switch {
	case errors.Is(err, ErrOver):
		fail(w, http.StatusServiceUnavailable, err)
	case err != nil:
		fail(w, http.StatusConflict, err)
	default:
		answer(w, reply)
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) //nolint:errcheck // the peer is gone
}

func fail(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	exit := client.ExitFailed
	if errors.Is(err, state.ErrUntrusted) {
		exit = client.ExitHeld
	}
	json.NewEncoder(w).Encode(client.Failure{Message: err.Error(), Hint: cmp.Or(hint.Of(err), hint.OfSystem(err)), Code: exit}) //nolint:errcheck // the peer is gone
}
