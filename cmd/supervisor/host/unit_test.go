package host

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/config"
	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
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

func TestReadUnitAsksSystemctl(t *testing.T) {
	dir := fakeSystemctl(t, "cat <<'E'\nLoadState=loaded\nUser=simd\nEnvironment=DAEMON_HOME=/h\nEnvironmentFiles=/missing (ignore_errors=yes)\nE\n")
	u, err := ReadUnit(t.Context(), "simd")
	require.NoError(t, err)
	assert.Equal(t, Unit{Name: "simd.service", User: "simd", Environ: []string{"DAEMON_HOME=/h"}}, u)
	args, err := os.ReadFile(dir + "/args")
	require.NoError(t, err)
	assert.Equal(t, "show simd.service --no-pager -p LoadState -p User -p WorkingDirectory -p Environment -p EnvironmentFiles -p ExecStart\n", string(args))
}

func TestReadUnitSaysWhatSystemctlSaid(t *testing.T) {
	fakeSystemctl(t, "echo 'Failed to connect to bus: Host is down' >&2\nexit 1\n")
	_, err := ReadUnit(t.Context(), "simd.service")
	require.EqualError(t, err, "cannot read unit simd.service: systemctl: exit code 1: Failed to connect to bus: Host is down")
	assert.Equal(t, "say --home and --config instead of --unit", hint.Of(err))

	t.Setenv("PATH", t.TempDir())
	_, err = ReadUnit(t.Context(), "simd.service")
	require.ErrorContains(t, err, "executable file not found")
}

func TestReadUnitIsBounded(t *testing.T) {
	fakeSystemctl(t, "exec sleep 300\n")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := ReadUnit(ctx, "simd")
	require.Error(t, err)
	mistake := (*UnitError)(nil)
	assert.NotErrorAs(t, err, &mistake, "the next try may find it")
	assert.Less(t, time.Since(began), 60*time.Second)
}

// A reload of a run with --unit asks systemd too, while the supervisor reaps what others left behind: the end of systemctl is
// not taken for an orphan's.
func TestSystemctlIsNoOrphan(t *testing.T) {
	fakeSystemctl(t, "echo LoadState=loaded\n")
	over, reaped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(reaped)
		for {
			select {
			case <-over:
				return
			case <-time.After(100 * time.Microsecond):
				proc.Reap()
			}
		}
	}()
	for range 50 {
		_, err := ReadUnit(t.Context(), "simd")
		if !assert.NoError(t, err) {
			break
		}
	}
	close(over)
	<-reaped
}

// A unit's values end up in the configuration as if its `run` loaded it.
func TestTheUnitsConfigurationIsLoaded(t *testing.T) {
	home := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(home, "cosmovisor"), 0o755))
	envFile := filepath.Join(t.TempDir(), "env")
	require.NoError(t, os.WriteFile(envFile, []byte("DAEMON_NAME=simd\nDAEMON_SHUTDOWN_GRACE=3m\n"), 0o600))
	fakeSystemctl(t, "cat <<'E'\nLoadState=loaded\nEnvironment=DAEMON_HOME="+home+" DAEMON_NAME=overridden\nEnvironmentFiles="+envFile+" (ignore_errors=no)\n"+
		"ExecStart={ path=/usr/bin/cosmovisor ; argv[]=/usr/bin/cosmovisor run start --halt-height 5 ; ignore_errors=no ; start_time=[n/a] }\nE\n")
	u, err := ReadUnit(t.Context(), "simd")
	require.NoError(t, err)
	cfg, origin, err := config.Load(u.Options([]string{"DAEMON_HOME=/callers", "SUPERVISOR_CONFIG=/callers"}))
	require.NoError(t, err)
	assert.Equal(t, home, cfg.Node.Home)
	assert.Equal(t, "simd", cfg.Node.Name)
	assert.Equal(t, 3*time.Minute, cfg.Node.StopTimeout)
	assert.Equal(t, "DAEMON_HOME", origin.Of("node.home"))
	assert.Equal(t, []string{"start", "--halt-height", "5"}, u.NodeArgs())
}

