package archive

import (
	"crypto/sha256"
	"hash"
	"strconv"
)

// A LargeObject digests one large object: its oid and its bytes.
type LargeObject struct{ h hash.Hash }

// NewLargeObject begins the digest of the object oid.
func NewLargeObject(oid uint32) *LargeObject {
	l := &LargeObject{h: sha256.New()}
	l.h.Write(strconv.AppendUint(nil, uint64(oid), 10))
	l.h.Write([]byte{'\t'})
	return l
}

// Write takes bytes of the object, in their order.
func (l *LargeObject) Write(p []byte) (int, error) { return l.h.Write(p) }

// Digest is what goes into the Sum.
func (l *LargeObject) Digest() (d [sha256.Size]byte) {
	l.h.Sum(d[:0])
	return d
}
