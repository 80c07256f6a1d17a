package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// machine describes where the figures come from: without it they say nothing.
type machine struct {
	lines         [][2]string
	before, after string // the load average
}

func describe(t testing.TB, s settings) machine {
	t.Helper()
	m := machine{before: loadAverage(t)}
	var uts unix.Utsname
	require.NoError(t, unix.Uname(&uts))
	var info unix.Sysinfo_t
	require.NoError(t, unix.Sysinfo(&info))
	memory := float64(info.Totalram) * float64(info.Unit)
	m.add("processor", fmt.Sprintf("%d cores, %s", runtime.NumCPU(), field(t, "/proc/cpuinfo", "model name")))
	m.add("memory", fmt.Sprintf("%.0f GiB", memory/(1<<30)))
	m.add("kernel", unix.ByteSliceToString(uts.Release[:]))
	m.add("file system", fileSystem(t, s.dir))
	m.add("Go", runtime.Version())
	if p := priority(t); p != "" {
		m.add("priority", p)
	}
	m.add("measured", fmt.Sprintf("%s, %d rounds", time.Now().UTC().Format(time.DateOnly), s.rounds))
	return m
}

func (m *machine) add(name, value string) { m.lines = append(m.lines, [2]string{name, value}) }

func (m *machine) String() string {
	var b strings.Builder
	b.WriteString("| the machine | |\n| --- | --- |\n")
	for _, l := range append(m.lines, [2]string{"load average", m.before + " before, " + m.after + " after"}) {
		fmt.Fprintf(&b, "| %s | %s |\n", l[0], l[1])
	}
	return b.String()
}

// priority says what sets this run apart from others on a busy machine; "" = nothing.
func priority(t testing.TB) string {
	t.Helper()
	a, err := unix.SchedGetAttr(0, 0)
	require.NoError(t, err)
	switch {
	case a.Policy == unix.SCHED_FIFO || a.Policy == unix.SCHED_RR:
		return "real-time: no other program takes the processor away; the disk is shared"
	case a.Nice != 0:
		return fmt.Sprintf("nice %d", a.Nice)
	}
	return ""
}

// loadAverage is that of 1 and 5 minutes.
func loadAverage(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile("/proc/loadavg")
	require.NoError(t, err)
	return strings.Join(strings.Fields(string(data))[:2], " ")
}

// field is the first value of a name in one of proc's files.
func field(t testing.TB, path, name string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// fileSystem names the type and the options of the file system that dir is on: those of the longest mount point.
func fileSystem(t testing.TB, dir string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(dir)
	require.NoError(t, err)
	data, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	point, found := "", ""
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if inside := f[1] == "/" || dir == f[1] || strings.HasPrefix(dir, f[1]+"/"); inside && len(f[1]) >= len(point) {
			point, found = f[1], f[2]+" ("+f[3]+")"
		}
	}
	return found
}

// version is the first line of what a program says of itself.
func version(t testing.TB, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

func TestMachine(t *testing.T) {
	m := describe(t, settings{dir: t.TempDir(), rounds: 1})
	m.after = "0.1 0.2"
	text := m.String()
	for _, want := range []string{"| processor |", "GiB", "| load average | ", "0.1 0.2 after"} {
		assert.Contains(t, text, want)
	}
	assert.Equal(t, "unknown", field(t, "/proc/cpuinfo", "no such name"))
	assert.Contains(t, fileSystem(t, "/proc"), "proc")
}
