package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/cli"
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

func TestDoctorOfANewHome(t *testing.T) {
	p := newPatient(t)
	before := fingerprint(t, p.home)
	d := p.doctor()
	assert.Equal(t, cli.ExitOK, d.code)
	assert.True(t, d.OK)
	d.says("configuration", "ok", "environment and defaults", "")
	d.says("permissions", "ok", "only the node's user and root", "")
	d.says("supervisor", "ok", "none is running", "")
	d.says("lock", "ok", "free", "")
	d.says("foreign node", "ok", "none", "")
	d.says("journal", "ok", "no upgrade is in flight", "")
	d.says("current", "ok", "the first start links genesis", "")
	d.says("binary", "ok", "genesis runs here", "")
	d.says("height", "unknown", "not known", "start the node")
	d.says("plan file", "ok", "there is none", "")
	d.says("plan", "ok", "none is pending", "")
	d.says("chain plan", "unknown", "127.0.0.1:1", "gRPC")
	d.says("signer", "ok", "no signer's state", "")
	d.says("snapshots", "ok", "nothing to take yet", "")
	d.says("downloader", "ok", "downloads are off", "")
	d.says("staging", "ok", "no upgrades/ yet", "")
	d.says("unit", "unknown", "no unit was named", "--unit")
	d.says("next start", "ok", "links genesis and starts it", "")
	assert.Equal(t, before, fingerprint(t, p.home), "it changes nothing")
}

func TestDoctorPrintsOneLineACheck(t *testing.T) {
	p := newPatient(t)
	p.write(p.l.JournalPath(), "torn")
	code, out, errs := p.invoke("doctor")
	assert.Equal(t, cli.ExitHeld, code)
	assert.Empty(t, errs)
	assert.Contains(t, out, "ok      configuration  no file; environment and defaults\n")
	assert.Contains(t, out, "unknown unit           no unit was named")
	assert.Regexp(t, `(?m)^FAIL    journal        cannot read the journal .*\n {23}fix: supervisor doctor, then set the version by hand`, out)
}

func TestDoctorListsEveryMistakeOfTheConfiguration(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	file := filepath.Join(p.l.State(), "supervisor.toml")
	p.write(file, "[node]\nrestrat = \"never\"\n[upgrade]\non_failure = \"panic\"\npoll = \"0s\"\n")
	d := p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	assert.False(t, d.OK)
	d.says("configuration", "FAIL", file+":2:1", "correct "+file+":2:1")
	d.says("configuration", "FAIL", "on_failure", "correct "+file+":4:1")
	d.says("configuration", "FAIL", "poll", "correct ")
	d.says("current", "ok", "names genesis", "") // what needs no configuration is looked at all the same
	d.says("lock", "ok", "free", "")
	d.says("next start", "FAIL", "refuses: the configuration has 3 mistakes", "correct")
}

func TestDoctorNeedsToKnowWhoIsMeant(t *testing.T) {
	p := newPatient(t)
	p.env = []string{"PATH=" + os.Getenv("PATH"), "DAEMON_HOME=" + p.home}
	d := p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("configuration", "FAIL", "DAEMON_NAME is not set", "DAEMON_NAME=")
	d.says("next start", "unknown", "it isn't known", "")

	p = newPatient(t)
	require.NoError(t, os.RemoveAll(p.l.Root))
	d = p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("configuration", "FAIL", "cannot stat home dir", "supervisor init BINARY")
}

func TestDoctorFindsWhatOthersMayChange(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	bin := filepath.Dir(p.l.Binary(version.Genesis))
	require.NoError(t, os.Chmod(bin, 0o777))
	d := p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("permissions", "FAIL", bin+": it is writable by everyone (mode 0777)", "chmod o-w "+bin)
	d.says("next start", "FAIL", "refuses: others could change", "chmod o-w")

	p.write(filepath.Join(p.l.State(), "supervisor.toml"), "[security]\nallow_writable = [\"cosmovisor/genesis/bin\"]\n")
	d = p.doctor()
	assert.Equal(t, cli.ExitOK, d.code)
	d.says("permissions", "ok", "only the node's user", "")

	bin = p.l.Binary(version.Genesis)
	require.NoError(t, os.Chmod(bin, 0o777))
	d = p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("permissions", "FAIL", bin+": it is writable by everyone (mode 0777)", "chmod o-w "+bin)
	d.says("next start", "FAIL", "refuses: others could change", "chmod o-w")
}

func TestDoctorOfAnotherUsersHome(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be somebody else's doctor")
	}
	p := newPatient(t)
	p.link("genesis")
	marker := filepath.Join(t.TempDir(), "ran")
	p.write(p.l.Binary(version.Genesis), "#!/bin/sh\ntouch "+marker+"\n")
	require.NoError(t, os.Chmod(p.l.Binary(version.Genesis), 0o755))
	require.NoError(t, filepath.WalkDir(p.home, func(path string, _ fs.DirEntry, _ error) error { return os.Lchown(path, 4711, 4711) }))
	d := p.doctor()
	d.says("user", "ok", "root, for user 4711", "")
	d.says("binary", "ok", "not tried as root", "")
	assert.NoFileExists(t, marker, "who may write to the tree would be root")
}

