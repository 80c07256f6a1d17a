package supervisor

import (
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/supervisor/client"
	"nodevisor/supervisor/metrics"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// told collects what an operator is told.
type told struct {
	mu  sync.Mutex
	all []string
}

func (t *told) event(event, text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = append(t.all, event+"|"+text)
}

func (t *told) has(pattern string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.all, regexp.MustCompile(pattern).MatchString)
}

// Every event of the contract is told, and in words that hold what is to be done.
func TestEvents(t *testing.T) {
	run := func(t *testing.T, change func(*testHome)) (*testHome, *told, *insider) {
		h := newHome(t, "v2")
		h.Node.Hold = HoldWait
		change(h)
		tells := &told{}
		return h, tells, h.runInside(func(s *Supervisor) { s.o.Event = tells.event })
	}
	t.Run("committed, halted, held", func(t *testing.T) {
		h, tells, _ := run(t, func(h *testHome) { h.set("UPGRADE", "v2@10") })
		h.wait("committed", func() bool { return tells.has(`^committed\|v2 at height \d+$`) })
		_, err := h.do(client.OpHalt, client.Request{Now: true})
		require.NoError(t, err)
		h.wait("halted", func() bool { return tells.has(`^halted\|at .*; next: supervisor resume$`) })
		h.wait("held", func() bool { return tells.has(`^held\|halted at .*; next: supervisor resume$`) })
		assert.False(t, tells.has("^crash loop|^not ready"))
	})
	t.Run("crash loop", func(t *testing.T) {
		h, tells, w := run(t, func(h *testHome) { h.set("CRASH_AT_START", "7"); h.Node.BackoffLimit = 4 })
		h.wait("the loop", func() bool { return tells.has(`^crash loop\|it ended 3 times in a row, last with exit code 7$`) })
		assert.Equal(t, 7, w.end(t))
		assert.True(t, tells.has(`^crash loop\|exit code 7; given up after 4 restarts$`))
	})
	t.Run("not ready", func(t *testing.T) {
		h, tells, _ := run(t, func(h *testHome) { h.set("UPGRADE", "v9@10") })
		h.wait("not ready", func() bool { return tells.has(`^not ready\|v9: `) })
	})
	t.Run("an unusable plan file", func(t *testing.T) {
		h, tells, w := run(t, func(*testHome) {})
		node := h.awaitState(status.Running).PID
		h.write("data/upgrade-info.json", "{")
		h.wait("the log says so", func() bool { return strings.Contains(h.lines(), "the plan file can't be used; looking again") })
		assert.False(t, tells.has("plan file"), "it may be half-written")
		w.post(func() {
			assert.Equal(t, 30*time.Second, w.file.tellAt.Sub(w.file.unusable))
			w.file.tellAt = time.Now() // past by now, as where its time came during a job
		})
		h.wait("it stays so", func() bool { return tells.has(`^not ready\|the plan file can't be read: `) })
		st := h.status()
		assert.Equal(t, status.Running, st.State)
		assert.Equal(t, node, st.PID, "the node is left running")
	})
	t.Run("held on probation, rolled back", func(t *testing.T) {
		h, tells, w := run(t, func(h *testHome) {
			h.set("UPGRADE", "v2@10")
			h.setOf("v2", "CRASH_AT_START", "7")
			h.Upgrade.Probation.Attempts = 2
		})
		h.wait("held", func() bool { return tells.has(`^held\|.*no attempt is left`) })
		answer := httptest.NewRecorder()
		metrics.Handler("simd", w.sample.Load, w.answers).ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
		assert.Contains(t, answer.Body.String(), `supervisor_upgrade_failures_total{node="simd",phase="probation"} 2`)
		_, err := h.do(client.OpRollback, client.Request{})
		require.NoError(t, err)
		h.wait("rolled back", func() bool { return tells.has(`^rolled back\|v2 by an operator; next: supervisor resume`) })
	})
	t.Run("rolled back by policy", func(t *testing.T) {
		h, tells, _ := run(t, func(h *testHome) {
			h.set("UPGRADE", "v2@120")
			h.set("BLOCK_TIME", "25ms") // late enough for a height to be read
			h.setOf("v2", "CRASH_AT_START", "7")
			h.Upgrade.Probation.Attempts, h.Upgrade.OnFailure = 1, upgrade.OnFailureRollback
		})
		h.wait("rolled back", func() bool { return tells.has(`^rolled back\|v2 by policy: `) })
	})
	t.Run("no room", func(t *testing.T) {
		h, tells, w := run(t, func(h *testHome) { h.SnapshotOn = nil }) // no store that says of the room what it finds
		h.awaitState(status.Running)
		low := func(free int64) {
			w.post(func() {
				w.store.disk = status.Disk{Free: &free, Needed: new(int64(10)), MinFree: new(int64(100))}
				w.sayRoom()
			})
		}
		low(110)
		low(109)
		h.wait("the warning", func() bool { return tells.has(`^disk below min_free\|109 bytes are free`) })
		low(108)
		low(200)
		low(107)
		h.wait("the second time", func() bool { return tells.has(`107 bytes`) })
		assert.False(t, tells.has(`\|(108|110) bytes`), "said once, until there is room again")
	})
}
