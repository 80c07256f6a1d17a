package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/cli"
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
			assert.Equal(t, c.result == "FAIL", d.code == cli.ExitFailed)
			args, err := os.ReadFile(filepath.Join(dir, "args"))
			require.NoError(t, err)
			assert.Contains(t, string(args), "-p TimeoutStopUSec -- simd.service")
		})
	}
}

// fakeSystemctl puts a script in systemctl's place; it logs its arguments beside itself.
func fakeSystemctl(t *testing.T, script string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	script = "#!/bin/sh\necho \"$@\" > " + dir + "/args\n" + script
	require.NoError(t, os.WriteFile(filepath.Join(dir, "systemctl"), []byte(script), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return dir
}
