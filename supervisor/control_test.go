package supervisor

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/fakenode/trace"
	"nodevisor/internal/hint"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
)

func (h *testHome) socket() string { return filepath.Join(h.layout().State(), "control.sock") }

// ask speaks to the socket as any program may.
func (h *testHome) ask(method, path string, body io.Reader) (int, string) {
	h.Helper()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", h.socket())
	}
	c := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: patience}
	req, err := http.NewRequest(method, "http://x"+path, body)
	require.NoError(h, err)
	resp, err := c.Do(req)
	require.NoError(h, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(h, err)
	return resp.StatusCode, string(text)
}

// The socket is its owner's alone; what is no request is refused with a reason, and the loop never hears of it.
func TestControlSocket(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	require.NoError(t, os.MkdirAll(h.layout().State(), 0o755))
	l, err := net.Listen("unix", h.socket()) // what a killed supervisor leaves behind
	require.NoError(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	r := h.start()
	h.awaitState(status.Running)
	info, err := os.Stat(h.socket())
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	large := fmt.Sprintf(`{"name":%q}`, strings.Repeat("x", 1<<20))
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/v1/status", "", 200, `"state":"running"`},
		{"POST", "/v1/status", "", 409, "no such operation"},
		{"GET", "/v1/stop", "", 405, ""},
		{"POST", "/v1/nonsense", "{}", 409, "supervisor --help"},
		{"POST", "/v1/resume", "", 409, "nothing is held"},
		{"POST", "/v1/resume", "{", 400, "unexpected end"},
		{"POST", "/v1/resume", "\x00\xff", 400, "invalid character"},
		{"POST", "/v1/halt", `{"height":"high"}`, 400, "cannot unmarshal"},
		{"POST", "/v1/add", large, 400, "larger than 1 MiB"},
		{"POST", "/v1/cancel", `{"name":"v9"}`, 409, "no such plan is scheduled"},
		{"POST", "/v1/snapshots", `{"snapshots":7}`, 409, "cannot read the request"},
		{"POST", "/v1/reload", "", 409, "no configuration file"},
		{"GET", "/", "", 404, ""},
	} {
		status, text := h.ask(c.method, c.path, strings.NewReader(c.body))
		assert.Equal(t, c.status, status, "%s %s %.20s: %s", c.method, c.path, c.body, text)
		assert.Contains(t, text, c.says)
	}
	r.stop()
	assert.NoFileExists(t, h.socket())
	_, err = h.do(client.OpStop, client.Request{})
	assert.ErrorIs(t, err, client.ErrNotRunning)
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}

// Another user may read the status where the socket's mode lets him in, and do nothing.
func TestOperationsAreTheOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		return // who isn't root can't be another user
	}
	h := newHome(t)
	r := h.start()
	h.awaitState(status.Running)
	for _, dir := range []string{h.dir, h.layout().State()} {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	require.NoError(t, os.Chmod(h.socket(), 0o666))
	var answer, operation int
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and its user with it
		_, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0))
		assert.Zero(t, errno)
		answer = askRaw(t, h.socket(), "GET /v1/status HTTP/1.0\r\n\r\n")
		operation = askRaw(t, h.socket(), "POST /v1/stop HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
	}()
	<-done
	assert.Equal(t, http.StatusOK, answer)
	assert.Equal(t, http.StatusForbidden, operation)
	assert.Equal(t, status.Running, h.status().State)
	r.stop()
}

// askRaw speaks to the socket from the calling thread alone.
func askRaw(t *testing.T, socket, request string) (status int) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if !assert.NoError(t, err) {
		return 0
	}
	defer syscall.Close(fd)
	if !assert.NoError(t, syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket})) {
		return 0
	}
	_, err = syscall.Write(fd, []byte(request))
	assert.NoError(t, err)
	buf := make([]byte, 64)
	n, err := syscall.Read(fd, buf)
	assert.NoError(t, err)
	_, err = fmt.Sscanf(string(buf[:max(n, 0)]), "HTTP/1.0 %d", &status)
	assert.NoError(t, err)
	return status
}

