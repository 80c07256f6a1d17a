package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/atomicfile"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

// patient is a home that commands are invoked on, in this process.
type patient struct {
	t    *testing.T
	home string
	env  []string
	l    version.Layout
}

// newPatient makes a home whose node is a script, with genesis installed and no link yet.
func newPatient(t *testing.T, env ...string) *patient {
	t.Helper()
	home := filepath.Join(t.TempDir(), "home")
	p := &patient{t: t, home: home, l: version.Layout{
		Home: home, Root: filepath.Join(home, "cosmovisor"), Node: "simd", Plan: filepath.Join(home, "data", "upgrade-info.json"),
	}}
	p.env = append([]string{
		"PATH=" + os.Getenv("PATH"), "DAEMON_HOME=" + home, "DAEMON_NAME=simd", "XDG_RUNTIME_DIR=" + t.TempDir(),
		"DAEMON_GRPC_ADDRESS=127.0.0.1:1", "SUPERVISOR_SNAPSHOT_MIN_FREE=0",
	}, env...)
	p.dir(p.l.DataDir())
	p.stage(version.Genesis)
	return p
}

func (p *patient) dir(path string) {
	p.t.Helper()
	require.NoError(p.t, os.MkdirAll(path, 0o755))
	for ; strings.HasPrefix(path, p.home); path = filepath.Dir(path) {
		require.NoError(p.t, os.Chmod(path, 0o755)) // whatever the umask
	}
}

func (p *patient) write(path, text string) {
	p.t.Helper()
	p.dir(filepath.Dir(path))
	require.NoError(p.t, os.WriteFile(path, []byte(text), 0o644))
	require.NoError(p.t, os.Chmod(path, 0o644))
}

// stage installs a node that can do nothing, but can be run.
func (p *patient) stage(versions ...version.Version) {
	p.t.Helper()
	for _, v := range versions {
		p.write(p.l.Binary(v), "#!/bin/sh\nexit 0\n")
		require.NoError(p.t, os.Chmod(p.l.Binary(v), 0o755))
	}
}

func (p *patient) link(target string) {
	p.t.Helper()
	require.NoError(p.t, os.RemoveAll(p.l.Link()))
	require.NoError(p.t, os.Symlink(target, p.l.Link()))
}

// plan writes a plan as x/upgrade and Cosmovisor do.
func (p *patient) plan(path, name string, height int64) {
	p.t.Helper()
	p.write(path, fmt.Sprintf(`{"name":%q,"time":"0001-01-01T00:00:00Z","height":%d}`, name, height))
}

func (p *patient) signer(height int64) {
	p.t.Helper()
	p.write(filepath.Join(p.l.DataDir(), "priv_validator_state.json"), fmt.Sprintf(`{"height":"%d","round":0,"step":3}`, height))
}

func (p *patient) record(height int64, at time.Time) {
	p.t.Helper()
	p.write(p.l.HeightPath(), fmt.Sprintf(`{"height":%d,"at":%q}`, height, at.Format(time.RFC3339)))
}

// journal writes a journal with an upgrade from genesis to v2 at 100.
func (p *patient) journal(phase upgrade.Phase, hold *upgrade.Hold) {
	p.t.Helper()
	j := upgrade.Journal{Hold: hold}
	if phase != "" {
		j.Upgrade = &upgrade.Upgrade{
			Plan: plan.Plan{Name: "v2", Height: 100, Source: plan.FromFile}, From: version.Genesis, To: "upgrades/v2", Phase: phase,
			Begun: time.Now().UTC(),
		}
	}
	p.dir(p.l.State())
	require.NoError(p.t, j.Save(p.l.JournalPath(), atomicfile.Full))
}

func (p *patient) schedule(s plan.Schedule) {
	p.t.Helper()
	p.dir(p.l.State())
	require.NoError(p.t, s.Save(p.l.SchedulePath()))
}

// invoke runs one command line in this process, with nobody at the terminal.
func (p *patient) invoke(args ...string) (code int, stdout, stderr string) {
	p.t.Helper()
	dir := p.t.TempDir()
	open := func(name string) *os.File {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		require.NoError(p.t, err)
		p.t.Cleanup(func() { f.Close() })
		return f
	}
	in, out, errs := open(os.DevNull), open(filepath.Join(dir, "out")), open(filepath.Join(dir, "err"))
	code = execute(p.t.Context(), newApp(args, p.env, in, out, errs))
	read := func(f *os.File) string {
		data, err := os.ReadFile(f.Name())
		require.NoError(p.t, err)
		return string(data)
	}
	return code, read(out), read(errs)
}

// verdict is a line of the doctor, as `doctor --json` has it.
type verdict struct {
	Name   string  `json:"name"`
	OK     *bool   `json:"ok"`
	Detail string  `json:"detail"`
	Fix    *string `json:"fix"`
}

// diagnosis is what `doctor --json` said.
type diagnosis struct {
	t      *testing.T
	code   int
	OK     bool
	Checks []verdict
}

func (p *patient) doctor(args ...string) diagnosis {
	p.t.Helper()
	code, out, errs := p.invoke(append(args, "--json", "doctor")...)
	d := diagnosis{t: p.t, code: code}
	require.NoError(p.t, json.Unmarshal([]byte(out), &d), "stdout %q, stderr %q", out, errs)
	return d
}

// says wants a check of that name and result ("ok", "FAIL", "unknown") whose detail and fix hold these texts.
func (d diagnosis) says(name, result, detail, fix string) {
	d.t.Helper()
	var have []string
	for _, c := range d.Checks {
		if c.Name != name {
			continue
		}
		got, next := "unknown", ""
		if c.OK != nil {
			got = map[bool]string{true: "ok", false: "FAIL"}[*c.OK]
		}
		if c.Fix != nil {
			next = *c.Fix
		}
		if got == result && strings.Contains(c.Detail, detail) && strings.Contains(next, fix) && (fix == "") == (next == "") {
			return
		}
		have = append(have, fmt.Sprintf("%s: %s (fix: %s)", got, c.Detail, next))
	}
	assert.Fail(d.t, "no such check", "want %s %s: …%s… (fix: …%s…)\nhave %s", name, result, detail, fix, strings.Join(have, "\n     "))
}

// fingerprint is everything that a command could have changed below dir, but for the times of access.
func fingerprint(t *testing.T, dir string) (all []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		all = append(all, fmt.Sprintf("%s %v %d %d %d", path, info.Mode(), info.Size(), info.ModTime().UnixNano(), st.Ctim.Nano()))
		return nil
	}))
	return all
}
