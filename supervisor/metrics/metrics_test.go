package metrics

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/proc"
	"nodevisor/supervisor/alert"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// fullSample has a value for every metric.
func fullSample() *Sample {
	now := time.Unix(1_800_000_000, 0)
	t := NewTally()
	t.restarts[AfterSignal], t.failures[upgrade.OnProbation] = 3, 1
	t.phases[upgrade.Stopped] = histogram{}.with(0.012)
	t.downtime = histogram{}.with(0.5).with(20_000)
	st := &status.Document{
		Supervisor: status.Identity{Version: "v1"}, State: status.Running, PID: new(7), StartedAt: &now, Version: new("v2"), Height: new(int64(99)),
		Plan:        &status.Plan{Name: "v3\xff", Height: new(int64(100)), ETA: &now},
		LastUpgrade: &status.LastUpgrade{Name: "v2", From: "genesis", To: "v2", Result: upgrade.ResultCommitted},
		Snapshots:   status.Snapshots{Count: 1, Last: &status.LastSnapshot{CreatedAt: now, Bytes: 12, DurationMS: 1500}},
		Disk:        status.Disk{Free: new(int64(3)), Needed: new(int64(2)), MinFree: new(int64(1))},
		Progress:    &status.Progress{Phase: "snapshot", Done: 1, Total: 4},
	}
	return &Sample{Document: st, Tally: t, Since: now, Told: func() alert.Counts { return alert.Counts{Sent: 2} }}
}

func registryOf(st *Sample) *prometheus.Registry {
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(newCollector("simd", func() *Sample { return st }))
	return r
}

// What Prometheus' own tools say of the names, the types and the texts: nothing.
func TestMetricsLint(t *testing.T) {
	t.Parallel()
	registry := registryOf(fullSample())
	problems, err := testutil.GatherAndLint(registry)
	require.NoError(t, err)
	assert.Empty(t, problems)

	families, err := registry.Gather()
	require.NoError(t, err)
	assert.Len(t, families, len(metrics())+len(durationMetrics()), "the full sample has all of them")
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
	empty, err := registryOf(&Sample{Document: &status.Document{}, Tally: NewTally()}).Gather()
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
	page, err := os.ReadFile("../../docs/monitoring.md")
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
	for _, s := range status.States() {
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
	promtool(t, nil, "check", "rules", "../../packaging/prometheus/alerts.yml")
	promtool(t, nil, "test", "rules", "../../packaging/prometheus/alerts_test.yml")
	known := []string{}
	for _, m := range metrics() {
		known = append(known, metricPrefix+m.name)
	}
	for _, d := range durationMetrics() {
		known = append(known, metricPrefix+d.name+"_sum", metricPrefix+d.name+"_count", metricPrefix+d.name+"_bucket")
	}
	for _, file := range []string{"prometheus/alerts.yml", "prometheus/alerts_test.yml", "grafana/nodevisor.json"} {
		text, err := os.ReadFile(filepath.Join("../../packaging", file))
		require.NoError(t, err)
		named := regexp.MustCompile(`\bsupervisor_[a-z_]+`).FindAllString(string(text), -1)
		assert.Greater(t, len(named), 7, file)
		for _, name := range named {
			assert.Contains(t, known, name, file)
		}
	}
	rules, err := os.ReadFile("../../packaging/prometheus/alerts.yml")
	require.NoError(t, err)
	tests, err := os.ReadFile("../../packaging/prometheus/alerts_test.yml")
	require.NoError(t, err)
	for _, name := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		assert.Regexp(t, `(?s)eval_time: \w+\n +alertname: `+name[1]+`\n`, string(tests), "a test in which it fires")
	}
	data, err := os.ReadFile("../../packaging/grafana/nodevisor.json")
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
