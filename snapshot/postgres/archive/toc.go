package archive

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// The table of contents, toc.dat, is written by pg_dump's pg_backup_archiver.c (WriteHead, WriteToc). It is read here
// and not by pg_restore --list: a list's lines are ambiguous where a name holds a blank or a newline.
const (
	tocName  = "toc.dat"
	tocMagic = "PGDMP"

	// Versions of the format: 1.14 has come since pg_dump 12, 1.15 with 16, 1.16 with 17.
	oldest, newest = 14, 16

	maxTOC = 1 << 30 // bytes; a million large objects have 200 each
)

// An entry is one object of the archive.
type entry struct {
	desc   string // its kind: TABLE DATA, SEQUENCE SET, BLOBS, ACL ...
	tag    string // its name
	schema string
	defn   string // the statement that makes it
	copy   string // COPY … FROM stdin; of its data
	owner  string
	file   string // of its data, without the compression's suffix; "" = none
}

// readTOC reads the whole of it.
func readTOC(root *os.Root) (string, []entry, error) {
	f, err := root.Open(tocName)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxTOC {
		return "", nil, errors.New("not a regular file of a sane size")
	}
	r := &tocReader{r: bufio.NewReaderSize(f, 64<<10), left: info.Size()}
	r.head()
	var all []entry
	for n := r.int(); n > 0 && r.err == nil; n-- {
		all = append(all, r.entry())
	}
	return r.dumpVersion, all, r.err
}

// A tocReader keeps the first error; after it everything reads as zero.
type tocReader struct {
	r           *bufio.Reader
	left        int64 // bytes of the file that weren't read: no length in it is believed beyond
	err         error
	minor       int // of the format's version
	intSize     int
	dumpVersion string
}

func (r *tocReader) head() {
	if magic := r.bytes(len(tocMagic)); r.err == nil && string(magic) != tocMagic {
		r.err = errors.New("it was not written by pg_dump")
	}
	major := r.byte()
	r.minor = r.byte()
	r.byte() // revision
	if r.err == nil && (major != 1 || r.minor < oldest || r.minor > newest) {
		r.err = fmt.Errorf("version %d.%d of the format is not known here, 1.%d to 1.%d are", major, r.minor, oldest, newest)
	}
	if r.intSize = r.byte(); r.err == nil && (r.intSize < 1 || r.intSize > 8) {
		r.err = fmt.Errorf("integers of %d bytes", r.intSize)
	}
	r.byte() // size of offsets
	r.byte() // format: a directory's says tar
	if r.minor >= 15 {
		r.byte() // algorithm of the compression
	} else {
		r.int() // its level
	}
	for range 7 { // the date: sec, min, hour, mday, mon, year, isdst
		r.int()
	}
	r.str() // name of the database
	r.str() // the server's version
	r.dumpVersion = r.str()
}

func (r *tocReader) entry() (e entry) {
	r.int() // dump id
	r.int() // had a dumper
	r.str() // oid of the catalog
	r.str() // oid
	e.tag, e.desc = r.str(), r.str()
	r.int() // section
	e.defn = r.str()
	r.str() // drop statement
	e.copy, e.schema = r.str(), r.str()
	r.str() // tablespace
	r.str() // access method
	if r.minor >= 16 {
		r.int() // relkind
	}
	e.owner = r.str()
	r.str() // with oids
	for r.err == nil {
		if _, more := r.strOrNull(); !more { // dependencies, up to a null
			break
		}
	}
	e.file = r.str()
	return e
}

func (r *tocReader) bytes(n int) []byte {
	if r.err == nil && int64(n) > r.left {
		r.err = io.ErrUnexpectedEOF
	}
	if r.err != nil {
		return nil
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.r, b); err != nil {
		r.err = err
		return nil
	}
	r.left -= int64(n)
	return b
}

func (r *tocReader) byte() int {
	if b := r.bytes(1); b != nil {
		return int(b[0])
	}
	return 0
}

// int reads a sign and a little-endian number.
func (r *tocReader) int() int64 {
	negative := r.byte() != 0
	b := r.bytes(r.intSize)
	v := int64(0)
	for i := len(b) - 1; i >= 0; i-- {
		v = v<<8 | int64(b[i])
	}
	if negative {
		return -v
	}
	return v
}

func (r *tocReader) str() string {
	s, _ := r.strOrNull()
	return s
}

// strOrNull reads a length and as many bytes; a length of -1 is null.
func (r *tocReader) strOrNull() (s string, ok bool) {
	n := r.int()
	if r.err == nil && n > r.left {
		r.err = io.ErrUnexpectedEOF
	}
	if n < 0 || r.err != nil {
		return "", false
	}
	return string(r.bytes(int(n))), true
}

// printable makes a name of any encoding fit for JSON, and keeps different ones apart.
func printable(name string) string {
	var b strings.Builder
	for i, c := range name {
		if c == '\uFFFD' && name[i] != 0xEF { // not UTF-8
			fmt.Fprintf(&b, `\x%02x`, name[i])
			continue
		}
		b.WriteRune(c)
	}
	return b.String()
}
