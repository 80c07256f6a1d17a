package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/restart"
	"nodevisor/upgrade"
)

// newHome makes a home with a tree of versions.
func newHome(t *testing.T) string {
	t.Helper()
	home := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(home, "cosmovisor", "genesis", "bin"), 0o755))
	return home
}

// writeConfig writes <home>/supervisor/supervisor.toml and returns its path.
func writeConfig(t *testing.T, home, text string) string {
	t.Helper()
	path := filepath.Join(home, "supervisor", "supervisor.toml")
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// lines are the messages of an Error, with the temporary directory taken out.
func lines(t *testing.T, err error, home string) []string {
	t.Helper()
	var failed *Error
	require.ErrorAs(t, err, &failed)
	return strings.Split(strings.ReplaceAll(err.Error(), home, "HOME"), "\n")
}

func TestOnlyHomeAndNameAreNeeded(t *testing.T) {
	home := newHome(t)
	cfg, origin, err := Load(Options{Environ: []string{"DAEMON_HOME=" + home + "/", "DAEMON_NAME=simd"}})
	require.NoError(t, err)
	want := Default()
	want.Node.Home, want.Node.Name = home, "simd"
	assert.Equal(t, want, cfg)
	assert.Equal(t, map[string]string{"node.home": "DAEMON_HOME", "node.name": "DAEMON_NAME"}, origin.Keys)
	assert.Empty(t, origin.File)
	assert.Empty(t, origin.Warnings)
	assert.Equal(t, time.Minute, cfg.Node.StopTimeout, "the node isn't killed at once, as Cosmovisor does")
	assert.Equal(t, home+"/cosmovisor", cfg.RootDir())
	assert.Equal(t, home+"/supervisor/snapshots", cfg.SnapshotDir())
}

func TestTheFullExampleIsUnderstood(t *testing.T) {
	home := newHome(t)
	writeConfig(t, home, strings.Replace(exampleToml, "POSTGRES", "", 1))
	cfg, origin, err := Load(Options{HomeFlag: home})
	require.NoError(t, err)
	for _, key := range allKeys(reflectConfig(), "") {
		if !strings.HasPrefix(key, "version") && !strings.HasPrefix(key, "unit") && !strings.HasPrefix(key, "snapshot.source") {
			assert.Contains(t, origin.Keys, key, "the example lacks a key")
		}
	}
	assert.Equal(t, "--home", origin.Of("node.home"))
	require.NotNil(t, cfg.Versions["v0.10"].Args)
	assert.Empty(t, *cfg.Versions["v0.10"].Args)
	assert.Equal(t, "price-feeder.service", cfg.Units[0].Name)
	assert.Equal(t, []string{"priv_validator_state.json"}, cfg.Snapshot.Sources[0].NeverRestoreOlder)
}

func TestADatabaseIsASource(t *testing.T) {
	home := newHome(t)
	writeConfig(t, home, strings.Replace(exampleToml, "POSTGRES", postgresToml, 1))
	cfg, _, err := Load(Options{HomeFlag: home})
	require.NoError(t, err)
	assert.Equal(t, "host=/var/run/postgresql dbname=kwild user=kwild", cfg.Snapshot.Sources[1].DSN)

	writeConfig(t, home, "[node]\nname='x'\n[[snapshot.source]]\nname='a'\nkind='dir'\npath='data'\ndsn='x'\n"+
		"[[snapshot.source]]\nname='b'\nkind='postgres'\ndsn='dbname=b'\npath='data'\nfree_space='much'\nmode='fast'\n")
	_, _, err = Load(Options{HomeFlag: home})
	text := strings.Join(lines(t, err, home), "\n")
	for _, want := range []string{
		`[snapshot] source "a": dsn: belongs to a source of kind postgres`, `[snapshot] source "b": path: belongs to a source of kind dir`,
		`[snapshot] source "b": free_space: "much" is no size, such as 200G`, `[snapshot] source "b": mode: "fast" is none of auto, clone, dump`,
	} {
		assert.Contains(t, text, want)
	}
}

func TestPrecedence(t *testing.T) {
	home, other := newHome(t), newHome(t)
	writeConfig(t, home, "[node]\nname = 'file'\nhome = '"+other+"'\nstop_timeout = '2m'\nrestart = 'never'\n[upgrade]\npoll = '1s'\n[upgrade.probation]\nup='1m'")
	env := []string{
		"DAEMON_HOME=" + other, "DAEMON_SHUTDOWN_GRACE=3m", "SUPERVISOR_NODE_STOP_TIMEOUT=4m", "SUPERVISOR_UPGRADE_PROBATION_UP=2m",
		"SUPERVISOR_RESTART=always", "SUPERVISOR_NODE_BACKOFF=", "DAEMON_POLL_INTERVAL=", "SUPERVISOR_HEIGHT_BODY={}",
	}
	cfg, origin, err := Load(Options{HomeFlag: home, Environ: env})
	require.NoError(t, err)
	assert.Equal(t, home, cfg.Node.Home, "flag over environment over file")
	assert.Equal(t, "file", cfg.Node.Name)
	assert.Equal(t, 3*time.Minute, cfg.Node.StopTimeout, "Cosmovisor's variable over ours")
	assert.Equal(t, restart.Always, cfg.Node.Restart)
	assert.Equal(t, time.Second, cfg.Upgrade.Poll, "an empty variable is not set")
	assert.Equal(t, time.Second, cfg.Node.Backoff)
	assert.Equal(t, 2*time.Minute, cfg.Upgrade.Probation.Up)
	require.NotNil(t, cfg.Height.Body)
	assert.Equal(t, "{}", *cfg.Height.Body)

	file := home + "/supervisor/supervisor.toml"
	assert.Equal(t, file, origin.File)
	assert.Equal(t, "--home", origin.Of("node.home"))
	assert.Equal(t, file+":2:1", origin.Of("node.name"))
	assert.Equal(t, "DAEMON_SHUTDOWN_GRACE", origin.Of("node.stop_timeout"))
	assert.Equal(t, "SUPERVISOR_RESTART", origin.Of("node.restart"))
	assert.Equal(t, "default", origin.Of("node.hold"))
	require.Len(t, origin.Warnings, 2)
	assert.Contains(t, origin.Warnings[0], "says home = ")
	assert.Equal(t, "DAEMON_SHUTDOWN_GRACE and SUPERVISOR_NODE_STOP_TIMEOUT are both set: the former holds", origin.Warnings[1])
}

func TestWhereTheFileIsFound(t *testing.T) {
	home := newHome(t)
	named := filepath.Join(t.TempDir(), "named.toml")
	require.NoError(t, os.WriteFile(named, []byte("[node]\nname='named'\nhome='"+home+"'\n"), 0o600))
	writeConfig(t, home, "[node]\nname='inhome'\n")
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"--config":             {Options{ConfigFlag: named, Environ: []string{"SUPERVISOR_CONFIG=/missing"}}, "named"},
		"SUPERVISOR_CONFIG":    {Options{Environ: []string{"SUPERVISOR_CONFIG=" + named, "DAEMON_HOME=" + home}}, "named"},
		"--home":               {Options{HomeFlag: home, Environ: []string{"DAEMON_HOME=/missing"}}, "inhome"},
		"DAEMON_HOME":          {Options{Environ: []string{"DAEMON_HOME=" + home, "SUPERVISOR_NODE_HOME=/missing"}}, "inhome"},
		"SUPERVISOR_NODE_HOME": {Options{Environ: []string{"SUPERVISOR_NODE_HOME=" + home}}, "inhome"},
	} {
		cfg, _, err := Load(c.o)
		require.NoError(t, err, name)
		assert.Equal(t, c.want, cfg.Node.Name, name)
	}
	for _, o := range []Options{
		{ConfigFlag: home + "/nothing.toml", HomeFlag: home}, {Environ: []string{"SUPERVISOR_CONFIG=" + home + "/nothing.toml"}, HomeFlag: home},
	} {
		_, _, err := Load(o)
		require.ErrorIs(t, err, os.ErrNotExist, "a file that was named must exist")
	}
}

