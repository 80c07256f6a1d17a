package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
)

// drain takes a program's stdout to a writer. Package exec would close the pipe a fixed time after the program's end,
// whether or not it was read to its end, so that a writer that was slow in that moment (a disk, a consumer that sorts)
// loses the last 64 KiB without a word. Here the time in which nothing came is what counts, not the writer's.
type drain struct {
	r, w  *os.File
	ended atomic.Bool // the program has: from now on nothing is waited for longer than pipeDelay
	done  chan error
}

func newDrain(to io.Writer) (*drain, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot make a pipe: %w", err)
	}
	d := &drain{r: r, w: w, done: make(chan error, 1)}
	go func() {
		err := d.copy(to)
		r.Close() // a program that writes on ends by SIGPIPE
		d.done <- err
	}()
	return d, nil
}

// started gives up our end of what the program writes to.
func (d *drain) started() {
	if d != nil {
		d.w.Close()
	}
}

// copy ends where all writers are gone, where the program has ended and nothing came for pipeDelay (who left its group
// may hold the pipe open for good), or with the error of to.
func (d *drain) copy(to io.Writer) error {
	buf := make([]byte, 64<<10)
	for idle := 0; idle < 2; {
		if d.ended.Load() {
			_ = d.r.SetReadDeadline(time.Now().Add(pipeDelay / 2))
		}
		n, err := d.r.Read(buf)
		if n > 0 {
			idle = 0
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			idle++ // twice: one may have passed before the read began
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
	return nil
}

// finish waits for the copy of a program that has ended. At ctx's end a writer that is stuck is left behind, after
// pipeDelay: its output is lost then, which is an error.
func (d *drain) finish(ctx context.Context) error {
	if d == nil {
		return nil
	}
	d.ended.Store(true)
	_ = d.r.SetReadDeadline(time.Now().Add(pipeDelay / 2)) // for a read that has begun
	select {
	case err := <-d.done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-d.done:
		return err
	case <-time.After(2 * pipeDelay):
		return fmt.Errorf("its output was not taken: %w", context.Cause(ctx))
	}
}
