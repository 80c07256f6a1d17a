package dump

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"nodevisor/internal/atomicfile"
	"nodevisor/snapshot/manifest"
)

// Unpack copies the files of an archive from a snapshot to dst, and compares them with their digests.
func Unpack(ctx context.Context, r manifest.Restore, dst string, observe manifest.Observe) error {
	from, err := os.OpenRoot(r.From)
	if err != nil {
		return err
	}
	defer from.Close()
	done := int64(0)
	report := func(n int) {
		done += int64(n)
		observe("restore", min(done, r.Record.Bytes), r.Record.Bytes)
	}
	for i := range r.Record.Entries {
		e := &r.Record.Entries[i]
		at := filepath.Join(dst, e.Path)
		if e.Type == manifest.Dir {
			if err := os.Mkdir(at, 0o700); err != nil {
				return err
			}
			if err := atomicfile.Adopt(at); err != nil {
				return err
			}
			continue
		}
		if err := copyChecked(ctx, from, e, at, report); err != nil {
			return err
		}
	}
	return atomicfile.SyncDir(dst)
}

func copyChecked(ctx context.Context, from *os.Root, e *manifest.Entry, at string, report func(int)) error {
	src, err := from.Open(e.Path)
	if err != nil {
		return err
	}
	defer src.Close()
	h := sha256.New()
	err = atomicfile.Write(at, 0o600, atomicfile.Full, func(w io.Writer) error {
		n, err := io.Copy(io.MultiWriter(w, h), &contextReader{ctx: ctx, r: src, report: report})
		if err == nil && n != e.Size {
			err = manifest.Fault{Path: e.Path, Want: fmt.Sprintf("%d bytes", e.Size), Got: fmt.Sprintf("%d bytes", n)}
		}
		return err
	})
	if err != nil {
		return err
	}
	if sum := hex.EncodeToString(h.Sum(nil)); e.SHA256 != "" && sum != e.SHA256 {
		return manifest.Fault{Path: e.Path, Want: "sha256 " + e.SHA256, Got: "sha256 " + sum}
	}
	return nil
}
