package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// writesTemplate is a program that makes a template as testTemplates asks for one: the snapshot must be sealed by then.
const writesTemplate = `test -e "${1%.genesis}/manifest.json" && echo "$2" > "$1"`

// slow is what makes a snapshot take time: a named pipe in its way, which nobody writes to.
func (h *testHome) slow() (path string) {
	h.Helper()
	path = filepath.Join(h.dir, "gate")
	require.NoError(h, unix.Mkfifo(path, 0o600))
	return path
}

// taken are the labels of the snapshots, with a T for a template beside it.
func (h *testHome) taken() (all []string) {
	h.Helper()
	manifests, _ := filepath.Glob(filepath.Join(h.layout().State(), "snapshots", "*", "manifest.json"))
	for _, m := range manifests {
		if strings.HasSuffix(filepath.Dir(m), ".partial") {
			continue // it is no snapshot yet, and its manifest may be half-written
		}
		var read struct{ Label, State string }
		data, err := os.ReadFile(m)
		require.NoError(h, err)
		require.NoError(h, json.Unmarshal(data, &read))
		if _, err := os.Stat(filepath.Dir(m) + ".genesis"); err == nil {
			read.Label += "+T"
		}
		all = append(all, read.Label)
	}
	return all
}

// Each of the four events takes what is asked for there, and nothing elsewhere.
func TestTakenAtEachEvent(t *testing.T) {
	t.Parallel()
	begin := func(t *testing.T, on []string, templates ...string) *testHome {
		h := newHome(t)
		h.SnapshotOn, h.TemplateOn, h.Templates = on, templates, writesTemplate
		return h
	}
	t.Run("stop", func(t *testing.T) {
		t.Parallel()
		h := begin(t, []string{"stop"}, "stop")
		r := h.start()
		h.await(trace.FirstBlock, "v1")
		r.stop()
		assert.Equal(t, []string{"stop+T"}, h.taken())
		r = h.start()
		h.wait("it is completed when the node runs again", h.verified)
		r.stop()
		assert.Equal(t, []string{"stop+T", "stop+T"}, h.taken())
	})
	t.Run("a template at a stop needs a snapshot", func(t *testing.T) {
		t.Parallel()
		h := begin(t, []string{}, "stop")
		r := h.start()
		h.await(trace.FirstBlock, "v1")
		r.stop()
		assert.Equal(t, []string{"stop+T"}, h.taken())
	})
	t.Run("exit", func(t *testing.T) {
		t.Parallel()
		h := begin(t, []string{"exit"}, "stop")
		h.set("PANIC_AT", "5")
		h.Node.BackoffLimit = 6
		h.Node.BackoffMax = 20 * time.Millisecond
		r := h.start()
		require.Equal(t, 2, r.exit())
		assert.Equal(t, []string{"exit", "exit", "exit"}, h.taken(), "no more in a crash loop")
		assert.Contains(t, h.lines(), "no snapshot is taken after this end")
	})
	t.Run("halt", func(t *testing.T) {
		t.Parallel()
		h := begin(t, []string{"halt"}, "halt")
		r := h.start()
		h.awaitStatus("a height", func(st *status.Document) bool { return st.Height != nil && *st.Height > 3 })
		reply, err := h.do(client.OpHalt, client.Request{Now: true})
		require.NoError(t, err)
		require.Equal(t, ExitHeld, r.exit())
		assert.Equal(t, []string{"halt+T"}, h.taken())
		assert.True(t, h.verified(), "run ends only once it is completed")
		var result status.HaltResult
		require.NoError(t, json.Unmarshal(reply.Result, &result))
		assert.True(t, result.Exact)
		assert.Empty(t, result.Problems)
		require.NotNil(t, result.Template)
		assert.FileExists(t, result.Template.Path)
		assert.Contains(t, reply.Message, "genesis.json sha256 ab12")
		hold := h.journal().Hold
		assert.Contains(t, hold.Reason, "snapshot "+*result.Snapshot)
		assert.Contains(t, hold.Hint, "supervisor genesis create --snapshot "+*result.Snapshot+" --out DIR")
		assert.Contains(t, hold.Hint, "supervisor resume")
	})
	t.Run("upgrade", func(t *testing.T) {
		t.Parallel()
		h := begin(t, []string{"upgrade"}, "upgrade")
		h.stage("upgrades/v2", "v2")
		h.set("UPGRADE", "v2@5")
		r := h.start()
		h.awaitResult(upgrade.ResultCommitted)
		r.stop()
		assert.Equal(t, []string{"v2+T"}, h.taken())
	})
}

// A snapshot that can't be taken is seen before the node is stopped for `halt --now`.
func TestHaltNowThatIsRefused(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	r := h.start()
	h.await(trace.FirstBlock, "v1")
	h.write("supervisor/refused", "")
	_, err := h.do(client.OpHalt, client.Request{Now: true})
	require.ErrorContains(t, err, "it would be refused")
	st := h.awaitState(status.Running)
	assert.Nil(t, st.Halt)
	r.stop()
	assert.Empty(t, h.taken())
	assert.Equal(t, 1, h.count(trace.Start, ""))
}

