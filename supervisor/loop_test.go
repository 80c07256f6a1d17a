package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/internal/proctest"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// These tests run the supervisor in their own process, one at a time (not parallel): it reaps what the process adopts.

// insider is a supervisor in this process.
type insider struct {
	*Supervisor
	cancel context.CancelFunc
	code   chan int
}

func (h *testHome) runInside(change ...func(*Supervisor)) *insider {
	h.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	require.NoError(h, err)
	h.Cleanup(func() { null.Close() })
	log, err := os.Create(h.log)
	require.NoError(h, err)
	h.Cleanup(func() { log.Close() })
	s, closeAll, err := h.open(slog.New(slog.NewTextHandler(log, nil)), null, null, log)
	require.NoError(h, err)
	for _, f := range change {
		f(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &insider{Supervisor: s, cancel: cancel, code: make(chan int, 1)}
	go func() {
		code := s.Run(ctx)
		closeAll()
		w.code <- code
	}()
	h.Cleanup(func() { cancel(); w.end(h.T) })
	return w
}

// end waits for the end of Run.
func (w *insider) end(t *testing.T) int {
	t.Helper()
	select {
	case code := <-w.code:
		w.code <- code // for the cleanup
		return code
	case <-time.After(patience):
		require.Fail(t, "Run doesn't return")
		return 0
	}
}

// goroutines lists those of this module that still run, but the test's own.
func goroutines() []string {
	buf := make([]byte, 1<<20)
	var left []string
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "nodevisor/") && !strings.Contains(g, "testing.tRunner") && !strings.Contains(g, "testing.(*T)") {
			left = append(left, g)
		}
	}
	return left
}

// Nothing of a supervisor runs on when Run has returned: after a stop in quiet times, in the middle of an upgrade, after a
// hold, with clients connected that never ask.
func TestNothingRunsOn(t *testing.T) {
	for name, story := range map[string]func(*testHome, *insider){
		"quiet": func(h *testHome, w *insider) {
			h.awaitState(status.Running)
			w.cancel()
		},
		"upgrade": func(h *testHome, w *insider) {
			h.awaitStatus("the delay", func(st *status.Document) bool { return st.Upgrade != nil && st.Upgrade.Phase == upgrade.Stopped })
			w.cancel()
		},
		"backoff": func(h *testHome, w *insider) {
			h.awaitState(status.Backoff)
			w.cancel()
		},
		"hold": func(h *testHome, w *insider) {
			h.awaitState(status.Running)
			_, _ = h.do(client.OpHalt, client.Request{Now: true})
		},
		"idle client": func(h *testHome, w *insider) {
			h.awaitState(status.Running)
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			require.NoError(h, err)
			h.Cleanup(func() { syscall.Close(fd) })
			require.NoError(h, syscall.Connect(fd, &syscall.SockaddrUnix{Name: h.socket()}))
			w.cancel()
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t, "v2")
			switch name {
			case "upgrade":
				h.set("UPGRADE", "v2@4")
				h.Upgrade.Delay = time.Hour
			case "backoff":
				h.Node.Backoff, h.Node.BackoffMax = time.Hour, time.Hour
				h.set("CRASH_AT_START", "1")
			}
			before := len(goroutines())
			w := h.runInside()
			story(h, w)
			code := w.end(t)
			assert.Equal(t, map[bool]int{false: 0, true: ExitHeld}[name == "hold"], code)
			var left []string
			proctest.WaitFor(t, patience, "no goroutine is left", func() bool {
				left = goroutines()
				return len(left) <= before || t.Failed()
			})
			if t.Failed() {
				t.Log(strings.Join(left, "\n\n"))
			}
			assert.NotNil(t, w.Status())
			late := make(chan struct{})
			go func() { w.post(func() {}); close(late) }()
			<-late // what comes after the end is dropped, and blocks nobody
		})
	}
}

// A whole upgrade in this process, under the race detector, while clients read the status all the time and operate.
func TestUpgradeUnderObservation(t *testing.T) {
	h := newHome(t, "v2", "v3")
	h.set("UPGRADE", "v2@40;v3@120")
	w := h.runInside()
	stop := make(chan struct{})
	observed := make(chan int)
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				observed <- n
				return
			default:
				h.status()
				_, _ = h.do(client.OpHalt, client.Request{Height: 1 << 40})
			}
		}
	}()
	h.wait("both upgrades", func() bool { return len(h.history()) == 2 })
	close(stop)
	assert.Positive(t, <-observed)
	assert.Equal(t, "v3", h.current())
	h.awaitState(status.Running)
	w.cancel()
	assert.Equal(t, 0, w.end(t))
	h.singleNode()
	h.noOldNodeOnNewData()
}

