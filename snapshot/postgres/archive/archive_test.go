package archive

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/snapshot/manifest"
)

// An archive of each version of the format is made here by hand: one table, one sequence, two lists of large objects.
type writer struct {
	bytes.Buffer
	minor byte
}

func (w *writer) int(v int) {
	sign := byte(0)
	if v < 0 {
		sign, v = 1, -v
	}
	w.Write([]byte{sign, byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)})
}

func (w *writer) str(s string) {
	w.int(len(s))
	w.WriteString(s)
}

func (w *writer) entry(desc, schema, tag, defn, copyStmt, owner, file string) {
	w.int(1)
	w.int(1)
	w.str("1259")
	w.str("16384")
	w.str(tag)
	w.str(desc)
	w.int(3)
	w.str(defn)
	w.int(-1) // a null
	w.str(copyStmt)
	w.str(schema)
	w.str("")
	w.str("heap")
	if w.minor >= 16 {
		w.int('r')
	}
	w.str(owner)
	w.str("false")
	w.str("12")
	w.int(-1)
	if file == "" {
		w.int(-1)
	} else {
		w.str(file)
	}
}

func toc(minor byte) []byte {
	w := &writer{minor: minor}
	w.WriteString(tocMagic)
	w.Write([]byte{1, minor, 0, 4, 8, 3})
	if minor >= 15 {
		w.WriteByte(2)
	} else {
		w.int(-1)
	}
	for range 7 {
		w.int(59)
	}
	w.str("chain")
	w.str("15.18")
	w.str("16.4")
	w.int(6)
	w.entry("TABLE DATA", "public", "a", "", "COPY public.a (x) FROM stdin;\n", "node", "1.dat")
	w.entry("SEQUENCE SET", "public", "s'\n", "SELECT pg_catalog.setval('public.s', -7, false);\n", "", "node", "")
	w.entry("BLOBS", "", "BLOBS", "", "", "node", "blobs_1.toc")
	w.entry("BLOBS", "", "BLOBS", "", "", "node", "blobs_2.toc")
	w.entry("ACL", "public", "TABLE a", "", "", "", "")
	w.entry("ACL", "public", "TABLE a", "GRANT SELECT ON TABLE public.a TO reader;\nGRANT ALL ON TABLE public.a TO \"We ird\" WITH GRANT OPTION;\nGRANT SELECT ON TABLE public.a TO PUBLIC;\n", "", "boss", "")
	return w.Bytes()
}

func put(t testing.TB, dir, name string, data []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
}

func compressed(t testing.TB, suffix, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	switch suffix {
	case ".gz":
		z := gzip.NewWriter(&b)
		_, _ = z.Write([]byte(text))
		require.NoError(t, z.Close())
	case ".zst":
		z, err := zstd.NewWriter(&b)
		require.NoError(t, err)
		_, _ = z.Write([]byte(text))
		require.NoError(t, z.Close())
	default:
		b.WriteString(text)
	}
	return b.Bytes()
}

func sumOf(rows ...string) string {
	var s Sum
	for _, r := range rows {
		s.Add(sha256.Sum256([]byte(r)))
	}
	return s.Hex()
}

func TestContentOfEveryVersionAndCompression(t *testing.T) {
	for _, minor := range []byte{14, 15, 16} {
		for _, suffix := range []string{"", ".gz", ".zst"} {
			dir := t.TempDir()
			put(t, dir, tocName, toc(minor))
			put(t, dir, "1.dat"+suffix, compressed(t, suffix, "a\n\n\\\\.\n\\N\na\n\\.\n\n\n"))
			put(t, dir, "blobs_1.toc", []byte("16400 blob_16400.dat\n"))
			put(t, dir, "blobs_2.toc", []byte("16401 blob_16401.dat\n"))
			put(t, dir, "blob_16400.dat"+suffix, compressed(t, suffix, "\\.\nraw"))
			put(t, dir, "blob_16401.dat"+suffix, compressed(t, suffix, ""))
			a, err := Open(dir)
			require.NoError(t, err)
			assert.Equal(t, "16.4", a.DumpVersion)
			assert.Equal(t, []string{"We ird", "boss", "node", "reader"}, a.Roles)
			tables, err := a.Content(t.Context(), 3, nil)
			require.NoError(t, err)
			assert.Equal(t, []manifest.Table{
				{Schema: "public", Name: "a", Kind: Table, Rows: 5, Hash: sumOf("", "a", "a", "\\N", "\\\\.")},
				{Schema: "public", Name: "s'\n", Kind: Sequence, Rows: 1, Hash: sumOf("-7\tfalse")},
				{Name: "large objects", Kind: LargeObjects, Rows: 2, Hash: sumOf("16401\t", "16400\t\\.\nraw")},
			}, tables)
		}
	}
}

