//go:build faults

package faults

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	fakenode "nodevisor/internal/fakenode/build"
)

// outage is how long a full or broken disk stays so: longer than every quick try again.
const outage = 300 * time.Millisecond

// limit is where counting up ends at last: no upgrade makes so many changes.
const limit = 2000

// kinds of changes that an error makes sense for.
const (
	changes = "any"
	growing = "write,open,mkdir,symlink,link,rename,fsync"
	moving  = "rename,link"
)

// TestKilled kills the program before each of its changes.
func TestKilled(t *testing.T) {
	each(t, fault{kinds: changes, action: "kill"}, once)
}

// TestKilledTwice does so too, and kills it again while it recovers from that.
func TestKilledTwice(t *testing.T) {
	each(t, fault{kinds: changes, action: "kill"}, twice)
}

// TestBroken makes each change fail once with EIO.
func TestBroken(t *testing.T) {
	each(t, fault{kinds: changes, action: "EIO"}, once)
}

// TestBrokenForAWhile lets the disk fail at each change and for some time after it.
func TestBrokenForAWhile(t *testing.T) {
	each(t, fault{kinds: changes, action: "EIO", lasts: outage}, once)
}

// TestFull makes each change that needs room fail, for some time.
func TestFull(t *testing.T) {
	each(t, fault{kinds: growing, action: "ENOSPC", lasts: outage}, once)
}

// TestOtherDevice makes each move fail as between two file systems.
func TestOtherDevice(t *testing.T) {
	each(t, fault{kinds: moving, action: "EXDEV"}, once)
}

// What the proofs found, each at the place where it was found.

// A fresh home whose first link can't be made is still a fresh home at the next start.
func TestFirstLinkFails(t *testing.T) {
	h := newHome(t, newMount(t), stories[0])
	code, hits := h.live(fault{"symlink", 1, "EIO", 0})
	assert.Equal(t, 1, hits)
	assert.Equal(t, 1, code)
	assert.NoFileExists(t, h.below.JournalPath())
	h.recover()
	assert.NotContains(t, h.lives, "resume")
}

// each counts n up until the nth change is never made, in each story, and lets every kth n be met by the fault. meet tells
// whether it came.
func each(t *testing.T, f fault, meet func(*testing.T, *mount, story, fault) bool) {
	t.Parallel()
	step := *every
	if f.kinds == moving {
		step = max(1, step/8) // there are few
	}
	fakenode.Binary(t, "v1") // the first one compiles the standard library where no cache has it
	for _, s := range stories {
		t.Run(s.name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(*seed, 0))
			first := 1 + random.IntN(step)
			var met, beyond atomic.Int64
			places := make(chan int)
			var all sync.WaitGroup
			for range *workers {
				m := newMount(t)
				all.Go(func() {
					for n := range places {
						t.Run(fmt.Sprintf("%03d", n), func(t *testing.T) {
							f := f
							f.n = n
							if meet(t, m, s, f) {
								met.Add(1)
								beyond.Store(0)
							} else {
								beyond.Add(1)
							}
						})
					}
				})
			}
			// The number of changes differs from run to run (an old version that halts again and again is started anew each
			// time): some in a row must be beyond the end.
			n := first
			for ; n <= limit && beyond.Load() < 3 && !t.Failed(); n += step {
				places <- n
			}
			close(places)
			all.Wait() // an early place may take longer than all that lie beyond the end
			report(t, "%s at every %d. change from %d to %d (-seed %d): met %d times", f.action, step, first, n-step, *seed, met.Load())
			if !t.Failed() {
				assert.LessOrEqual(t, n, limit, "there are more changes")
				assert.Positive(t, met.Load(), "the faults don't reach the program")
			}
		})
	}
}

// once lets one life meet the fault, and then recovers.
func once(t *testing.T, m *mount, s story, f fault) bool {
	h := newHome(t, m, s)
	_, hits := h.live(f)
	h.recover()
	if hits == 0 {
		t.Log("it went another way, or there are no more: ", h.lives)
	}
	return hits > 0
}

// recovery is about how many changes lie between a start after a kill and the place that was reached before.
const recovery = 40

// twice lets the life after that one meet the fault, too, at a place of its own. Near the end of a story there are fewer of
// them: then it is done anew, with an earlier one.
func twice(t *testing.T, m *mount, s story, f fault) bool {
	random := rand.New(rand.NewPCG(*seed, uint64(f.n)))
	for second := 1 + random.IntN(recovery); ; second = 1 + random.IntN(second-1) {
		h := newHome(t, m, s)
		_, hits := h.live(f)
		if hits == 0 {
			h.recover()
			return false
		}
		_, hits = h.live(fault{f.kinds, second, f.action, f.lasts})
		h.recover()
		if hits > 0 {
			return true
		}
		require.Greater(t, second, 1, "a start changes nothing")
	}
}

// report prints what was done, also where nothing failed.
func report(t *testing.T, format string, args ...any) {
	fmt.Fprintf(os.Stderr, t.Name()+": "+format+"\n", args...)
}
