package main

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/cli"
)

var updateUnits = flag.Bool("update-units", false, "write the golden units anew")

// unitRun runs one command and returns what it printed, the paths of this run taken out.
func unitRun(t *testing.T, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	open := func(name string) *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	out, err := open("out"), open("err")
	code = execute(t.Context(), newApp(args, environ, os.Stdin, out, err))
	program, perr := os.Executable()
	require.NoError(t, perr)
	read := func(f *os.File) string {
		text, err := os.ReadFile(f.Name())
		require.NoError(t, err)
		return string(bytes.ReplaceAll(text, []byte(program), []byte("/usr/bin/supervisor")))
	}
	return code, read(out), read(err)
}

// matches compares with a golden file, or writes it.
func matches(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("../../testdata/golden/unit", name)
	if *updateUnits {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), text, "go test ./cmd/supervisor -run TestUnit -update-units")
}

func verify(t *testing.T, text, threshold string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "node.service")
	// The program is this test's: systemd looks whether it is there.
	require.NoError(t, os.WriteFile(path, []byte(strings.ReplaceAll(text, "/usr/bin/supervisor", "/bin/true")), 0o644))
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", path).CombinedOutput()
	require.NoError(t, err, string(out))
	assert.Empty(t, string(out))
	if threshold != "" {
		out, err = exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold="+threshold, path).CombinedOutput()
		require.NoError(t, err, string(out))
	}
}

// The unit of a configuration, as it is written in the documentation.
func TestUnitOfAConfiguration(t *testing.T) {
	environ := []string{"DAEMON_HOME=/var/lib/simd", "DAEMON_NAME=simd", "DAEMON_SHUTDOWN_GRACE=2m", "SUPERVISOR_NOTIFY_WEBHOOK=https://x/secret", "PATH=/bin"}
	for grade, threshold := range map[string]string{"strict": "20", "standard": ""} {
		code, out, errs := unitRun(t, environ, "unit", "--user", "daemon", "--hardening="+grade)
		require.Equal(t, 0, code, errs)
		matches(t, grade+".service", out)
		verify(t, out, threshold)
		assert.NotContains(t, out, "secret")
		assert.Contains(t, errs, "SUPERVISOR_NOTIFY_WEBHOOK may hold a secret")
	}
	code, _, errs := unitRun(t, environ, "unit", "--hardening=none")
	assert.Equal(t, cli.ExitUsage, code)
	assert.Contains(t, errs, `--hardening: "none" is none of standard, strict`)
}

// The command line finds the same configuration again; what is written to is writable.
func TestUnitFindsItsConfiguration(t *testing.T) {
	home := newHome(t)
	disk := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(disk, "data"), 0o755))
	require.NoError(t, os.RemoveAll(filepath.Join(home, "data")))
	require.NoError(t, os.Symlink(filepath.Join(disk, "data"), filepath.Join(home, "data")))
	file := filepath.Join(t.TempDir(), "node.toml")
	require.NoError(t, os.WriteFile(file, []byte("[node]\nname = \"simd\"\nhome = \""+home+"\"\nargs = [\"start\", \"--x\"]\n[snapshot]\ndir = \"/mnt/snap\"\n"), 0o600))
	code, out, errs := unitRun(t, nil, "--config", file, "unit", "--user=daemon", "--hardening=strict")
	require.Equal(t, 0, code, errs)
	assert.Contains(t, out, "ExecStart=/usr/bin/supervisor --config "+file+" run\n")
	assert.Contains(t, out, "ReadWritePaths="+home+" -/mnt/snap -"+disk+"\n")
	assert.NotContains(t, out, "Environment=")

	code, out, errs = unitRun(t, []string{"DAEMON_NAME=simd"}, "--home", home, "unit")
	require.Equal(t, 0, code, errs)
	assert.Contains(t, out, "ExecStart=/usr/bin/supervisor --home "+home+" run start\n")
}

// A Cosmovisor unit with a drop-in, and a node's own, migrated.
func TestUnitFrom(t *testing.T) {
	for _, name := range []string{"cosmovisor", "node"} {
		code, out, errs := unitRun(t, nil, "unit", "--from", filepath.Join("../../testdata/golden/unit", name+".service"))
		require.Equal(t, 0, code, errs)
		matches(t, name+".migrated", out)
		matches(t, name+".changes", errs)
		path := filepath.Join(t.TempDir(), "m.service")
		require.NoError(t, os.WriteFile(path, []byte(out), 0o644))
		code, again, errs := unitRun(t, nil, "unit", "--from", path)
		require.Equal(t, 0, code, errs)
		assert.Equal(t, out, again, "migrated once is migrated")
	}
	path := filepath.Join(t.TempDir(), "x.service")
	require.NoError(t, os.WriteFile(path, []byte("[Service]\nExecStart=/bin/sh -c 'exec simd start'\n"), 0o644))
	code, _, errs := unitRun(t, nil, "unit", "--from", path)
	assert.Equal(t, cli.ExitFailed, code)
	assert.Contains(t, errs, "its ExecStart= is sh", "before anything that a person would mend in vain")
	require.NoError(t, os.WriteFile(path, []byte("[Service]\nExecStart=/usr/bin/simd start --home \"/srv/a b\"\n"), 0o644))
	_, _, errs = unitRun(t, nil, "unit", "--from", path)
	assert.Contains(t, errs, "DAEMON_HOME='/srv/a b' supervisor init /usr/bin/simd\n", "it can be copied")
	require.NoError(t, os.WriteFile(path, []byte("[Service]\nExecStart=/usr/bin/simd start\n"), 0o644))
	code, out, errs := unitRun(t, nil, "unit", "--from", path)
	assert.Equal(t, cli.ExitFailed, code)
	assert.Empty(t, out)
	assert.Contains(t, errs, "it doesn't say where the node's home is")
	code, out, errs = unitRun(t, nil, "--home", "/srv/simd", "unit", "--from", path, "--hardening=strict")
	require.Equal(t, 0, code, errs)
	assert.Contains(t, out, "Environment=DAEMON_HOME=/srv/simd\n")
	assert.Contains(t, out, "ReadWritePaths=/srv/simd\n")
	assert.Contains(t, errs, "first: DAEMON_NAME=simd DAEMON_HOME=/srv/simd supervisor --home /srv/simd init /usr/bin/simd")
}
