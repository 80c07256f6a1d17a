package child

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// longestLine is how much of one line is handed to Lines, in bytes.
	longestLine = 64 << 10
	// lineStore is how much of the lines waits for a slow Lines, in bytes; then the oldest are dropped, for what a
	// node says last (a height, the cause of its end) is what counts.
	lineStore = 4 << 20
	// teePatience bounds the wait, after the node's end, for a reader of our stdout that has stopped reading, for an
	// escaped process that keeps the pipe open, and for a slow Lines.
	teePatience = time.Second
	// pipeAtom is what a pipe that polls as writable takes at once (pipe(7), PIPE_BUF). Longer writes could block.
	pipeAtom = 4096
)

// tee reads the node's output from pipes of its own, passes it on unchanged, and cuts it into lines. Towards the node
// it is as fast as the reader of the supervisor's stdout: no faster (the node's output isn't stored), no slower.
type tee struct {
	streams   []*teeStream
	byName    [2]*teeStream // stdout and stderr, which may be one
	lines     *lineQueue
	handle    func([]byte)
	abort     *os.File // closing it ends a wait for the reader of our stdout
	abortRead *os.File
	copiers   sync.WaitGroup
	handed    chan struct{} // closed: all lines were handed over
}

// teeStream is one pipe from the node.
type teeStream struct {
	read, write *os.File
	out         int // our own descriptor of what the bytes go to; -1: nowhere
	line        []byte
}

func newTee(stdout, stderr *os.File, handle func([]byte)) (t *tee, err error) {
	t = &tee{handle: handle, lines: newLineQueue(), handed: make(chan struct{})}
	defer func() {
		if err != nil {
			t.abandon()
			err = fmt.Errorf("cannot make a pipe for the output: %w", err)
		}
	}()
	if t.abortRead, t.abort, err = os.Pipe(); err != nil {
		return t, err
	}
	if err = t.add(0, stdout); err != nil {
		return t, err
	}
	if sameFile(stdout, stderr) { // one pipe, as there would be one file: the order of the node's writes is kept
		t.byName[1] = t.byName[0]
		return t, nil
	}
	return t, t.add(1, stderr)
}

func (t *tee) add(i int, out *os.File) error {
	s := &teeStream{out: -1}
	t.streams = append(t.streams, s)
	t.byName[i] = s
	if out != nil {
		// A descriptor of our own: nobody closes it under us, and its number isn't 1 or 2, where a closed reader
		// would end the whole program by SIGPIPE (package os/signal).
		conn, err := out.SyscallConn()
		if err != nil {
			return err
		}
		var derr error
		if err := conn.Control(func(fd uintptr) { s.out, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
			return err
		}
		if derr != nil {
			s.out = -1
			return derr
		}
	}
	var err error
	s.read, s.write, err = os.Pipe()
	return err
}

func sameFile(a, b *os.File) bool {
	if a == nil || b == nil {
		return a == b
	}
	ai, aerr := a.Stat()
	bi, berr := b.Stat()
	return aerr == nil && berr == nil && os.SameFile(ai, bi)
}

// nodeEnds are the ends for the node's stdout and stderr.
func (t *tee) nodeEnds() (stdout, stderr io.Writer) { return t.byName[0].write, t.byName[1].write }

// abandon frees what a node that didn't start won't need. It does nothing on nil.
func (t *tee) abandon() {
	if t == nil {
		return
	}
	for _, s := range t.streams {
		s.close()
		s.read.Close()
		s.write.Close()
	}
	t.abort.Close()
	t.abortRead.Close()
}

func (s *teeStream) close() {
	if s.out >= 0 {
		unix.Close(s.out)
		s.out = -1
	}
}

// run starts the copying, once the node has its ends. It does nothing on nil.
func (t *tee) run() {
	if t == nil {
		return
	}
	for _, s := range t.streams {
		s.write.Close() // the node's copies are the only ones now, so that its end is the pipe's end
		t.copiers.Go(func() { t.copy(s) })
	}
	go func() {
		defer close(t.handed)
		for line, ok := t.lines.take(); ok; line, ok = t.lines.take() {
			t.handle(line)
		}
	}()
}

// finish waits for the last bytes and lines of a node that is gone, at most four times teePatience, in practice not
// at all. A copier that is still stuck after that ends with the write that holds it. It does nothing on nil.
func (t *tee) finish() {
	if t == nil {
		return
	}
	copied := make(chan struct{})
	go func() {
		t.copiers.Wait()
		t.abortRead.Close()
		close(copied)
	}()
	if !within(teePatience, copied) {
		t.abort.Close() // the reader of our stdout is stuck: read on for the lines, without it
		if !within(teePatience, copied) {
			for _, s := range t.streams {
				_ = s.read.SetReadDeadline(time.Now()) // an escaped process holds the pipe
			}
			within(teePatience, copied)
		}
	}
	t.abort.Close()
	t.lines.close()
	if !within(teePatience, t.handed) {
		t.lines.drop()
	}
}

func within(d time.Duration, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}

func (t *tee) copy(s *teeStream) {
	defer s.read.Close()
	defer s.close()
	buf := make([]byte, 32<<10)
	for {
		n, err := s.read.Read(buf)
		s.cut(buf[:n], t.lines) // before the writing, which may have to wait
		s.forward(buf[:n], t.abortRead)
		if err != nil {
			if len(s.line) > 0 {
				t.lines.put(s.line)
			}
			return
		}
	}
}

// cut collects lines; what is longer than longestLine loses its end.
func (s *teeStream) cut(p []byte, lines *lineQueue) {
	for len(p) > 0 {
		part, rest, whole := bytes.Cut(p, []byte{'\n'})
		s.line = append(s.line, part[:min(len(part), longestLine-len(s.line))]...)
		if whole {
			lines.put(s.line)
			s.line = nil
		}
		p = rest
	}
}

// forward passes p on, and waits as long as its reader takes, or until abort is closed. A reader that has gone (EPIPE)
// doesn't end the node: the bytes go nowhere from then on. A full disk loses the bytes of that moment.
func (s *teeStream) forward(p []byte, abort *os.File) {
	for len(p) > 0 && s.out >= 0 {
		if !writable(s.out, abort) {
			s.close()
			return
		}
		n, err := unix.Write(s.out, piece(p))
		switch {
		case err == nil:
			p = p[n:]
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.EAGAIN):
		case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
			return
		default:
			s.close()
		}
	}
}

