package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/supervisor/home"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

// switched leaves what a switch to a version leaves: the binary, and the plan beside it.
func (p *patient) switched(name string, height int64) {
	p.t.Helper()
	v := version.Of(name)
	p.stage(v)
	p.plan(p.l.InfoPath(v), name, height)
}

// history records an upgrade from genesis to a version, and how it ended.
func (p *patient) history(to version.Version, result upgrade.Result) {
	p.t.Helper()
	data, err := json.Marshal(upgrade.Finished{Schema: 1, Result: result, At: time.Now(), Upgrade: upgrade.Upgrade{
		Plan: plan.Plan{Name: to.Name(), Height: 200}, From: version.Genesis, To: to,
	}})
	require.NoError(p.t, err)
	p.write(filepath.Join(p.l.HistoryDir(), "000001-"+to.Name()+".json"), string(data))
}

// What `current` should name, by what is found in the home; "" = nothing tells it, and a person is asked.
func TestWhichVersionCurrentShouldName(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(p *patient)
		want    version.Version
		why     string // in the reason, or in the refusal
	}{
		{"a home that never saw an upgrade", func(*patient) {}, version.Genesis, "never saw an upgrade"},
		{"and a staged version", func(p *patient) { p.stage("upgrades/v2") }, version.Genesis, "never saw an upgrade"},
		{"a plan, and no trace of a switch", func(p *patient) { p.plan(p.l.Plan, "v2", 100) }, "", "no version has a trace"},
		{"no genesis", func(p *patient) { require.NoError(p.t, os.Remove(p.l.Binary(version.Genesis))) }, "", "no binary"},
		{"the highest trace, by the signer", func(p *patient) { p.switched("v2", 100); p.switched("v3", 200); p.signer(200) }, "upgrades/v3", "for the height 200, and the data has reached 200"},
		{"the highest trace, by the record", func(p *patient) { p.switched("v10", 100); p.switched("v9", 200); p.record(250, time.Now()) }, "upgrades/v9", "reached 250"},
		{"the higher of record and signer", func(p *patient) { p.switched("v2", 100); p.record(90, time.Now()); p.signer(101) }, "upgrades/v2", "reached 101"},
		{"and a version that is only staged", func(p *patient) { p.switched("v2", 100); p.stage("upgrades/v3"); p.signer(150) }, "upgrades/v2", ""},
		{"and a plan that is still to come", func(p *patient) {
			p.switched("v2", 100)
			p.stage("upgrades/v3")
			p.plan(p.l.Plan, "v3", 200)
			p.signer(200)
		}, "upgrades/v2", ""},
		// Each of these could put an old version on data that a newer one has migrated.
		{"a trace above the known height", func(p *patient) { p.switched("v2", 100); p.switched("v3", 200); p.signer(150) }, "", "only known to have reached 150"},
		{"no known height", func(p *patient) { p.switched("v2", 100) }, "", "isn't known whether"},
		{"a signer that has signed nothing", func(p *patient) { p.switched("v2", 100); p.signer(0) }, "", "isn't known whether"},
		{"two at one height", func(p *patient) { p.switched("v2", 100); p.switched("v2a", 100); p.signer(150) }, "", "two versions"},
		{"a copied trace", func(p *patient) {
			p.switched("v2", 100)
			p.stage("upgrades/v3")
			p.plan(p.l.InfoPath("upgrades/v3"), "v2", 100)
			p.signer(150)
		}, "", "is of another version, v2"},
		{"a torn trace", func(p *patient) {
			p.switched("v2", 100)
			p.stage("upgrades/v3")
			p.write(p.l.InfoPath("upgrades/v3"), "")
			p.signer(150)
		}, "", "can't be read"},
		{"a link to a version that was lost", func(p *patient) { p.switched("v2", 100); p.signer(150); p.link("upgrades/v3") }, "", "the link leads to upgrades/v3"},
		{"such a link, and no trace at all", func(p *patient) { p.link("upgrades/v3") }, "", "it leads to upgrades/v3, which is missing"},
		{"a link from another place", func(p *patient) { p.switched("v2", 100); p.signer(150); p.link("/old/home/cosmovisor/upgrades/v2") }, "upgrades/v2", ""},
		{"a plan that the data has passed", func(p *patient) { p.switched("v2", 100); p.plan(p.l.Plan, "v3", 120); p.signer(150) }, "", "the data has passed it"},
		{"a lost binary", func(p *patient) {
			p.switched("v2", 100)
			p.switched("v3", 200)
			p.signer(300)
			require.NoError(p.t, os.RemoveAll(filepath.Dir(p.l.Binary("upgrades/v3"))))
		}, "", "its binary is missing"},
		{"rolled back since", func(p *patient) {
			p.switched("v2", 100)
			p.signer(100)
			p.history("upgrades/v2", upgrade.ResultRolledBack)
		}, "", "rolled-back) left genesis"},
		{"patched since", func(p *patient) {
			p.switched("v2", 100)
			p.stage("upgrades/v2.1")
			p.signer(300)
			p.history("upgrades/v2.1", upgrade.ResultCommitted)
		}, "", "left v2.1"},
		{"with a history that agrees", func(p *patient) {
			p.switched("v2", 100)
			p.signer(300)
			p.history("upgrades/v2", upgrade.ResultCommitted)
		}, "upgrades/v2", ""},
		{"a directory in its place", func(p *patient) { p.dir(p.l.Link()) }, "", "is no link"},
		{"a torn journal", func(p *patient) { p.write(p.l.JournalPath(), "{") }, "", "can't be trusted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPatient(t)
			c.prepare(p)
			before := fingerprint(t, p.home)
			code, out, errs := p.invoke("doctor", "--fix-link")
			assert.Empty(t, out)
			assert.Contains(t, errs, c.why)
			if c.want == "" {
				refused := cli.ExitFailed
				if c.name == "a torn journal" {
					refused = cli.ExitHeld
				}
				assert.Equal(t, refused, code)
				assert.Contains(t, errs, "Hint: ")
				assert.Equal(t, before, fingerprint(t, p.home), "never a guess")
				return
			}
			require.Equal(t, cli.ExitOK, code, errs)
			v, err := p.l.Current()
			require.NoError(t, err)
			assert.Equal(t, c.want, v)
			target, err := os.Readlink(p.l.Link())
			require.NoError(t, err)
			assert.Equal(t, string(c.want), target, "relative")

			code, _, errs = p.invoke("doctor", "--fix-link")
			assert.Equal(t, cli.ExitOK, code)
			assert.Contains(t, errs, "nothing is to be mended")
		})
	}
}

