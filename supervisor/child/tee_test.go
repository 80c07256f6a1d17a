package child

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/proc"
	"nodevisor/internal/proctest"
)

// teed starts a script with a tee to files, and returns the files' paths and the lines once it has ended.
func teed(t *testing.T, script string) (out, errOut string, lines []string, exit Exit) {
	t.Helper()
	dir := t.TempDir()
	stdout, err := os.Create(filepath.Join(dir, "out"))
	require.NoError(t, err)
	defer stdout.Close()
	stderr, err := os.Create(filepath.Join(dir, "err"))
	require.NoError(t, err)
	defer stderr.Close()
	c := startScript(t, script, func(s *Spec) {
		s.Stdout, s.Stderr = stdout, stderr
		s.Lines = func(l []byte) { lines = append(lines, string(l)) } // no lock: called one at a time, all before Exited
	})
	exit = exitOfChild(t, c)
	return stdout.Name(), stderr.Name(), lines, exit
}

func TestTeePassesEveryByteOnAndCutsLines(t *testing.T) {
	out, errOut, lines, exit := teed(t, `printf 'one\n\ntwo\r\n'; printf 'bin\000ary\n'; printf 'err\n' >&2; printf 'no newline'; exit 4`)
	assert.Equal(t, 4, exit.Code)
	assert.Equal(t, "one\n\ntwo\r\nbin\x00ary\nno newline", proctest.Text(t, out))
	assert.Equal(t, "err\n", proctest.Text(t, errOut))
	assert.ElementsMatch(t, []string{"one", "", "two\r", "bin\x00ary", "err", "no newline"}, lines)
}

// 10 MB without a newline go through unchanged, and come to Lines cut.
func TestTeeTakesALineOfAnyLength(t *testing.T) {
	const size = 10 << 20
	out, _, lines, _ := teed(t, fmt.Sprintf("echo before; head -c %d /dev/zero | tr '\\0' x; echo; echo after", size))
	f, err := os.Open(out)
	require.NoError(t, err)
	defer f.Close()
	got := sha256.New()
	n, err := io.Copy(got, f)
	require.NoError(t, err)
	want := sha256.New()
	_, _ = want.Write([]byte("before\n" + strings.Repeat("x", size) + "\nafter\n"))
	assert.EqualValues(t, size+len("before\n\nafter\n"), n)
	assert.Equal(t, want.Sum(nil), got.Sum(nil))
	require.Len(t, lines, 3)
	assert.Equal(t, "before", lines[0])
	assert.Equal(t, strings.Repeat("x", longestLine), lines[1])
	assert.Equal(t, "after", lines[2])
}

// The last words of a node, the cause of its end among them, are there before Exited.
func TestTeeHandsOverTheLastLineBeforeExited(t *testing.T) {
	for range 20 {
		_, _, lines, _ := teed(t, `i=0; while [ $i -lt 50 ]; do echo line $i; i=$((i+1)); done; echo 'UPGRADE "v2" NEEDED at height: 100' >&2; kill -9 $$`)
		require.Len(t, lines, 51)
		assert.Contains(t, lines, `UPGRADE "v2" NEEDED at height: 100`)
	}
}

// Where stdout and stderr are one file, as under most service managers, the order of the writes is kept.
func TestTeeKeepsTheOrderOfOneFile(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	var lines []string
	c := startScript(t, `i=0; while [ $i -lt 200 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done`, func(s *Spec) {
		s.Stdout, s.Stderr, s.Lines = w, w, func(l []byte) { lines = append(lines, string(l)) }
	})
	got := make(chan []byte)
	go func() { b, _ := io.ReadAll(r); got <- b }()
	exitOfChild(t, c)
	w.Close()
	var want []string
	for i := range 200 {
		want = append(want, fmt.Sprintf("out %d", i), fmt.Sprintf("err %d", i))
	}
	assert.Equal(t, want, lines)
	assert.Equal(t, strings.Join(want, "\n")+"\n", string(<-got))
}

// A handler that hangs costs lines, never the node's time.
func TestTeeIsNotSlowedByItsHandler(t *testing.T) {
	dir := t.TempDir()
	stdout, err := os.Create(filepath.Join(dir, "out"))
	require.NoError(t, err)
	defer stdout.Close()
	release := make(chan struct{})
	var mu sync.Mutex
	var last string
	c := startScript(t, `echo first; yes $(printf %099d 0) | head -c 20000000; echo last; echo done > done; while ! [ -e end ]; do sleep 0.02; done`, func(s *Spec) {
		s.Stdout = stdout
		s.Lines = func(l []byte) {
			<-release
			mu.Lock()
			last = string(l)
			mu.Unlock()
		}
	})
	proctest.FileWith(t, filepath.Join(c.cmd.Dir, "done")) // all was written while the handler hung
	proctest.WaitFor(t, 10*time.Second, "all of it was passed on", func() bool {
		info, err := stdout.Stat()
		return err == nil && info.Size() == int64(len("first\n")+20000000+len("last\n"))
	})
	close(release)
	proctest.WaitFor(t, 20*time.Second, "the newest lines are kept", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return last == "last"
	})
	require.NoError(t, os.WriteFile(filepath.Join(c.cmd.Dir, "end"), nil, 0o600))
	assert.Zero(t, exitOfChild(t, c).Code)
}

