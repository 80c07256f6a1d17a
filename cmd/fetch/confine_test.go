package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"

	"nodevisor/cmd/fetch/unpack"
	"nodevisor/internal/fetch"
)

func TestOnlyLoopbackConnects(t *testing.T) {
	for address, ok := range map[string]bool{
		"127.0.0.1:80": true, "127.255.255.254:80": true, "[::1]:80": true, "[::ffff:127.0.0.1]:80": true,
		"10.0.0.1:80": false, "0.0.0.0:80": false, "[::]:80": false, "192.0.2.1:80": false, "nonsense": false,
	} {
		err := onlyLoopback("tcp", address, nil)
		assert.Equal(t, ok, err == nil, address)
	}
}

// TestKinds: what the network did may pass; what a file, a rule or the disk says won't.
func TestKinds(t *testing.T) {
	dial := func(err error) error { return &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", err)} }
	file := func(err error) error { return &fs.PathError{Op: "write", Path: "simd", Err: err} }
	for _, c := range []struct {
		err  error
		want fetch.Kind
	}{
		{dial(syscall.ECONNREFUSED), fetch.Temporary},
		{dial(syscall.ENETUNREACH), fetch.Temporary},
		{dial(refusal("plain http")), fetch.Refused},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", IsNotFound: true}}, fetch.Temporary},
		{&url.Error{Op: "Get", Err: io.ErrUnexpectedEOF}, fetch.Temporary},
		{fmt.Errorf("read: %w", syscall.ECONNRESET), fetch.Temporary},
		{io.ErrShortWrite, fetch.Temporary}, // what go-getter calls a short body
		{file(syscall.ENOSPC), fetch.NoSpace},
		{file(syscall.EDQUOT), fetch.NoSpace},
		{file(syscall.EFBIG), fetch.TooLarge},
		{file(syscall.EIO), fetch.Refused},
		{file(syscall.ENOENT), fetch.Refused},
		{fmt.Errorf("receive: %w", tooLarge("more than 10 bytes")), fetch.TooLarge},
		{notUnpacked(fmt.Errorf("%w: more than 10 bytes", unpack.ErrTooLarge)), fetch.TooLarge},
		{notUnpacked(fmt.Errorf("damaged archive: %w", io.ErrUnexpectedEOF)), fetch.Refused},
		{notUnpacked(file(syscall.ENOSPC)), fetch.NoSpace},
		{errors.New("something else"), fetch.Refused},
	} {
		assert.Equal(t, c.want, kindOf(c.err), "%v", c.err)
	}
}
