package supervisor

import (
	"bytes"
	"net"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// get asks the listener; code 0 means that nobody answered.
func get(address, path string) (code int, body string) {
	c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + address + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, _ = b.ReadFrom(resp.Body)
	return resp.StatusCode, b.String()
}

// observed waits for the listener's nth address in the log.
func (h *testHome) observed(n int) string {
	h.Helper()
	var address string
	h.wait("a listener", func() bool {
		all := regexp.MustCompile(`msg="serving metrics" address=(\S+)`).FindAllStringSubmatch(h.lines(), -1)
		if len(all) >= n {
			address = all[n-1][1]
		}
		return address != ""
	})
	return address
}

// A whole life as Prometheus sees it: an upgrade, a crash, a halt.
func TestMetricsOfALife(t *testing.T) {
	h := newHome(t, "v2")
	h.set("UPGRADE", "v2@10")
	h.Node.Hold = HoldWait
	w := h.runInside(func(s *Supervisor) { s.o.Metrics = "127.0.0.1:0" })
	address := h.observed(1)
	has := func(line string) func() bool {
		return func() bool {
			code, body := get(address, "/metrics")
			return code == http.StatusOK && regexp.MustCompile("(?m)^"+line+"$").MatchString(body)
		}
	}
	h.wait("the upgrade", has(`supervisor_upgrade_info\{from="genesis",name="v2",node="simd",result="committed",to="v2"\} 1`))
	h.wait("its time", has(`supervisor_upgrade_duration_seconds_count\{node="simd"\} 1`))
	for _, p := range []upgrade.Phase{upgrade.Stopped, upgrade.Snapshotted, upgrade.Switched, upgrade.Migrated, upgrade.Committed} {
		assert.True(t, has(`supervisor_upgrade_phase_duration_seconds_count\{node="simd",phase="`+string(p)+`"\} 1`)(), p)
	}
	h.wait("its snapshot", has(`supervisor_snapshots\{node="simd"\} 1`))
	h.wait("it runs", has(`supervisor_state\{node="simd",state="running"\} 1`))
	h.wait("a height", has(`supervisor_node_height\{node="simd"\} [0-9]+`))
	code, body := get(address, "/readyz")
	assert.Equal(t, 200, code, body)

	pid := *h.awaitState(status.Running).PID
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	h.wait("the restart", has(`supervisor_node_restarts_total\{node="simd",reason="signal"\} 1`))
	h.awaitState(status.Running)

	_, err := h.do(client.OpHalt, client.Request{Now: true})
	require.NoError(t, err)
	h.wait("the hold", has(`supervisor_held\{node="simd"\} 1`))
	assert.True(t, has(`supervisor_node_up\{node="simd"\} 0`)())
	code, body = get(address, "/healthz")
	assert.Equal(t, 200, code, "also while held: %s", body)
	code, body = get(address, "/readyz")
	assert.Equal(t, 503, code)
	assert.Regexp(t, `^held: HELD: halted at [^\n]*\n$`, body)
	for path, want := range map[string]int{"/": 404, "/metrics/x": 404} {
		code, _ = get(address, path)
		assert.Equal(t, want, code, path)
	}
	w.cancel()
	assert.Equal(t, 0, w.end(t))
	h.wait("nobody listens any more", func() bool { code, _ := get(address, "/healthz"); return code == 0 })
}

// A loop that hangs is noticed, and one that answers again too.
func TestHealthOfAHangingLoop(t *testing.T) {
	h := newHome(t)
	w := h.runInside(func(s *Supervisor) { s.o.Metrics = "127.0.0.1:0" })
	address := h.observed(1)
	h.awaitState(status.Running)
	hang := make(chan struct{})
	w.post(func() { <-hang })
	var code int
	h.wait("the trouble", func() bool { code, _ = get(address, "/healthz"); return code == 503 })
	close(hang)
	h.wait("its end", func() bool { code, _ = get(address, "/healthz"); return code == 200 })
	w.cancel()
	assert.Equal(t, 0, w.end(t))
}

// An address that is taken is a warning and no more: the node runs, and the listener comes as soon as it can. Another address
// takes the place of the first; none at all ends it.
func TestListenerThatCannotBe(t *testing.T) {
	h := newHome(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { taken.Close() })
	address := taken.Addr().String()
	w := h.runInside(func(s *Supervisor) { s.o.Metrics = address })
	h.await(trace.FirstBlock, "v1")
	h.wait("the warning", func() bool { return strings.Contains(h.lines(), "the metrics can't be served; trying again") })
	assert.Contains(t, h.lines(), "address already in use")
	require.NoError(t, taken.Close())
	assert.Equal(t, address, h.observed(1))
	h.wait("an answer", func() bool { code, _ := get(address, "/healthz"); return code == 200 })

	w.post(func() { w.observeAt("127.0.0.1:0") })
	next := h.observed(2)
	h.wait("an answer", func() bool { code, _ := get(next, "/healthz"); return code == 200 })
	code, _ := get(address, "/healthz")
	assert.Zero(t, code, "nobody listens there any more")
	w.post(func() { w.observeAt("") })
	h.wait("the end", func() bool { code, _ := get(next, "/healthz"); return code == 0 })
	assert.Equal(t, 1, strings.Count(h.lines(), "the metrics can't be served"), "said once")
	w.cancel()
	assert.Equal(t, 0, w.end(t))
}