// A template that can't be made holds an upgrade, and not a halt: that one stands, and says so.
func TestTemplateFailsAtAHalt(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.TemplateOn, h.Templates = []string{"halt"}, "echo no such command; exit 3"
	r := h.start()
	h.await(trace.FirstBlock, "v1")
	reply, err := h.do(client.OpHalt, client.Request{Now: true})
	require.NoError(t, err)
	require.Equal(t, ExitHeld, r.exit())
	assert.Equal(t, []string{"halt"}, h.taken())
	var result status.HaltResult
	require.NoError(t, json.Unmarshal(reply.Result, &result))
	require.Len(t, result.Problems, 1)
	assert.Contains(t, result.Problems[0], "the genesis template could not be made: cannot run the export: exit status 3: no such command")
	assert.Contains(t, h.journal().Hold.Reason, result.Problems[0])
	assert.Contains(t, h.journal().Hold.Hint, "tries the template again")
}

// A stop that takes too long is broken off by a second request, and by the end of stop_timeout where nobody else waits for
// us: `run` ends with 0, because the node ended in time, and nothing half-made is left.
func TestStopSnapshotIsBrokenOff(t *testing.T) {
	t.Parallel()
	t.Run("by a second request", func(t *testing.T) {
		t.Parallel()
		h := newHome(t)
		h.SnapshotOn, h.TemplateOn = []string{"stop"}, []string{"stop"}
		gate := h.slow()
		h.Templates = "touch " + h.dir + "/waits; exec cat " + gate
		r := h.start()
		h.await(trace.FirstBlock, "v1")
		r.signal(syscall.SIGTERM)
		h.wait("the template is being made", func() bool { return exists(h.dir + "/waits") })
		r.signal(syscall.SIGINT) // another one: the same within a second would be the first press
		require.Equal(t, 0, r.exit())
		assert.Contains(t, h.lines(), "it was broken off by a second request")
		h.noLeftOvers()
	})
	t.Run("by the end of stop_timeout", func(t *testing.T) {
		t.Parallel()
		h := newHome(t)
		h.Node.StopTimeout = 3 * time.Second // the node itself must end within it
		h.SnapshotOn, h.TemplateOn = []string{"stop"}, []string{"stop"}
		h.Templates = "exec cat " + h.slow()
		r := h.start()
		h.await(trace.FirstBlock, "v1")
		r.signal(syscall.SIGTERM)
		require.Equal(t, 0, r.exit())
		assert.Contains(t, h.lines(), "it was broken off, because stop_timeout is over")
		h.noLeftOvers()
	})
	t.Run("it isn't begun after a kill", func(t *testing.T) {
		t.Parallel()
		h := newHome(t)
		h.Node.StopTimeout = 300 * time.Millisecond
		h.SnapshotOn = []string{"stop"}
		h.set("IGNORE_TERM", "true")
		r := h.start()
		h.await(trace.FirstBlock, "v1")
		r.signal(syscall.SIGTERM)
		require.Equal(t, 1, r.exit())
		assert.Empty(t, h.taken())
		assert.Contains(t, h.lines(), "no snapshot is taken at this stop")
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// slowStore is a store whose last snapshot took an hour.
type slowStore struct{ Snapshots }

func (slowStore) Summary(context.Context) (status.Snapshots, status.Disk, error) {
	return status.Snapshots{Last: &status.LastSnapshot{DurationMS: time.Hour.Milliseconds()}}, status.Disk{}, nil
}

// What would not fit into the rest of stop_timeout, by the last snapshot's time, isn't begun.
func TestStopSnapshotForecast(t *testing.T) {
	h := newHome(t)
	h.SnapshotOn = []string{"stop"}
	w := h.runInside(func(s *Supervisor) { s.o.Snapshots = slowStore{s.o.Snapshots} })
	h.awaitState(status.Running)
	h.awaitStatus("the last one's time", func(st *status.Document) bool { return st.Snapshots.Last != nil })
	w.cancel()
	require.Equal(t, 0, w.end(t))
	assert.Empty(t, h.taken())
}

// The height is watched: a node that never halts by itself, and makes blocks on, is stopped, a little late, which is said.
// It is so where its log is the only source, too.
func TestHaltAtAHeightIsLate(t *testing.T) {
	t.Parallel()
	for _, log := range []string{"", `committed state height=(?P<height>\d+)`} {
		t.Run(fmt.Sprintf("log %t", log != ""), func(t *testing.T) {
			t.Parallel()
			h := newHome(t)
			h.Height.Log = log
			if log != "" {
				h.set("LOG_HEIGHT", "true")
				h.set("RPC", "off")
			}
			r := h.start()
			h.await(trace.FirstBlock, "v1")
			waited := make(chan client.Reply, 1)
			h.awaitState(status.Running)
			at := *h.awaitStatus("a height", func(st *status.Document) bool { return st.Height != nil }).Height + 150
			go func() {
				reply, _ := h.do(client.OpHalt, client.Request{Height: at, Wait: true})
				waited <- reply
			}()
			require.Equal(t, ExitHeld, r.exit())
			reply := <-waited
			var result status.HaltResult
			require.NoError(t, json.Unmarshal(reply.Result, &result), "%+v", reply)
			require.NotNil(t, result.Height)
			require.NotNil(t, result.Overshoot)
			assert.False(t, result.Exact)
			assert.Positive(t, *result.Overshoot)
			assert.Equal(t, *result.Height-(at-1), *result.Overshoot)
			assert.Contains(t, h.journal().Hold.Reason, "later than asked for")
			assert.Equal(t, []string{"halt"}, h.taken())
			if log != "" { // its last line was read: this is where the data stands
				assert.Equal(t, h.signerHeight(), *result.Height)
			}
		})
	}
}

// A node with a halt of its own, of its arguments or of its configuration, stops exactly there, whether it stays up or ends
// by itself before its height was read.
func TestHaltOfTheNodesOwn(t *testing.T) {
	t.Parallel()
	for name, then := range map[string]string{"stays": "stay", "ends": "exit0", "ends, configured": "exit0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHome(t)
			if strings.HasSuffix(name, "configured") {
				h.write("config/app.toml", "halt-height = 60\n[grpc]\nenable = false")
				h.set("HALT_HEIGHT", "60") // the node of these tests reads no app.toml
			} else {
				h.Args = []string{"start", "--halt-height=60"}
			}
			open := h.gate()
			h.set("AT_HALT", then)
			if then != "stay" {
				h.set("RPC", "off")
			}
			r := h.start()
			h.runs()
			_, err := h.do(client.OpHalt, client.Request{Height: 60})
			require.NoError(t, err)
			h.awaitStatus("it is exact", func(st *status.Document) bool { return st.Halt != nil && st.Halt.Exact })
			open()
			require.Equal(t, ExitHeld, r.exit())
			assert.NotContains(t, h.journal().Hold.Reason, "later than asked for")
			assert.Equal(t, []string{"halt"}, h.taken())
			assert.Equal(t, 1, h.count(trace.Start, ""))
		})
	}
}

// A halt that a crash interrupted takes one snapshot, not two.
func TestHaltIsInterrupted(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.TemplateOn = []string{"halt"}
	h.Templates = `[ -e ` + h.dir + `/twice ] || { touch ` + h.dir + `/twice; kill -9 $PPID; sleep 60; }; ` + writesTemplate
	host := newHost(h)
	host.boot()
	h.await(trace.FirstBlock, "v1")
	h.awaitState(status.Running)
	_, err := h.do(client.OpHalt, client.Request{Now: true})
	require.Error(t, err, "it was killed")
	require.Equal(t, -1, host.exit())
	assert.Nil(t, h.journal().Hold)
	host.boot()
	require.Equal(t, ExitHeld, host.exit())
	assert.Equal(t, []string{"halt+T"}, h.taken())
	assert.Equal(t, 1, h.count(trace.Start, ""), "the node was not started in between")
}

// A start that restores has no stop timeout, isn't restarted for ever, and is over with the first height.
func TestRestoringStart(t *testing.T) {
	t.Parallel()
	restoring := func(t *testing.T) *testHome {
		h := newHome(t)
		h.Restoring = true
		h.SnapshotOn = []string{"stop", "exit"}
		h.write("restoring", "")
		return h
	}
	t.Run("succeeds", func(t *testing.T) {
		t.Parallel()
		h := restoring(t)
		r := h.start()
		h.wait("it is said", func() bool { return strings.Contains(h.lines(), "the node has restored its state") })
		assert.NoFileExists(t, h.dir+"/restoring")
		r.stop()
		assert.NotContains(t, h.lines(), "made anew")
	})
	t.Run("is given time", func(t *testing.T) {
		t.Parallel()
		h := restoring(t)
		h.Node.StopTimeout = 200 * time.Millisecond
		h.set("START_DELAY", "1h")
		h.set("STOP_DELAY", "1500ms")
		r := h.start()
		h.awaitStatus("it is shown", func(st *status.Document) bool { return strings.HasPrefix(st.Message, "the node restores its state") })
		h.await(trace.Start, "v1")
		r.signal(syscall.SIGTERM)
		require.Equal(t, 0, r.exit(), "not killed")
		assert.FileExists(t, h.dir+"/restoring", "the next start begins anew")
		assert.Empty(t, h.taken(), "half a state is no snapshot")
	})
	t.Run("ends again and again", func(t *testing.T) {
		t.Parallel()
		h := restoring(t)
		h.set("CRASH_AT_START", "1")
		h.set("RPC", "off")
		r := h.start()
		require.Equal(t, ExitHeld, r.exit())
		assert.Equal(t, 3, h.count(trace.Start, "v1"))
		assert.Equal(t, 2, strings.Count(h.lines(), "the database is made anew"), "before each start but the first")
		assert.Contains(t, h.journal().Hold.Reason, "before its state was restored")
		assert.Empty(t, h.taken())
	})
}
