package bench

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// settings say how much is measured. Unset variables make the small run of the ordinary tests.
type settings struct {
	rounds    int
	parts     string // upgrade, postgres, or both
	pgSize    int64  // bytes
	tables    int
	tableSize int64 // bytes
	idle      time.Duration
	dir       string // on the file system that is measured
	ramDir    string
	peer      string // a Cosmovisor; "" = none
	pgClient  string // a directory with a newer pg_dump; "" = none
	write     string // the page that gets the tables; "" = none
}

func readSettings(t *testing.T) settings {
	t.Helper()
	var err error
	s := settings{
		parts: env("BENCH_PARTS", "upgrade postgres"), dir: env("BENCH_DIR", os.TempDir()), ramDir: env("BENCH_RAM_DIR", "/dev/shm"),
		peer: os.Getenv("PEER"), pgClient: os.Getenv("BENCH_PG_CLIENT"), write: os.Getenv("BENCH_WRITE"),
	}
	s.rounds, err = strconv.Atoi(env("BENCH_ROUNDS", "1"))
	require.NoError(t, err)
	require.Positive(t, s.rounds)
	s.idle, err = time.ParseDuration(env("BENCH_IDLE", "100ms"))
	require.NoError(t, err)
	s.pgSize = parseSize(t, env("BENCH_PG_SIZE", "2M"))
	tables, size, _ := strings.Cut(env("BENCH_TREE", "16x64K"), "x")
	s.tables, err = strconv.Atoi(tables)
	require.NoError(t, err)
	s.tableSize = parseSize(t, size)
	return s
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// parseSize reads "1G": powers of 1024.
func parseSize(t *testing.T, text string) int64 {
	t.Helper()
	unit := int64(1)
	if at := strings.IndexByte("KMG", text[len(text)-1]); at >= 0 {
		unit, text = int64(1)<<(10*(at+1)), text[:len(text)-1]
	}
	n, err := strconv.ParseInt(text, 10, 64)
	require.NoError(t, err)
	return n * unit
}

// TestBench measures and prints. It fails where something doesn't work, never because a figure is bad: a busy machine
// would make it a lottery.
func TestBench(t *testing.T) {
	s := readSettings(t)
	for _, part := range []struct {
		name    string
		measure func(*testing.T, settings, *machine) *table
	}{{"upgrade", measureUpgrades}, {"postgres", measurePostgres}} {
		if !strings.Contains(s.parts, part.name) {
			continue
		}
		m := describe(t, s)
		tab := part.measure(t, s, &m)
		m.after = loadAverage(t)
		text := tab.String() + "\n" + m.String()
		fmt.Print("\n## ", part.name, "\n\n", text)
		if s.write != "" {
			require.NoError(t, replaceSection(s.write, part.name, text))
		}
	}
}

// build makes a program of this module at out, static and stripped as a release.
func build(t testing.TB, out, source, ldflags string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-s -w "+ldflags, "-o", out, source)
	cmd.Dir, cmd.Env = "..", append(os.Environ(), "CGO_ENABLED=0")
	text, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", text)
}

// say reports progress: a whole run takes most of an hour.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s bench: %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
