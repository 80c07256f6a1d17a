package config

import (
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"nodevisor/internal/capped"
)

// legacyValue is one value of Cosmovisor's configuration file, in the form in which its variable would hold it.
type legacyValue struct{ text, at string }

// legacyKeys are the keys of Cosmovisor 1.7.1's config.toml in its own order, with what `cosmovisor init` writes there
// when nothing was asked for. Each is the lower-case name of the variable that means the same.
func legacyKeys() [][2]string {
	return [][2]string{
		{"daemon_home"},
		{"daemon_name"},
		{"daemon_allow_download_binaries", "false"},
		{"daemon_download_must_have_checksum", "false"},
		{"daemon_restart_after_upgrade", "true"},
		{"daemon_restart_delay", "0"},
		{"daemon_shutdown_grace", "0"},
		{"daemon_poll_interval", "300ms"},
		{"unsafe_skip_backup", "false"},
		{"daemon_data_backup_dir"},
		{"daemon_preupgrade_max_retries", "0"},
		{"daemon_grpc_address", "localhost:9090"},
		{"cosmovisor_disable_logs", "false"},
		{"cosmovisor_color_logs", "true"},
		{"cosmovisor_timeformat_logs", "kitchen"},
		{"cosmovisor_custom_preupgrade"},
		{"cosmovisor_disable_recase", "false"},
	}
}

// readCosmovisor reads Cosmovisor's config.toml as if its values were variables, below the real ones. Cosmovisor writes
// every key, so a value equal to its default is no wish of the operator's: our own defaults (a stop timeout of 60 s
// instead of an immediate SIGKILL, colour only on a terminal) hold there. A missing key is a default as well, where
// Cosmovisor itself panics or takes false (issues/19764).
func (l *loader) readCosmovisor(path string) {
	text, err := capped.ReadFile(path, maxConfigSize)
	if err != nil {
		l.bad("--cosmovisor-config", fmt.Errorf("config not found: at %s : %w", path, err))
		return
	}
	at, depth := keyPositions(text)
	var raw map[string]any
	if depth > maxDepth {
		err = fmt.Errorf("values are nested more than %d deep", maxDepth)
	} else {
		_, err = toml.Decode(text, &raw)
	}
	if err != nil {
		l.problems = append(l.problems, syntaxProblem(path, err))
		return
	}
	l.legacy = map[string]legacyValue{}
	known := legacyKeys()
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		p, _ := positionOf(at, key)
		place := fmt.Sprintf("%s:%d:%d", path, p.line, p.column)
		name := strings.ToLower(key) // its reader takes any case
		i := slices.IndexFunc(known, func(k [2]string) bool { return k[0] == name })
		if i < 0 {
			l.warn("%s: unknown key %q, ignored%s", place, key, suggestKey("", name, legacyNames()))
			continue
		}
		v, err := legacyText(name, raw[key])
		if err != nil {
			l.bad(place, fmt.Errorf("%s %w", key, err))
		} else if v != known[i][1] {
			l.legacy[strings.ToUpper(name)] = legacyValue{text: v, at: place}
		}
	}
	l.warnOfSilentDefaults(path)
}

// warnOfSilentDefaults tells where we read more into a file than Cosmovisor does.
func (l *loader) warnOfSilentDefaults(path string) {
	if v := l.legacy["DAEMON_SHUTDOWN_GRACE"]; v.text == "" && l.env["DAEMON_SHUTDOWN_GRACE"] == "" {
		l.warn("%s: no daemon_shutdown_grace: the node gets %s to stop, where Cosmovisor kills it at once", path, l.cfg.Node.StopTimeout)
	}
}

func legacyNames() (names []string) {
	for _, k := range legacyKeys() {
		names = append(names, k[0])
	}
	return names
}

// legacyText turns a value into a variable's text. Cosmovisor's reader is lenient (a number or a boolean may be
// quoted), and a bare number is a duration in nanoseconds.
func legacyText(name string, in any) (string, error) {
	isDuration := slices.Contains([]string{"daemon_restart_delay", "daemon_shutdown_grace", "daemon_poll_interval"}, name)
	var text string
	switch in := in.(type) {
	case string:
		text = in
	case bool:
		text = strconv.FormatBool(in)
	case int64:
		if text = strconv.FormatInt(in, 10); isDuration {
			text = time.Duration(in).String()
		}
	default:
		return "", fmt.Errorf("must be a single value, not %s", describe(in))
	}
	if isDuration {
		if d, err := time.ParseDuration(text); err == nil && d == 0 {
			return "0", nil
		}
	}
	return text, nil
}

