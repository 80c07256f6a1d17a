package client

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// refused tells that the socket's file was left behind: nobody listens.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// listener returns the pid of the process that listens at the other end (unix(7), SO_PEERCRED), whether it answers or not;
// 0 = not known.
func listener(conn net.Conn) (pid int) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return 0
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) { //nolint:errcheck // pid stays 0
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
