package config

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCosmovisorsVariablesMeanWhatTheyMean(t *testing.T) {
	home, backup := newHome(t), t.TempDir()
	for entry, check := range map[string]func(*Config){
		"DAEMON_ALLOW_DOWNLOAD_BINARIES=TRUE":         func(c *Config) { c.Upgrade.AllowDownload = true },
		"DAEMON_DOWNLOAD_MUST_HAVE_CHECKSUM=true":     func(c *Config) { c.Cosmovisor.MustHaveChecksum = true },
		"DAEMON_RESTART_AFTER_UPGRADE=False":          func(c *Config) { c.Upgrade.RestartAfter = false },
		"DAEMON_RESTART_DELAY=5s":                     func(c *Config) { c.Upgrade.Delay = 5 * time.Second },
		"DAEMON_SHUTDOWN_GRACE=30s":                   func(c *Config) { c.Node.StopTimeout = 30 * time.Second },
		"DAEMON_POLL_INTERVAL=1s":                     func(c *Config) { c.Upgrade.Poll = time.Second },
		"DAEMON_PREUPGRADE_MAX_RETRIES=3":             func(c *Config) { c.Upgrade.PreUpgradeMaxRetries = 3 },
		"DAEMON_GRPC_ADDRESS=https://x:1":             func(c *Config) { c.Height.GRPC = "https://x:1" },
		"UNSAFE_SKIP_BACKUP=true":                     func(c *Config) { c.Snapshot.Skip = true },
		"DAEMON_DATA_BACKUP_DIR=" + backup:            func(c *Config) { c.Snapshot.Dir = backup },
		"COSMOVISOR_DISABLE_LOGS=true":                func(c *Config) { c.Cosmovisor.DisableLogs = true },
		"COSMOVISOR_COLOR_LOGS=false":                 func(c *Config) { c.Cosmovisor.ColorLogs = new(bool) },
		"COSMOVISOR_TIMEFORMAT_LOGS=rfc3339":          func(c *Config) { v := time.RFC3339; c.Cosmovisor.TimeFormat = &v },
		"COSMOVISOR_TIMEFORMAT_LOGS=":                 func(c *Config) { c.Cosmovisor.TimeFormat = new(string) },
		"COSMOVISOR_CUSTOM_PREUPGRADE=pre.sh":         func(c *Config) { c.Upgrade.CustomPreUpgrade = "pre.sh" },
		"COSMOVISOR_DISABLE_RECASE=true":              func(c *Config) { c.Upgrade.Recase = false },
		"DAEMON_ALLOW_DOWNLOAD_BINARIES=":             func(*Config) {},
		"DAEMON_SHUTDOWN_GRACE=":                      func(*Config) {},
		"COSMOVISOR_COLOR_LOGS=":                      func(*Config) {},
		"DAEMON_PREUPGRADE_MAX_RETRIES=":              func(*Config) {},
		"DAEMON_DATA_BACKUP_DIR=" + home:              func(*Config) {}, // Cosmovisor's default
		"SUPERVISOR_SNAPSHOT_KEEP=5":                  func(c *Config) { c.Snapshot.Keep = 5 },
		"SUPERVISOR_LOG_FORMAT=json":                  func(c *Config) { c.Log.Format = "json" },
		"SUPERVISOR_UPGRADE_RECASE=FALSE":             func(c *Config) { c.Upgrade.Recase = false },
		"SUPERVISOR_CONTROL_SOCKET=/run/x":            func(c *Config) { c.Control.Socket = "/run/x" },
		"SUPERVISOR_NODE_ROOT=versions/../cosmovisor": func(c *Config) { c.Node.Root = "versions/../cosmovisor" },
	} {
		want := Default()
		want.Node.Home, want.Node.Name = home, "simd"
		check(&want)
		cfg, origin, err := Load(Options{Environ: []string{"DAEMON_HOME=" + home, "DAEMON_NAME=simd", entry}})
		if assert.NoError(t, err, entry) {
			assert.Equal(t, want, cfg, entry)
			assert.Empty(t, origin.Warnings, entry)
		}
	}
}

