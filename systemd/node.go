package systemd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// NodeSocket is the notify socket that the node is given in place of the supervisor's own: what the node says there is
// looked at, and only readiness and status are passed on. Watchdog and main pid stay the supervisor's.
type NodeSocket struct {
	conn *net.UnixConn
}

// maxDescriptors is how many descriptors the kernel lets one message carry (SCM_MAX_FD).
const maxDescriptors = 253

// ListenNode makes the socket, for its owner alone. One that an earlier life left at path is replaced: the caller holds the
// home's lock.
func ListenNode(path string) (*NodeSocket, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("cannot listen for the node: %s is there and is no socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("cannot listen for the node: %w", err)
		}
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("cannot listen for the node: %w", err)
	}
	if err := errors.Join(os.Chmod(path, 0o600), askCredentials(conn)); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot listen for the node: %w", err), conn.Close())
	}
	return &NodeSocket{conn: conn}, nil
}

// askCredentials has the kernel say with each message who sent it (unix(7), SO_PASSCRED).
func askCredentials(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	return errors.Join(err, set)
}

// Path is what the node finds in NOTIFY_SOCKET.
func (s *NodeSocket) Path() string { return s.conn.LocalAddr().String() }

// Close ends Serve and removes the socket.
func (s *NodeSocket) Close() error {
	return errors.Join(s.conn.Close(), os.Remove(s.Path()))
}

// Serve calls said for every message that says something, one at a time, with the sender's pid as the kernel tells it,
// until Close. The sender may be waiting for it to return (sd_notify_barrier(3)).
func (s *NodeSocket) Serve(said func(pid int, ready bool, status string)) {
	text := make([]byte, os.Getpagesize())
	control := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*maxDescriptors))
	for {
		n, nc, flags, _, err := s.conn.ReadMsgUnix(text, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		pid, descriptors := unpack(control[:nc])
		if pid > 0 && flags&unix.MSG_TRUNC == 0 {
			if ready, status, ok := understand(string(text[:n])); ok {
				said(pid, ready, status)
			}
		}
		// Only now: with BARRIER=1 the sender waits for its descriptor to be closed, and lives so long.
		for _, fd := range descriptors {
			unix.Close(fd)
		}
	}
}

// unpack reads the sender's pid, 0 where it isn't told, and what descriptors came along.
func unpack(control []byte) (pid int, descriptors []int) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0, nil
	}
	for i := range messages {
		if cred, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			pid = int(cred.Pid)
		}
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil {
			descriptors = append(descriptors, fds...)
		}
	}
	return pid, descriptors
}

// understand reads the assignments of a message; ok is false where there is none that matters here.
func understand(text string) (ready bool, status string, ok bool) {
	for line := range strings.SplitSeq(text, "\n") {
		switch key, value, _ := strings.Cut(line, "="); {
		case key == "READY" && value == "1":
			ready, ok = true, true
		case key == "STATUS":
			status, ok = oneLine(value), true
		}
	}
	return ready, status, ok
}
