package kwil

import (
	"bytes"
	stdgzip "compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// chainLike is text like a chain's tables: hashes, numbers and JSON. The same seed gives the same text.
func chainLike(size int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for n := 0; b.Len() < size; n++ {
		var seed [16]byte
		for i := range seed {
			seed[i] = byte(r.Uint32())
		}
		sum := sha256.Sum256(seed[:])
		fmt.Fprintf(&b, "%d\t\\\\x%s\t{\"height\": %d, \"from\": \"0x%x\", \"kind\": \"transfer\", \"amount\": \"%d\"}\t%d\n",
			n, hex.EncodeToString(sum[:]), n/7, sum[:10], r.IntN(1e9), r.IntN(1000))
	}
	return b.Bytes()[:size]
}

func compressed(t testing.TB, data []byte, piece int) []byte {
	t.Helper()
	var out bytes.Buffer
	w := newGzipWriter(&out)
	for rest := data; len(rest) > 0; {
		n := min(piece, len(rest))
		_, err := w.Write(rest[:n])
		require.NoError(t, err)
		rest = rest[n:]
	}
	require.NoError(t, w.Close())
	require.NoError(t, w.Close(), "twice")
	return out.Bytes()
}

func TestGzipIsReadByAll(t *testing.T) {
	for _, size := range []int{0, 1, gzipWindow, gzipBlock - 1, gzipBlock, gzipBlock + 1, 2 * gzipBlock, 5*gzipBlock + 17} {
		data := chainLike(size)
		packed := compressed(t, data, 100_000)

		zr, err := stdgzip.NewReader(bytes.NewReader(packed))
		require.NoError(t, err)
		zr.Multistream(false)
		got, err := io.ReadAll(zr)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(data, got), "compress/gzip, %d bytes", size)
		assert.Empty(t, zr.Name)
		assert.True(t, zr.ModTime.IsZero())

		path := filepath.Join(t.TempDir(), "x.gz")
		require.NoError(t, os.WriteFile(path, packed, 0o600))
		out, err := exec.Command("gzip", "-dc", path).Output()
		require.NoError(t, err)
		assert.True(t, bytes.Equal(data, out), "gzip(1), %d bytes", size)
	}
}

// TestGzipIsReproducible: neither the pieces nor the number of cores change a byte.
func TestGzipIsReproducible(t *testing.T) {
	data := chainLike(9*gzipBlock + 5)
	want := compressed(t, data, len(data))
	assert.Equal(t, want, compressed(t, data, 4097))
	for _, cores := range []int{1, 3, 8} {
		before := runtime.GOMAXPROCS(cores)
		got := compressed(t, data, 256<<10)
		runtime.GOMAXPROCS(before)
		assert.Equal(t, want, got, "%d cores", cores)
	}
}

// TestGzipCutShort: no beginning of the file passes for the whole.
func TestGzipCutShort(t *testing.T) {
	packed := compressed(t, chainLike(3*gzipBlock), 1<<20)
	for n := 0; n < len(packed); n += 1 + len(packed)/97 {
		zr, err := stdgzip.NewReader(bytes.NewReader(packed[:n]))
		if err == nil {
			_, err = io.Copy(io.Discard, zr)
		}
		require.Error(t, err, "after %d of %d bytes", n, len(packed))
	}
}

func TestGzipDestinationFails(t *testing.T) {
	w := newGzipWriter(failing{})
	var err error
	for range 100 {
		if _, err = w.Write(make([]byte, gzipBlock)); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, errDestination, "it stops early")
	require.ErrorIs(t, w.Close(), errDisk)
}

// The two sides of `go test ./genesis/kwil -run - -bench Gzip`; each compresses 64 MiB of chain-like text.
func BenchmarkGzipParallel(b *testing.B) {
	benchmarkGzip(b, func(w io.Writer) io.WriteCloser { return newGzipWriter(w) })
}

func BenchmarkGzipSingle(b *testing.B) {
	benchmarkGzip(b, func(w io.Writer) io.WriteCloser { return stdgzip.NewWriter(w) })
}

func benchmarkGzip(b *testing.B, open func(io.Writer) io.WriteCloser) {
	data := chainLike(64 << 20)
	b.SetBytes(int64(len(data)))
	out := &counter{}
	for b.Loop() {
		out.n = 0
		w := open(out)
		for at := 0; at < len(data); at += writeBuffer {
			_, err := w.Write(data[at : at+writeBuffer])
			require.NoError(b, err)
		}
		require.NoError(b, w.Close())
	}
	b.ReportMetric(float64(out.n)/float64(len(data)), "ratio")
}

// BenchmarkSanitise is the reader alone, without the compressor.
func BenchmarkSanitise(b *testing.B) {
	rows := bytes.ReplaceAll(chainLike(64<<20), []byte{0}, nil)
	dump := append([]byte("CREATE SCHEMA a;\nCOPY a.b FROM stdin;\n"), rows[:bytes.LastIndexByte(rows, '\n')+1]...)
	dump = append(dump, "\\.\n"+end...)
	b.SetBytes(int64(len(dump)))
	for b.Loop() {
		_, err := Sanitise(io.Discard, bytes.NewReader(dump), V09, 1)
		require.NoError(b, err)
	}
}