// An answer that arrives after its node is gone says nothing of the next one, and doesn't end the reading of heights.
func TestHeightOfAGoneNode(t *testing.T) {
	h := newHome(t)
	w := h.runInside()
	for i := range 3 {
		st := h.awaitStatus("a height", func(st *status.Document) bool { return st.HeightSource != nil })
		require.NoError(t, syscall.Kill(*st.PID, syscall.SIGKILL))
		h.awaitCount(i+2, trace.FirstBlock, "v1")
		next := h.awaitStatus("a height of the next node", func(st2 *status.Document) bool { return st2.HeightSource != nil && *st2.PID != *st.PID })
		assert.NotNil(t, next.Height)
	}
	w.cancel()
	assert.Equal(t, 0, w.end(t))
}

// A node that hangs when it is asked, and is replaced while the question waits: the next one is asked all the same.
func TestHangingQuestion(t *testing.T) {
	h := newHome(t)
	h.set("RPC", "off")
	sock := filepath.Join(h.dir, "rpc")
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Bind(l, &unix.SockaddrUnix{Name: sock})) // takes connections and never answers
	require.NoError(t, unix.Listen(l, 16))
	w := h.runInside()
	node := h.await(trace.FirstBlock, "v1").PID
	time.Sleep(2 * firstHeight) // the question is on its way
	require.NoError(t, unix.Close(l))
	require.NoError(t, os.Remove(sock))
	require.NoError(t, syscall.Kill(node, syscall.SIGKILL))
	h.awaitCount(2, trace.FirstBlock, "v1")
	serveHeight(t, sock, "77")
	h.awaitStatus("the new height", func(st *status.Document) bool { return st.Height != nil && *st.Height == 77 })
	w.cancel()
	assert.Equal(t, 0, w.end(t))
}

// slowTidy is a store whose tidying ends late after it was broken off, and which notes whatever is done beside it.
type slowTidy struct {
	Snapshots
	running        atomic.Bool
	tidies, beside atomic.Int32
}

func (s *slowTidy) Tidy(ctx context.Context, _ string) error {
	s.tidies.Add(1)
	s.running.Store(true)
	<-ctx.Done()
	time.Sleep(200 * time.Millisecond)
	s.running.Store(false)
	return ctx.Err()
}

func (s *slowTidy) Do(ctx context.Context, request json.RawMessage, atRest bool) (any, error) {
	if s.running.Load() {
		s.beside.Add(1)
	}
	return s.Snapshots.Do(ctx, request, atRest)
}

// What changes the store waits for the end of a tidying, which is taken up again afterwards.
func TestTidyingMakesWay(t *testing.T) {
	h := newHome(t)
	h.Node.Hold = HoldWait
	store := &slowTidy{}
	w := h.runInside(func(s *Supervisor) { store.Snapshots, s.o.Snapshots = s.o.Snapshots, store })
	create := raw(map[string]any{"op": "create", "label": "x"})
	h.wait("a tidying", store.running.Load)
	_, err := h.do(client.OpSnapshots, client.Request{Snapshots: create})
	require.Error(t, err, "the node runs")
	h.wait("it is taken up again", func() bool { return store.tidies.Load() == 2 && store.running.Load() })
	reply, err := h.do(client.OpSnapshots, client.Request{Stop: true, Snapshots: create})
	require.NoError(t, err)
	h.wait("a tidying of the next node", func() bool { return store.tidies.Load() >= 3 && store.running.Load() })
	var id string
	require.NoError(t, json.Unmarshal(reply.Result, &id))
	_, err = h.do(client.OpSnapshots, client.Request{Stop: true, Snapshots: raw(map[string]any{"op": "restore", "id": id})})
	require.NoError(t, err)
	h.awaitState(status.Held)
	assert.Zero(t, store.beside.Load(), "beside a tidying")
	w.cancel()
	assert.Equal(t, 0, w.end(t))
}

// serveHeight answers at a socket as CometBFT's RPC does.
func serveHeight(t *testing.T, sock, height string) {
	t.Helper()
	l, err := net.Listen("unix", sock)
	require.NoError(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"result":{"sync_info":{"latest_block_height":%q,"catching_up":false}}}`, height)
	})}
	go server.Serve(l) //nolint:errcheck // it ends with Close
	t.Cleanup(func() { server.Close() })
}