// While a phase runs the status is served, and operations are refused with what is going on.
func TestBusy(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.Upgrade.Delay = time.Hour
	r := h.start()
	st := h.awaitStatus("stopped", func(st *status.Document) bool { return st.Upgrade != nil && st.Upgrade.Phase == upgrade.Stopped })
	assert.Equal(t, status.Upgrading, st.State)
	assert.Nil(t, st.PID)
	assert.Equal(t, "upgrading to v2: stopped reached", st.Message)
	var all sync.WaitGroup
	for _, op := range []string{
		client.OpResume, client.OpApply, client.OpHalt, client.OpSnapshots, client.OpAdd, client.OpCancel,
		client.OpSkip, client.OpRollback, client.OpReload,
	} {
		all.Go(func() {
			begun := time.Now()
			_, err := h.do(op, client.Request{Name: "v2"})
			if assert.Error(t, err, op) {
				assert.Contains(t, err.Error(), "busy: upgrade is under way", op)
				assert.Equal(t, "supervisor status, then try again", hintOf(err), op)
				assert.GreaterOrEqual(t, time.Since(begun), busyPatience, "most jobs are over in a moment")
			}
		})
	}
	all.Wait()
	status, _ := h.ask("POST", "/v1/resume", nil)
	assert.Equal(t, http.StatusConflict, status)
	// The binary that was waited for is seen before who put it there can tell of it: that is no mistake of theirs.
	same := client.Request{Plan: plan.Plan{Name: "v2", Source: plan.FromOperator}}
	reply, err := h.do(client.OpAdd, same)
	require.NoError(t, err)
	assert.Equal(t, "v2 is staged, and its upgrade is under way", reply.Message)
	_, err = h.do(client.OpAdd, client.Request{Plan: same.Plan, Force: true})
	require.ErrorContains(t, err, "busy: upgrade is under way")
	r.stop()
}

// Many clients at once: each is answered, once, and the loop serves on.
func TestManyClients(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	r := h.start()
	h.awaitState(status.Running)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 5 {
				if i%2 == 0 {
					assert.NotNil(t, h.status())
					continue
				}
				h.wait("its turn", func() bool { // a slow disk keeps one waiting for the others
					_, err := h.do(client.OpHalt, client.Request{Height: int64(1000000 + i*10 + j)})
					return err == nil || !assert.ErrorContains(t, err, "busy: ")
				})
			}
		})
	}
	all.Wait()
	_, err := h.do(client.OpHalt, client.Request{Cancel: true})
	require.NoError(t, err)
	assert.Nil(t, h.status().Halt)
	r.stop()
}

// The supervisor ends while a request waits for its answer: it gets one, that says so.
func TestEndWhileARequestWaits(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.write("block", "")
	block := filepath.Join(h.dir, "block")
	h.Systemd.Units = []unitSpec{{At: BeforeStop, Name: "slow", Blocking: block}}
	r := h.start()
	h.awaitState(status.Running)
	answered := make(chan error, 1)
	go func() {
		_, err := h.do(client.OpHalt, client.Request{Now: true})
		answered <- err
	}()
	h.wait("the halt has begun to stop the node", func() bool { return h.unitsActed()[0] == "before-stop slow" })
	r.signal(syscall.SIGTERM)
	h.awaitState(status.Stopping)
	require.NoError(t, os.Remove(block))
	require.Equal(t, 0, r.exit())
	select {
	case err := <-answered:
		require.Error(t, err)
		assert.Contains(t, err.Error(), "ended before it was done")
	case <-time.After(patience):
		require.Fail(t, "no answer")
	}
	assert.Nil(t, h.journal().Hold)
	r = h.start() // the halt is still scheduled
	require.Equal(t, ExitHeld, r.exit())
}

