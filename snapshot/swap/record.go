package swap

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/capped"
	"nodevisor/internal/hint"
)

// Record is the file in which a restore under way keeps its journal, of type J: here that of a directory, in package
// rename that of a database.
type Record[J any] struct {
	Path    string
	Limit   int64          // of the file, in bytes
	Check   func(*J) error // refuses what can't be acted upon
	Restore string         // how a person puts right by hand what a damaged journal no longer tells
}

// Read returns nil where no restore is under way. A damaged journal is an error with a hint: nothing is guessed.
func (r Record[J]) Read() (*J, error) {
	info, err := os.Lstat(r.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil, nil
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > r.Limit:
		return nil, r.damaged(errors.New("not a regular file of a sane size"))
	}
	data, err := capped.ReadBytes(r.Path, r.Limit)
	if err != nil {
		return nil, err
	}
	j := new(J)
	err = json.Unmarshal(data, j)
	if err == nil {
		err = r.Check(j)
	}
	if err != nil {
		return nil, r.damaged(err)
	}
	return j, nil
}

func (r Record[J]) damaged(err error) error {
	return &hint.Error{
		Op: "read restore journal", Path: r.Path, Err: err,
		Hint: "a restore was interrupted and its record is damaged: " + r.Restore + ", then remove the journal",
	}
}

// Write makes j durable, in a directory that is there.
func (r Record[J]) Write(j *J) error {
	data, err := json.Marshal(j)
	if err == nil {
		err = atomicfile.WriteFile(r.Path, append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot write restore journal: %w", err)
	}
	return nil
}

// Remove ends the restore. It is no error that there is none.
func (r Record[J]) Remove() error {
	if err := atomicfile.Remove(r.Path); err != nil {
		return fmt.Errorf("cannot remove restore journal: %w", err)
	}
	return nil
}
