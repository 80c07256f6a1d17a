package dump

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/archive"
)

// readers is how many files of an archive are read at once while the node runs.
func readers() int { return max(1, runtime.NumCPU()/2) }

// Hash records the digest of each file of an archive.
func Hash(ctx context.Context, at string, entries []manifest.Entry, total int64, observe manifest.Observe) error {
	root, err := os.OpenRoot(at)
	if err != nil {
		return fmt.Errorf("cannot hash archive: %w", err)
	}
	defer root.Close()
	var done atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers())
	for i := range entries {
		e := &entries[i]
		if e.Type != manifest.File {
			continue
		}
		g.Go(func() error {
			if err := manifest.Interrupted(ctx, "hashing of the archive"); err != nil {
				return err
			}
			f, err := root.Open(e.Path)
			if err != nil {
				return fmt.Errorf("cannot hash archive: %w", err)
			}
			defer f.Close()
			h := sha256.New()
			n, err := io.Copy(h, &contextReader{ctx: ctx, r: f, report: func(n int) { observe("snapshot hash", done.Add(int64(n)), total) }})
			if err != nil {
				return fmt.Errorf("cannot hash archive: %w", err)
			}
			if n != e.Size {
				return fmt.Errorf("cannot hash %s: it has %d bytes, the snapshot was made with %d", f.Name(), n, e.Size)
			}
			e.SHA256 = hex.EncodeToString(h.Sum(nil))
			return nil
		})
	}
	return g.Wait()
}

// A contextReader ends with its context.
type contextReader struct {
	ctx    context.Context
	r      io.Reader
	report func(int)
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := manifest.Interrupted(c.ctx, "reading of the archive"); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.report(n)
	return n, err
}

// Content reads rows and hashes from an archive.
func Content(ctx context.Context, at string, total int64, observe manifest.Observe) ([]manifest.Table, error) {
	a, err := archive.Open(at)
	if err != nil {
		return nil, err
	}
	tables, err := a.Content(ctx, readers(), func(done int64) { observe("snapshot content", min(done, total), total) })
	if err == nil {
		observe("snapshot content", total, total) // lists and the table of contents aren't among what was read
	}
	return tables, err
}
