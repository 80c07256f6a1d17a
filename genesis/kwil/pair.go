package kwil

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/internal/progress"
)

// partial ends the names of pairs that are being written. Such a directory is locked while its writer lives.
const partial = ".partial"

// Phase is the phase of the progress events; they count bytes of SQL.
const Phase = "genesis"

// Pair is a written pair.
type Pair struct {
	Dir      string
	State    State
	Document Document
	Files    []File // genesis document and state
}

// File is one file of a pair.
type File struct {
	Name   string
	Bytes  int64
	SHA256 [sha256.Size]byte
}

// PairOptions say what WritePair writes.
type PairOptions struct {
	Height   int64 // of the state: the last block of the old network
	Dump     func(ctx context.Context, w io.Writer) error
	Document Options
	Observe  progress.Observer
}

// WritePair writes the state that o.Dump streams (pg_dump's plain output), its genesis document and SHA256SUMS into dir,
// which must not exist or be empty. The files appear at once and whole: they are written beside dir, synced, and
// renamed. A run that fails or is killed leaves nothing under dir; the next one clears what it left beside it.
func WritePair(ctx context.Context, dir string, o PairOptions) (pair Pair, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return Pair{}, err
	}
	defer func() {
		if err != nil && hint.Of(err) == "" {
			err = fmt.Errorf("cannot write genesis pair %s: %w", dir, err)
		}
	}()
	if err := mustBeFree(dir); err != nil {
		return Pair{}, err
	}
	if err := atomicfile.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return Pair{}, err
	}
	if err := removePartial(dir); err != nil {
		return Pair{}, err
	}
	temp, unlock, err := makePartial(dir)
	if err != nil {
		return Pair{}, err
	}
	defer unlock()
	pair, err = fill(ctx, temp, o)
	if err == nil {
		err = atomicfile.SyncDir(temp)
	}
	if err == nil {
		err = atomicfile.Rename(temp, dir) // rename(2) takes the place of an empty directory, of no other
	}
	if err != nil {
		return Pair{}, errors.Join(err, atomicfile.RemoveTree(temp))
	}
	pair.Dir = dir
	return pair, nil
}

// mustBeFree refuses a directory with something in it, before anything is done.
func mustBeFree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err == nil {
		err = fs.ErrExist
	}
	return &hint.Error{Op: "write genesis pair", Path: dir, Err: err, Hint: "name another directory: --out DIR"}
}

// makePartial makes the directory beside dir, and locks it.
func makePartial(dir string) (temp string, unlock func(), err error) {
	temp, err = os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".*"+partial)
	if err != nil {
		return "", nil, err
	}
	if err := atomicfile.Adopt(temp); err != nil {
		return "", nil, errors.Join(err, os.Remove(temp))
	}
	f, err := lockDir(temp)
	if err != nil {
		return "", nil, errors.Join(err, os.Remove(temp))
	}
	return temp, func() { f.Close() }, nil
}

// lockDir takes the lock of a directory, or fails at once. The lock ends with its holder.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// removePartial clears what killed runs left beside dir; what is locked belongs to a run that lives.
func removePartial(dir string) error {
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		return err
	}
	prefix := "." + filepath.Base(dir) + "."
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), prefix) || !strings.HasSuffix(e.Name(), partial) {
			continue
		}
		left := filepath.Join(filepath.Dir(dir), e.Name())
		f, err := lockDir(left)
		if err != nil {
			continue
		}
		err = atomicfile.RemoveTree(left)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// fill writes the files of the pair into temp.
func fill(ctx context.Context, temp string, o PairOptions) (Pair, error) {
	v := o.Document.Version
	if v != V09 && v != V010 {
		return Pair{}, fmt.Errorf("%q: %w", v, ErrVersion)
	}
	state, file, err := writeState(ctx, filepath.Join(temp, v.StateFile()), o)
	if err != nil {
		return Pair{}, err
	}
	doc, err := Render(state, o.Document)
	if err != nil {
		return Pair{}, err
	}
	genesis := File{Name: GenesisFile, Bytes: int64(len(doc.JSON)), SHA256: sha256.Sum256(doc.JSON)}
	if err := atomicfile.WriteFile(filepath.Join(temp, GenesisFile), doc.JSON, 0o600); err != nil {
		return Pair{}, err
	}
	var sums strings.Builder
	files := []File{genesis, file}
	for _, f := range files {
		fmt.Fprintf(&sums, "%x  %s\n", f.SHA256, f.Name)
	}
	if err := atomicfile.WriteFile(filepath.Join(temp, SumsFile), []byte(sums.String()), 0o600); err != nil {
		return Pair{}, err
	}
	return Pair{State: state, Document: doc, Files: files}, nil
}

// writeState streams the dump through the sanitiser and the compressor into a file.
func writeState(ctx context.Context, path string, o PairOptions) (state State, file File, err error) {
	sum := sha256.New()
	counted := &counter{}
	err = atomicfile.Write(path, 0o600, atomicfile.Content, func(w io.Writer) error {
		zw := newGzipWriter(io.MultiWriter(w, sum, counted))
		seen := &counter{observe: o.Observe}
		state, err = streamDump(ctx, io.MultiWriter(zw, seen), o)
		return errors.Join(err, zw.Close())
	})
	if err != nil {
		return State{}, File{}, err
	}
	if !hasTable(state, VotersTable) {
		return State{}, File{}, hint.New("write genesis pair", "", "the database has no table "+VotersTable+": it isn't Kwil's",
			"name the node's own database in the source's dsn")
	}
	file = File{Name: filepath.Base(path), Bytes: counted.n}
	sum.Sum(file.SHA256[:0])
	return state, file, nil
}

// streamDump runs the dump and the sanitiser side by side: the end of either ends the other.
func streamDump(ctx context.Context, dst io.Writer, o PairOptions) (State, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := io.Pipe()
	dumped := make(chan error, 1)
	go func() {
		err := o.Dump(ctx, pw)
		pw.CloseWithError(err) // nil is the end of the file
		dumped <- err
	}()
	state, err := Sanitise(dst, pr, o.Document.Version, o.Height)
	if err != nil {
		cancel()
	}
	pr.CloseWithError(err)
	if dumpErr := <-dumped; dumpErr != nil && (err == nil || errors.Is(err, dumpErr)) {
		return State{}, dumpErr // as it is: it carries its own hint
	}
	return state, err
}

func hasTable(s State, name string) bool {
	for _, t := range s.Tables {
		if t.Name == name {
			return true
		}
	}
	return false
}

// counter counts what is written, and reports it.
type counter struct {
	n       int64
	observe progress.Observer
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	c.observe.Observe(progress.Event{Phase: Phase, Done: c.n})
	return len(p), nil
}
