package main

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
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"nodevisor/internal/fetch"
)

// go-getter's decompressors aren't used: they write links' and devices' entries as empty files, let a second entry of a
// name replace the first, write every entry to disk, and take sizes from headers. Here the archive is read as a stream,
// each entry is checked, and the only one written is the binary. The readers are the ones that go-getter uses too.

const maxWindow = 128 << 20 // bytes of a zstd window: what `zstd --ultra -22 --long=27` makes

// take writes the binary that o.unpack holds to out/name. What the file is, its bytes say, not its name: a URL's path
// needn't end in .tar.gz.
func (o options) take() (fetch.Message, error) {
	f, err := os.Open(o.unpack)
	if err != nil {
		return fetch.Message{}, err
	}
	defer f.Close()
	dst := filepath.Join(o.out, o.name)
	switch head := peek(bufio.NewReaderSize(f, headSize)); {
	case bytes.HasPrefix(head, []byte("PK\x03\x04")), bytes.HasPrefix(head, []byte("PK\x05\x06")):
		err = o.takeZip(f)
	default:
		err = o.takeStream(f)
	}
	if errors.Is(err, errPlain) {
		// Not unpacked but the binary itself. It keeps its bytes, and the one name that it has.
		err = os.Rename(o.unpack, dst)
	}
	if err != nil {
		return fetch.Message{}, fmt.Errorf("cannot unpack: %w", err)
	}
	result, _, err := describe(dst)
	return result, err
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
func (o options) takeStream(f *os.File) error {
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
	limit := &limited{r: plain, left: o.maxBytes, max: o.maxBytes}
	stream := bufio.NewReaderSize(limit, headSize)
	head := peek(stream)
	switch {
	case isTar(head):
		limit.left += o.maxFiles * 2048
		err = o.takeTar(stream)
	case compressed:
		err = o.write(stream)
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

func (o options) takeTar(r io.Reader) error {
	p := o.picker()
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

func (o options) takeZip(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	archive, err := zip.NewReader(f, info.Size())
	if err != nil {
		return damaged(err)
	}
	p := o.picker()
	for _, e := range archive.File {
		var kind entryKind
		switch {
		case e.Flags&1 != 0:
			return refusal("entry %.200q is encrypted", e.Name)
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

// write makes out/name of what r holds. A file that a picker wrote there before is replaced.
func (o options) write(r io.Reader) error {
	f, err := os.OpenFile(filepath.Join(o.out, o.name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
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
		return n, tooLarge("holds more than %d bytes", l.max)
	}
	return n, err
}

// damaged makes sure that a truncated archive isn't taken for trouble of the network: its digest was right, so the next
// attempt would bring the same.
func damaged(err error) error {
	if err == nil || kindOf(err) != fetch.Temporary {
		return err
	}
	return refusal("damaged archive: %w", err)
}