// The texts are those of Cosmovisor 1.7.1, in its order: operators' scripts look for them.
func TestCosmovisorsTextsAndOrder(t *testing.T) {
	_, _, err := Load(Options{Environ: []string{
		"DAEMON_HOME=rel", "DAEMON_DATA_BACKUP_DIR=backup",
		"DAEMON_ALLOW_DOWNLOAD_BINARIES=1", "DAEMON_DOWNLOAD_MUST_HAVE_CHECKSUM=ON", "DAEMON_RESTART_AFTER_UPGRADE=t", "UNSAFE_SKIP_BACKUP=0",
		"COSMOVISOR_DISABLE_LOGS=no", "COSMOVISOR_COLOR_LOGS=y", "COSMOVISOR_TIMEFORMAT_LOGS=Kitchen", "COSMOVISOR_DISABLE_RECASE=x",
		"DAEMON_POLL_INTERVAL=300", "DAEMON_RESTART_DELAY=0", "DAEMON_SHUTDOWN_GRACE=-1s", "DAEMON_PREUPGRADE_MAX_RETRIES=many",
	}})
	boolean := func(name, got string) string {
		return `env variable "` + name + `" must have a boolean value ("true" or "false"), got "` + got + `"`
	}
	assert.Equal(t, []string{
		boolean("DAEMON_ALLOW_DOWNLOAD_BINARIES", "1"), boolean("DAEMON_DOWNLOAD_MUST_HAVE_CHECKSUM", "on"),
		boolean("DAEMON_RESTART_AFTER_UPGRADE", "t"), boolean("UNSAFE_SKIP_BACKUP", "0"),
		boolean("COSMOVISOR_DISABLE_LOGS", "no"), boolean("COSMOVISOR_COLOR_LOGS", "y"),
		`env variable "COSMOVISOR_TIMEFORMAT_LOGS" must have a timeformat value ("layout|ansic|unixdate|rubydate|rfc822|rfc822z|rfc850|rfc1123|rfc1123z|rfc3339|rfc3339nano|kitchen"), got "Kitchen"`,
		boolean("COSMOVISOR_DISABLE_RECASE", "x"),
		`invalid: DAEMON_POLL_INTERVAL: could not parse '300' into a duration: time: missing unit in duration "300"`,
		`invalid: DAEMON_RESTART_DELAY: must be greater than 0`,
		`invalid: DAEMON_SHUTDOWN_GRACE: must be greater than 0`,
		`DAEMON_PREUPGRADE_MAX_RETRIES could not be parsed to int: strconv.Atoi: parsing "many": invalid syntax`,
		`backup must be an absolute path`,
		`DAEMON_NAME is not set`,
		`DAEMON_HOME must be an absolute path`,
	}, lines(t, err, "/nowhere"))
}

func TestBackupDirMustExist(t *testing.T) {
	home := newHome(t)
	env := []string{"DAEMON_HOME=" + home, "DAEMON_NAME=x", "DAEMON_DATA_BACKUP_DIR=" + home + "/none"}
	_, _, err := Load(Options{Environ: env})
	assert.Equal(t, []string{`"HOME/none" must be a valid directory: stat HOME/none: no such file or directory`}, lines(t, err, home))
	_, _, err = Load(Options{Environ: append(env, "UNSAFE_SKIP_BACKUP=true")})
	require.NoError(t, err, "without backups it isn't looked at")
	require.NoError(t, os.WriteFile(home+"/none", nil, 0o600))
	_, _, err = Load(Options{Environ: env})
	assert.Equal(t, []string{`"HOME/none" must be a valid directory`}, lines(t, err, home))
}

