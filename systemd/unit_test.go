package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func service(t *testing.T, h Hardening) Service {
	t.Helper()
	program := filepath.Join(t.TempDir(), "super visor")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755))
	return Service{
		Description: "a node of 100 %", User: "daemon", Exec: []string{program, "run", "start", "--moniker", `a "b" $c %d ;`, ""},
		Environ: []string{"DAEMON_HOME=/srv/a b", `X=50%\`}, StopTimeout: 61500 * time.Millisecond, Home: "/srv/a b",
		Writable: []string{"/mnt/disk"}, After: []string{"postgresql.service"}, Hardening: h,
	}
}

// systemd takes every line as it is meant, and says nothing; the strict unit is as closed as promised.
func TestUnitIsClean(t *testing.T) {
	for h, limit := range map[Hardening]string{Strict: "20", Standard: "75"} {
		t.Run(string(h), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "node.service")
			require.NoError(t, os.WriteFile(path, []byte(service(t, h).Render()), 0o644))
			for _, args := range [][]string{{"verify", "--man=no", path}, {"security", "--offline=true", "--no-pager", "--threshold=" + limit, path}} {
				out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
				require.NoError(t, err, string(out))
				if args[0] == "verify" {
					assert.Empty(t, string(out))
				}
			}
		})
	}
}

// One line is left of a key that stands several times, and what was dropped is said, once.
func TestSettingThatStandsTwice(t *testing.T) {
	lines, err := parse("[Service]\nA=1\nExecStart=simd start\nA=1\nB=1\nA=2\nA=1\n")
	require.NoError(t, err)
	f := &File{lines: lines}
	change := f.set(Setting{"Service", "A", "1", "why"})
	require.NotNil(t, change)
	assert.Equal(t, "A=1, A=1, A=2, A=1", change.Old)
	assert.Equal(t, "[Service]\nExecStart=simd start\nB=1\nA=1\n", f.String())
	assert.Nil(t, f.set(Setting{"Service", "A", "1", "why"}))
}

func TestRender(t *testing.T) {
	text := service(t, Strict).Render()
	for _, want := range []string{
		"Description=a node of 100 %%\n", "After=network-online.target postgresql.service\n", "\n\n[Service]\nUser=daemon\n",
		`Environment="DAEMON_HOME=/srv/a b"`, `Environment="X=50%%\\"`, `/super visor" run start --moniker "a \"b\" $$c %%d ;" ""` + "\n",
		"TimeoutStopSec=92s\n", "TimeoutAbortSec=92s\n", `ReadWritePaths="/srv/a b" -/mnt/disk` + "\n", "ProtectHome=yes\n",
		"\n\n[Install]\nWantedBy=multi-user.target\n",
	} {
		assert.Contains(t, text, want)
	}
	assert.NotContains(t, text, "\nMemoryDenyWriteExecute=")
	s := service(t, Strict)
	s.User, s.Home = "", "/home/simd/.simd"
	assert.Contains(t, s.Render(), "ProtectHome=read-only\n")
	assert.NotContains(t, s.Render(), "User=")
	assert.NotContains(t, service(t, Standard).Render(), "ReadWritePaths")
	s = service(t, Strict)
	s.Exec[0] = "/root/go/bin/supervisor"
	assert.Contains(t, s.Render(), "ProtectHome=read-only\n", "a program that can't be seen can't be started")
	for _, h := range []Hardening{Strict, Standard} {
		assert.Contains(t, service(t, h).Render(), "PrivateTmp=yes\n")
		s = service(t, h)
		s.Home = "/tmp/home"
		assert.Contains(t, s.Render(), "PrivateTmp=no\n", "a home that can't be seen")
	}
}

func TestTimespan(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90": 90 * time.Second, "1min 30s": 90 * time.Second, "1min30s": 90 * time.Second, "500ms": 500 * time.Millisecond,
		"2h": 2 * time.Hour, " 1.5 s ": 1500 * time.Millisecond, "0": 0, "1d 2us": 24*time.Hour + 2*time.Microsecond, "5 minutes": 5 * time.Minute,
	} {
		got, ok := Timespan(text)
		assert.True(t, ok, text)
		assert.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "infinity", "9999999999 years", "s", "5 parsecs", "-1s", "1..2s"} {
		_, ok := Timespan(text)
		assert.False(t, ok, text)
	}
}

func TestWords(t *testing.T) {
	for text, want := range map[string][]string{
		"":                               nil,
		`  a  b	c `:                      {"a", "b", "c"},
		`"A=1 2" B="3 4" 'C=5 "6"' ""`:   {"A=1 2", "B=3 4", `C=5 "6"`, ""},
		`a\ b "c\"d" e\`:                 {"a b", `c"d`, `e\`},
		`a\x20b\tc\s"\n" \303\274\u00fc`: {"a b\tc \n", "üü"},
	} {
		assert.Equal(t, want, Words(text), text)
	}
}

