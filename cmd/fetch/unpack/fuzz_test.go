package unpack

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// small is what a fuzz test's archive may hold.
const small = 1 << 20

// taken is what comes of data in dir, whose folder out is empty or holds an earlier binary: the binary, or an error.
func taken(t *testing.T, dir string, data []byte) (string, error) {
	t.Helper()
	body := filepath.Join(dir, "body")
	out := filepath.Join(dir, "out")
	b := Binary{Path: filepath.Join(out, "simd"), MaxBytes: small, MaxFiles: 50}
	require.NoError(t, os.MkdirAll(out, 0o700))
	require.NoError(t, os.RemoveAll(b.Path))
	require.NoError(t, os.WriteFile(body, data, 0o600))
	failed := b.TakeFrom(body)
	written := wroteOnly(t, out)
	if failed != nil {
		return "", failed
	}
	require.Equal(t, 1, written)
	text, err := os.ReadFile(b.Path)
	require.NoError(t, err)
	return string(text), nil
}

// FuzzUnpack: whatever an archive is, nothing but the binary is written, within the limit, and an envelope around it changes
// nothing.
func FuzzUnpack(f *testing.F) {
	packed := tarball(f, entry{name: "bin/", kind: tar.TypeDir}, entry{name: "bin/simd", text: node}, entry{name: "LICENSE", text: "free"})
	for _, how := range []string{"", "gz", "zst", "xz"} {
		f.Add(compress(f, how, packed))
		f.Add(compress(f, how, []byte(node)))
	}
	f.Add(zipped(f, entry{name: "README", text: "read"}, entry{name: "simd", text: node}))
	bzipped, err := base64.StdEncoding.DecodeString(bzippedNode)
	require.NoError(f, err)
	f.Add(bzipped)
	f.Add([]byte("PK\x03\x04"))
	f.Add([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		text, err := taken(t, dir, data)
		if len(data) > small/2 {
			return
		}
		require.LessOrEqual(t, len(text), small)
		inside := isTar(data[:min(len(data), 512)])
		wrapped, errWrapped := taken(t, dir, stored(t, data))
		switch {
		case inside:
			require.Equal(t, err == nil, errWrapped == nil, "%v, compressed %v", err, errWrapped)
			require.Equal(t, text, wrapped)
		default: // a file whose name nobody knows: one layer is taken off, not two
			require.NoError(t, errWrapped)
			require.Equal(t, string(data), wrapped)
		}
	})
}

// stored is data in gzip's format, not smaller.
func stored(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.NoCompression)
	require.NoError(t, err)
	_, err = w.Write(data)
	require.NoError(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

// named are archives of two formats whose entries hold their own names; one whose name ends in a slash is a directory. ok is
// false where a format can't hold such a name.
func named(names []string) (asTar, asZip []byte, ok bool) {
	var tarred, zipped bytes.Buffer
	t, z := tar.NewWriter(&tarred), zip.NewWriter(&zipped)
	for _, name := range names {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(name))}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Size = tar.TypeDir, 0
		}
		w, err := z.Create(name)
		if t.WriteHeader(h) != nil || err != nil {
			return nil, nil, false
		}
		for _, w := range []io.Writer{t, w} {
			if _, err := io.WriteString(w, name[:h.Size]); err != nil {
				return nil, nil, false
			}
		}
	}
	ok = t.Close() == nil && z.Close() == nil
	return tarred.Bytes(), zipped.Bytes(), ok
}

// FuzzNames: two formats agree on which entries there may be, and what is taken is one of them.
func FuzzNames(f *testing.F) {
	for _, names := range [][3]string{
		{"simd", "LICENSE", "bin/"},
		{"bin/", "bin/simd", "simd"},
		{"../simd", "simd", "x"},
		{"/etc/passwd", "a", "b"},
		{`..\simd`, ".", "./"},
		{"a/../b", "bin//simd", "./simd"},
		{"", "simd/", "simd"},
		{"\x00", "\xff", "\u212a"},
	} {
		f.Add(names[0], names[1], names[2])
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, a, b, c string) {
		names := []string{a, b, c}
		if len(a)+len(b)+len(c) > 8<<10 {
			return
		}
		asTar, asZip, ok := named(names)
		if !ok {
			return
		}
		fromTar, errTar := taken(t, dir, asTar)
		fromZip, errZip := taken(t, dir, asZip)
		require.Equal(t, errTar == nil, errZip == nil, "%q: tar %v, zip %v", names, errTar, errZip)
		require.Equal(t, fromTar, fromZip)
		if errTar != nil {
			return
		}
		require.Contains(t, names, fromTar, "an entry holds its name")
		for _, name := range names {
			require.False(t, strings.HasPrefix(name, "/") || strings.Contains("/"+name+"/", "/../") || strings.ContainsAny(name, "\\\x00"), name)
		}
		if name := filepath.Clean(fromTar); name != "simd" && name != "bin/simd" {
			require.Len(t, files(names), 1, names)
		}
	})
}

// files are the names that don't end as a directory's do.
func files(names []string) (all []string) {
	for _, name := range names {
		if !strings.HasSuffix(name, "/") {
			all = append(all, name)
		}
	}
	return all
}
