package supervisor

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/internal/proc"
	"nodevisor/supervisor/alert"
	"nodevisor/supervisor/client"
	"nodevisor/upgrade"
)

// fullStatus has a value for every metric.
func fullStatus() *Status {
	now := time.Unix(1_800_000_000, 0)
	t := newTally()
	t.restarts[afterSignal], t.failures[upgrade.OnProbation] = 3, 1
	t.phases[upgrade.Stopped] = histogram{}.with(0.012)
	t.downtime = histogram{}.with(0.5).with(20_000)
	return &Status{
		Supervisor: Identity{Version: "v1"}, State: Running, PID: new(7), StartedAt: &now, Version: new("v2"), Height: new(int64(99)),
		Plan:        &PlanStatus{Name: "v3\xff", Height: new(int64(100)), ETA: &now},
		LastUpgrade: &LastUpgrade{Name: "v2", From: "genesis", To: "v2", Result: upgrade.ResultCommitted},
		Snapshots:   SnapshotStatus{Count: 1, Last: &LastSnapshot{CreatedAt: now, Bytes: 12, DurationMS: 1500}},
		Disk:        DiskStatus{Free: new(int64(3)), Needed: new(int64(2)), MinFree: new(int64(1))},
		Progress:    &ProgressStatus{Phase: "snapshot", Done: 1, Total: 4},
		inner:       inner{tally: t, since: now, told: func() alert.Counts { return alert.Counts{Sent: 2} }},
	}
}

func registryOf(st *Status) *prometheus.Registry {
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(newCollector("simd", func() *Status { return st }))
	return r
}

// What Prometheus' own tools say of the names, the types and the texts: nothing.
func TestMetricsLint(t *testing.T) {
	t.Parallel()
	registry := registryOf(fullStatus())
	problems, err := testutil.GatherAndLint(registry)
	require.NoError(t, err)
	assert.Empty(t, problems)

	families, err := registry.Gather()
	require.NoError(t, err)
	assert.Len(t, families, len(metrics())+len(durationMetrics()), "the full status has all of them")
	var text bytes.Buffer
	for _, f := range families {
		_, err := expfmt.MetricFamilyToText(&text, f)
		require.NoError(t, err)
	}
	promtool(t, &text, "check", "metrics")
	for _, line := range []string{
		`supervisor_up{node="simd"} 1`, `supervisor_state{node="simd",state="running"} 1`, `supervisor_state{node="simd",state="held"} 0`,
		`supervisor_node_restarts_total{node="simd",reason="signal"} 3`, `supervisor_plan_ready{node="simd",plan="v3�"} 0`,
		`supervisor_upgrade_info{from="genesis",name="v2",node="simd",result="committed",to="v2"} 1`,
		`supervisor_snapshot_duration_seconds{node="simd"} 1.5`, `supervisor_progress_ratio{node="simd",phase="snapshot"} 0.25`,
		`supervisor_upgrade_duration_seconds_bucket{node="simd",le="0.5"} 1`, `supervisor_upgrade_duration_seconds_bucket{node="simd",le="14400"} 1`,
		`supervisor_upgrade_duration_seconds_bucket{node="simd",le="+Inf"} 2`, `supervisor_notifications_total{node="simd",result="sent"} 2`,
		`supervisor_upgrade_phase_duration_seconds_bucket{node="simd",phase="stopped",le="0.05"} 1`,
		`supervisor_start_time_seconds{node="simd"} 1.8e+09`,
	} {
		assert.Contains(t, expfmtOf(t, registry), line+"\n")
	}
	// What isn't known isn't there, and nothing fails for it.
	empty, err := registryOf(&Status{inner: inner{tally: newTally()}}).Gather()
	require.NoError(t, err)
	names := []string{}
	for _, f := range empty {
		names = append(names, f.GetName())
	}
	assert.NotContains(t, names, "supervisor_node_height")
	assert.Contains(t, names, "supervisor_held")
}

func expfmtOf(t *testing.T, r *prometheus.Registry) string {
	t.Helper()
	families, err := r.Gather()
	require.NoError(t, err)
	var text bytes.Buffer
	for _, f := range families {
		_, err := expfmt.MetricFamilyToText(&text, f)
		require.NoError(t, err)
	}
	return text.String()
}

// promtool is a part of the tests, not a wish: make deps installs it.
func promtool(t *testing.T, stdin *bytes.Buffer, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	require.NoError(t, err, "make deps installs it")
	cmd := exec.Command(path, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin.Bytes())
	}
	err = proc.Run(cmd)
	require.NoError(t, err, "promtool %s: %s", args, &out)
	assert.NotContains(t, out.String(), "error")
}