// What can't be done is refused before the node is stopped: it runs on.
func TestRefusedWhileTheNodeRuns(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@4")
	h.Upgrade.Probation.Up = time.Hour
	r := h.start()
	st := h.awaitStatus("blocks above the plan", func(st *status.Document) bool {
		return st.Upgrade != nil && st.Upgrade.Phase == upgrade.OnProbation && st.Height != nil && *st.Height > 10 && st.State == status.Running
	})
	assert.Regexp(t, `^v2 is on probation: up \S+ of 1h0m0s$`, st.Message, "there are blocks: nothing is waited for but time")
	for name, c := range map[string]struct {
		op   string
		r    client.Request
		says string
	}{
		"skip":     {client.OpSkip, client.Request{Name: "v2"}, "it can't be undone: block"},
		"rollback": {client.OpRollback, client.Request{}, "block"},
		"confirm":  {client.OpResume, client.Request{Confirm: true}, "it has been up for"},
		"apply":    {client.OpApply, client.Request{Name: "v2"}, "is in flight, at probation"},
		"snapshot": {client.OpSnapshots, client.Request{Snapshots: raw(map[string]any{"op": "create"})}, "not now"},
		"restore": {
			client.OpSnapshots,
			client.Request{Stop: true, Snapshots: raw(map[string]any{"op": "restore", "id": "nonsense"})},
			"is in flight, at probation",
		},
	} {
		_, err := h.do(c.op, c.r)
		require.Error(t, err, name)
		assert.Contains(t, err.Error(), c.says, name)
	}
	r.stop()
	assert.Equal(t, 1, h.count(trace.Start, "v2"), "nothing of it has stopped the node")

	h = newHome(t)
	r = h.start()
	h.awaitState(status.Running)
	_, err := h.do(client.OpResume, client.Request{Restore: true})
	require.Error(t, err)
	assert.Contains(t, err.Error(), "no upgrade is in flight")
	r.stop()
	assert.Equal(t, 1, h.count(trace.Start, "v1"))
}

// apply carries out now, and answers when the new version was started.
func TestApplyAndRollBack(t *testing.T) {
	t.Parallel()
	h := newHome(t, "v2")
	h.Node.Hold = HoldWait
	h.Upgrade.Probation.Up = time.Hour
	h.set("BLOCK_TIME", "0")
	r := h.start()
	h.awaitState(status.Running)
	_, err := h.do(client.OpApply, client.Request{Name: "v3"})
	require.Error(t, err)
	assert.Contains(t, err.Error(), "no binary")
	assert.NotEmpty(t, hintOf(err))
	reply, err := h.do(client.OpApply, client.Request{Name: "v2"})
	require.NoError(t, err)
	assert.Equal(t, "v2 was started and is on probation", reply.Message)
	assert.Equal(t, "v2", h.current())
	h.await(trace.Start, "v2")
	_, err = h.do(client.OpRollback, client.Request{})
	require.NoError(t, err)
	h.awaitState(status.Held)
	assert.Equal(t, "genesis", h.current())
	undone := h.history()[0]
	assert.Equal(t, upgrade.ResultRolledBack, undone.Result)
	r.stop()

	// Killed between the hold and the end of the record: the next life completes it, and it is as if nothing had happened.
	j := h.journal()
	j.Upgrade = &undone.Upgrade
	require.NoError(t, j.Save(h.layout().JournalPath(), atomicfile.Full))
	r = h.start()
	h.awaitState(status.Held)
	h.wait("the record", func() bool { return h.journal().Upgrade == nil })
	assert.Contains(t, h.journal().Hold.Reason, "v2 was rolled back")
	assert.Len(t, h.history(), 1)
	_, err = h.do(client.OpSkip, client.Request{Name: "v2"})
	require.NoError(t, err)
	_, err = h.do(client.OpResume, client.Request{})
	require.NoError(t, err)
	h.awaitCount(2, trace.Start, "v1")
	r.stop()
	h.singleNode()
}

// hintOf finds the next command, also in what came over the socket.
func hintOf(err error) string {
	if f, ok := err.(*client.Failure); ok { //nolint:errorlint // Do returns it bare
		return f.Hint
	}
	return hint.Of(err)
}
