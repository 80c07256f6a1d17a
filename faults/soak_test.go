//go:build faults

package faults

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	fakenode "nodevisor/internal/fakenode/build"
)

// forced is how many of a hundred interruptions are a SIGKILL; the others are a SIGTERM.
const forced = 85

// TestSoak interrupts upgrades at random moments, up to five times each, as long as -soak says, and lets each recover.
func TestSoak(t *testing.T) {
	fakenode.Binary(t, "v1")
	var rounds, kills atomic.Int64
	var running sync.WaitGroup
	all := append(slices.Clone(stories), slow)
	end := time.Now().Add(*soak)
	for w := range *workers {
		running.Go(func() {
			random := rand.New(rand.NewPCG(*seed, uint64(w)))
			whole := time.Second // how long an upgrade takes, from its begin to its stop; measured below
			for i := 0; time.Now().Before(end) && !t.Failed(); i++ {
				t.Run(fmt.Sprintf("%d-%04d", w, i), func(t *testing.T) {
					h := newHome(t, plain(t), all[random.IntN(len(all))])
					for range 1 + random.IntN(5) {
						h.interrupt(random, whole)
						kills.Add(1)
					}
					begun := time.Now()
					h.recover()
					whole = (whole + time.Since(begun)) / 2
					rounds.Add(1)
				})
			}
		})
	}
	running.Wait()
	report(t, "%d upgrades, %d interruptions (-seed %d)", rounds.Load(), kills.Load(), *seed)
	assert.Positive(t, kills.Load())
}

// interrupt ends one life at a random moment, which may lie a little after its end.
func (h *home) interrupt(random *rand.Rand, whole time.Duration) {
	h.Helper()
	after, sig := time.Duration(random.Int64N(int64(whole)*11/10)), syscall.SIGTERM
	if random.IntN(100) < forced {
		sig = syscall.SIGKILL
	}
	cmd, ended := h.begin()
	select {
	case <-ended:
	case <-time.After(after): // the moment is the test: there is no fact to wait for
	}
	_ = syscall.Kill(cmd.Process.Pid, sig)
	select {
	case <-ended:
	case <-time.After(patience):
		_ = syscall.Kill(cmd.Process.Pid, syscall.SIGKILL)
		<-ended
		h.Errorf("it doesn't end")
	}
	h.ended(cmd, fmt.Sprintf("%s after %s", sig, after.Round(time.Millisecond)))
}
