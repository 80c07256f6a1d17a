package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"math/bits"
)

// A Sum is a sum of SHA-256 digests modulo 2^256: it tells one set of rows from another, however they are ordered, and
// unlike an exclusive or it doesn't forget rows that are there twice.
type Sum struct {
	Count int64
	words [4]uint64 // little-endian
}

// Add adds one row's digest.
func (s *Sum) Add(d [sha256.Size]byte) {
	var carry uint64
	for i := range s.words {
		s.words[i], carry = bits.Add64(s.words[i], binary.BigEndian.Uint64(d[len(d)-8*(i+1):]), carry)
	}
	s.Count++
}

// Hex is the sum as 64 digits, the highest first.
func (s *Sum) Hex() string {
	var b [sha256.Size]byte
	for i, w := range s.words {
		binary.BigEndian.PutUint64(b[len(b)-8*(i+1):], w)
	}
	return hex.EncodeToString(b[:])
}

// errTruncated means that the data of a table ends before its end.
var errTruncated = errors.New("the data ends before its end")

// Rows reads the text format of COPY, in pieces of any size, and sums its rows up; of a row it keeps nothing but its
// digest's state. A row is a line without its newline: COPY escapes those within values.
type Rows struct {
	Sum

	terminated bool // the data ends with a line \. (in an archive), not with the stream (from a server)
	ended      bool // that line was seen
	long       hash.Hash
	head       []byte // the first bytes of the line that long has begun
}

// The line that ends the data. No row is written so: a backslash in a value is doubled.
const terminator = `\.`

// Write takes a piece.
func (r *Rows) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		at := bytes.IndexByte(rest, '\n')
		switch {
		case at < 0:
			r.begin(rest)
			return len(p), nil
		case r.head != nil:
			r.begin(rest[:at])
			if err := r.line(r.head, nil); err != nil {
				return 0, err
			}
		default:
			if err := r.line(rest[:at], rest[:at]); err != nil {
				return 0, err
			}
		}
		rest = rest[at+1:]
	}
	return len(p), nil
}

// begin keeps the digest of a line that another piece goes on with.
func (r *Rows) begin(part []byte) {
	if r.head == nil {
		r.head = make([]byte, 0, len(terminator)+1)
		if r.long == nil {
			r.long = sha256.New()
		}
		r.long.Reset()
	}
	r.head = append(r.head, part[:min(len(part), cap(r.head)-len(r.head))]...)
	r.long.Write(part)
}

// line takes a whole line; whole is nil where its digest was begun before.
func (r *Rows) line(head, whole []byte) error {
	began := r.head != nil
	r.head = nil
	switch {
	case r.ended && len(head) > 0:
		return errors.New("there is something behind the end of the data")
	case r.ended:
		return nil // blank lines follow the end
	case r.terminated && string(head) == terminator:
		r.ended = true
		return nil
	}
	if !began {
		r.Add(sha256.Sum256(whole))
		return nil
	}
	var d [sha256.Size]byte
	r.long.Sum(d[:0])
	r.Add(d)
	return nil
}

// Close fails if the data is incomplete.
func (r *Rows) Close() error {
	if r.head != nil || r.terminated && !r.ended {
		return errTruncated
	}
	return nil
}