func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	return filepath.Join(dir, "x.service")
}

// Command lines: everything but the program stays as it is written.
func TestMigrateExecStart(t *testing.T) {
	for from, want := range map[string]string{
		"/bin/cosmovisor run start --a \"$B c\" %h":              "/s run start --a \"$B c\" %h",
		"-/bin/cosmovisor start":                                 "/s run start",
		"@/bin/cosmovisor-v1.7 --cosmovisor-config /c run start": "/s --cosmovisor-config /c run start",
		"\"/opt/my node/simd\" start":                            "/s run start",
		"/usr/bin/simd":                                          "/s run",
		"/usr/bin/supervisor run start":                          "/s run start",
	} {
		f, err := ReadFile(write(t, map[string]string{"x.service": "[Service]\nExecStart=/bin/false\nExecStart=\nExecStart=" + from + "\n"}))
		require.NoError(t, err)
		_, err = f.Migrate(Service{Exec: []string{"/s"}, StopTimeout: time.Minute})
		require.NoError(t, err)
		assert.Equal(t, []string{want}, f.Values("Service", "ExecStart"), from)
		assert.Equal(t, 1, strings.Count(f.String(), "ExecStart="), f)
	}
	for from, want := range map[string]string{
		"":                                "it has 0 ExecStart= lines, and one is wanted",
		"ExecStart=/a\nExecStart=/b":      "it has 2 ExecStart= lines, and one is wanted",
		"ExecStart=/bin/sh -c 'exec x'":   "its ExecStart= is sh, which runs something else",
		"ExecStart=/usr/bin/env A=b simd": "its ExecStart= is env, which runs something else",
	} {
		f, err := ReadFile(write(t, map[string]string{"x.service": "[Service]\n" + from}))
		require.NoError(t, err)
		_, err = f.Migrate(Service{Exec: []string{"/s"}})
		assert.ErrorContains(t, err, want)
	}
}

// The start limit keeps its value under the names that it had, and in the section where it was, in older systemd.
func TestMigrateStartLimit(t *testing.T) {
	for from, want := range map[string][2]string{
		"[Unit]\nStartLimitInterval=0\n[Service]\nExecStart=/s\n":                                 {"0", "5"},
		"[Service]\nExecStart=/s\nStartLimitInterval=10min\nStartLimitBurst=9\n":                  {"10min", "9"},
		"[Unit]\nStartLimitIntervalSec=7\nStartLimitInterval=8\n[Service]\nExecStart=/s\n":        {"7", "5"},
		"[Unit]\nStartLimitBurst=2\n[Service]\nExecStart=/s\nStartLimitBurst=3\nStartLimitBurst=": {"300", "2"},
	} {
		f, err := ReadFile(write(t, map[string]string{"x.service": from}))
		require.NoError(t, err)
		_, err = f.Migrate(Service{Exec: []string{"/s"}, StopTimeout: time.Minute})
		require.NoError(t, err)
		assert.Equal(t, []string{want[0]}, f.Values("Unit", "StartLimitIntervalSec"), from)
		assert.Equal(t, []string{want[1]}, f.Values("Unit", "StartLimitBurst"), from)
		assert.NotContains(t, f.String(), "StartLimitInterval=")
		assert.Equal(t, 1, strings.Count(f.String(), "StartLimitBurst="), f)
	}
}

