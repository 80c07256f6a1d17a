package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The settings of units, as systemctl shows them.
func TestDoctorOfTheUnit(t *testing.T) {
	good := "MainPID=0\nKillMode=mixed\nRestart=on-failure\nRestartPreventExitStatus=78 79\nTimeoutStopUSec=1min 30s\n"
	for _, c := range []struct {
		name, replace, with string
		result, detail, fix string
	}{
		{"good", "", "", "ok", "TimeoutStopSec, KillMode and Restart fit", ""},
		{"endless", "1min 30s", "infinity", "ok", "fit", ""},
		{"too short", "1min 30s", "1min", "FAIL", "TimeoutStopSec is 1m0s, and the node may take 1m0s", "TimeoutStopSec=90s"},
		{"unreadable", "1min 30s", "soon", "unknown", "can't be read", ""},
		{"none", "mixed", "none", "FAIL", "survives a stop", "KillMode=mixed"},
		{"process", "mixed", "process", "ok", "warning: ", "KillMode=mixed"},
		{"control-group", "mixed", "control-group", "ok", "warning: ", "KillMode=mixed"},
		{"restarts what is held", "78 79", "78", "ok", "warning: ", "RestartPreventExitStatus=78 79"},
		{"restarts nothing", "on-failure\nRestartPreventExitStatus=78 79", "no", "ok", "warning: simd.service: with Restart=no", "Restart=on-failure"},
		{"not notified", "KillMode=mixed", "Type=simple\nKillMode=mixed", "ok", "warning: simd.service: with Type=simple", "Type=notify"},
		{"notified", "KillMode=mixed", "Type=notify\nNotifyAccess=main\nKillMode=mixed", "ok", "fit", ""},
		{"all may speak", "KillMode=mixed", "Type=notify\nNotifyAccess=all\nKillMode=mixed", "ok", "warning: simd.service: with NotifyAccess=all", "NotifyAccess=main"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPatient(t)
			p.link("genesis")
			shown := strings.Replace(good, c.replace, c.with, 1)
			dir := fakeSystemctl(t, "cat <<'E'\nLoadState=loaded\nEnvironment=DAEMON_HOME="+p.home+" DAEMON_NAME=simd SUPERVISOR_SNAPSHOT_MIN_FREE=0 DAEMON_GRPC_ADDRESS=127.0.0.1:1\n"+shown+"E\n")
			d := p.doctor("--unit", "simd.service")
			d.says("unit", c.result, "simd.service: ", c.fix)
			d.says("unit", c.result, c.detail, c.fix)
			assert.Equal(t, c.result == "FAIL", d.code == exitFailed)
			args, err := os.ReadFile(filepath.Join(dir, "args"))
			require.NoError(t, err)
			assert.Contains(t, string(args), "-p TimeoutStopUSec -- simd.service")
		})
	}
}

func TestUnitOfAProcess(t *testing.T) {
	for want, lines := range map[string][]string{
		"simd.service": {"0::/system.slice/simd.service"},
		"old.service":  {"12:pids:/system.slice/other.service", "1:name=systemd:/system.slice/old.service"},
		"":             {"0::/user.slice/user-0.slice/session-3.scope", "0::/", "0::/user.slice/user@1000.service", "junk", ""},
	} {
		assert.Equal(t, want, serviceOf(lines))
	}
}

// Without a run and without --unit, the unit is the one that names the home.
func TestUnitsThatNameTheHome(t *testing.T) {
	shown := "Id=a.service\nEnvironment=DAEMON_HOME=/h DAEMON_NAME=simd\nExecStart={ path=/x ; argv[]=/x/cosmovisor run ; ignore_errors=no ; }\n\n" +
		"Id=b.service\nEnvironment=DAEMON_HOME=/h2\n\n" +
		"Id=c.service\nExecStart={ path=/x ; argv[]=/x/supervisor --home /h run start ; ignore_errors=no ; }\n\n" +
		"Id=d.service\nExecStart={ path=/x ; argv[]=/x/backup /h ; ignore_errors=no ; }\n\n" +
		"Id=e.service\nExecStart={ path=/x ; argv[]=/x/supervisor --config /h/supervisor/supervisor.toml run ; ignore_errors=no ; }\n\n" +
		"Id=nodevisor@f.service\nExecStart={ path=/x ; argv[]=/x/supervisor --config=/etc/nodevisor/f.toml run ; ignore_errors=no ; }\n\n" +
		"Id=g.service\nEnvironment=SUPERVISOR_CONFIG=/etc/nodevisor/f.toml\n"
	assert.Equal(t, []string{"a.service", "c.service", "e.service"}, namingHome(shown, "/h", "/h/supervisor/supervisor.toml"))
	assert.Equal(t, []string{"b.service"}, namingHome(shown, "/h2", ""))
	assert.Empty(t, namingHome("", "/h", ""))
	assert.Equal(t, []string{"nodevisor@f.service", "g.service"}, namingHome(shown, "/var/lib/nodevisor/f", "/etc/nodevisor/f.toml"))
}
