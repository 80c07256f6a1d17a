package upgrade_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// borrowed is a home that goes from Cosmovisor to us, or back.
type borrowed struct {
	t   *testing.T
	l   version.Layout
	log bytes.Buffer
}

func newBorrowed(t *testing.T) *borrowed {
	t.Helper()
	dir := t.TempDir()
	h := &borrowed{t: t, l: version.Layout{
		Home: dir, Root: filepath.Join(dir, "cosmovisor"), Node: "simd", Plan: filepath.Join(dir, "data", "upgrade-info.json"),
	}}
	h.write(h.l.Binary(version.Genesis), "#!/bin/sh\n")
	require.NoError(t, os.Mkdir(h.l.DataDir(), 0o755))
	require.NoError(t, os.Symlink("genesis", h.l.Link()))
	return h
}

func (h *borrowed) write(path, text string) {
	h.t.Helper()
	require.NoError(h.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(h.t, os.WriteFile(path, []byte(text), 0o644))
}

func (h *borrowed) batch(text string) { h.write(h.l.BatchPath(), text) }

// engine is what a new process has.
func (h *borrowed) engine() *upgrade.Engine {
	h.t.Helper()
	e := upgrade.NewEngine(upgrade.Options{Layout: h.l, Config: upgrade.DefaultConfig(), Log: slog.New(slog.NewTextHandler(&h.log, nil))})
	require.NoError(h.t, e.Load())
	return e
}

// schedule is what a new process finds: "v2@100 v3@200".
func (h *borrowed) schedule() string {
	h.t.Helper()
	s, err := plan.LoadSchedule(h.l.SchedulePath())
	require.NoError(h.t, err)
	return keys(s.Plans)
}

func keys(plans []plan.Plan) string {
	var all []string
	for _, p := range plans {
		all = append(all, fmt.Sprintf("%s@%d", p.Name, p.Height))
	}
	return strings.Join(all, " ")
}

// add schedules a plan as an operator does.
func (h *borrowed) add(plans ...plan.Plan) {
	h.t.Helper()
	e := h.engine()
	for _, p := range plans {
		p.Source = plan.FromOperator
		require.NoError(h.t, e.AddPlan(h.t.Context(), p, plan.UnknownHeight, false))
	}
}

// entryOf is a plan as Cosmovisor 1.7 writes it.
func entryOf(name string, height int64) string {
	return fmt.Sprintf(`{"name":%q,"time":"0001-01-01T00:00:00Z","height":%d}`, name, height)
}

func arrayOf(entries ...string) string { return "[" + strings.Join(entries, ",") + "]" }

func TestABatchIsImportedOnce(t *testing.T) {
	h := newBorrowed(t)
	text := arrayOf(entryOf("v3", 200), `{"name":"V2","time":"0001-01-01T00:00:00Z","height":100,"info":"hello"}`)
	h.batch(text)

	plans, err := h.engine().ImportBatch()
	require.NoError(t, err)
	assert.Equal(t, "v2@100 v3@200", keys(plans), "lowest height first, names normalised")
	assert.Equal(t, "hello", plans[0].Info)
	assert.Equal(t, plan.FromOperator, plans[0].Source)
	assert.Equal(t, "v2@100 v3@200", h.schedule())
	assert.Contains(t, h.log.String(), "scheduled")
	left, err := os.ReadFile(h.l.BatchPath())
	require.NoError(t, err)
	assert.Equal(t, text, string(left), "it stays as it was")

	e := h.engine()
	require.NoError(t, e.CancelPlan("v2"))
	plans, err = h.engine().ImportBatch()
	require.NoError(t, err)
	assert.Empty(t, plans, "a plan that was cancelled doesn't come back")
	assert.Equal(t, "v3@200", h.schedule())

	h.batch(arrayOf(entryOf("v3", 200), entryOf("v4", 300)))
	plans, err = h.engine().ImportBatch()
	require.NoError(t, err)
	assert.Equal(t, "v4@300", keys(plans), "new content is looked at anew")
	assert.Equal(t, "v3@200 v4@300", h.schedule())
}

func TestNoBatchIsNothing(t *testing.T) {
	h := newBorrowed(t)
	for _, prepare := range []func(){
		func() {},
		func() { h.l.Plan = "" },
	} {
		prepare()
		plans, err := h.engine().ImportBatch()
		require.NoError(t, err)
		assert.Empty(t, plans)
		assert.NoFileExists(t, h.l.SchedulePath(), "nothing is written for nothing")
	}
	assert.Empty(t, h.l.BatchPath())
}

func TestAnEmptyBatchIsNoMistake(t *testing.T) {
	for _, text := range []string{"", " \n", "[]", "null"} {
		h := newBorrowed(t)
		h.batch(text)
		plans, err := h.engine().ImportBatch()
		require.NoError(t, err, "%q", text)
		assert.Empty(t, plans)
	}
}

func TestABatchThatCantBeReadIsReportedAndTriedAgain(t *testing.T) {
	for name, text := range map[string]string{
		"torn": `[{"name":"v2","hei`, "an object": entryOf("v2", 100), "something behind": arrayOf(entryOf("v2", 100)) + "x",
		"too large": "[" + strings.Repeat(" ", 20<<20) + "]",
	} {
		h := newBorrowed(t)
		h.batch(text)
		plans, err := h.engine().ImportBatch()
		require.Error(t, err, name)
		assert.Empty(t, plans)
		assert.Contains(t, err.Error(), h.l.BatchPath(), name)
		assert.Contains(t, hint.Of(err), "mend", name)
		h.batch(arrayOf(entryOf("v2", 100)))
		plans, err = h.engine().ImportBatch()
		require.NoError(t, err, name)
		assert.Equal(t, "v2@100", keys(plans), name)
	}
}

// What isn't imported, why, and that the rest is.
func TestEntriesThatArePassedOver(t *testing.T) {
	good := entryOf("v9", 900)
	for _, c := range []struct {
		name    string
		entries []string
		prepare func(h *borrowed)
		want    string
		why     string
	}{
		{"no height", []string{`{"name":"v2"}`}, nil, "v9@900", "missing"},
		{"no plan at all", []string{`7`, `null`}, nil, "v9@900", "not a JSON object"},
		{"a name that leaves the tree", []string{entryOf("../evil", 100)}, nil, "v9@900", "entry 1 of Cosmovisor's batch: invalid plan"},
		{"a timed plan", []string{`{"name":"v2","time":"2026-01-01T00:00:00Z","height":5}`}, nil, "v9@900", "by time"},
		{"past by the record", []string{entryOf("v2", 100), entryOf("v3", 101)}, func(h *borrowed) {
			h.write(h.l.HeightPath(), `{"height":100,"at":"2026-01-01T00:00:00Z"}`)
		}, "v3@101 v9@900", "the data is known to be at 100"},
		{"past by the signer", []string{entryOf("v2", 100)}, func(h *borrowed) {
			h.write(filepath.Join(h.l.DataDir(), "priv_validator_state.json"), `{"height":"100","round":0,"step":3}`)
		}, "v9@900", "the data is known to be at 100"},
		{"a signer that has signed nothing", []string{entryOf("v2", 100)}, func(h *borrowed) {
			h.write(filepath.Join(h.l.DataDir(), "priv_validator_state.json"), `{"height":"0","round":0,"step":0}`)
		}, "v2@100 v9@900", ""},
		{"past by what current was switched to for", []string{entryOf("v2", 100), entryOf("v5", 500), entryOf("v6", 600)}, func(h *borrowed) {
			h.write(h.l.Binary("upgrades/v5"), "#!/bin/sh\n")
			h.write(h.l.InfoPath("upgrades/v5"), entryOf("v5", 500))
			require.NoError(h.t, os.Remove(h.l.Link()))
			require.NoError(h.t, os.Symlink("upgrades/v5", h.l.Link()))
		}, "v6@600 v9@900", "the data is known to be at 500"},
		{"current already", []string{entryOf("v5", 500)}, func(h *borrowed) {
			h.write(h.l.Binary("upgrades/v5"), "#!/bin/sh\n")
			require.NoError(h.t, os.Remove(h.l.Link()))
			require.NoError(h.t, os.Symlink("upgrades/v5", h.l.Link()))
		}, "v9@900", "current is this version"},
		{"on the skip list", []string{entryOf("v2", 100)}, func(h *borrowed) {
			require.NoError(h.t, h.engine().SkipPlan(h.t.Context(), "v2", 0, plan.UnknownHeight))
		}, "v9@900", "skip list"},
		{"scheduled otherwise by an operator", []string{entryOf("v2", 100)}, func(h *borrowed) {
			h.add(plan.Plan{Name: "v2", Height: 150})
		}, "v2@150 v9@900", "scheduled at 150"},
		{"scheduled the same", []string{entryOf("v2", 100)}, func(h *borrowed) {
			h.add(plan.Plan{Name: "v2", Height: 100})
		}, "v2@100 v9@900", ""},
		{"twice with one name", []string{entryOf("v2", 300), entryOf("v2", 100)}, nil, "v2@100 v9@900", "scheduled at 100"},
		{"twice the same", []string{entryOf("v2", 100), entryOf("V2", 100)}, nil, "v2@100 v9@900", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newBorrowed(t)
			if c.prepare != nil {
				c.prepare(h)
			}
			h.batch(arrayOf(append(c.entries, good)...))
			before, err := h.engine().BatchImport()
			require.NoError(t, err)

			plans, err := h.engine().ImportBatch()
			require.NoError(t, err)
			assert.Equal(t, keys(before.Plans), keys(plans), "what was foretold")
			assert.Equal(t, c.want, h.schedule())
			if c.why == "" {
				assert.Empty(t, before.Rejected)
				assert.NotContains(t, h.log.String(), "passed over")
				return
			}
			require.NotEmpty(t, before.Rejected)
			assert.Contains(t, before.Rejected[0].Error(), c.why)
			assert.Contains(t, hint.Of(before.Rejected[0]), "supervisor upgrade add")
			assert.Contains(t, h.log.String(), "passed over")
		})
	}
}