// A full pipe holds the node up, as it would without a tee; what was written comes out whole when the reader goes on.
func TestTeeWithAFullPipe(t *testing.T) {
	const size = 3 << 20
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	c := startScript(t, fmt.Sprintf(`echo up > up; head -c %d /dev/zero; echo done > done`, size), func(s *Spec) {
		s.Stdout, s.Lines = w, func([]byte) {}
	})
	w.Close() // the tee has its own
	proctest.FileWith(t, filepath.Join(c.cmd.Dir, "up"))
	time.Sleep(100 * time.Millisecond)
	assert.NoFileExists(t, filepath.Join(c.cmd.Dir, "done"), "the tee stores what nobody reads")
	n, err := io.Copy(io.Discard, r)
	require.NoError(t, err)
	assert.EqualValues(t, size, n)
	assert.Zero(t, exitOfChild(t, c).Code)
}

// Nor does a reader that never comes back keep a stop from ending; the lines still arrive.
func TestTeeWithAStuckReaderDoesNotHoldUpTheEnd(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	require.NoError(t, fill(w))
	var lines []string
	c := startScript(t, "echo one; echo two; exit 3", func(s *Spec) {
		s.Stdout, s.Lines = w, func(l []byte) { lines = append(lines, string(l)) }
	})
	exit := exitOfChild(t, c)
	assert.Equal(t, 3, exit.Code)
	assert.Equal(t, []string{"one", "two"}, lines)
	assert.Less(t, exit.Gone.Sub(exit.At), 4*teePatience+5*time.Second)
}

// fill makes a pipe full without blocking.
func fill(w *os.File) error {
	conn, err := w.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Control(func(fd uintptr) {
		for {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			if n, _ := unix.Poll(fds, 0); n == 0 {
				return
			}
			_, _ = unix.Write(int(fd), make([]byte, pipeAtom))
		}
	})
}

// The reader of the supervisor's stdout goes away: neither it nor the node dies of it, and the lines go on.
func TestTeeWithAClosedStdout(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, r.Close())
	cmd := proctest.Command("epipe-tee")
	cmd.Stdout = w
	res, err := proc.Output(t.Context(), cmd, 0)
	w.Close()
	require.NoError(t, err, "%s", res.Stderr)
	assert.Equal(t, "exit code 5, lines: one two three ", string(res.Stderr))
}

// A process that escaped and holds the node's stdout keeps the end from coming for no longer than the patience lasts.
// Here it has our own process for a parent no more: it is the tee's own bound that counts.
func TestTeeDoesNotWaitForAnEscapedWriter(t *testing.T) {
	tee, err := newTee(nil, nil, func([]byte) {})
	require.NoError(t, err)
	held, _ := tee.nodeEnds()
	dup, err := unix.Dup(int(held.(*os.File).Fd()))
	require.NoError(t, err)
	defer unix.Close(dup)
	tee.run()
	began := time.Now()
	tee.finish()
	assert.Less(t, time.Since(began), 4*teePatience+5*time.Second)
}

func TestTeeOfADiskThatIsFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	require.NoError(t, err)
	defer full.Close()
	var lines []string
	c := startScript(t, "echo one; echo two; exit 0", func(s *Spec) {
		s.Stdout, s.Lines = full, func(l []byte) { lines = append(lines, string(l)) }
	})
	assert.Zero(t, exitOfChild(t, c).Code)
	assert.Equal(t, []string{"one", "two"}, lines)
}

func TestPieceEndsWithALine(t *testing.T) {
	assert.Equal(t, "ab\ncd", string(piece([]byte("ab\ncd"))), "short ones go as they are")
	long := append(bytes.Repeat([]byte("x"), 100), '\n')
	long = append(long, bytes.Repeat([]byte("y"), 2*pipeAtom)...)
	assert.Len(t, piece(long), 101)
	assert.Len(t, piece(long[101:]), pipeAtom)
}

func TestLineQueueKeepsTheNewest(t *testing.T) {
	q := newLineQueue()
	line := bytes.Repeat([]byte("x"), longestLine)
	for range 1000 {
		q.put(bytes.Clone(line))
	}
	q.put([]byte("newest"))
	assert.LessOrEqual(t, q.size, lineStore)
	q.close()
	q.put([]byte("too late"))
	var last []byte
	n := 0
	for l, ok := q.take(); ok; l, ok = q.take() {
		last = l
		n++
	}
	assert.Equal(t, "newest", string(last))
	assert.Greater(t, n, 50)
	assert.Zero(t, q.size)
}

// FuzzCut: lines are the same in whatever pieces they come, and of a long one its beginning is kept.
func FuzzCut(f *testing.F) {
	f.Add([]byte("one\ntwo\r\n\n\x00three"), 2)
	f.Add(bytes.Repeat([]byte("x\n"), 40), 3)
	f.Fuzz(func(t *testing.T, said []byte, size int) {
		// An x stands for 4 KiB of them, so that short inputs make long lines.
		said = bytes.ReplaceAll(said, []byte("x"), bytes.Repeat([]byte("x"), 4<<10))
		if len(said) > 1<<20 {
			return
		}
		q, s := newLineQueue(), &teeStream{out: -1}
		for piece := range slices.Chunk(said, max(size, 1)) {
			s.cut(piece, q)
		}
		want := bytes.Split(said, []byte("\n"))
		for _, line := range want[:len(want)-1] {
			got, ok := q.take()
			require.True(t, ok)
			require.Equal(t, string(line[:min(len(line), longestLine)]), string(got))
		}
		q.close()
		_, more := q.take()
		require.False(t, more)
		last := want[len(want)-1]
		require.Equal(t, string(last[:min(len(last), longestLine)]), string(s.line))
	})
}
