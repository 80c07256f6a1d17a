package client

import (
	"errors"
	"syscall"
)

// refused tells that the socket's file was left behind: nobody listens.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
