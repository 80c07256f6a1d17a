//go:build faults

package faults

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	fakenode "nodevisor/internal/fakenode/build"
	"nodevisor/internal/fakenode/trace"
	"nodevisor/upgrade"
)

// TestPowerCuts cuts the power after each flush of a whole upgrade's disk: once so that everything is lost which came
// after the flush, and once so that the disk's cache had written some of its sectors and lost the others. In every other
// round it is cut again while it recovers.
func TestPowerCuts(t *testing.T) {
	t.Parallel()
	fakenode.Binary(t, "v1")
	var all sync.WaitGroup // not t.Parallel: most of it is waiting, whatever the number of processors
	for _, k := range kinds {
		for _, s := range stories {
			// Slower blocks: each of them is flushes, and they aren't what is tried.
			s.env = append([]string{"FAKENODE_SYNC=true", "FAKENODE_BLOCK_TIME=50ms"}, s.env...)
			all.Go(func() { t.Run(k.name+"/"+s.name, func(t *testing.T) { cutEach(t, k, s) }) })
		}
	}
	all.Wait()
}

func cutEach(t *testing.T, k kind, s story) {
	d := newDevice(t, k)
	h, flushes := recorded(t, d, s)
	world, cuts := h.events(), 0
	random := rand.New(rand.NewPCG(*seed, 0))
	first := random.IntN(*every)
	for n := first; n <= flushes; n += *every {
		for _, how := range []string{"lost", "torn"} {
			t.Run(fmt.Sprintf("%03d-%s", n, how), func(t *testing.T) {
				var keep uint64
				if how == "torn" {
					keep = random.Uint64() | 1
				}
				g := h.after(t, world, d, "upgrade", n, keep)
				cuts++
				if how == "torn" && (n-first)/(*every)%2 == 0 {
					d.record(t, "recovery")
					g.live(fault{})
					again := d.end(t)
					g = g.after(t, g.events(), d, "recovery", random.IntN(again+1), random.Uint64()|1)
					cuts++
				}
				g.recover()
			})
		}
	}
	report(t, "%d flushes, the power cut %d times (-seed %d)", flushes, cuts, *seed)
}

// recorded is a home that went through its story, recorded. Where the machine was too slow for the height to be read in
// time, which is a hold of its own, it is begun anew.
func recorded(t *testing.T, d *device, s story) (h *home, flushes int) {
	t.Helper()
	for range 5 {
		h = newHome(t, &mount{dir: d.dir, below: d.dir}, s)
		d.record(t, "upgrade")
		h.copyBinary()
		code, _ := h.live(fault{})
		flushes = d.end(t)
		if code == 0 && h.finished() {
			return h, flushes
		}
	}
	require.Fail(t, "no upgrade went well")
	return nil, 0
}

// after is the home after a power cut: what was on the disk, and of what the world saw, what was before the cut.
func (h *home) after(t *testing.T, world []trace.Event, d *device, recording string, n int, keep uint64) *home {
	t.Helper()
	until, kept, lost := d.cut(t, recording, n, keep)
	g := *h
	g.T, g.signed, g.logged, g.gone = t, 0, 0, map[int]bool{}
	g.lives = append(g.lives[:0:0], fmt.Sprintf("cut after flush %d of the %s: %d sectors kept, %d lost", n, recording, kept, lost))
	require.NoError(t, os.RemoveAll(g.trace()))
	for _, e := range world {
		if time.Unix(0, e.Time).After(until) {
			continue
		}
		require.NoError(t, trace.Append(g.trace(), e))
		g.gone[e.PID] = true
		if e.Signed {
			g.signed = max(g.signed, e.Height)
		}
	}
	require.NoError(t, os.WriteFile(filepath.Join(g.out, "log"), nil, 0o644))
	t.Cleanup(g.clearUp)
	g.invariants()
	g.wholeBinaries()
	return &g
}

// copyBinary puts the new version where it belongs as a person does with cp, who syncs nothing.
func (h *home) copyBinary() {
	h.Helper()
	shared, at := filepath.Join(h.m.below, "v2"), h.below.Binary("upgrades/v2")
	require.NoError(h, os.RemoveAll(shared))
	require.NoError(h, os.RemoveAll(at))
	fakenode.Install(h, shared, "v2")
	require.NoError(h, os.MkdirAll(filepath.Dir(at), 0o755))
	require.NoError(h, os.Link(shared, at))
}

// wholeBinaries looks at the new version as it came through the cut: from `staged` on it is there as it was copied. Before,
// nobody promised anything, and the person copies it once more.
func (h *home) wholeBinaries() {
	h.Helper()
	want, err := os.ReadFile(fakenode.Binary(h, "v2"))
	require.NoError(h, err)
	got, err := os.ReadFile(h.below.Binary("upgrades/v2"))
	if err == nil && bytes.Equal(got, want) {
		return
	}
	j, err := upgrade.LoadJournal(h.below.JournalPath())
	require.NoError(h, err)
	require.False(h, h.finished() || j.Upgrade != nil && j.Upgrade.Phase != upgrade.Planned, "what was staged isn't there")
	h.copyBinary()
}