func TestTheFileMustBeSmallAndRegular(t *testing.T) {
	home := newHome(t)
	path := writeConfig(t, home, "#"+strings.Repeat("x", maxConfigSize))
	_, _, err := Load(Options{HomeFlag: home})
	require.ErrorContains(t, err, "larger than 1048576 bytes")

	writeConfig(t, home, "a = "+strings.Repeat("[", 100_000))
	_, _, err = Load(Options{HomeFlag: home})
	require.ErrorContains(t, err, "nested more than 64 deep")

	require.NoError(t, os.Remove(path))
	require.NoError(t, mkfifo(path))
	_, _, err = Load(Options{HomeFlag: home}) // would block for ever if it were opened for reading
	require.ErrorContains(t, err, "not a regular file")
}

func TestAllMistakesAreReportedTogether(t *testing.T) {
	home := newHome(t)
	writeConfig(t, home, `[node]
nmae = "simd"
stop_timeout = 60
args = ["start", 7]
restart_after = true
env = { A = 1 }
hold = "maybe"

[upgrad]
poll = "1s"
[snapshot]
keep = 0
on = "upgrade"
[log]
level = "loud"
[version.v2]
arg = []
[[unit]]
name = "feeder"
at = "now"
`)
	_, _, err := Load(Options{HomeFlag: home, Environ: []string{
		"DAEMON_ALLOW_DOWNLOAD_BINARIES=Yes", "SUPERVISOR_NODE_NMAE=x", "SUPERVISOR_METRICS_LISTEN=9464", "SUPERVISOR_UPGRADE_RECASE=1",
	}})
	const file = "HOME/supervisor/supervisor.toml:"
	assert.Equal(t, []string{
		file + `2:1: unknown key "nmae" in [node] (did you mean "name"?)`,
		file + `3:1: node.stop_timeout must be a duration with its unit, such as "30s", not 60`,
		file + `4:1: node.args[1] must be a string, not 7`,
		file + `5:1: unknown key "restart_after" in [node] (did you mean "restart_after" in [upgrade]?)`,
		file + `6:1: node.env.A must be a string, not 1`,
		file + `9:1: unknown key "upgrad" (did you mean "upgrade"?)`,
		file + `13:1: snapshot.on must be a list, not the string "upgrade"`,
		file + `17:1: unknown key "arg" in [version.v2] (did you mean "args"?)`,
		`SUPERVISOR_NODE_NMAE: unknown variable (did you mean SUPERVISOR_NODE_NAME?)`,
		`SUPERVISOR_UPGRADE_RECASE: must be true or false, not "1"`,
		`env variable "DAEMON_ALLOW_DOWNLOAD_BINARIES" must have a boolean value ("true" or "false"), got "yes"`,
		`DAEMON_NAME is not set`,
		file + `7:1: [node] hold: "maybe" is none of exit, wait`,
		file + `12:1: [snapshot] keep: must be at least 1`,
		file + `15:1: [log] level: "loud" is none of debug, info, warn, error`,
		`SUPERVISOR_METRICS_LISTEN: [metrics] listen: "9464" is no host:port`,
		file + `19:1: [unit] 1: name: "feeder" is no unit's name, such as price-feeder.service`,
		file + `20:1: [unit] 1: at: "now" is none of before-stop, after-stop, before-start, after-healthy`,
		file + `18:1: [unit] 1: action: "" is none of start, stop, restart, wait`,
	}, lines(t, err, home))
}

