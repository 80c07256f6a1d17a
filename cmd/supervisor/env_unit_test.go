package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

// fakeSystemctl puts a script in systemctl's place; it logs its arguments beside itself.
func fakeSystemctl(t *testing.T, script string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	script = "#!/bin/sh\necho \"$@\" > " + dir + "/args\n" + script
	require.NoError(t, os.WriteFile(filepath.Join(dir, "systemctl"), []byte(script), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return dir
}

func TestUnitEnvironmentAsksSystemctl(t *testing.T) {
	dir := fakeSystemctl(t, "cat <<'E'\nLoadState=loaded\nUser=simd\nEnvironment=DAEMON_HOME=/h\nEnvironmentFiles=/missing (ignore_errors=yes)\nE\n")
	u, err := UnitEnvironment(t.Context(), "simd")
	require.NoError(t, err)
	assert.Equal(t, Unit{Name: "simd.service", User: "simd", Environ: []string{"DAEMON_HOME=/h"}}, u)
	args, err := os.ReadFile(dir + "/args")
	require.NoError(t, err)
	assert.Equal(t, "show simd.service --no-pager -p LoadState -p User -p WorkingDirectory -p Environment -p EnvironmentFiles -p ExecStart\n", string(args))
}

func TestUnitEnvironmentSaysWhatSystemctlSaid(t *testing.T) {
	fakeSystemctl(t, "echo 'Failed to connect to bus: Host is down' >&2\nexit 1\n")
	_, err := UnitEnvironment(t.Context(), "simd.service")
	require.EqualError(t, err, "cannot read unit simd.service: exit status 1: Failed to connect to bus: Host is down")
	assert.Equal(t, "say --home and --config instead of --unit", hint.Of(err))

	t.Setenv("PATH", t.TempDir())
	_, err = UnitEnvironment(t.Context(), "simd.service")
	require.ErrorContains(t, err, "executable file not found")
}

func TestUnitEnvironmentIsBounded(t *testing.T) {
	fakeSystemctl(t, "exec sleep 300\n")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := UnitEnvironment(ctx, "simd")
	require.Error(t, err)
	assert.Less(t, time.Since(began), 60*time.Second)
}

// A unit's values end up in the configuration as if its `run` loaded it.
func TestTheUnitsConfigurationIsLoaded(t *testing.T) {
	home := newHome(t)
	envFile := filepath.Join(t.TempDir(), "env")
	require.NoError(t, os.WriteFile(envFile, []byte("DAEMON_NAME=simd\nDAEMON_SHUTDOWN_GRACE=3m\n"), 0o600))
	fakeSystemctl(t, "cat <<'E'\nLoadState=loaded\nEnvironment=DAEMON_HOME="+home+" DAEMON_NAME=overridden\nEnvironmentFiles="+envFile+" (ignore_errors=no)\n"+
		"ExecStart={ path=/usr/bin/cosmovisor ; argv[]=/usr/bin/cosmovisor run start --halt-height 5 ; ignore_errors=no ; start_time=[n/a] }\nE\n")
	u, err := UnitEnvironment(t.Context(), "simd")
	require.NoError(t, err)
	cfg, origin, err := Load(u.LoadOptions([]string{"DAEMON_HOME=/callers", "SUPERVISOR_CONFIG=/callers"}))
	require.NoError(t, err)
	assert.Equal(t, home, cfg.Node.Home)
	assert.Equal(t, "simd", cfg.Node.Name)
	assert.Equal(t, 3*time.Minute, cfg.Node.StopTimeout)
	assert.Equal(t, "DAEMON_HOME", origin.Of("node.home"))
	assert.Equal(t, []string{"start", "--halt-height", "5"}, u.NodeArgs())
}

// FuzzUnit: whatever systemctl or an environment file says, reading it ends.
func FuzzUnit(f *testing.F) {
	f.Add(shown, "A='x\n#\\")
	f.Add("ExecStart={ argv[]=a ${ $ $$ ${X} $X ; ignore_errors=\nEnvironment=\"\\x\" $'\\", "A=\"\\")
	f.Fuzz(func(t *testing.T, text, file string) {
		if u, err := parseUnit("x.service", text); err == nil {
			u.LoadOptions(nil)
			u.NodeArgs()
		}
		env := map[string]string{}
		parseEnvironmentFile(file, env)
		for name := range env {
			assert.True(t, isVariable(name), name)
		}
	})
}
