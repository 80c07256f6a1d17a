// Package capped reads files whole, and no more of them than was agreed upon: whatever lies at a path that others may
// write to, reading it neither blocks nor fills the memory.
package capped

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLines is the most that Lines reads, in bytes.
const maxLines = 1 << 20

// Open opens a regular file for reading, behind links too. A pipe or a device is refused: it could block or never end.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// ReadBytes reads a file that Open opens, of at most limit bytes. Every error is an *fs.PathError.
func ReadBytes(path string, limit int64) ([]byte, error) {
	f, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("larger than %d bytes", limit)}
	}
	if err != nil {
		return nil, err
	}
	return data, nil
}

// ReadFile is ReadBytes for text.
func ReadFile(path string, limit int64) (string, error) {
	data, err := ReadBytes(path, limit)
	return string(data), err
}

// Lines reads one of the system's own small files, such as /etc/passwd or /proc/self/mountinfo; where there is none (a
// scratch container), or it is too large, it has no lines.
func Lines(path string) []string {
	text, err := ReadFile(path, maxLines)
	if err != nil {
		return nil
	}
	return strings.Split(text, "\n")
}
