package unpack

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"
)

const node = "\x7fELF a node"

// entry is one entry of a test's archive.
type entry struct {
	name, text string
	kind       byte // tar's; 0 = a regular file
	link       string
	mode       int64
}

func tarball(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, Size: int64(len(e.text))}
		if e.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		require.NoError(t, w.WriteHeader(h))
		_, err := io.WriteString(w, e.text)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func zipped(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		if e.text == "" {
			h.Method = zip.Store // a compressor for each of many empty files would take minutes
		}
		h.SetMode(os.FileMode(e.mode))
		f, err := w.CreateHeader(h)
		require.NoError(t, err)
		_, err = io.WriteString(f, e.text)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// compress puts data through one of the writers that a test can make; bzip2 has none in Go.
func compress(t testing.TB, how string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch how {
	case "gz":
		w, err = gzip.NewWriterLevel(&b, gzip.BestSpeed) // bombs are large, and the race detector is slow
	case "zst":
		w, err = zstd.NewWriter(&b)
	case "xz":
		w, err = xz.NewWriter(&b)
	default:
		return data
	}
	require.NoError(t, err)
	_, err = w.Write(data)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

// outcome is how one archive was taken.
type outcome struct {
	dir string // of the binary
	err error
}

func unpack(t *testing.T, data []byte, maxBytes ...int64) outcome {
	t.Helper()
	file := filepath.Join(t.TempDir(), "body")
	require.NoError(t, os.WriteFile(file, data, 0o600))
	o := outcome{dir: t.TempDir()}
	b := Binary{Path: filepath.Join(o.dir, "simd"), MaxBytes: 1 << 30, MaxFiles: 1000}
	if len(maxBytes) > 0 {
		b.MaxBytes = maxBytes[0]
	}
	o.err = b.TakeFrom(file)
	return o
}

// wroteOnly asserts that nothing but the binary, or a part of it, was written.
func wroteOnly(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		assert.Equal(t, "simd", e.Name())
		assert.Equal(t, os.FileMode(0), e.Type(), "a regular file")
	}
	return len(entries)
}

func (o outcome) took(t *testing.T, text string) {
	t.Helper()
	require.NoError(t, o.err)
	require.Equal(t, 1, wroteOnly(t, o.dir))
	data, err := os.ReadFile(filepath.Join(o.dir, "simd"))
	require.NoError(t, err)
	assert.Equal(t, text, string(data))
	info, err := os.Lstat(filepath.Join(o.dir, "simd"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode(), "without setuid, setgid and sticky bits")
}

// refusedWith asserts an error that names its reason.
func (o outcome) refusedWith(t *testing.T, reason string) {
	t.Helper()
	require.ErrorContains(t, o.err, reason)
	assert.NotErrorIs(t, o.err, ErrTooLarge)
	wroteOnly(t, o.dir)
}

func (o outcome) tooLarge(t *testing.T, reason string) {
	t.Helper()
	require.ErrorIs(t, o.err, ErrTooLarge)
	assert.ErrorContains(t, o.err, reason)
	wroteOnly(t, o.dir)
}

func TestUnpackFormats(t *testing.T) {
	top := []entry{{name: "LICENSE", text: "free"}, {name: "./simd", text: node, mode: 0o755}, {name: "README.md", text: "read"}}
	inBin := []entry{
		{name: "./", kind: tar.TypeDir, mode: 0o755},
		{name: "bin/", kind: tar.TypeDir, mode: 0o755},
		{name: "bin/simd", text: node, mode: 0o755},
		{name: "lib/simd", text: "a library of that name"},
	}
	for _, how := range []string{"", "gz", "zst", "xz"} {
		t.Run("tar "+how, func(t *testing.T) {
			unpack(t, compress(t, how, tarball(t, top...))).took(t, node)
			unpack(t, compress(t, how, tarball(t, inBin...))).took(t, node)
		})
		t.Run("one file in a tar "+how, func(t *testing.T) {
			unpack(t, compress(t, how, tarball(t, entry{name: "simd-v2-linux-amd64", text: node}))).took(t, node)
		})
		t.Run("one file "+how, func(t *testing.T) {
			unpack(t, compress(t, how, []byte(node))).took(t, node)
			unpack(t, compress(t, how, []byte(strings.Repeat("#!/bin/sh\n", 1000)))).took(t, strings.Repeat("#!/bin/sh\n", 1000))
		})
	}
	t.Run("zip", func(t *testing.T) {
		unpack(t, zipped(t, entry{name: "README", text: "read"}, entry{name: "simd", text: node})).took(t, node)
		unpack(t, zipped(t, entry{name: "bin/", mode: int64(os.ModeDir | 0o755)}, entry{name: "bin/simd", text: node},
			entry{name: "other", text: "x"})).took(t, node)
		unpack(t, zipped(t, entry{name: "dist/simd_v2", text: node})).took(t, node)
	})
	t.Run("bzip2", func(t *testing.T) {
		// printf '\177ELF a node' | bzip2 | base64
		data, err := base64.StdEncoding.DecodeString(bzippedNode)
		require.NoError(t, err)
		unpack(t, data).took(t, node)
	})
	t.Run("of git archive", func(t *testing.T) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		require.NoError(t, w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "0123abcd"},
		}))
		require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "simd", Size: int64(len(node))}))
		_, err := io.WriteString(w, node)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		unpack(t, b.Bytes()).took(t, node)
	})
	t.Run("not an archive", func(t *testing.T) {
		for _, plain := range []string{node, "x", strings.Repeat("x", 5000)} {
			unpack(t, []byte(plain)).took(t, plain)
		}
	})
}

