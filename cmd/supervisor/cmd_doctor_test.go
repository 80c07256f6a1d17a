package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/upgrade"
	"nodevisor/upgrade/version"
)

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
