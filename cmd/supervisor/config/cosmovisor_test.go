package config

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// exported is what `cosmovisor init` of version 1.7.1 writes when nothing but home and name is set.
const exported = `daemon_home = 'HOME'
daemon_name = 'simd'
daemon_allow_download_binaries = false
daemon_download_must_have_checksum = false
daemon_restart_after_upgrade = true
daemon_restart_delay = 0
daemon_shutdown_grace = 0
daemon_poll_interval = 300000000
unsafe_skip_backup = false
daemon_data_backup_dir = 'HOME'
daemon_preupgrade_max_retries = 0
daemon_grpc_address = 'localhost:9090'
cosmovisor_disable_logs = false
cosmovisor_color_logs = true
cosmovisor_timeformat_logs = 'kitchen'
cosmovisor_custom_preupgrade = ''
cosmovisor_disable_recase = false
`

func writeLegacy(t *testing.T, home, text string) string {
	t.Helper()
	path := filepath.Join(home, "cosmovisor", "config.toml")
	require.NoError(t, os.WriteFile(path, []byte(strings.ReplaceAll(text, "HOME", home)), 0o600))
	return path
}

func TestAnExportedCosmovisorConfigIsTheDefault(t *testing.T) {
	home := newHome(t)
	path := writeLegacy(t, home, exported)
	cfg, origin, err := Load(Options{CosmovisorConfig: path})
	require.NoError(t, err)
	want := Default()
	want.Node.Home, want.Node.Name = home, "simd"
	assert.Equal(t, want, cfg)
	assert.Equal(t, path+":1:1", origin.Of("node.home"))
	assert.Equal(t, []string{path + ": no daemon_shutdown_grace: the node gets 1m0s to stop, where Cosmovisor kills it at once"}, origin.Warnings)
}

func TestCosmovisorConfigValues(t *testing.T) {
	home, backup := newHome(t), t.TempDir()
	writeConfig(t, home, "[node]\nname='file'\nstop_timeout='9s'\nrestart='never'\n")
	path := writeLegacy(t, home, `daemon_home = 'HOME'
DAEMON_NAME = "simd"
daemon_allow_download_binaries = "true"
daemon_restart_delay = "5s"
daemon_shutdown_grace = 30000000000
daemon_poll_interval = '2s'
daemon_preupgrade_max_retries = 2
daemon_data_backup_dir = '`+backup+`'
cosmovisor_color_logs = false
cosmovisor_timeformat_logs = 'rfc3339'
cosmovisor_disable_recase = true
daemon_nmae = 1
`)
	cfg, origin, err := Load(Options{CosmovisorConfig: path, Environ: []string{"DAEMON_RESTART_DELAY=7s", "DAEMON_GRPC_ADDRESS=x:1"}})
	require.NoError(t, err)
	want := Default()
	want.Node.Home, want.Node.Name, want.Node.Restart, want.Node.StopTimeout = home, "simd", "never", 30*time.Second
	want.Upgrade.AllowDownload, want.Upgrade.Delay, want.Upgrade.Poll, want.Upgrade.PreUpgradeMaxRetries = true, 7*time.Second, 2*time.Second, 2
	want.Upgrade.Recase, want.Snapshot.Dir, want.Height.GRPC = false, backup, "x:1"
	layout := time.RFC3339
	want.Cosmovisor.ColorLogs, want.Cosmovisor.TimeFormat = new(bool), &layout
	assert.Equal(t, want, cfg)
	assert.Equal(t, path+":5:1", origin.Of("node.stop_timeout"))
	assert.Equal(t, "DAEMON_RESTART_DELAY", origin.Of("upgrade.delay"), "the environment is above the file")
	assert.Equal(t, home+"/supervisor/supervisor.toml:4:1", origin.Of("node.restart"), "our own file is below it")
	assert.Equal(t, []string{path + `:12:1: unknown key "daemon_nmae", ignored (did you mean "daemon_name"?)`}, origin.Warnings)
}

