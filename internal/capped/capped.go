// Package capped reads small files whole, and no more of them than was agreed upon: whatever lies at a path that others may
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

// ReadFile reads a regular file of at most limit bytes. A pipe or a device is refused: it could block or never end.
func ReadFile(path string, limit int64) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return "", err
	}
	if int64(len(data)) > limit {
		return "", &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("larger than %d bytes", limit)}
	}
	return string(data), nil
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
