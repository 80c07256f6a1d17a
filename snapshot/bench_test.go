package snapshot

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// BenchmarkCreate measures the time that the node is down for: from Create's begin to the sealed snapshot. The store's
// data was written to the disk before, as a stopped node's is; SNAPSHOT_BENCH_DIR chooses the file system.
//
//	go test -run - -bench Create -benchtime 20x ./snapshot
func BenchmarkCreate(b *testing.B) {
	for _, c := range []struct {
		name   string
		tables int
		size   int64
		logs   int // files that are copied
	}{
		{"empty", 0, 0, 0},
		{"2GiB-in-1024-tables", 1024, 2 << 20, 8},
		{"64MiB-in-32-logs", 0, 0, 32},
		{"100-logs", 0, 0, 100},
	} {
		b.Run(c.name, func(b *testing.B) {
			base := os.Getenv("SNAPSHOT_BENCH_DIR")
			if base == "" {
				base = b.TempDir()
			}
			home, err := os.MkdirTemp(base, "home-")
			require.NoError(b, err)
			b.Cleanup(func() { os.RemoveAll(home) })
			db := filepath.Join(home, "data", "application.db")
			require.NoError(b, os.MkdirAll(db, 0o700))
			for i := range c.tables {
				benchFile(b, filepath.Join(db, fmt.Sprintf("%06d.ldb", i)), c.size)
			}
			for i := range c.logs {
				benchFile(b, filepath.Join(db, fmt.Sprintf("%06d.log", i)), 2<<20)
			}
			require.NoError(b, os.WriteFile(filepath.Join(db, "CURRENT"), []byte("MANIFEST-000001\n"), 0o600))
			require.NoError(b, os.WriteFile(filepath.Join(db, "MANIFEST-000001"), []byte("m"), 0o600))
			unix.Sync()
			s, err := Open(Options{Config: benchConfig(), Home: home})
			require.NoError(b, err)
			ctx := context.Background()
			var best, worst, cpu time.Duration
			for b.Loop() {
				id := NewID(time.Now(), "bench", 1)
				begin, used := time.Now(), cpuTime(b)
				require.NoError(b, s.Create(ctx, id, "bench", 1))
				took := time.Since(begin)
				cpu += cpuTime(b) - used
				b.StopTimer()
				if worst = max(worst, took); best == 0 || took < best {
					best = took
				}
				require.NoError(b, s.Delete(id))
				b.StartTimer()
			}
			b.ReportMetric(float64(best.Microseconds())/1000, "best-ms")
			b.ReportMetric(float64(worst.Microseconds())/1000, "worst-ms")
			b.ReportMetric(float64(cpu.Microseconds())/1000/float64(b.N), "cpu-ms/op") // tells of a busy machine
		})
	}
}

func benchConfig() Config {
	c := DefaultConfig()
	c.MinFree = "0"
	return c
}

func benchFile(b *testing.B, path string, size int64) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(b, err)
	_, err = io.CopyN(f, rand.Reader, size)
	require.NoError(b, err)
	require.NoError(b, f.Close())
}

func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
