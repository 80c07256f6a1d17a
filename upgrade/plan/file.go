package plan

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"nodevisor/upgrade/version"
)

// maxBytes caps a plan file. A governance proposal's info is far below; the cap keeps a hostile file from being parsed at all.
const maxBytes = 1 << 20

// Errors of plan files.
var (
	ErrMissing = errors.New("no plan")      // the file is missing
	ErrInvalid = errors.New("invalid plan") // the file is there and says nothing usable (yet)
)

// File is one look at the node's plan file.
type File struct {
	Plan Plan
	Err  error // ErrMissing, ErrInvalid
	id   content
	at   time.Time // when the content came to be there (ctime)
}

// LookAt reads the node's plan file.
func LookAt(path string, recase bool) File {
	if path == "" {
		return File{Err: ErrMissing}
	}
	p, info, err := ReadFile(path, recase)
	f := File{Plan: p, Err: err}
	if info != nil {
		f.id, f.at = identify(info)
	}
	return f
}

// content is what every write of a file changes. A changed owner or mode moves only its ctime.
type content struct {
	dev, ino    uint64
	size, mtime int64
}

// identify tells the file's content from what was there before, and says when it came to be there.
func identify(info fs.FileInfo) (content, time.Time) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return content{size: info.Size(), mtime: info.ModTime().UnixNano()}, info.ModTime()
	}
	dev := uint64(st.Dev) //nolint:unconvert // its type differs by architecture
	return content{dev: dev, ino: st.Ino, size: st.Size, mtime: st.Mtim.Nano()}, time.Unix(0, st.Ctim.Nano())
}

// ReadFile reads what the node announced. A missing file is ErrMissing; one that is empty, half-written or otherwise
// unusable is ErrInvalid: look again later, the node may still be writing.
func ReadFile(path string, recase bool) (Plan, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO in its place must not block
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid) {
		return Plan{}, nil, ErrMissing
	}
	if err != nil {
		return Plan{}, nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Plan{}, nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if !info.Mode().IsRegular() {
		return Plan{}, info, fmt.Errorf("%w: not a regular file", ErrInvalid)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return Plan{}, info, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	p, err := Parse(data, recase)
	return p, info, err
}

// Installed reads the plan that a version was switched to for; ok is false where there is no (readable) trace.
func Installed(l version.Layout, v version.Version, recase bool) (p Plan, ok bool) {
	p, _, err := ReadFile(l.InfoPath(v), recase)
	return p, err == nil
}