func TestUnpackStripsModes(t *testing.T) {
	unpack(t, tarball(t, entry{name: "simd", text: node, mode: 0o7777})).took(t, node)
	unpack(t, zipped(t, entry{name: "simd", text: node, mode: int64(os.ModeSetuid | os.ModeSetgid | 0o777)})).took(t, node)
}

// TestUnpackRefuses: one entry that no honest packer writes, and the archive is refused whole, even when the binary itself
// stands before it.
func TestUnpackRefuses(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	first := entry{name: "simd", text: node}
	for name, c := range map[string]struct {
		bad    entry
		reason string
	}{
		"up":                  {entry{name: "../simd", text: "x"}, "leads out"},
		"up within":           {entry{name: "bin/../../simd", text: "x"}, "leads out"},
		"up and back":         {entry{name: "bin/../lib/x", text: "x"}, "leads out"},
		"just up":             {entry{name: "..", kind: tar.TypeDir}, "leads out"},
		"absolute":            {entry{name: outside, text: "x"}, "leads out"},
		"another separator":   {entry{name: `..\simd`, text: "x"}, "leads out"},
		"symlink":             {entry{name: "lib", kind: tar.TypeSymlink, link: "/etc"}, "neither a file nor"},
		"symlink as binary":   {entry{name: "bin/simd", kind: tar.TypeSymlink, link: "/bin/sh"}, "neither a file nor"},
		"hard link":           {entry{name: "bin/simd", kind: tar.TypeLink, link: "/bin/sh"}, "neither a file nor"},
		"character device":    {entry{name: "null", kind: tar.TypeChar}, "neither a file nor"},
		"block device":        {entry{name: "sda", kind: tar.TypeBlock}, "neither a file nor"},
		"FIFO":                {entry{name: "pipe", kind: tar.TypeFifo}, "neither a file nor"},
		"the same again":      {entry{name: "simd", text: "other"}, "occurs twice"},
		"the same, disguised": {entry{name: "./simd", text: "other"}, "occurs twice"},
		"two binaries":        {entry{name: "bin/simd", text: "other"}, "2 binaries: simd and bin/simd"},
		"a very long name":    {entry{name: strings.Repeat("n", maxName+1), text: "x"}, "name of 1025 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			unpack(t, compress(t, "gz", tarball(t, first, c.bad))).refusedWith(t, c.reason)
			assert.NoFileExists(t, outside)
			if c.bad.kind != 0 {
				return
			}
			unpack(t, zipped(t, first, c.bad)).refusedWith(t, c.reason)
			assert.NoFileExists(t, outside)
		})
	}
	t.Run("symlink in a zip", func(t *testing.T) {
		link := entry{name: "bin/simd", text: "/bin/sh", mode: int64(os.ModeSymlink | 0o777)}
		unpack(t, zipped(t, link)).refusedWith(t, "neither a file nor")
		unpack(t, zipped(t, first, link)).refusedWith(t, "neither a file nor")
	})
	t.Run("no binary", func(t *testing.T) {
		others := []entry{{name: "a", text: "x"}, {name: "b", text: "x"}, {name: "lib/simd", text: "x"}}
		unpack(t, tarball(t, others...)).refusedWith(t, "holds neither bin/simd nor simd, but a, b, lib/simd")
		unpack(t, zipped(t, others...)).refusedWith(t, "holds neither bin/simd nor simd, but a, b, lib/simd")
	})
	t.Run("nothing at all", func(t *testing.T) {
		unpack(t, tarball(t)).refusedWith(t, "empty")
		unpack(t, zipped(t)).refusedWith(t, "empty")
		unpack(t, tarball(t, entry{name: "bin/simd", kind: tar.TypeDir})).refusedWith(t, "empty")
	})
	t.Run("encrypted", func(t *testing.T) {
		data := zipped(t, first)
		at := bytes.Index(data, []byte("PK\x01\x02"))
		data[at+8] |= 1
		unpack(t, data).refusedWith(t, "encrypted")
	})
}