func TestSyntaxErrorsHaveAPlace(t *testing.T) {
	home := newHome(t)
	writeConfig(t, home, "[node]\nname = 'x'\n  args = [\"a\", = ]\n")
	_, _, err := Load(Options{HomeFlag: home, Environ: []string{"DAEMON_NAME=x"}})
	require.Len(t, lines(t, err, home), 1)
	assert.Regexp(t, `^HOME/supervisor/supervisor.toml:3:\d+: `, lines(t, err, home)[0])

	writeConfig(t, home, "[node]\nname = 'x'\nname = 'y'\n")
	_, _, err = Load(Options{HomeFlag: home, Environ: []string{"DAEMON_NAME=x"}})
	assert.Regexp(t, `supervisor.toml:3:\d+: .*already`, err.Error())
	writeConfig(t, home, "[metrics]\n[log]\n[metrics]\nlisten = ''\n")
	_, _, err = Load(Options{HomeFlag: home, Environ: []string{"DAEMON_NAME=x"}})
	assert.Contains(t, hint.Of(err), "write it there")
}

func TestHomeAndNameAreRefusedInCosmovisorsWords(t *testing.T) {
	home := newHome(t)
	file := filepath.Join(home, "plain")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.MkdirAll(filepath.Join(home, "b"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(home, "b", "cosmovisor"), nil, 0o600))
	for name, c := range map[string]struct {
		env  []string
		want []string
	}{
		"nothing":       {nil, []string{"DAEMON_NAME is not set", "DAEMON_HOME is not set"}},
		"relative":      {[]string{"DAEMON_HOME=a/b", "DAEMON_NAME=x"}, []string{"DAEMON_HOME must be an absolute path"}},
		"relative, own": {[]string{"SUPERVISOR_NODE_HOME=a", "DAEMON_NAME=x"}, []string{"SUPERVISOR_NODE_HOME: DAEMON_HOME must be an absolute path"}},
		"no tree":       {[]string{"DAEMON_HOME=" + home + "/a", "DAEMON_NAME=x"}, []string{"cannot stat home dir: stat HOME/a/cosmovisor: no such file or directory"}},
		"no directory":  {[]string{"DAEMON_HOME=" + home + "/b", "DAEMON_NAME=x"}, []string{"HOME/b/cosmovisor is not a directory"}},
	} {
		_, _, err := Load(Options{Environ: c.env})
		assert.Equal(t, c.want, lines(t, err, home), name)
		assert.NotEmpty(t, hint.Of(err), name)
	}
	_, _, err := Load(Options{Environ: []string{"DAEMON_HOME=" + home + "/a", "DAEMON_NAME=x"}, SkipDirs: true})
	require.NoError(t, err, "init makes what is missing")
	// A file that can't be read is the one mistake: what it would have said isn't missing.
	broken := filepath.Join(home, "broken.toml")
	require.NoError(t, os.WriteFile(broken, []byte("[node\nname = \"simd\"\n"), 0o600))
	for path, want := range map[string]string{broken: "HOME/broken.toml:2:6: ", "/nonexistent": "--config: cannot read configuration: "} {
		_, _, err := Load(Options{ConfigFlag: path})
		require.Len(t, lines(t, err, home), 1)
		assert.Contains(t, lines(t, err, home)[0], want)
	}
}

