package kwil

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
)

// VerifyState reads compressed state to its end and gives the hash of the SQL and the rows of each table. It fails where
// the file is damaged or cut short, also between two members of the archive, or where the SQL in it is.
func VerifyState(r io.Reader) (State, error) {
	zr, err := gzip.NewReader(r)
	if err != nil {
		return State{}, fmt.Errorf("cannot read compressed state: %w", err)
	}
	defer zr.Close() //nolint:errcheck // it was read to its end, with its checksum, or an error is on its way
	s := newStream(io.Discard, zr)
	if err := s.run(); err != nil {
		return State{}, fmt.Errorf("cannot read state: %w", err)
	}
	if !bytes.HasPrefix(s.last, []byte(expiryShift)) {
		return State{}, fmt.Errorf("cannot read state: %w: its last statement is missing", ErrTruncated)
	}
	return s.finish()
}

// VerifyPair checks a document and its state against each other: the document's shape, the state's wholeness, and its
// hash, which the document must name: without it kwild ignores the state and starts an empty network.
func VerifyPair(document []byte, state io.Reader) (Version, State, error) {
	v, err := Detect(document)
	if err != nil {
		return "", State{}, err
	}
	if err := Validate(v, document); err != nil {
		return v, State{}, err
	}
	want, err := StateHash(v, document)
	if err != nil {
		return v, State{}, err
	}
	if want == nil {
		return v, State{}, fmt.Errorf("cannot use state: the document has no %s, so the node would start without it", v.hashField())
	}
	found, err := VerifyState(state)
	if err != nil {
		return v, found, err
	}
	if !bytes.Equal(want, found.SHA256[:]) {
		return v, found, fmt.Errorf("cannot use state: its hash is %x, the document's %s says %x", found.SHA256, v.hashField(), want)
	}
	return v, found, nil
}