// shown is what systemd 252 printed for a unit with every kind of quoting.
const shown = `ExecStart={ path=/usr/bin/cosmovisor ; argv[]=/usr/bin/cosmovisor --cosmovisor-config /etc/c.toml run start --home ${DAEMON_HOME} --x two words ; y $ARGS $$HOME ; ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }
ExecStart={ path=/bin/echo ; argv[]=/bin/echo second ; ignore_errors=yes ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }
Environment=DAEMON_NAME=simd DAEMON_HOME=/var/lib/simd "GREETING=hello world" Q=its PCT=100% EMPTY= "JSON={\"a\": \"b c\"}" "BS=a\\b" "DOL=\$x" "TAB=a\tb" "NL=a\nb" "SEMI=a;b" UNI=é "ARGS=--a  --b"
EnvironmentFiles=/etc/default/simd-missing (ignore_errors=yes)
EnvironmentFiles=FILE (ignore_errors=no)
WorkingDirectory=/var/lib/simd
User=simd
LoadState=loaded
`

func TestParseUnit(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "b.env"), []byte("DAEMON_NAME=other\n# c\nDAEMON_RESTART_DELAY='5s'\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a.env"), []byte("DAEMON_NAME=first\n"), 0o600))
	u, err := parseUnit("simd.service", strings.Replace(shown, "FILE", dir+"/*.env", 1))
	require.NoError(t, err)
	assert.Equal(t, Unit{
		Name: "simd.service", User: "simd", WorkingDir: "/var/lib/simd",
		Environ: []string{
			"ARGS=--a  --b", "BS=a\\b", "DAEMON_HOME=/var/lib/simd", "DAEMON_NAME=other", "DAEMON_RESTART_DELAY=5s", "DOL=$x", "EMPTY=",
			"GREETING=hello world", `JSON={"a": "b c"}`, "NL=a\nb", "PCT=100%", "Q=its", "SEMI=a;b", "TAB=a\tb", "UNI=é",
		},
		Argv: []string{
			"/usr/bin/cosmovisor", "--cosmovisor-config", "/etc/c.toml", "run", "start", "--home", "/var/lib/simd", "--x", "two", "words",
			";", "y", "--a", "--b", "$HOME",
		},
	}, u)
	o := u.Options([]string{"PATH=/bin", "DAEMON_HOME=/callers", "COSMOVISOR_X=1", "SUPERVISOR_CONFIG=/callers", "UNSAFE_SKIP_BACKUP=true"})
	assert.Equal(t, "/etc/c.toml", o.CosmovisorConfig)
	assert.Empty(t, o.HomeFlag, "behind run, --home is the node's")
	assert.Equal(t, append([]string{"PATH=/bin"}, u.Environ...), o.Environ)
	assert.Equal(t, []string{"start", "--home", "/var/lib/simd", "--x", "two", "words", ";", "y", "--a", "--b", "$HOME"}, u.NodeArgs())

	_, err = parseUnit("simd.service", strings.Replace(shown, "FILE", dir+"/missing", 1))
	require.ErrorContains(t, err, "missing: no such file or directory")
	_, err = parseUnit("none.service", "Environment=\nLoadState=not-found\n")
	require.EqualError(t, err, "cannot read unit none.service: systemd knows no such unit")
	_, err = parseUnit("x.service", "Environment=\"A=1\n")
	require.ErrorContains(t, err, "a quote isn't closed")
}

func TestUnitOptions(t *testing.T) {
	for _, c := range []struct {
		argv, node string
		want       config.Options
	}{
		{"supervisor --home /h --config=c.toml run start --home /n", "start --home /n", config.Options{HomeFlag: "/h", ConfigFlag: "/srv/c.toml"}},
		{"supervisor run --cosmovisor-config /c start", "start", config.Options{CosmovisorConfig: "/c"}},
		{"cosmovisor run start --cosmovisor-config=/c -c /d", "start --cosmovisor-config=/c -c /d", config.Options{}},
		{"cosmovisor -c /c run", "", config.Options{CosmovisorConfig: "/c"}},
		{"sh -c /usr/bin/cosmovisor run start", "start", config.Options{}},
		{"supervisor --home", "", config.Options{}},
		{"", "", config.Options{}},
	} {
		u := Unit{Argv: strings.Fields(c.argv), WorkingDir: "/srv"}
		assert.Equal(t, c.want, u.Options(nil), c.argv)
		assert.Equal(t, c.node, strings.Join(u.NodeArgs(), " "), c.argv)
	}
}

