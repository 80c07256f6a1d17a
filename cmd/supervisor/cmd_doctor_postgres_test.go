package main

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/internal/pgtest"
)

// database makes a patient whose snapshots are of a database.
func database(t *testing.T, dsn, keys string) *patient {
	t.Helper()
	p := newPatient(t)
	p.link("genesis")
	p.write(filepath.Join(p.l.State(), "supervisor.toml"), fmt.Sprintf("[[snapshot.source]]\nname = \"chain\"\nkind = \"postgres\"\ndsn = %q\n%s\n", dsn, keys))
	return p
}

func TestDoctorOfADatabase(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", "CREATE TABLE blocks (height bigint)")
	p := database(t, c.DSN("chain"), "")
	d := p.doctor()
	d.says("chain server", "ok", "/chain answers, PostgreSQL ", "")
	d.says("chain method", "ok", "by clone: rights and room are there", "")
	d.says("chain rollback", "ok", "no slot", "")
	d.says("snapshots", "ok", "by clone", "")

	c.Exec("chain", "SELECT pg_create_logical_replication_slot('kept', 'pgoutput')")
	d = p.doctor()
	d.says("chain rollback", "FAIL", "replication slot kept", "SELECT pg_drop_replication_slot('kept')")
	assert.Equal(t, cli.ExitFailed, d.code)

	c.StopServer()
	d = p.doctor()
	d.says("chain server", "FAIL", "doesn't answer", "systemctl start postgresql")
	for _, check := range d.Checks {
		assert.NotEqual(t, "snapshots", check.Name, "said once")
	}
}

func TestDoctorRefusesAPasswordInADSN(t *testing.T) {
	d := database(t, "host=/nowhere dbname=chain user=u password=hunter2", "").doctor()
	d.says("configuration", "FAIL", "holds a password", "correct ")
	for _, check := range d.Checks {
		assert.NotContains(t, check.Detail, "hunter2")
	}
}

// Giving a home back drops its clones, and no other home's.
func TestUninitDropsClones(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", "CREATE TABLE blocks (height bigint)")
	other := database(t, c.DSN("chain"), `mode = "clone"`)
	p := database(t, c.DSN("chain"), `mode = "clone"`)
	clones := func() string {
		return c.Query("postgres", "SELECT count(*) FROM pg_database WHERE datname LIKE 'sv\\_%'")[0]
	}
	for _, one := range []*patient{other, p} {
		code, out, errs := one.invoke("snapshot", "create")
		require.Zero(t, code, "%s %s", out, errs)
	}
	require.Equal(t, "2", clones())
	code, _, errs := p.invoke("uninit")
	require.Zero(t, code, errs)
	assert.Equal(t, "1", clones())
}