func TestCosmovisorConfigMistakes(t *testing.T) {
	home := newHome(t)
	path := writeLegacy(t, home, "daemon_home = 'HOME'\ndaemon_name = 'x'\ndaemon_poll_interval = -1\ndaemon_shutdown_grace = 'soon'\n"+
		"daemon_restart_after_upgrade = 'maybe'\ndaemon_grpc_address = ['a']\ncosmovisor_timeformat_logs = 'iso'\ndaemon_preupgrade_max_retries='x'\n")
	_, _, err := Load(Options{CosmovisorConfig: path})
	const file = "HOME/cosmovisor/config.toml:"
	got := lines(t, err, home)
	for i, want := range []string{
		file + "6:1: daemon_grpc_address must be a single value, not a list",
		file + `5:1: env variable "DAEMON_RESTART_AFTER_UPGRADE" must have a boolean value ("true" or "false"), got "maybe"`,
		file + `7:1: env variable "COSMOVISOR_TIMEFORMAT_LOGS" must have a timeformat value`,
		file + "3:1: invalid: DAEMON_POLL_INTERVAL: must be greater than 0",
		file + `4:1: invalid: DAEMON_SHUTDOWN_GRACE: could not parse 'soon' into a duration`,
		file + `8:1: DAEMON_PREUPGRADE_MAX_RETRIES could not be parsed to int`,
	} {
		require.Greater(t, len(got), i)
		assert.True(t, strings.HasPrefix(got[i], want), "%s\nwant %s", got[i], want)
	}
	assert.Len(t, got, 6)

	_, _, err = Load(Options{CosmovisorConfig: home + "/none", HomeFlag: home, Environ: []string{"DAEMON_NAME=x"}})
	assert.Equal(t, []string{"--cosmovisor-config: config not found: at HOME/none : open HOME/none: no such file or directory"}, lines(t, err, home))
	writeLegacy(t, home, "daemon_home = \n")
	_, _, err = Load(Options{CosmovisorConfig: path, HomeFlag: home, Environ: []string{"DAEMON_NAME=x"}})
	assert.Regexp(t, `^HOME/cosmovisor/config.toml:1:\d+: `, lines(t, err, home)[0])
}

// The text is what cosmovisor 1.7.1 prints for the same settings, byte for byte: exporters parse it.
func TestRenderCosmovisorConfig(t *testing.T) {
	home, backup := newHome(t), t.TempDir()
	cfg, _, err := Load(Options{Environ: []string{
		"DAEMON_HOME=" + home, "DAEMON_NAME=simd", "DAEMON_ALLOW_DOWNLOAD_BINARIES=true", "DAEMON_DOWNLOAD_MUST_HAVE_CHECKSUM=true",
		"DAEMON_RESTART_AFTER_UPGRADE=false", "DAEMON_RESTART_DELAY=90s", "DAEMON_SHUTDOWN_GRACE=30s", "DAEMON_POLL_INTERVAL=1s",
		"DAEMON_DATA_BACKUP_DIR=" + backup, "DAEMON_PREUPGRADE_MAX_RETRIES=3", "COSMOVISOR_COLOR_LOGS=false",
		"COSMOVISOR_TIMEFORMAT_LOGS=rfc3339", "COSMOVISOR_CUSTOM_PREUPGRADE=pre.sh", "COSMOVISOR_DISABLE_RECASE=true",
	}})
	require.NoError(t, err)
	var b bytes.Buffer
	require.NoError(t, RenderCosmovisor(cfg, &b))
	assert.Equal(t, fmt.Sprintf(`Configurable Values:
  DAEMON_HOME: %[1]s
  DAEMON_NAME: simd
  DAEMON_ALLOW_DOWNLOAD_BINARIES: true
  DAEMON_DOWNLOAD_MUST_HAVE_CHECKSUM: true
  DAEMON_RESTART_AFTER_UPGRADE: false
  DAEMON_RESTART_DELAY: 1m30s
  DAEMON_SHUTDOWN_GRACE: 30s
  DAEMON_POLL_INTERVAL: 1s
  UNSAFE_SKIP_BACKUP: false
  DAEMON_DATA_BACKUP_DIR: %[2]s
  DAEMON_PREUPGRADE_MAX_RETRIES: 3
  COSMOVISOR_DISABLE_LOGS: false
  COSMOVISOR_COLOR_LOGS: false
  COSMOVISOR_TIMEFORMAT_LOGS: 2006-01-02T15:04:05Z07:00
  COSMOVISOR_CUSTOM_PREUPGRADE: pre.sh
  COSMOVISOR_DISABLE_RECASE: true
Derived Values:
         Root Dir: %[1]s/cosmovisor
      Upgrade Dir: %[1]s/cosmovisor/upgrades
      Genesis Bin: %[1]s/cosmovisor/genesis/bin/simd
   Monitored File: %[1]s/data/upgrade-info.json
  Data Backup Dir: %[2]s
`, home, backup), b.String())

	cfg, _, err = Load(Options{HomeFlag: home, Environ: []string{"DAEMON_NAME=simd"}})
	require.NoError(t, err)
	b.Reset()
	require.NoError(t, RenderCosmovisor(cfg, &b))
	assert.Contains(t, b.String(), "  DAEMON_SHUTDOWN_GRACE: 1m0s\n  DAEMON_POLL_INTERVAL: 300ms\n")
	assert.Contains(t, b.String(), "  COSMOVISOR_COLOR_LOGS: true\n  COSMOVISOR_TIMEFORMAT_LOGS: 3:04PM\n  COSMOVISOR_CUSTOM_PREUPGRADE: \n")
	assert.Contains(t, b.String(), "  Data Backup Dir: "+home+"/supervisor/snapshots\n", "what holds, not what Cosmovisor would use")
}
