package upgrade

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"nodevisor/internal/atomicfile"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

// actEnv names what a re-executed test process is to do instead of the tests; homeEnv on which home.
const (
	actEnv  = "UPGRADE_TEST_ACT"
	homeEnv = "UPGRADE_TEST_HOME"
)

// All file work of a re-executed process happens on its first thread, so that strace, which counts system calls per
// thread, counts all of them.
func init() {
	if os.Getenv(actEnv) != "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if act := os.Getenv(actEnv); act != "" {
		if err := acts[act](os.Getenv(homeEnv)); err != nil {
			fmt.Fprintln(os.Stderr, act+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// staged is the version that the tests upgrade to.
const staged = version.Version("upgrades/v2")

// home is a node's home with a tree of versions, and the engine that works on it.
type home struct {
	t     testing.TB
	l     version.Layout
	cfg   Config
	snaps *fakeSnaps
	probe []string
}

// newHome makes a home whose node is called simd, with the version genesis and the link to it.
func newHome(t testing.TB) *home {
	t.Helper()
	return newHomeIn(t, t.TempDir())
}

func newHomeIn(t testing.TB, dir string) *home {
	t.Helper()
	h := homeIn(dir)
	h.t = t
	for _, dir := range []string{h.l.DataDir(), h.snaps.dir, h.l.State()} {
		require.NoError(t, os.MkdirAll(dir, 0o755))
	}
	h.write(h.app(), "v1")
	h.stage(version.Genesis, "exit 0")
	require.NoError(t, os.Symlink("genesis", h.l.Link()))
	return h
}

// homeIn is the home that was made there before.
func homeIn(dir string) *home {
	h := &home{l: layoutOf(dir), cfg: DefaultConfig()}
	h.snaps = &fakeSnaps{data: h.app(), dir: filepath.Join(dir, "snaps")}
	return h
}

func layoutOf(dir string) version.Layout {
	return version.Layout{Home: dir, Root: filepath.Join(dir, "cosmovisor"), Node: "simd", Plan: filepath.Join(dir, "data", "upgrade-info.json")}
}

// app is the node's database: one file that says which version its content is for.
func (h *home) app() string { return filepath.Join(h.l.DataDir(), "app") }

func (h *home) write(path, text string) {
	h.t.Helper()
	require.NoError(h.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(h.t, os.WriteFile(path, []byte(text), 0o644))
}

func (h *home) read(path string) string {
	h.t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(h.t, err)
	return string(data)
}

func (h *home) link(path, target string) {
	h.t.Helper()
	require.NoError(h.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(h.t, os.Symlink(target, path))
}

// lines counts the lines of a file; a missing one has none.
func lines(path string) int {
	data, _ := os.ReadFile(path) //nolint:errcheck // said above
	return strings.Count(string(data), "\n")
}

// stage puts a shell script in the place of the version's binary. It is made aside and renamed, as a binary that is
// written in place could be busy in another test's fork.
func (h *home) stage(v version.Version, body string) {
	h.t.Helper()
	script(h.t, h.l.Binary(v), body)
}

func script(t testing.TB, path, body string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path+".new", []byte("#!/bin/sh\n"+body+"\n"), 0o755))
	require.NoError(t, os.Rename(path+".new", path))
}

// announce writes the node's plan file, as x/upgrade does.
func (h *home) announce(name string, height int64) {
	h.t.Helper()
	h.write(h.l.Plan, fmt.Sprintf(`{"name":%q,"time":"0001-01-01T00:00:00Z","height":%d,"info":"{}"}`, name, height))
}

// engine makes an engine as a new process would, and loads it.
func (h *home) engine() *Engine {
	h.t.Helper()
	e := h.unloaded()
	require.NoError(h.t, e.Load())
	return e
}

func (h *home) unloaded() *Engine {
	o := Options{
		Layout: h.l, Config: h.cfg, Log: slog.New(slog.DiscardHandler),
		Checker: version.NewChecker(h.l, h.probe, os.Environ(), func(string) error { return nil }, slog.New(slog.DiscardHandler)),
		Env: func(v version.Version) []string {
			return append(os.Environ(), "HOME_DIR="+h.l.Home, "VERSION="+v.Name())
		},
	}
	if h.snaps != nil {
		o.Snapshots, o.Templates = h.snaps, fakeTemplates{h.snaps}
		o.NewSnapshot = func(label string, height int64) string { return fmt.Sprintf("%s-%d", label, height) }
	}
	return NewEngine(o)
}

// begin announces v2 at 100 in the node's file and begins its upgrade.
func (h *home) begin(e *Engine) {
	h.t.Helper()
	h.announce("V2", 100)
	h.beginFile(e)
}

func (h *home) beginFile(e *Engine) {
	h.t.Helper()
	p, _, err := plan.ReadFile(h.l.Plan, true)
	require.NoError(h.t, err)
	ready := e.Checker.Check(h.t.Context(), version.Of(p.Name))
	require.Empty(h.t, ready.Problems)
	require.NoError(h.t, e.Begin(p, plan.ByFile, ready, 99))
}

// toProbation carries v2 out until it would be started.
func (h *home) toProbation(e *Engine) {
	h.t.Helper()
	h.begin(e)
	require.NoError(h.t, e.Carry(h.t.Context()))
	require.NoError(h.t, e.Attempt())
}

// current reads the link.
func (h *home) current() version.Version {
	h.t.Helper()
	v, err := h.l.Current()
	require.NoError(h.t, err)
	return v
}

// onDisk reads the journal that a new process would find.
func (h *home) onDisk() Journal {
	h.t.Helper()
	j, err := LoadJournal(h.l.JournalPath())
	require.NoError(h.t, err)
	return j
}

func (h *home) history() []Finished {
	h.t.Helper()
	all, err := LoadHistory(h.l.HistoryDir())
	require.NoError(h.t, err)
	return all
}

// v2 is a version whose pre-upgrade migrates the data, and says so in a file.
const v2 = `case "$1" in
pre-upgrade) printf v2 > "$HOME_DIR/data/app"; echo "$SUPERVISOR_ATTEMPT" >> "$HOME_DIR/migrations";;
esac`

// fakeSnaps keeps one file in place of snapshots of a data directory. It records its calls and can be told to fail.
type fakeSnaps struct {
	data, dir string
	calls     []string
	fail      error

	exports      []string
	failTemplate error
}

func (s *fakeSnaps) path(id string) string { return filepath.Join(s.dir, id) }

func (s *fakeSnaps) Create(_ context.Context, id, label string, height int64, ready func() error) error {
	s.calls = append(s.calls, fmt.Sprintf("create %s %s %d", id, label, height))
	if err := errors.Join(s.fail, ready()); err != nil {
		return err
	}
	if _, err := os.Stat(s.path(id)); err == nil {
		return nil
	}
	return copyFile(s.data, s.path(id))
}

func (s *fakeSnaps) Restore(_ context.Context, id, _ string) error {
	s.calls = append(s.calls, "restore "+id)
	if s.fail != nil {
		return s.fail
	}
	return copyFile(s.path(id), s.data)
}

func (s *fakeSnaps) Complete(context.Context, string) error { return nil }
func (s *fakeSnaps) Room(context.Context) error             { return nil }

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(to, data, 0o644)
}

// template is where fakeTemplates puts the template of a snapshot.
func (s *fakeSnaps) template(id string) string { return filepath.Join(s.dir+".templates", id) }

// fakeTemplates makes a template out of the data at rest. It records its calls.
type fakeTemplates struct{ *fakeSnaps }

func (s fakeTemplates) Export(_ context.Context, id string, height int64) error {
	s.exports = append(s.exports, fmt.Sprintf("%s %d", id, height))
	if _, err := os.Stat(s.path(id)); err != nil {
		return fmt.Errorf("the snapshot is not sealed: %w", err)
	}
	if s.failTemplate != nil {
		return s.failTemplate
	}
	if err := os.MkdirAll(filepath.Dir(s.template(id)), 0o755); err != nil {
		return err
	}
	data, err := os.ReadFile(s.data)
	if err != nil {
		return err
	}
	return os.WriteFile(s.template(id), data, 0o600)
}

var errDisk = errors.New("the disk is gone")

// phaseNames lists what a finished upgrade went through, in order.
func phaseNames(u Upgrade) []Phase {
	var all []Phase
	for _, t := range u.Phases {
		all = append(all, t.Phase)
	}
	return all
}