func TestValidateRefuses(t *testing.T) {
	for _, c := range []struct {
		set  func(*Config)
		want string
	}{
		{func(c *Config) { c.Node.Name = "a/b" }, `[node] name: "a/b" is no plain file name`},
		{func(c *Config) { c.Node.Name = ".." }, `[node] name: ".." is no plain file name`},
		{func(c *Config) { c.Node.Root = "../x" }, `[node] root: "../x" is neither absolute nor below home`},
		{func(c *Config) { c.Node.Root = "" }, `[node] root: "" is neither absolute nor below home`},
		{func(c *Config) { c.Node.Env = map[string]string{"A=B": ""} }, `[node] env: "A=B" is no variable's name`},
		{func(c *Config) { c.Versions = map[string]Version{"v2": {Env: map[string]string{"": ""}}} }, `[version] v2.env: "" is no variable's name`},
		{func(c *Config) { c.Upgrade.PlanFile = "/x" }, `[upgrade] plan_file: "/x" is not below home`},
		{func(c *Config) { c.Upgrade.PreUpgradeMaxRetries = -1 }, `[upgrade] pre_upgrade_max_retries: must not be negative`},
		{func(c *Config) { c.Genesis.Kind = "cosmo" }, `[genesis] kind: "cosmo" is none of kwil, cosmos, command`},
		{func(c *Config) { c.Genesis.Kind = "kwil" }, `[genesis] version: "": not a version of Kwil that is known: v0.9 or v0.10`},
		{func(c *Config) { c.Genesis.Kind, c.Genesis.Version = "cosmos", "v0.9" }, `[genesis] version: is for kind = "kwil"`},
		{func(c *Config) { c.Genesis.Kind = "command" }, `[genesis] command: the kind command needs a program`},
		{func(c *Config) { c.Genesis.Timeout = 0 }, `[genesis] timeout: must be above 0`},
		{func(c *Config) { c.Genesis.Set = map[string]any{"n": 1.5} }, `[genesis] set: n: must be a string, a whole number, true or false, a list or a table; write other numbers as strings`},
		{func(c *Config) { c.Genesis.On = []string{"x"} }, `[genesis] on: "x" is none of halt, upgrade, stop`},
		{func(c *Config) { c.Log.Format = "xml" }, `[log] format: "xml" is none of auto, text, json`},
		{func(c *Config) { c.Systemd.Ready = "" }, `[systemd] ready: "" is none of started, healthy`},
		{func(c *Config) { c.Notify.Webhook = "ftp://secret@x" }, `[notify] webhook: not an http or https address`},
		{func(c *Config) { c.Notify.Command = []string{""} }, `[notify] command: the program must not be empty`},
		{func(c *Config) { c.Control.Socket = "/" + strings.Repeat("x", 107) }, `[control] socket: longer than 107 bytes, which no unix socket's path may be`},
		{func(c *Config) { c.Snapshot.Skip, c.Upgrade.OnFailure = true, upgrade.OnFailureRollback }, `[snapshot] skip: with on_failure = "rollback" there would be nothing to roll back to`},
	} {
		cfg := Default()
		cfg.Node.Home = "/home/node"
		require.NoError(t, cfg.Validate())
		c.set(&cfg)
		require.EqualError(t, cfg.Validate(), c.want)
	}
}
