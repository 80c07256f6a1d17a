// Package unpack takes the one binary that is wanted out of an archive that a stranger wrote.
//
// The archive is read as a stream, each entry is checked, and the only one written is the binary. go-getter's decompressors
// aren't used: they write links' and devices' entries as empty files, let a second entry of a name replace the first, write
// every entry to disk, and take sizes from headers. The readers are the ones that go-getter uses too. It is a package of its
// own, apart from the program that links go-getter, so that it can be fuzzed within seconds.
package unpack

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// ErrTooLarge means that an archive holds more bytes or entries than it may.
var ErrTooLarge = errors.New("the archive holds too much")

// Binary is the file that is wanted.
type Binary struct {
	Path     string // where it is to be; its last element is the binary's name in the archive, too
	MaxBytes int64  // of all that the archive holds
	MaxFiles int64  // entries of the archive
}

const maxWindow = 128 << 20 // bytes of a zstd window: what `zstd --ultra -22 --long=27` makes

// TakeFrom writes the binary that the file archive holds to b.Path. What the file is, its bytes say, not its name: a URL's
// path needn't end in .tar.gz. A file that is no archive is the binary itself, and is renamed. After an error there may be a
// part of a file at b.Path, and nothing elsewhere.
func (b Binary) TakeFrom(archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	switch head := peek(bufio.NewReaderSize(f, headSize)); {
	case bytes.HasPrefix(head, []byte("PK\x03\x04")), bytes.HasPrefix(head, []byte("PK\x05\x06")):
		err = b.takeZip(f)
	default:
		err = b.takeStream(f)
	}
	if errors.Is(err, errPlain) {
		// It keeps its bytes, and the one name that it has.
		return os.Rename(archive, b.Path)
	}
	return err
}

// errPlain means that a file is neither compressed nor an archive.
var errPlain = errors.New("not an archive")

const headSize = 4096

// peek returns the beginning of what r holds, without taking it.
func peek(r *bufio.Reader) []byte {
	head, _ := r.Peek(512)
	return head
}

// takeStream takes the binary out of a tar archive, a compressed one, or a single compressed file.
func (b Binary) takeStream(f *os.File) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	raw := bufio.NewReaderSize(f, headSize)
	plain, compressed, err := decompress(raw)
	if err != nil {
		return damaged(err)
	}
	// The one limit that no header can talk its way around: on the bytes that come out. Headers and padding of the
	// entries are counted with it.
	limit := &limited{r: plain, left: b.MaxBytes, max: b.MaxBytes}
	stream := bufio.NewReaderSize(limit, headSize)
	head := peek(stream)
	switch {
	case isTar(head):
		limit.left += b.MaxFiles * 2048
		err = b.takeTar(stream)
	case compressed:
		err = b.write(stream)
	default:
		return errPlain
	}
	if err == nil {
		_, err = io.Copy(io.Discard, stream) // to its end, where the checksums of the compression are
	}
	return damaged(err)
}

// decompress takes one layer of compression off.
func decompress(r *bufio.Reader) (plain io.Reader, compressed bool, err error) {
	head := peek(r)
	is := func(magic string) bool { return bytes.HasPrefix(head, []byte(magic)) }
	switch {
	case is("\x1f\x8b"):
		plain, err = gzip.NewReader(r)
	case is("\x28\xb5\x2f\xfd"):
		plain, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow))
	case is("\xfd7zXZ\x00"):
		plain, err = xz.NewReader(r)
	case is("BZh"):
		plain = bzip2.NewReader(r)
	default:
		return r, false, nil
	}
	return plain, true, err
}

// isTar says whether head begins a tar archive: its first header's own checksum is right. One of nothing but zeros is an
// empty archive.
func isTar(head []byte) bool {
	if len(head) < 512 {
		return false
	}
	_, err := tar.NewReader(bytes.NewReader(head)).Next()
	return err == nil || errors.Is(err, io.ErrUnexpectedEOF) || len(bytes.Trim(head, "\x00")) == 0
}

func (b Binary) takeTar(r io.Reader) error {
	p := b.picker()
	archive := tar.NewReader(r)
	for {
		hdr, err := archive.Next()
		if err == io.EOF {
			return p.end()
		}
		if err != nil {
			return err
		}
		var kind entryKind
		switch hdr.Typeflag {
		case tar.TypeReg:
			kind = regular
		case tar.TypeDir:
			kind = directory
		case tar.TypeXGlobalHeader:
			continue // git archive's commit id
		}
		if err := p.entry(hdr.Name, kind, hdr.Size, func() (io.ReadCloser, error) { return io.NopCloser(archive), nil }); err != nil {
			return err
		}
	}
}

func (b Binary) takeZip(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	archive, err := zip.NewReader(f, info.Size())
	if err != nil {
		return damaged(err)
	}
	p := b.picker()
	for _, e := range archive.File {
		var kind entryKind
		switch {
		case e.Flags&1 != 0:
			return fmt.Errorf("entry %.200q is encrypted", e.Name)
		case e.Mode().IsRegular():
			kind = regular
		case e.Mode().IsDir():
			kind = directory
		}
		size := int64(min(e.UncompressedSize64, 1<<62)) // compared with the limit, and with what comes out
		if err := p.entry(e.Name, kind, size, e.Open); err != nil {
			return damaged(err)
		}
	}
	return p.end()
}

// write makes b.Path of what r holds. A file that a picker wrote there before is replaced.
func (b Binary) write(r io.Reader) error {
	f, err := os.OpenFile(b.Path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// limited ends with an error, not with the end of file, where there is more than max.
type limited struct {
	r         io.Reader
	left, max int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p[:min(int64(len(p)), l.left+1)])
	if l.left -= int64(n); l.left < 0 {
		return n, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, l.max)
	}
	return n, err
}

// damaged names the reason for an archive that ends too early: it is no trouble of the network, its digest was right.
func damaged(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("damaged archive: %w", err)
	}
	return err
}
