// Package metrics is what Prometheus is told: the families of /metrics with their values, and the listener that serves them
// beside /healthz and /readyz. It holds no state of the supervisor: what it shows is a Sample that the run loop published,
// so a scrape costs the loop nothing.
package metrics

import (
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nodevisor/supervisor/alert"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// Sample is one moment of a supervisor, as a scrape sees it. A published one is never changed.
type Sample struct {
	*status.Document
	Tally    *Tally
	InFlight *upgrade.Upgrade    // nil: none is in flight
	Since    time.Time           // the supervisor's start
	HeightAt time.Time           // when Height was true; it means something only with a HeightAge
	Polled   bool                // files are polled, because the kernel tells of no changes
	Told     func() alert.Counts // nil: nobody is told
}

// metric is one family of /metrics: docs/monitoring.md lists them, and a test holds the page to this table. A value is read
// from the published sample when it is asked for.
type metric struct {
	name   string // without the prefix
	help   string
	kind   prometheus.ValueType
	labels []string // besides `node`
	values func(st *Sample, put func(value float64, labels ...string))
}

// metricPrefix begins every name.
const metricPrefix = "supervisor_"

// gauge makes a family with one value, which is absent where read says so.
func gauge(name, help string, read func(st *Sample) (float64, bool)) metric {
	return metric{name: name, help: help, kind: prometheus.GaugeValue, values: func(st *Sample, put func(float64, ...string)) {
		if v, ok := read(st); ok {
			put(v)
		}
	}}
}

// flag makes a family that is 1 or 0.
func flag(name, help string, read func(st *Sample) bool) metric {
	return gauge(name, help, func(st *Sample) (float64, bool) { return truth(read(st)), true })
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// moment is a time as Prometheus wants it: seconds since 1970.
func moment(t *time.Time) (float64, bool) {
	if t == nil || t.IsZero() {
		return 0, false
	}
	return float64(t.UnixMilli()) / 1000, true
}

func amount[N int | int64](n *N) (float64, bool) {
	if n == nil {
		return 0, false
	}
	return float64(*n), true
}

// metrics lists the families that are no histograms.
func metrics() []metric {
	return slices.Concat(stateMetrics(), nodeMetrics(), upgradeMetrics(), planMetrics(), roomMetrics())
}

func stateMetrics() []metric {
	return []metric{
		flag("up", "1: the supervisor answers.", func(*Sample) bool { return true }),
		{
			name: "build_info", help: "1, with the supervisor's version.", kind: prometheus.GaugeValue, labels: []string{"version"},
			values: func(st *Sample, put func(float64, ...string)) { put(1, st.Supervisor.Version) },
		},
		gauge("start_time_seconds", "When the supervisor started, in seconds since 1970.",
			func(st *Sample) (float64, bool) { return moment(&st.Since) }),
		{
			name: "state", help: "What the supervisor does with the node: 1 for the state that it is in, else 0.",
			kind: prometheus.GaugeValue, labels: []string{"state"},
			values: func(st *Sample, put func(float64, ...string)) {
				for _, s := range status.States() {
					put(truth(st.State == s), string(s))
				}
			},
		},
		flag("held", "1: the supervisor stopped acting and needs a person.", func(st *Sample) bool { return st.Hold != nil }),
		flag("crash_loop", "1: the node ends again and again.", func(st *Sample) bool { return st.CrashLoop }),
		flag("watch_fallback", "1: files are polled, because the kernel tells of no changes.",
			func(st *Sample) bool { return st.Polled }),
		{
			name: "progress_ratio", help: "How far a long phase is, from 0 to 1; absent where none runs.",
			kind: prometheus.GaugeValue, labels: []string{"phase"},
			values: func(st *Sample, put func(float64, ...string)) {
				if p := st.Progress; p != nil && p.Total > 0 {
					put(min(1, float64(p.Done)/float64(p.Total)), p.Phase)
				}
			},
		},
		{
			name: "notifications_total", help: "Notifications by what became of them: sent, failed, dropped.",
			kind: prometheus.CounterValue, labels: []string{"result"},
			values: func(st *Sample, put func(float64, ...string)) {
				if st.Told != nil {
					n := st.Told()
					put(float64(n.Sent), "sent")
					put(float64(n.Failed), "failed")
					put(float64(n.Dropped), "dropped")
				}
			},
		},
	}
}

func nodeMetrics() []metric {
	return []metric{
		flag("node_up", "1: the node's process lives.", func(st *Sample) bool { return st.PID != nil }),
		{
			name: "node_info", help: "1, with the version that runs, or would.", kind: prometheus.GaugeValue, labels: []string{"version"},
			values: func(st *Sample, put func(float64, ...string)) {
				if st.Version != nil {
					put(1, *st.Version)
				}
			},
		},
		gauge("node_start_time_seconds", "When the node was started, in seconds since 1970; absent while it doesn't run.",
			func(st *Sample) (float64, bool) { return moment(st.StartedAt) }),
		gauge("node_height", "The last height that was read; absent where none is known.",
			func(st *Sample) (float64, bool) { return amount(st.Height) }),
		{
			name: "node_restarts_total", help: "Restarts that followed an end of the node that nobody asked for, by how it ended.",
			kind: prometheus.CounterValue, labels: []string{"reason"},
			values: func(st *Sample, put func(float64, ...string)) {
				for _, reason := range restartReasons() {
					put(float64(st.Tally.restarts[reason]), reason)
				}
			},
		},
	}
}

func upgradeMetrics() []metric {
	return []metric{
		{
			name: "upgrade_phase", help: "The phase of the upgrade in flight: 1 for that one, else 0.",
			kind: prometheus.GaugeValue, labels: []string{"phase"},
			values: func(st *Sample, put func(float64, ...string)) {
				for _, p := range upgrade.Phases() {
					put(truth(st.InFlight != nil && st.InFlight.Phase == p), string(p))
				}
			},
		},
		{
			name: "upgrade_info", help: "1, with the upgrade in flight (result \"in-flight\"), else the last one.",
			kind: prometheus.GaugeValue, labels: []string{"name", "from", "to", "result"},
			values: func(st *Sample, put func(float64, ...string)) {
				if u := st.InFlight; u != nil {
					put(1, u.Plan.Name, u.From.Name(), u.To.Name(), "in-flight")
				} else if l := st.LastUpgrade; l != nil {
					put(1, l.Name, l.From, l.To, string(l.Result))
				}
			},
		},
		{
			name: "upgrade_failures_total", help: "Failures of upgrades by the phase that had been reached: attempts that ended, and holds.",
			kind: prometheus.CounterValue, labels: []string{"phase"},
			values: func(st *Sample, put func(float64, ...string)) {
				for _, p := range upgrade.Phases() {
					put(float64(st.Tally.failures[p]), string(p))
				}
			},
		},
	}
}

func planMetrics() []metric {
	plan := func(name, help string, read func(p *status.Plan) (float64, bool)) metric {
		return metric{
			name: name, help: help, kind: prometheus.GaugeValue, labels: []string{"plan"},
			values: func(st *Sample, put func(float64, ...string)) {
				if st.Plan == nil {
					return
				}
				if v, ok := read(st.Plan); ok {
					put(v, st.Plan.Name)
				}
			},
		}
	}
	return []metric{
		plan("plan_ready", "1: the next plan's binary was verified; 0: something is missing; absent where nothing is planned.",
			func(p *status.Plan) (float64, bool) { return truth(p.Ready), true }),
		plan("plan_height", "The height of the next plan.", func(p *status.Plan) (float64, bool) { return amount(p.Height) }),
		plan("plan_eta_timestamp_seconds", "When the next plan's height or time will have come, in seconds since 1970.",
			func(p *status.Plan) (float64, bool) { return moment(p.ETA) }),
	}
}

func roomMetrics() []metric {
	last := func(read func(l *status.LastSnapshot) (float64, bool)) func(st *Sample) (float64, bool) {
		return func(st *Sample) (float64, bool) {
			if st.Snapshots.Last == nil {
				return 0, false
			}
			return read(st.Snapshots.Last)
		}
	}
	return []metric{
		gauge("snapshots", "How many snapshots there are.", func(st *Sample) (float64, bool) { return float64(st.Snapshots.Count), true }),
		gauge("snapshot_last_success_timestamp_seconds", "When the newest snapshot was taken, in seconds since 1970.",
			last(func(l *status.LastSnapshot) (float64, bool) { return moment(&l.CreatedAt) })),
		gauge("snapshot_size_bytes", "The newest snapshot's size, what it shares with others included.",
			last(func(l *status.LastSnapshot) (float64, bool) { return float64(l.Bytes), true })),
		gauge("snapshot_duration_seconds", "How long the newest snapshot took while the node was down.",
			last(func(l *status.LastSnapshot) (float64, bool) { return float64(l.DurationMS) / 1000, true })),
		gauge("disk_free_bytes", "Free room where the next snapshot goes.", func(st *Sample) (float64, bool) { return amount(st.Disk.Free) }),
		gauge("disk_needed_bytes", "Room that the next snapshot needs.", func(st *Sample) (float64, bool) { return amount(st.Disk.Needed) }),
		gauge("disk_min_free_bytes", "Room that no snapshot may take ([snapshot] min_free).",
			func(st *Sample) (float64, bool) { return amount(st.Disk.MinFree) }),
	}
}

// durations is a family of histograms.
type durations struct {
	name, help string
	labels     []string
	values     func(t *Tally, put func(h histogram, labels ...string))
}

func durationMetrics() []durations {
	return []durations{
		{
			name: "upgrade_duration_seconds", help: "How long upgrades left the host without a node: from the old one's end to the new one's first start.",
			values: func(t *Tally, put func(histogram, ...string)) { put(t.downtime) },
		},
		{
			name: "upgrade_phase_duration_seconds", help: "How long each phase of an upgrade took, named by the phase that it led to.",
			labels: []string{"phase"},
			values: func(t *Tally, put func(histogram, ...string)) {
				for _, p := range slices.Sorted(maps.Keys(t.phases)) {
					put(t.phases[p], string(p))
				}
			},
		},
	}
}

// collector makes Prometheus' metrics of the published sample. It holds no state but the descriptions.
type collector struct {
	latest func() *Sample
	descs  map[string]*prometheus.Desc
}

func newCollector(node string, latest func() *Sample) *collector {
	c := &collector{latest: latest, descs: map[string]*prometheus.Desc{}}
	always := prometheus.Labels{"node": node}
	for _, m := range metrics() {
		c.descs[m.name] = prometheus.NewDesc(metricPrefix+m.name, m.help, m.labels, always)
	}
	for _, d := range durationMetrics() {
		c.descs[d.name] = prometheus.NewDesc(metricPrefix+d.name, d.help, d.labels, always)
	}
	return c
}

// Describe is part of prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

// Collect is part of prometheus.Collector. A scrape sees one moment: all of it is of one sample.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	st := c.latest()
	if st == nil {
		return
	}
	for _, m := range metrics() {
		m.values(st, func(v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(c.descs[m.name], m.kind, v, valid(labels)...)
		})
	}
	for _, d := range durationMetrics() {
		d.values(st.Tally, func(h histogram, labels ...string) {
			ch <- prometheus.MustNewConstHistogram(c.descs[d.name], h.count, h.sum, h.cumulated(), labels...)
		})
	}
}