func TestUnknownVariables(t *testing.T) {
	home := newHome(t)
	base := []string{"DAEMON_HOME=" + home, "DAEMON_NAME=x"}
	for entry, want := range map[string]string{
		"SUPERVISOR_NODE_STOPTIMEOUT=1s":  "SUPERVISOR_NODE_STOPTIMEOUT: unknown variable (did you mean SUPERVISOR_NODE_STOP_TIMEOUT?)",
		"SUPERVISOR_NODE_COLOUR_OF=1":     "SUPERVISOR_NODE_COLOUR_OF: unknown variable: [node] has no such key",
		"SUPERVISOR_CONFGI=/x":            "SUPERVISOR_CONFGI: unknown variable (did you mean SUPERVISOR_CONFIG?)",
		"SUPERVISOR_NODE_ARGS=start":      "SUPERVISOR_NODE_ARGS: is no single value: it can only be set in the file",
		"SUPERVISOR_NODE_ENV=A=1":         "SUPERVISOR_NODE_ENV: is no single value: it can only be set in the file",
		"SUPERVISOR_SNAPSHOT_SOURCE=data": "SUPERVISOR_SNAPSHOT_SOURCE: is no single value: it can only be set in the file",
		"SUPERVISOR_RESTART=sometimes":    `SUPERVISOR_RESTART: [node] restart: "sometimes" is none of never, on-failure, always`,
		"SUPERVISOR_UPGRADE_DELAY=-1s":    "SUPERVISOR_UPGRADE_DELAY: [upgrade] delay: must not be negative",
	} {
		_, _, err := Load(Options{Environ: append(base, entry)})
		if assert.Error(t, err, entry) {
			assert.Equal(t, []string{want}, lines(t, err, home), entry)
		}
	}
	// Another supervisor's variables, and our own for a node's script, stop nothing.
	_, origin, err := Load(Options{Environ: append(base, "SUPERVISOR_ENABLED=1", "SUPERVISOR_PROCESS_NAME=simd", "SUPERVISOR_GROUP_NAME=simd",
		"SUPERVISOR_SERVER_URL=unix:///run/supervisor.sock", "SUPERVISOR_ATTEMPT=2", "SUPERVISOR_FETCH_X=1", "SUPERVISOR_TOKEN=x", "SUPERVISOR_HASSIO_THING=x")})
	require.NoError(t, err)
	assert.Equal(t, []string{"SUPERVISOR_HASSIO_THING: unknown variable, ignored"}, origin.Warnings)
}

// Every scalar key has a variable, no two have the same, and none collides with a known one.
func TestEveryScalarHasAVariable(t *testing.T) {
	keys := envKeys()
	paths := map[string]bool{}
	for name, path := range keys {
		assert.False(t, paths[path])
		paths[path] = true
		assert.NotContains(t, knownVariables(), name)
		assert.Equal(t, path, keys[envName(path)])
	}
	for _, path := range []string{"node.stop_timeout", "upgrade.probation.up", "height.url", "height.body", "snapshot.min_free", "control.group", "metrics.listen"} {
		assert.True(t, paths[path], path)
	}
	assert.Equal(t, "SUPERVISOR_UPGRADE_PROBATION_HEIGHT_ABOVE_PLAN", envName("upgrade.probation.height_above_plan"))
}

func TestOfTwoEqualVariablesTheLastCounts(t *testing.T) {
	assert.Equal(t, map[string]string{"A": "2=3", "B": ""}, Variables([]string{"A=1", "A=2=3", "B=", "nothing"}))
}

func TestTimeFormats(t *testing.T) {
	for _, word := range timeFormats() {
		layout, ok := timeLayout(word)
		assert.True(t, ok, word)
		assert.NotEmpty(t, layout, word)
	}
	layout, ok := timeLayout("kitchen")
	assert.True(t, ok)
	assert.Equal(t, "3:04PM", layout)
	_, ok = timeLayout("iso")
	assert.False(t, ok)
}
