package kwil

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"

	"github.com/klauspost/compress/flate"
)

const (
	// gzipBlock is what one core compresses at a time, in bytes. The blocks don't depend on the number of cores, so the
	// compressed bytes don't either.
	gzipBlock = 1 << 20
	// gzipWindow is how far back deflate looks (RFC 1951): each block begins with the end of the one before it, so that
	// cutting the stream costs next to nothing in size.
	gzipWindow = 32 << 10
	// gzipLevel is on klauspost/compress's own scale. Measured on chain-like text: as small as compress/gzip's default, which
	// Kwil's tool uses, for a fifth of its CPU; the levels above cost more and gain nothing there, on prose up to 7 %.
	gzipLevel = 3
)

// gzipHeader has no name, no time and no system: the same state gives the same file (RFC 1952, section 2.3).
var gzipHeader = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}

// gzipWriter compresses on every core into one gzip member, which every gunzip reads. A member that is cut short lacks
// its trailer, so that a truncated file never looks whole, as one of several members would.
type gzipWriter struct {
	dst    io.Writer
	jobs   chan *gzipJob
	order  chan *gzipJob // in the order of the input; its end says that all is written
	done   chan error
	free   chan *gzipJob
	crc    uint32
	size   uint32 // modulo 2^32, as the trailer wants it
	job    *gzipJob
	failed chan struct{} // closed where the destination failed: Close says how
	closed bool
}

// errDestination stands in for the error that Close returns.
var errDestination = errors.New("cannot write compressed state")

// gzipJob is one block on its way.
type gzipJob struct {
	in    []byte // window and block
	from  int    // where the block begins
	last  bool
	out   bytes.Buffer
	err   error
	ready chan struct{}
}

// newGzipWriter starts the compressors. Close must be called, also after an error.
func newGzipWriter(dst io.Writer) *gzipWriter {
	cores := max(runtime.GOMAXPROCS(0), 1)
	depth := 2 * cores // enough that neither side waits for the other
	w := &gzipWriter{
		dst: dst, jobs: make(chan *gzipJob, depth), order: make(chan *gzipJob, depth),
		done: make(chan error, 1), free: make(chan *gzipJob, depth), failed: make(chan struct{}),
	}
	for range depth {
		w.free <- &gzipJob{in: make([]byte, 0, gzipWindow+gzipBlock), ready: make(chan struct{}, 1)}
	}
	for range cores {
		go compress(w.jobs)
	}
	go w.write()
	w.next(nil)
	return w
}

// next takes a free block and begins it with the end of the last one.
func (w *gzipWriter) next(before []byte) {
	w.job = <-w.free
	w.job.in = append(w.job.in[:0], before[max(0, len(before)-gzipWindow):]...)
	w.job.from = len(w.job.in)
	w.job.err, w.job.last = nil, false
	w.job.out.Reset()
}

// Write takes bytes. It fails soon after the destination failed; Close returns that error.
func (w *gzipWriter) Write(p []byte) (int, error) {
	w.crc = crc32.Update(w.crc, crc32.IEEETable, p)
	w.size += uint32(len(p)) //nolint:gosec // modulo 2^32
	for rest := p; len(rest) > 0; {
		job := w.job
		n := min(len(rest), job.from+gzipBlock-len(job.in))
		job.in = append(job.in, rest[:n]...)
		rest = rest[n:]
		if len(job.in) < job.from+gzipBlock {
			break
		}
		select {
		case <-w.failed:
			return 0, errDestination
		default:
		}
		w.send()
		w.next(job.in) // still ours to read: only this goroutine writes into a job, when it takes it anew
	}
	return len(p), nil
}

func (w *gzipWriter) send() {
	w.order <- w.job
	w.jobs <- w.job
}

// Close compresses what is left, writes the trailer and ends the compressors. It returns the first error of the
// destination.
func (w *gzipWriter) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	w.job.last = true
	w.send()
	close(w.jobs)
	close(w.order)
	if err := <-w.done; err != nil {
		return fmt.Errorf("%w: %w", errDestination, err)
	}
	var trailer [8]byte
	binary.LittleEndian.PutUint32(trailer[:], w.crc)
	binary.LittleEndian.PutUint32(trailer[4:], w.size)
	if _, err := w.dst.Write(trailer[:]); err != nil {
		return fmt.Errorf("%w: %w", errDestination, err)
	}
	return nil
}

// write puts the compressed blocks out in their order. After an error it goes on taking them, so that nobody blocks.
func (w *gzipWriter) write() {
	_, err := w.dst.Write(gzipHeader)
	told := false
	for job := range w.order {
		<-job.ready
		if err == nil {
			err = job.err
		}
		if err == nil {
			_, err = w.dst.Write(job.out.Bytes())
		}
		if err != nil && !told {
			close(w.failed)
			told = true
		}
		w.free <- job
	}
	w.done <- err
}

// compress is one core's work: each block ends at a byte boundary (a sync marker), the last one ends the stream.
func compress(jobs <-chan *gzipJob) {
	var fw *flate.Writer
	for job := range jobs {
		if fw == nil {
			fw, job.err = flate.NewWriterDict(&job.out, gzipLevel, job.in[:job.from])
		} else {
			fw.ResetDict(&job.out, job.in[:job.from])
		}
		if job.err == nil {
			_, job.err = fw.Write(job.in[job.from:])
		}
		switch {
		case job.err != nil:
		case job.last:
			job.err = fw.Close()
		default:
			job.err = fw.Flush()
		}
		job.ready <- struct{}{}
	}
}
