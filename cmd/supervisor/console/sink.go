package console

import (
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// logSink writes records to a descriptor on a goroutine of its own, because a pipe whose reader has stopped reading
// blocks a write for ever, and whoever logs must go on: the loop that forwards signals, the watchdog. A record is
// normally written when Write returns, so nothing is lost when the process ends. Only while the reader stalls are
// records queued, and then dropped and counted.
//
// It writes with write(2) and not through *os.File: the runtime ends the process at an EPIPE on descriptors 1 and 2
// (os/signal, "SIGPIPE"), and a supervisor must outlive whoever reads its log.
type logSink struct {
	records chan logRecord
	stalled atomic.Bool
	dropped atomic.Int64
	lost    func(n int64) []byte // the record that says so, in the form of the others
}

// Bounds of logSink.
const (
	logPatience = 250 * time.Millisecond // how long a record waits for a stalled reader
	logQueue    = 256                    // how many records are kept meanwhile
)

type logRecord struct {
	text []byte
	done chan struct{}
}

// newLogSink takes a descriptor of its own, so that closing f does it no harm. Where f is closed already, records vanish.
func newLogSink(f *os.File, lost func(n int64) []byte) *logSink {
	s := &logSink{records: make(chan logRecord, logQueue), lost: lost}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		fd = -1
	}
	go s.run(fd)
	return s
}

// Write hands one record over. It never fails: there is nowhere to report to.
func (s *logSink) Write(text []byte) (int, error) {
	r := logRecord{text: append([]byte(nil), text...), done: make(chan struct{})}
	select {
	case s.records <- r:
	default:
		s.dropped.Add(1)
		return len(text), nil
	}
	if s.stalled.Load() {
		return len(text), nil
	}
	patience := time.NewTimer(logPatience)
	defer patience.Stop()
	select {
	case <-r.done:
	case <-patience.C:
		s.stalled.Store(true) // one record waits, not each of them
	}
	return len(text), nil
}

func (s *logSink) run(fd int) {
	for r := range s.records {
		if n := s.dropped.Swap(0); n > 0 {
			writeAll(fd, s.lost(n))
		}
		writeAll(fd, r.text)
		s.stalled.Store(len(s.records) > 0 && s.stalled.Load())
		close(r.done)
	}
}

// writeAll writes text, waiting where the descriptor is a non-blocking one. An error (a closed descriptor, a reader
// that has gone, a full disk) loses the record and nothing else.
func writeAll(fd int, text []byte) {
	for len(text) > 0 && fd >= 0 {
		n, err := unix.Write(fd, text)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 1000)
		case err != nil:
			return
		default:
			text = text[n:]
		}
	}
}
