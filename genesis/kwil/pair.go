package kwil

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/internal/progress"
)

// Phase is the phase of the progress events; they count bytes of SQL.
const Phase = "genesis"

// Pair is a written pair.
type Pair struct {
	State    State
	Document Document
	File     File // the compressed state
}

// File is a file as it lies on the disk.
type File struct {
	Name   string
	Bytes  int64
	SHA256 [sha256.Size]byte
}

// PairOptions say what WritePair writes.
type PairOptions struct {
	Height   int64                                        // of the state: the last block of the old network
	Dump     func(ctx context.Context, w io.Writer) error // writes what pg_dump writes, as text
	Document Options
	Observe  progress.Observer
}

// WritePair writes the pair into dir: the state that o.Dump streams (pg_dump's plain output), compressed, and the genesis
// document that names its hash. Both are whole and on the disk, with mode 0600, or there is an error. dir is a directory
// that nobody reads yet: the one that genesis.Build hands out, puts in its place when all is well, and else removes.
func WritePair(ctx context.Context, dir string, o PairOptions) (Pair, error) {
	v := o.Document.Version
	if v != V09 && v != V010 {
		return Pair{}, fmt.Errorf("cannot write genesis pair: %q: %w", v, ErrVersion)
	}
	if err := o.Document.check(); err != nil { // before a dump that may take hours
		return Pair{}, err
	}
	state, file, err := writeState(ctx, filepath.Join(dir, v.StateFile()), o)
	if err != nil {
		return Pair{}, err
	}
	doc, err := Render(state, o.Document)
	if err != nil {
		return Pair{}, err
	}
	if err := atomicfile.WriteFile(filepath.Join(dir, GenesisFile), doc.JSON, 0o600); err != nil {
		return Pair{}, err
	}
	return Pair{State: state, Document: doc, File: file}, nil
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
	if !slices.ContainsFunc(state.Tables, func(t Table) bool { return t.Name == VotersTable }) {
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
