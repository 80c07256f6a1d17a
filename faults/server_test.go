//go:build faults

package faults

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"nodevisor/internal/proc"
)

// server is a program that mounts a file system, and answers each line with a line. Alone in a process of its own it
// can't be stopped by what waits for the file system.
type server struct {
	in  io.Writer
	out *bufio.Scanner
}

// serve starts a server that ends with the test, and waits until it has mounted.
func serve(t *testing.T, program string, args ...string) *server {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, theirs, err := os.Pipe()
	require.NoError(t, err)
	cmd.Stdout = theirs
	require.NoError(t, proc.Start(cmd))
	theirs.Close()
	t.Cleanup(func() {
		in.Close()
		if err := proc.Wait(cmd); err != nil && !t.Failed() {
			t.Errorf("%s: %v", program, err)
		}
		out.Close()
	})
	s := &server{in, bufio.NewScanner(out)}
	require.True(t, s.out.Scan(), "%s can't mount (is /dev/fuse there?)", program)
	require.Equal(t, "mounted", s.out.Text())
	return s
}

func (s *server) ask(t *testing.T, line string) string {
	t.Helper()
	_, err := io.WriteString(s.in, line+"\n")
	require.NoError(t, err)
	require.True(t, s.out.Scan(), "the server has ended")
	require.False(t, strings.HasPrefix(s.out.Text(), "error"), s.out.Text())
	return s.out.Text()
}