func TestUnquoteWords(t *testing.T) {
	for text, want := range map[string][]string{
		"":                         nil,
		"  A=1  B=2 ":              {"A=1", "B=2"},
		`"A=\x41\303\251\u00e9" B`: {"A=Aéé", "B"},
		`$'A=it\'s' $'B=\n' C`:     {"A=it's", "B=\n", "C"},
		"\"A=\\`x\\`\"":            {"A=`x`"},
	} {
		got, err := unquoteWords(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got, text)
	}
	for _, text := range []string{`"A`, `$'A`, `"A\"`, `"A\`} {
		_, err := unquoteWords(text)
		assert.Error(t, err, text)
	}
}

func TestParseEnvironmentFile(t *testing.T) {
	env := map[string]string{"KEPT": "1", "A": "old"}
	parseEnvironmentFile("\n# comment \\\nstill a comment\n; another\r\n"+
		"A=1\n  B = two words  \nC='single $x \\n'\nD=\"double \\\" \\\\ \\$ \\n\"\nE=a\\\nb\nF=\nG=pre'mid'\"post\"  \nH=' kept '\n"+
		"1BAD=x\nno assignment\nexport I=1\nJ=\"two\nlines\"\nK=\\'x\nL=last", env)
	assert.Equal(t, map[string]string{
		"KEPT": "1", "A": "1", "B": "two words", "C": `single $x \n`, "D": `double " \ $ \n`, "E": "ab", "F": "", "G": "premidpost", "H": " kept ",
		"J": "two\nlines", "K": "'x", "L": "last",
	}, env)
	for _, text := range []string{"A", "A=", "A='", "A=\\", "#", "#\\", "=", "\"", "A=\"\\"} {
		parseEnvironmentFile(text, map[string]string{}) // must end
	}
}

func TestAUnitsNameIsNoOption(t *testing.T) {
	for _, name := range []string{"-p", "a/b", "", "a b"} {
		_, err := ReadUnit(t.Context(), name)
		require.ErrorContains(t, err, "not a unit's name", name)
		mistake := (*UnitError)(nil)
		require.ErrorAs(t, err, &mistake)
	}
}

// FuzzUnit: whatever systemctl or an environment file says, reading it ends, and a value that is quoted is read as it was.
func FuzzUnit(f *testing.F) {
	f.Add(shown, "A='x\n#\\", "two words")
	f.Add("ExecStart={ argv[]=a ${ $ $$ ${X} $X ; ignore_errors=\nEnvironment=\"\\x\" $'\\", "A=\"\\", "a\\b\"c'$`\n\t;# ")
	files := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`")
	systemctl := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`", "\n", `\n`, "\t", `\t`, "\r", `\r`)
	f.Fuzz(func(t *testing.T, text, file, value string) {
		if u, err := parseUnit("x.service", text); err == nil {
			u.Options(nil)
			u.NodeArgs()
		}
		env := map[string]string{}
		parseEnvironmentFile(file, env)
		for name := range env {
			assert.True(t, isVariable(name), name)
		}
		words, err := unquoteWords(`"A=` + systemctl.Replace(value) + `" B=2`)
		require.NoError(t, err)
		require.Equal(t, []string{"A=" + value, "B=2"}, words)
		if !strings.Contains(value, "\r") { // the end of a line, in such a file
			clear(env)
			parseEnvironmentFile("# a file\nA=\""+files.Replace(value)+"\"\nB='2'\n", env)
			require.Equal(t, map[string]string{"A": value, "B": "2"}, env)
		}
	})
}