// piece is as much of p as goes in one write: whole lines where there are any, for others write to the same pipe.
func piece(p []byte) []byte {
	if len(p) <= pipeAtom {
		return p
	}
	if i := bytes.LastIndexByte(p[:pipeAtom], '\n'); i >= 0 {
		return p[:i+1]
	}
	return p[:pipeAtom]
}

// writable waits until a write to fd won't block, and returns false once abort is closed. A descriptor that can't be
// polled, or has an error to tell, is written to.
func writable(fd int, abort *os.File) bool {
	conn, err := abort.SyscallConn()
	if err != nil {
		return false
	}
	ready := false
	err = conn.Control(func(a uintptr) {
		for {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}, {Fd: int32(a), Events: unix.POLLIN}}
			_, err := unix.Poll(fds, -1)
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			ready = err != nil || fds[0].Revents != 0
			return
		}
	})
	return err == nil && ready
}

// lineQueue holds lines for the one that handles them; put never blocks.
type lineQueue struct {
	mu     sync.Mutex
	more   *sync.Cond
	lines  [][]byte
	size   int
	closed bool
}

func newLineQueue() *lineQueue {
	q := &lineQueue{}
	q.more = sync.NewCond(&q.mu)
	return q
}

// cost counts an empty line too.
func cost(line []byte) int { return len(line) + 64 }

// put keeps line, which the caller gives away.
func (q *lineQueue) put(line []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.lines = append(q.lines, line)
	q.size += cost(line)
	for q.size > lineStore {
		q.size -= cost(q.lines[0])
		q.lines[0] = nil
		q.lines = q.lines[1:]
	}
	q.more.Signal()
}

// take waits for a line; false: there will be none.
func (q *lineQueue) take() ([]byte, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.lines) == 0 {
		if q.closed {
			return nil, false
		}
		q.more.Wait()
	}
	line := q.lines[0]
	q.lines[0] = nil
	q.lines = q.lines[1:]
	q.size -= cost(line)
	return line, true
}

// close: no line will come; those there are will be taken.
func (q *lineQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.more.Broadcast()
}

// drop forgets the lines that nobody took.
func (q *lineQueue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed, q.lines, q.size = true, nil, 0
	q.more.Broadcast()
}