// The page of the documentation and the code name the same metrics with the same labels.
func TestMetricsPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/monitoring.md")
	require.NoError(t, err)
	told := map[string][]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(supervisor_[a-z_]+)` \\|([^|]*)\\|").FindAllStringSubmatch(string(page), -1) {
		told[row[1]] = []string{}
		for _, label := range regexp.MustCompile("`([a-z]+)`").FindAllStringSubmatch(row[2], -1) {
			told[row[1]] = append(told[row[1]], label[1])
		}
	}
	have := map[string][]string{}
	for _, m := range metrics() {
		have[metricPrefix+m.name] = append([]string{}, m.labels...)
	}
	for _, d := range durationMetrics() {
		have[metricPrefix+d.name] = append([]string{}, d.labels...)
	}
	assert.Equal(t, have, told)
	for _, s := range States() {
		assert.Contains(t, string(page), "`"+string(s)+"`")
	}
	for _, reason := range restartReasons() {
		assert.Contains(t, string(page), "`"+reason+"`")
	}
	for _, event := range []string{alert.Held, alert.CrashLoop, alert.Halted, alert.Committed, alert.RolledBack, alert.LowDisk, alert.NotReady} {
		assert.Contains(t, string(page), "| `"+event+"` |")
	}
}

// The alert rules do what they say, by promtool; they and the dashboard name metrics and labels that are there.
func TestRulesAndDashboard(t *testing.T) {
	t.Parallel()
	promtool(t, nil, "check", "rules", "../packaging/prometheus/alerts.yml")
	promtool(t, nil, "test", "rules", "../packaging/prometheus/alerts_test.yml")
	known := []string{}
	for _, m := range metrics() {
		known = append(known, metricPrefix+m.name)
	}
	for _, d := range durationMetrics() {
		known = append(known, metricPrefix+d.name+"_sum", metricPrefix+d.name+"_count", metricPrefix+d.name+"_bucket")
	}
	for _, file := range []string{"prometheus/alerts.yml", "prometheus/alerts_test.yml", "grafana/nodevisor.json"} {
		text, err := os.ReadFile(filepath.Join("../packaging", file))
		require.NoError(t, err)
		named := regexp.MustCompile(`\bsupervisor_[a-z_]+`).FindAllString(string(text), -1)
		assert.Greater(t, len(named), 7, file)
		for _, name := range named {
			assert.Contains(t, known, name, file)
		}
	}
	rules, err := os.ReadFile("../packaging/prometheus/alerts.yml")
	require.NoError(t, err)
	tests, err := os.ReadFile("../packaging/prometheus/alerts_test.yml")
	require.NoError(t, err)
	for _, name := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		assert.Regexp(t, `(?s)eval_time: \w+\n +alertname: `+name[1]+`\n`, string(tests), "a test in which it fires")
	}
	data, err := os.ReadFile("../packaging/grafana/nodevisor.json")
	require.NoError(t, err)
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(data, &dashboard))
	assert.LessOrEqual(t, len(dashboard.Panels), 10)
	for _, p := range dashboard.Panels {
		assert.NotEmpty(t, p.Targets, p.Title)
		for _, target := range p.Targets { // the whole of an expression must be one that Prometheus takes
			expr := strings.NewReplacer("$__rate_interval", "5m", "$__range", "1h").Replace(target.Expr)
			rule := filepath.Join(t.TempDir(), "rule.yml")
			quoted, err := json.Marshal(expr)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(rule, fmt.Appendf(nil, "groups: [{name: x, rules: [{record: x, expr: %s}]}]\n", quoted), 0o600))
			promtool(t, nil, "check", "rules", rule)
		}
	}
}

// get asks the listener; status 0 means that nobody answered.
func get(address, path string) (status int, body string) {
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
			status, body := get(address, "/metrics")
			return status == http.StatusOK && regexp.MustCompile("(?m)^"+line+"$").MatchString(body)
		}
	}
	h.wait("the upgrade", has(`supervisor_upgrade_info\{from="genesis",name="v2",node="simd",result="committed",to="v2"\} 1`))
	h.wait("its time", has(`supervisor_upgrade_duration_seconds_count\{node="simd"\} 1`))
	for _, p := range []upgrade.Phase{upgrade.Stopped, upgrade.Snapshotted, upgrade.Switched, upgrade.Migrated, upgrade.Committed} {
		assert.True(t, has(`supervisor_upgrade_phase_duration_seconds_count\{node="simd",phase="`+string(p)+`"\} 1`)(), p)
	}
	assert.True(t, has(`supervisor_snapshots\{node="simd"\} 1`)())
	h.wait("it runs", has(`supervisor_state\{node="simd",state="running"\} 1`))
	h.wait("a height", has(`supervisor_node_height\{node="simd"\} [0-9]+`))
	status, body := get(address, "/readyz")
	assert.Equal(t, 200, status, body)

	pid := *h.awaitState(Running).PID
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	h.wait("the restart", has(`supervisor_node_restarts_total\{node="simd",reason="signal"\} 1`))
	h.awaitState(Running)

	_, err := h.do(client.OpHalt, client.Request{Now: true})
	require.NoError(t, err)
	h.wait("the hold", has(`supervisor_held\{node="simd"\} 1`))
	assert.True(t, has(`supervisor_node_up\{node="simd"\} 0`)())
	status, body = get(address, "/healthz")
	assert.Equal(t, 200, status, "also while held: %s", body)
	status, body = get(address, "/readyz")
	assert.Equal(t, 503, status)
	assert.Regexp(t, `^held: HELD: halted at [^\n]*\n$`, body)
	for path, want := range map[string]int{"/": 404, "/metrics/x": 404} {
		status, _ = get(address, path)
		assert.Equal(t, want, status, path)
	}
	w.cancel()
	assert.Equal(t, 0, w.end(t))
	h.wait("nobody listens any more", func() bool { status, _ := get(address, "/healthz"); return status == 0 })
}

// A loop that hangs is noticed, and one that answers again too.
func TestHealthOfAHangingLoop(t *testing.T) {
	h := newHome(t)
	w := h.runInside(func(s *Supervisor) { s.o.Metrics = "127.0.0.1:0" })
	address := h.observed(1)
	h.awaitState(Running)
	hang := make(chan struct{})
	w.post(func() { <-hang })
	var status int
	h.wait("the trouble", func() bool { status, _ = get(address, "/healthz"); return status == 503 })
	close(hang)
	h.wait("its end", func() bool { status, _ = get(address, "/healthz"); return status == 200 })
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
	h.wait("an answer", func() bool { status, _ := get(address, "/healthz"); return status == 200 })

	w.post(func() { w.observeAt("127.0.0.1:0") })
	next := h.observed(2)
	h.wait("an answer", func() bool { status, _ := get(next, "/healthz"); return status == 200 })
	status, _ := get(address, "/healthz")
	assert.Zero(t, status, "nobody listens there any more")
	w.post(func() { w.observeAt("") })
	h.wait("the end", func() bool { status, _ := get(next, "/healthz"); return status == 0 })
	assert.Equal(t, 1, strings.Count(h.lines(), "the metrics can't be served"), "said once")
	w.cancel()
	assert.Equal(t, 0, w.end(t))
}

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
	t.Run("held on probation, rolled back", func(t *testing.T) {
		h, tells, w := run(t, func(h *testHome) {
			h.set("UPGRADE", "v2@10")
			h.setOf("v2", "CRASH_AT_START", "7")
			h.Upgrade.Probation.Attempts = 2
		})
		h.wait("held", func() bool { return tells.has(`^held\|.*no attempt is left`) })
		assert.Equal(t, uint64(2), w.Status().inner.tally.failures[upgrade.OnProbation])
		_, err := h.do(client.OpRollback, client.Request{})
		require.NoError(t, err)
		h.wait("rolled back", func() bool { return tells.has(`^rolled back\|v2 by an operator; next: supervisor resume`) })
	})
	t.Run("rolled back by policy", func(t *testing.T) {
		h, tells, _ := run(t, func(h *testHome) {
			h.set("UPGRADE", "v2@120") // late enough for a height to be read
			h.setOf("v2", "CRASH_AT_START", "7")
			h.Upgrade.Probation.Attempts, h.Upgrade.OnFailure = 1, upgrade.OnFailureRollback
		})
		h.wait("rolled back", func() bool { return tells.has(`^rolled back\|v2 by policy: `) })
	})
	t.Run("no room", func(t *testing.T) {
		h, tells, w := run(t, func(*testHome) {})
		h.awaitState(Running)
		low := func(free int64) {
			w.post(func() {
				w.disk = DiskStatus{Free: &free, Needed: new(int64(10)), MinFree: new(int64(100))}
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
		assert.False(t, tells.has("108|110 bytes"), "said once, until there is room again")
	})
}