// TestUnpackDamaged: every cut and a flipped byte end in a refusal, never in a binary.
func TestUnpackDamaged(t *testing.T) {
	text := strings.Repeat("0123456789abcdef", 4096)
	// xz ends with an index and a footer, whose loss its reader overlooks: the blocks before have checksums of their own.
	for how, last := range map[string]int{"gz": 1, "zst": 1, "xz": 29} {
		whole := compress(t, how, tarball(t, entry{name: "simd", text: text}))
		for _, at := range []int{len(whole) / 2, len(whole) - last} {
			unpack(t, whole[:at]).refusedWith(t, "")
		}
	}
	whole := zipped(t, entry{name: "simd", text: text})
	unpack(t, whole[:len(whole)/2]).refusedWith(t, "")

	flipped := compress(t, "gz", tarball(t, entry{name: "simd", text: text}))
	flipped[len(flipped)-6] ^= 1 // in the checksum at the end, behind all that tar reads
	unpack(t, flipped).refusedWith(t, "checksum")

	lying := zipped(t, entry{name: "simd", text: text})
	at := bytes.Index(lying, []byte("PK\x01\x02"))
	binary.LittleEndian.PutUint32(lying[at+24:], 100) // says 100 bytes, holds 65536
	unpack(t, lying).refusedWith(t, "not a valid zip file")
}

func TestUnpackBombs(t *testing.T) {
	zeros := strings.Repeat("\x00", 4<<20)
	bomb := append([]byte(node), zeros...)
	const limit = 1_000_000
	for _, how := range []string{"gz", "zst", "xz"} {
		t.Run(how, func(t *testing.T) {
			unpack(t, compress(t, how, bomb), limit).tooLarge(t, "more than 1000000 bytes")
		})
		t.Run("tar "+how, func(t *testing.T) {
			data := compress(t, how, tarball(t, entry{name: "simd", text: string(bomb)}))
			unpack(t, data, limit).tooLarge(t, "more than 1000000 bytes")
		})
		t.Run("behind the binary "+how, func(t *testing.T) {
			data := compress(t, how, append(tarball(t, entry{name: "simd", text: node}), zeros...))
			unpack(t, data, limit).tooLarge(t, "more than 1000000 bytes")
		})
	}
	t.Run("zip", func(t *testing.T) {
		data := zipped(t, entry{name: "simd", text: node}, entry{name: "bomb", text: string(bomb)})
		unpack(t, data, limit).tooLarge(t, "more than 1000000 bytes")
	})
	t.Run("many files", func(t *testing.T) {
		many := make([]entry, 100_000)
		for i := range many {
			many[i].name = fmt.Sprintf("f%d", i)
		}
		unpack(t, tarball(t, many...)).tooLarge(t, "more than 1000 entries")
		unpack(t, zipped(t, many...)).tooLarge(t, "more than 1000 entries")
		some := append(many[:999:999], entry{name: "simd", text: node})
		unpack(t, compress(t, "gz", tarball(t, some...))).took(t, node)
	})
	t.Run("a window larger than memory", func(t *testing.T) {
		// RFC 8878, 3.1.1.1.2: a window descriptor of exponent 31 stands for terabytes.
		unpack(t, []byte("\x28\xb5\x2f\xfd\x00\xf8\x01\x00\x00")).refusedWith(t, "window")
	})
	t.Run("the limit itself", func(t *testing.T) {
		exact := strings.Repeat("x", 1_000_000)
		unpack(t, compress(t, "gz", []byte(exact)), limit).took(t, exact)
		unpack(t, compress(t, "gz", tarball(t, entry{name: "simd", text: exact})), limit).took(t, exact)
		unpack(t, zipped(t, entry{name: "simd", text: exact}), limit).took(t, exact)
	})
}

func TestUnpackMissing(t *testing.T) {
	b := Binary{Path: filepath.Join(t.TempDir(), "simd"), MaxBytes: 1, MaxFiles: 1}
	require.ErrorIs(t, b.TakeFrom(filepath.Join(t.TempDir(), "absent")), fs.ErrNotExist)
}

const bzippedNode = "QlpoOTFBWSZTWawWY6IAAAUVgEAAAwQmAYAAoAAiAaHqEAMJsSRsh4u5IpwoSFYLMdEA"
