package client

import (
	"errors"
	"io"
	"sync/atomic"
)

// offer is the body of an operation. It is sent only once the supervisor asks for it (RFC 9110, 10.1.1: 100-continue), so
// the first read tells that the operation was taken. One that was withdrawn before is never read: a supervisor that comes
// back to it later finds a request without its body, and drops it.
type offer struct {
	body  io.Reader
	state atomic.Int32
}

const (
	open int32 = iota
	taken
	withdrawn
)

// Read is part of io.Reader.
func (o *offer) Read(p []byte) (int, error) {
	if !o.state.CompareAndSwap(open, taken) && o.state.Load() != taken {
		return 0, errors.New("the operation was withdrawn")
	}
	return o.body.Read(p)
}

// withdraw takes the offer back; false: it was taken.
func (o *offer) withdraw() bool {
	return o.state.CompareAndSwap(open, withdrawn) || o.state.Load() == withdrawn
}