// A unit that was migrated is migrated again without a change.
func TestMigrateTwice(t *testing.T) {
	s := service(t, Strict)
	f, err := ReadFile(write(t, map[string]string{"x.service": "[Service]\nExecStart=/bin/simd start\n[Install]\nWantedBy=a.target\n"}))
	require.NoError(t, err)
	_, err = f.Migrate(s)
	require.NoError(t, err)
	again, err := ReadFile(write(t, map[string]string{"x.service": f.String()}))
	require.NoError(t, err)
	s.Environ = nil
	changes, err := again.Migrate(s)
	require.NoError(t, err)
	assert.Empty(t, changes)
	assert.Equal(t, f.String(), again.String())
	path := write(t, map[string]string{"x.service": f.String()})
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", path).CombinedOutput()
	require.NoError(t, err, string(out))
}

// A backslash joins lines as systemd joins them: not where it stands twice, and not beyond the end of the file.
func TestLinesThatGoOn(t *testing.T) {
	for text, want := range map[string]string{
		"A=1 \\\n  2": "1 2", "A=1\\\n# in between\n2": "1 2", "A=1 \\": "1", "A=1 \\\n# the end": "1", "A=1\n\\": "1",
		"A=1\\\\\nB=2": `1\\`, "A=1\\\\\\\n2": `1\\ 2`,
	} {
		f, err := ReadFile(write(t, map[string]string{"x.service": "[Service]\n" + text}))
		require.NoError(t, err, text)
		assert.Equal(t, []string{want}, f.Values("Service", "A"), text)
	}
}

func TestReadFileRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"Type=simple\n":                    `line 1: "Type=simple" is no KEY=VALUE in a [Section]`,
		"[Service]\nnonsense\n":            `line 2: "nonsense" is no KEY=VALUE in a [Section]`,
		"[Service]\n=1\n":                  `line 2: "=1" is no KEY=VALUE in a [Section]`,
		"[Service]\nA=\x00\n":              "not a text",
		strings.Repeat("# a\n", maxUnit/3): "larger than 1 MiB",
	} {
		_, err := ReadFile(write(t, map[string]string{"x.service": text}))
		assert.ErrorContains(t, err, want)
	}
	_, err := ReadFile("/nowhere/x.service")
	assert.ErrorIs(t, err, os.ErrNotExist)
	f, err := ReadFile(write(t, map[string]string{
		"x.service":             "[Service]\nA=1 \\\n# in between\n  2\n; a comment\n",
		"x.service.d/b.conf":    "[Service]\nA=\nB=2\n",
		"x.service.d/a.conf":    "[Unit]\nC=3\n",
		"x.service.d/c.ignored": "garbage",
	}))
	require.NoError(t, err)
	assert.Equal(t, "[Service]\nA=1 2\n; a comment\nA=\nB=2\n[Unit]\nC=3\n\n", f.String())
	assert.Nil(t, f.Values("Service", "A"))
	assert.Equal(t, []string{f.Path + ".d/a.conf", f.Path + ".d/b.conf"}, f.DropIns)
	assert.Equal(t, []string{"/lib/systemd/system/x.service.d", "/etc/systemd/system/x.service.d"}, dropInDirs("/lib/systemd/system/x.service"))
	assert.Equal(t, []string{"/etc/systemd/system/x.service.d"}, dropInDirs("/etc/systemd/system/x.service"))
}
