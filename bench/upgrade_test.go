package bench

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/fakenode/trace"
)

// The small measurements cost a second each, and Cosmovisor's detection is spread over its poll's interval.
const (
	smallFactor  = 4
	pollInterval = 300 * time.Millisecond
	nodeProgram  = "in each window two times: a run of the node's program"
)

// figures are what is measured of one tool.
type figures struct {
	launch, detect, window, windowRAM, windowTree, program, syncs, cpu, memory, private, size *series
}

// measureUpgrades compares Nodevisor with a Cosmovisor.
func measureUpgrades(t *testing.T, s settings, m *machine) *table {
	say("building")
	dir, err := os.MkdirTemp(s.dir, "nodevisor-bench-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	ours := filepath.Join(dir, "supervisor")
	build(t, ours, "./cmd/supervisor", "")
	for _, v := range []string{oldName, planName} {
		build(t, stub(dir, v), "./bench/stub", "-X main.version="+v)
	}
	tools := []tool{{"Nodevisor", ours, dir}}
	tab := &table{other: "Cosmovisor"}
	if s.peer != "" {
		m.add("peer", peerVersion(t, s.peer))
		tools = append(tools, tool{"Cosmovisor", s.peer, dir})
	}
	all := tab.upgradeRows(s, len(tools))
	for i, w := range tools {
		info, err := os.Stat(w.path)
		require.NoError(t, err)
		all[i].size.add(float64(info.Size()))
	}
	inTurn := func(rounds int, f func(w tool, to figures)) {
		for round := range rounds {
			for i := range tools {
				n := (i + round) % len(tools)
				f(tools[n], all[n])
			}
		}
	}
	say("upgrades of an empty directory, %d times", smallFactor*s.rounds)
	inTurn(smallFactor*s.rounds, func(w tool, to figures) { upgradeOnce(t, w, dir, "", to.launch, to.detect, to.window) })
	say("the same in memory")
	ram, err := os.MkdirTemp(s.ramDir, "nodevisor-bench-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(ram)) })
	inTurn(smallFactor*s.rounds, func(w tool, to figures) {
		upgradeOnce(t, w, ram, "", &series{}, &series{}, to.windowRAM)
	})
	say("upgrades of %d tables, %d times", s.tables, s.rounds)
	db := makeTree(t, filepath.Join(dir, "application.db"), s)
	inTurn(s.rounds, func(w tool, to figures) { upgradeOnce(t, w, dir, db, &series{}, &series{}, to.windowTree) })
	for range smallFactor * s.rounds {
		begin := time.Now()
		version(t, stub(dir, planName), "version")
		all[0].program.since(begin)
	}
	say("fsyncs")
	inTurn(1, func(w tool, to figures) { to.syncs.add(float64(countSyncs(t, w, dir))) })
	say("idle for %v, %d times", s.idle, s.rounds)
	for range s.rounds {
		idle(t, s.idle, dir, tools, all)
	}
	return tab
}

// peerVersion reads the line in which a Cosmovisor names itself: it goes on to ask a node that isn't there.
func peerVersion(t testing.TB, path string) string {
	t.Helper()
	out, _ := exec.Command(path, "version").CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if v, ok := strings.CutPrefix(line, "cosmovisor version: "); ok {
			return "Cosmovisor " + strings.TrimSpace(v)
		}
	}
	require.Fail(t, "PEER doesn't say that it is a Cosmovisor", "%s", out)
	return ""
}

// upgradeRows are the rows, and the series to fill for each tool: ours, then the peer's if there is one.
func (tab *table) upgradeRows(s settings, tools int) []figures {
	all := make([]figures, 2)
	add := func(what string, u unit, field func(*figures) **series) {
		var peer *series
		if tools > 1 {
			peer = &series{unit: u}
		}
		if what == nodeProgram {
			peer = nil // it is the same program
		}
		*field(&all[1]) = peer
		*field(&all[0]) = tab.compare(what, "", u, peer)
	}
	add("plan written → stop signal at the node", millis, func(f *figures) **series { return &f.detect })
	add("old node's end → new binary runs, small data directory", millis, func(f *figures) **series { return &f.window })
	add("the same in memory (tmpfs), where an fsync costs nothing", millis, func(f *figures) **series { return &f.windowRAM })
	add(fmt.Sprintf("the same with %d tables, %d MiB", s.tables, int64(s.tables)*s.tableSize>>20), millis, func(f *figures) **series { return &f.windowTree })
	add(nodeProgram, millis, func(f *figures) **series { return &f.program })
	add("fsyncs in the window, small data directory", count, func(f *figures) **series { return &f.syncs })
	add("launch → node runs", millis, func(f *figures) **series { return &f.launch })
	add("resident memory, idle", mebibytes, func(f *figures) **series { return &f.memory })
	add("of it not the program's own file", mebibytes, func(f *figures) **series { return &f.private })
	add(fmt.Sprintf("processor time of %v idle", s.idle), millis, func(f *figures) **series { return &f.cpu })
	add("the program's size", bytes, func(f *figures) **series { return &f.size })
	return all
}

// upgradeOnce carries one upgrade out. The window lies between the old node's last act and the new one's first, by their
// own clocks: the exec, and what Go's runtime does before main, are in it for both tools.
func upgradeOnce(t testing.TB, w tool, dir, db string, launch, detect, window *series) {
	unix.Sync() // what an earlier run wrote is not this one's to wait for
	r := newRun(t, w, dir, db)
	launch.took(at(r.start(t)).Sub(r.began))
	time.Sleep(mathrand.N(pollInterval)) // anywhere in the peer's interval
	begin := r.announce(t)
	signal := r.wait(t, kind(trace.Signal, oldName))
	detect.took(at(signal).Sub(begin))
	next := r.wait(t, kind(trace.Start, planName))
	window.took(at(next).Sub(at(r.wait(t, kind(trace.Exit, oldName)))))
	if db != "" {
		r.giveBack(t, db)
	}
	r.end(t)
}

// makeTree makes a database of tables that are on the disk.
func makeTree(t testing.TB, dir string, s settings) string {
	t.Helper()
	require.NoError(t, os.Mkdir(dir, 0o700))
	for i := range s.tables {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%06d.ldb", i+10)))
		require.NoError(t, err)
		_, err = io.CopyN(f, rand.Reader, s.tableSize)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	for name, content := range map[string]string{"CURRENT": "MANIFEST-000001\n", "MANIFEST-000001": "m", "000002.log": "l", "LOCK": ""} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	return dir
}

// countSyncs counts what forces data to the disk between the old node's end and the new one's start.
// sync_file_range isn't: it begins or awaits writing, and neither commits nor flushes anything.
func countSyncs(t testing.TB, w tool, dir string) (n int) {
	r := newRun(t, w, dir, "")
	calls := filepath.Join(r.home, "calls")
	require.NoError(t, exec.Command("strace", "-V").Run(), "make deps installs strace")
	r.prefix = []string{"strace", "-f", "-q", "-ttt", "-o", calls, "-e", "trace=fsync,fdatasync,syncfs,sync", "-e", "signal=none"}
	r.start(t)
	r.announce(t)
	begin := at(r.wait(t, kind(trace.Exit, oldName)))
	end := at(r.wait(t, kind(trace.Start, planName)))
	r.stop(t)
	n = callsBetween(t, calls, begin, end)
	r.end(t)
	return n
}

// callsBetween counts the calls that began within a time, in strace's output: "PID SECONDS call(…".
func callsBetween(t testing.TB, path string, begin, end time.Time) (n int) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 || !strings.Contains(fields[2], "sync") {
			continue // the end of a call, or of a process
		}
		seconds, err := strconv.ParseFloat(fields[1], 64)
		require.NoError(t, err)
		if when := time.UnixMicro(int64(seconds * 1e6)); when.After(begin) && when.Before(end) {
			n++
		}
	}
	return n
}

// idle looks at all tools at once: they have nothing to do, so they aren't in each other's way.
func idle(t testing.TB, d time.Duration, dir string, tools []tool, all []figures) {
	runs := make([]*run, len(tools))
	for i, w := range tools {
		runs[i] = newRun(t, w, dir, "")
		runs[i].start(t)
	}
	time.Sleep(min(d, 5*time.Second)) // what a start does is over
	before := make([]time.Duration, len(tools))
	for i, r := range runs {
		before[i] = processorTime(t, r.cmd.Process.Pid)
	}
	time.Sleep(d)
	for i, r := range runs {
		all[i].cpu.took(processorTime(t, r.cmd.Process.Pid) - before[i])
		all[i].memory.add(memory(t, r.cmd.Process.Pid, "VmRSS"))
		all[i].private.add(memory(t, r.cmd.Process.Pid, "RssAnon"))
		r.end(t)
	}
}