// shown is one value that `config` prints.
type shown struct {
	name  string
	value any
}

// configurable lists what Cosmovisor 1.7.1 prints as such, in its order. The values are those that hold here, whatever they
// were set by.
func configurable(cfg Config) []shown {
	color, layout := true, time.Kitchen // Cosmovisor's defaults, printed where nothing else was asked for
	if cfg.Cosmovisor.ColorLogs != nil {
		color = *cfg.Cosmovisor.ColorLogs
	}
	if cfg.Cosmovisor.TimeFormat != nil {
		layout = *cfg.Cosmovisor.TimeFormat
	}
	return []shown{
		{"DAEMON_HOME", cfg.Node.Home},
		{"DAEMON_NAME", cfg.Node.Name},
		{"DAEMON_ALLOW_DOWNLOAD_BINARIES", cfg.Upgrade.AllowDownload},
		{"DAEMON_DOWNLOAD_MUST_HAVE_CHECKSUM", cfg.Cosmovisor.MustHaveChecksum},
		{"DAEMON_RESTART_AFTER_UPGRADE", cfg.Upgrade.RestartAfter},
		{"DAEMON_RESTART_DELAY", cfg.Upgrade.Delay},
		{"DAEMON_SHUTDOWN_GRACE", cfg.Node.StopTimeout},
		{"DAEMON_POLL_INTERVAL", cfg.Upgrade.Poll},
		{"UNSAFE_SKIP_BACKUP", cfg.Snapshot.Skip},
		{"DAEMON_DATA_BACKUP_DIR", cfg.SnapshotDir()},
		{"DAEMON_PREUPGRADE_MAX_RETRIES", cfg.Upgrade.PreUpgradeMaxRetries},
		{"COSMOVISOR_DISABLE_LOGS", cfg.Cosmovisor.DisableLogs},
		{"COSMOVISOR_COLOR_LOGS", color},
		{"COSMOVISOR_TIMEFORMAT_LOGS", layout},
		{"COSMOVISOR_CUSTOM_PREUPGRADE", cfg.Upgrade.CustomPreUpgrade},
		{"COSMOVISOR_DISABLE_RECASE", !cfg.Upgrade.Recase},
	}
}

// derived lists the places that follow from them, with Cosmovisor's names.
func derived(cfg Config) []shown {
	root := cfg.RootDir()
	return []shown{
		{"Root Dir", root},
		{"Upgrade Dir", filepath.Join(root, "upgrades")},
		{"Genesis Bin", filepath.Join(root, "genesis", "bin", cfg.Node.Name)},
		{"Monitored File", cfg.UnderHome(cfg.Upgrade.PlanFile)},
		{"Data Backup Dir", cfg.SnapshotDir()},
	}
}

// RenderCosmovisor writes what Cosmovisor 1.7.1 prints for `config`: same names, order, alignment and formats,
// which exporters and node scripts parse.
func RenderCosmovisor(cfg Config, w io.Writer) error {
	var b strings.Builder
	b.WriteString("Configurable Values:\n")
	for _, v := range configurable(cfg) {
		fmt.Fprintf(&b, "  %s: %v\n", v.name, v.value)
	}
	b.WriteString("Derived Values:\n")
	for _, v := range derived(cfg) {
		fmt.Fprintf(&b, "  %15s: %s\n", v.name, v.value) // as wide as the longest name
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// CosmovisorDocument is the same for --json. Durations are texts, as the variables take them.
func CosmovisorDocument(cfg Config) map[string]map[string]any {
	doc := map[string]map[string]any{"configurable": {}, "derived": {}}
	for _, v := range configurable(cfg) {
		if d, ok := v.value.(fmt.Stringer); ok {
			v.value = d.String()
		}
		doc["configurable"][v.name] = v.value
	}
	for _, v := range derived(cfg) {
		doc["derived"][strings.ReplaceAll(strings.ToLower(v.name), " ", "_")] = v.value
	}
	return doc
}