// With an upgrade in flight its phase alone decides, wherever the link is.
func TestTheJournalSaysWhatCurrentShouldName(t *testing.T) {
	for _, phase := range upgrade.Phases() {
		for _, broken := range []string{"missing", "the other one", "dangling"} {
			t.Run(string(phase)+", "+broken, func(t *testing.T) {
				p := newPatient(t)
				p.switched("v2", 100)
				p.journal(phase, nil)
				want, other := version.Genesis, "upgrades/v2"
				if phase.OnNew() {
					want, other = "upgrades/v2", "genesis"
				}
				switch broken {
				case "the other one":
					p.link(other)
				case "dangling":
					p.link("upgrades/v9")
				}
				code, _, errs := p.invoke("doctor", "--fix-link", "--yes")
				require.Equal(t, cli.ExitOK, code, errs)
				v, err := p.l.Current()
				require.NoError(t, err)
				switch phase {
				case upgrade.Snapshotted, upgrade.RollingBack, upgrade.RolledBack:
					if broken == "the other one" { // it fits either way there: nothing was to be mended
						return
					}
				}
				assert.Equal(t, want, v)
				assert.Equal(t, cli.ExitOK, p.doctor().code)
			})
		}
	}
}

func TestFixLinkLeavesTheHoldThatItMended(t *testing.T) {
	p := newPatient(t)
	p.switched("v2", 100)
	p.signer(150)
	p.journal("", &upgrade.Hold{Reason: "cannot tell which version is to run " + p.l.Link() + ": current is missing", Since: time.Now()})
	code, _, errs := p.invoke("doctor", "--fix-link")
	require.Equal(t, cli.ExitOK, code, errs)
	j, err := upgrade.LoadJournal(p.l.JournalPath())
	require.NoError(t, err)
	assert.Nil(t, j.Hold)
}

func TestFixLinkKeepsTheHold(t *testing.T) {
	p := newPatient(t)
	p.switched("v2", 100)
	p.signer(150)
	p.journal("", &upgrade.Hold{Reason: "halted now as an operator asked for", Hint: "supervisor resume", Since: time.Now()})
	code, _, errs := p.invoke("doctor", "--fix-link")
	require.Equal(t, cli.ExitOK, code, errs)
	assert.Contains(t, errs, "supervisor resume")
	j, err := upgrade.LoadJournal(p.l.JournalPath())
	require.NoError(t, err)
	assert.NotNil(t, j.Hold, "leaving a hold is another decision")
}

func TestFixLinkIsDoneUnderTheLock(t *testing.T) {
	p := newPatient(t)
	p.dir(p.l.State())
	lock, err := home.AcquireLock(p.l.LockPath())
	require.NoError(t, err)
	defer lock.Close()
	code, _, _ := p.invoke("doctor", "--fix-link", "--yes")
	assert.Equal(t, cli.ExitLocked, code)
	assert.NoFileExists(t, p.l.Link())
}

func TestFixLinkRefusesABinaryThatCantRun(t *testing.T) {
	p := newPatient(t)
	p.write(p.l.Binary(version.Genesis), "junk")
	require.NoError(t, os.Chmod(p.l.Binary(version.Genesis), 0o755))
	code, _, errs := p.invoke("doctor", "--fix-link", "--yes")
	assert.Equal(t, cli.ExitFailed, code)
	assert.Contains(t, errs, "neither an ELF executable")
	assert.NoFileExists(t, p.l.Link())
}

func TestFixLinkAsJSON(t *testing.T) {
	p := newPatient(t)
	for _, c := range []struct {
		args []string
		code int
		done bool
	}{
		{[]string{"--json", "doctor", "--fix-link"}, cli.ExitOK, true},
		{[]string{"--json", "doctor", "--fix-link"}, cli.ExitOK, false},
	} {
		code, out, errs := p.invoke(c.args...)
		assert.Equal(t, c.code, code, errs)
		var answer struct {
			Version, Why string
			Done         bool
		}
		require.NoError(t, json.Unmarshal([]byte(out), &answer), "%s", out)
		assert.Equal(t, "genesis", answer.Version)
		assert.NotEmpty(t, answer.Why)
		assert.Equal(t, c.done, answer.Done)
	}
	require.NoError(t, os.Remove(p.l.Link()))
	p.plan(p.l.Plan, "v2", 100)
	code, out, _ := p.invoke("--json", "doctor", "--fix-link")
	assert.Equal(t, cli.ExitFailed, code)
	var failed struct {
		Error struct {
			Message, Hint string
			Code          int
		}
	}
	require.NoError(t, json.Unmarshal([]byte(out), &failed))
	assert.Contains(t, failed.Error.Message, "genesis", "the versions are listed")
	assert.Contains(t, failed.Error.Hint, "supervisor upgrade use VERSION")
}
