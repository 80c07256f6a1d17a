package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/capped"
	"nodevisor/internal/hint"
)

// recordEvery is how often a height that rises is written.
const recordEvery = time.Minute

// Record is the last height that was read of a node: a lower bound of where its data stands.
type Record struct {
	Height int64     `json:"height"`
	At     time.Time `json:"at"`
}

// LoadRecord reads path. A missing file is false without an error; one that can't be understood is an error.
func LoadRecord(path string) (Record, bool, error) {
	data, err := capped.ReadBytes(path, 4<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, false, nil
	}
	var r Record
	if err == nil {
		err = json.Unmarshal(bytes.TrimSpace(data), &r)
	}
	if err == nil && r.Height <= 0 {
		err = fmt.Errorf("height %d", r.Height)
	}
	if err != nil {
		return Record{}, false, &hint.Error{
			Op: "read the recorded height", Path: path, Err: err,
			Hint: "nothing is to be done: the next height that is read is recorded anew",
		}
	}
	return r, true, nil
}

func saveRecord(path string, r Record, d atomicfile.Durability) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("cannot write the recorded height: %w", err)
	}
	return atomicfile.Write(path, 0o644, d, func(w io.Writer) error {
		_, err := w.Write(append(data, '\n'))
		return err
	})
}

// Recorder keeps a Record on disk while heights come in. It is safe for concurrent use; its writes block, so the run loop
// leaves them to the goroutine that reads heights.
type Recorder struct {
	path string

	mu      sync.Mutex
	last    Record // the newest height
	known   bool
	written Record    // what is on disk
	tried   time.Time // when a rising height was last written, or failed to be
}

// OpenRecorder loads what is recorded at path. The Recorder is usable with an error, too: the record is a bound that helps,
// and no reason to keep a node down. Then no height is known, and the next one that is noted is written over it.
func OpenRecorder(path string) (*Recorder, error) {
	last, known, err := LoadRecord(path)
	return &Recorder{path: path, last: last, known: known, written: last}, err
}

// Last returns the newest height, recorded or still to be.
func (r *Recorder) Last() (Record, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last, r.known
}

// Note takes a height that was just read. The first one, and one that is lower than the last, are written at once and
// durably: lower means that the data began a new life, and an old record that came back after a power cut would make a
// plan look done that this data has not seen. A rising height is written once a minute; losing it costs nothing.
func (r *Recorder) Note(height int64) error {
	if height <= 0 {
		return fmt.Errorf("cannot record height %d: it is not known", height)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	newLife := !r.known || height < r.last.Height || height < r.written.Height
	r.last, r.known = Record{height, time.Now().UTC().Truncate(time.Millisecond)}, true
	if newLife {
		return r.write(atomicfile.Full)
	}
	if height == r.written.Height || time.Since(r.tried) < recordEvery {
		return nil
	}
	return r.write(atomicfile.Content)
}

// Flush writes the newest height where it isn't on disk yet: at a stop, and before anything that relies on it.
func (r *Recorder) Flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.known || r.last.Height == r.written.Height {
		return nil
	}
	return r.write(atomicfile.Full)
}

func (r *Recorder) write(d atomicfile.Durability) error {
	r.tried = time.Now()
	if err := saveRecord(r.path, r.last, d); err != nil {
		return err
	}
	r.written = r.last
	return nil
}