func TestDamageIsFound(t *testing.T) {
	text := strings.Repeat("row\n", 1000) + "\\.\n\n\n"
	for name, data := range map[string][]byte{
		"no end":         []byte(strings.Repeat("row\n", 10)),
		"half a row":     []byte("row\nro"),
		"behind the end": []byte("row\n\\.\nrow\n"),
		"half a gzip":    compressed(t, ".gz", text)[:30],
		"half a zstd":    compressed(t, ".zst", text)[:10],
		"nothing":        nil,
	} {
		dir := t.TempDir()
		put(t, dir, tocName, toc(15))
		put(t, dir, "blobs_1.toc", nil)
		put(t, dir, "blobs_2.toc", nil)
		suffix := map[string]string{"half a gzip": ".gz", "half a zstd": ".zst"}[name]
		put(t, dir, "1.dat"+suffix, data)
		a, err := Open(dir)
		require.NoError(t, err)
		_, err = a.Content(t.Context(), 1, nil)
		require.ErrorContains(t, err, "table public.a", name)
	}
	for name, entry := range map[string]string{"a link": "../1.dat", "elsewhere": "/etc/passwd"} {
		dir := t.TempDir()
		put(t, dir, tocName, bytes.Replace(toc(15), []byte("\x00\x05\x00\x00\x001.dat"), append([]byte{0, byte(len(entry)), 0, 0, 0}, entry...), 1))
		put(t, filepath.Dir(dir), "1.dat", []byte("\\.\n"))
		a, err := Open(dir)
		require.NoError(t, err)
		_, err = a.Content(t.Context(), 1, nil)
		require.Error(t, err, name)
	}
}

func TestNotATableOfContents(t *testing.T) {
	whole := toc(16)
	for n := range len(whole) {
		dir := t.TempDir()
		put(t, dir, tocName, whole[:n])
		_, err := Open(dir)
		require.Error(t, err, "cut to %d bytes", n)
		if n > 40 {
			break // each byte of the head; the rest by the fuzzer
		}
	}
	for _, minor := range []byte{0, 13, 17, 255} {
		dir := t.TempDir()
		put(t, dir, tocName, toc(minor))
		_, err := Open(dir)
		require.ErrorContains(t, err, "is not known here")
	}
	_, err := Open(t.TempDir())
	require.ErrorIs(t, err, os.ErrNotExist)
}

// Rows are the same however the data is cut into pieces, and in whatever order they come.
func TestRowsInPieces(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var rows []string
	for range 200 {
		row := make([]byte, r.IntN(300))
		for i := range row {
			row[i] = "ab\\.\t\r"[r.IntN(6)]
		}
		if string(row) != terminator {
			rows = append(rows, string(row))
		}
	}
	want := sumOf(rows...)
	for range 50 {
		r.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
		data := []byte(strings.Join(rows, "\n") + "\n\\.\n\n")
		got := Rows{terminated: true}
		for len(data) > 0 {
			n := 1 + r.IntN(min(40, len(data)))
			_, err := got.Write(data[:n])
			require.NoError(t, err)
			data = data[n:]
		}
		require.NoError(t, got.Close())
		require.EqualValues(t, len(rows), got.Count)
		require.Equal(t, want, got.Hex())
	}
}

func TestSumIsModulo2To256(t *testing.T) {
	var s Sum
	var ones [32]byte
	for i := range ones {
		ones[i] = 0xff
	}
	s.Add(ones)
	s.Add([32]byte{31: 2})
	assert.Equal(t, strings.Repeat("0", 63)+"1", s.Hex())
	assert.EqualValues(t, 2, s.Count)
	one, err := hex.DecodeString(sumOf("x"))
	require.NoError(t, err)
	want := sha256.Sum256([]byte("x"))
	assert.Equal(t, want[:], one)
	assert.NotEqual(t, sumOf(), sumOf("x", "x"), "a row that is there twice doesn't cancel out")
}

func TestPrintable(t *testing.T) {
	assert.Equal(t, "plain ä", printable("plain ä"))
	assert.Equal(t, `\xe4\xff`, printable("\xe4\xff"))
	assert.Equal(t, "\uFFFD", printable("\uFFFD"))
}

func FuzzOpen(f *testing.F) {
	for _, minor := range []byte{14, 15, 16} {
		f.Add(toc(minor))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		put(t, dir, tocName, data)
		a, err := Open(dir)
		if err == nil {
			_, _ = a.Content(t.Context(), 1, nil)
		}
	})
}

// BenchmarkRows sums up 64 MiB of rows of 200 bytes, as COPY writes them.
func BenchmarkRows(b *testing.B) {
	data := bytes.Repeat([]byte(strings.Repeat("0123456789abcdef\t", 12)[:199]+"\n"), 64<<20/200)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		var rows Rows
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 256<<10)
			if _, err := rows.Write(rest[:n]); err != nil {
				b.Fatal(err)
			}
			rest = rest[n:]
		}
	}
}