func TestForetellingAnImportChangesNothing(t *testing.T) {
	h := newBorrowed(t)
	h.batch(arrayOf(entryOf("v2", 100)))
	e := h.engine()
	in, err := e.BatchImport()
	require.NoError(t, err)
	assert.Equal(t, "v2@100", keys(in.Plans))
	assert.Empty(t, e.Schedule().Plans)
	assert.NoDirExists(t, h.l.State())
}

func TestAnImportThatCantBeRecordedIsNone(t *testing.T) {
	h := newBorrowed(t)
	h.batch(arrayOf(entryOf("v2", 100)))
	e := h.engine()
	require.NoError(t, os.MkdirAll(h.l.SchedulePath(), 0o755)) // a directory in its place: root couldn't be refused by a mode
	_, err := e.ImportBatch()
	require.ErrorIs(t, err, atomicfile.ErrNotRegular)
	assert.NotEmpty(t, hint.Of(err))
	assert.Empty(t, e.Schedule().Plans, "neither in memory")
}

func FuzzImportBatch(f *testing.F) {
	f.Add(arrayOf(entryOf("v2", 100), entryOf("v3", 200)))
	f.Add(`[{"name":"v2","height":"100"},7,null,[],{}]`)
	f.Add(`[[[`)
	f.Fuzz(func(t *testing.T, text string) {
		h := newBorrowed(t)
		h.batch(text)
		plans, err := h.engine().ImportBatch()
		if err != nil {
			assert.Empty(t, plans)
			assert.False(t, errors.Is(err, state.ErrUntrusted))
			return
		}
		for _, p := range plans {
			_, err := version.NormaliseName(p.Name, true)
			require.NoError(t, err)
			require.Positive(t, p.Height)
		}
		again, err := h.engine().ImportBatch()
		require.NoError(t, err)
		require.Empty(t, again)
	})
}