// The link, in every state that it was found in.
func TestDoctorOfTheLink(t *testing.T) {
	for _, c := range []struct {
		name                string
		prepare             func(p *patient)
		result, detail, fix string
		next, nextDetail    string
	}{
		{"relative", func(p *patient) { p.link("upgrades/v2") }, "ok", "names v2", "", "ok", "starts v2"},
		{"absolute", func(p *patient) { p.link(p.l.Dir("upgrades/v2")) }, "ok", "by an absolute link", "", "ok", "starts v2"},
		{"dangling", func(p *patient) { p.link("upgrades/v9") }, "FAIL", "dangling", "doctor --fix-link", "FAIL", "holds: current names no version: upgrades/v9 is dangling"},
		{"outside", func(p *patient) { p.link("/etc") }, "FAIL", "outside", "doctor --fix-link", "FAIL", "holds"},
		{"a directory", func(p *patient) { p.dir(p.l.Link()) }, "FAIL", "is no link", "mv ", "FAIL", "holds"},
		{"a file", func(p *patient) { p.write(p.l.Link(), "") }, "FAIL", "is no link", "mv ", "FAIL", "holds"},
		{"missing after an upgrade", func(p *patient) { p.plan(p.l.InfoPath("upgrades/v2"), "v2", 100) }, "FAIL", "current is missing", "doctor --fix-link", "FAIL", "holds: current is missing"},
		{"missing with a plan", func(p *patient) { p.plan(p.l.Plan, "v2", 100) }, "FAIL", "current is missing", "doctor --fix-link", "FAIL", "holds"},
		{"missing without a binary", func(p *patient) { require.NoError(p.t, os.Remove(p.l.Binary(version.Genesis))) }, "FAIL", "no binary", "supervisor init BINARY", "FAIL", "there is no binary to run"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPatient(t)
			p.stage("upgrades/v2")
			c.prepare(p)
			before := fingerprint(t, p.home)
			d := p.doctor()
			d.says("current", c.result, c.detail, c.fix)
			fix := ""
			if c.next == "FAIL" {
				fix = "supervisor"
			}
			d.says("next start", c.next, c.nextDetail, fix)
			assert.Equal(t, before, fingerprint(t, p.home))
		})
	}
}

func TestDoctorOfTheBinary(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	binary := p.l.Binary(version.Genesis)
	require.NoError(t, os.Chmod(binary, 0o644))
	d := p.doctor()
	d.says("binary", "unknown", "its mode is 0644", "chmod a+x "+binary)
	info, err := os.Stat(binary)
	require.NoError(t, err)
	assert.EqualValues(t, 0o644, info.Mode().Perm(), "a start would make it executable, a doctor doesn't")

	p.write(binary, "neither ELF nor script")
	require.NoError(t, os.Chmod(binary, 0o755))
	p.doctor().says("binary", "FAIL", "neither an ELF executable nor a script", "supervisor upgrade add genesis BINARY --force")
	p.write(binary, "#!/no/such/interpreter\n")
	require.NoError(t, os.Chmod(binary, 0o755))
	p.doctor().says("binary", "FAIL", "/no/such/interpreter", "supervisor upgrade add")
	require.NoError(t, os.Remove(binary))
	d = p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("binary", "FAIL", "no binary "+binary, "supervisor upgrade add genesis BINARY")
}

// Each phase says how the next start goes on, and a link that doesn't fit is found.
func TestDoctorOfAnUpgradeInFlight(t *testing.T) {
	says := map[upgrade.Phase]string{
		upgrade.Planned: "verifies the binary of v2", upgrade.OnProbation: "starts v2 on probation, 3 attempts left",
		upgrade.Committed: "starts v2", upgrade.RollingBack: "goes on with the rollback of v2 to genesis",
		upgrade.RolledBack: "goes on with the rollback of v2 to genesis",
	}
	for _, phase := range upgrade.Phases() {
		t.Run(string(phase), func(t *testing.T) {
			p := newPatient(t)
			p.stage("upgrades/v2")
			right, wrong := "genesis", "upgrades/v2"
			if phase.OnNew() {
				right, wrong = wrong, right
			}
			p.link(right)
			p.journal(phase, nil)
			want := says[phase]
			if want == "" {
				want = "goes on with the upgrade v2 at the phase " + string(phase)
			}
			d := p.doctor()
			assert.Equal(t, cli.ExitOK, d.code)
			d.says("journal", "ok", "the upgrade v2 is in flight, at "+string(phase), "")
			d.says("next start", "ok", want, "")

			if slices.Contains([]upgrade.Phase{upgrade.Snapshotted, upgrade.RollingBack, upgrade.RolledBack}, phase) {
				return // the link may be on either side there
			}
			p.link(wrong)
			d = p.doctor()
			assert.Equal(t, cli.ExitHeld, d.code)
			d.says("journal", "FAIL", "but current names", "supervisor")
			d.says("next start", "FAIL", "holds: ", "supervisor")
		})
	}
}

func TestDoctorOfAHold(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	p.journal("", &upgrade.Hold{Reason: "halted at 100", Hint: "supervisor resume", Since: time.Now()})
	d := p.doctor()
	assert.Equal(t, cli.ExitHeld, d.code)
	assert.False(t, d.OK)
	d.says("hold", "FAIL", "halted at 100", "supervisor resume")
	d.says("next start", "FAIL", "holds: halted at 100", "supervisor resume")
}

func TestDoctorOfAScheduleThatCantBeRead(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	p.write(p.l.SchedulePath(), `{"schema":99}`)
	d := p.doctor()
	assert.Equal(t, cli.ExitHeld, d.code)
	d.says("journal", "FAIL", "its schema is 99", "schedule again")
}
