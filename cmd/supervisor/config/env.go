package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodevisor/internal/suggest"
	"nodevisor/supervisor/restart"
)

// Variables reads "NAME=value" entries; of a name that is there twice the last one counts, as for a child process.
func Variables(environ []string) map[string]string {
	env := make(map[string]string, len(environ))
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok {
			env[name] = value
		}
	}
	return env
}

// envName is the variable of a scalar key: node.stop_timeout → SUPERVISOR_NODE_STOP_TIMEOUT.
func envName(path string) string {
	return "SUPERVISOR_" + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
}

// envKeys maps each variable to its key, for every key that lies in no array and under no version; lists and tables
// among them are told apart only to be refused with a better reason.
func envKeys() map[string]string {
	keys := map[string]string{}
	for _, path := range allKeys(reflect.TypeFor[Config](), "") {
		if f, ok := keyField(&Config{}, path); ok && f.Kind() != reflect.Struct && strings.Contains(path, ".") {
			keys[envName(path)] = path
		}
	}
	return keys
}

// knownVariables are those that begin with SUPERVISOR_ and are no key: our own, and what supervisord and Home
// Assistant give their children (http://supervisord.org/subprocess.html#subprocess-environment).
func knownVariables() []string {
	return []string{
		"SUPERVISOR_CONFIG", "SUPERVISOR_RESTART", "SUPERVISOR_ATTEMPT",
		"SUPERVISOR_ENABLED", "SUPERVISOR_PROCESS_NAME", "SUPERVISOR_GROUP_NAME", "SUPERVISOR_SERVER_URL", "SUPERVISOR_TOKEN",
	}
}

// applySupervisorEnv takes SUPERVISOR_<TABLE>_<KEY>. An empty variable counts as not set, as an empty DAEMON_* does: a
// script's unset ${X} must not switch something off.
func (l *loader) applySupervisorEnv() {
	keys := envKeys()
	var names []string
	for name, value := range l.env {
		if strings.HasPrefix(name, "SUPERVISOR_") && value != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		path, ok := keys[name]
		if !ok {
			l.unknownVariable(name, keys)
			continue
		}
		field, _ := keyField(&l.cfg, path)
		if field.Kind() == reflect.Pointer {
			field.Set(reflect.New(field.Type().Elem()))
			field = field.Elem()
		}
		if err := setText(l.env[name], field); err != nil {
			l.bad(name, err)
			continue
		}
		l.origin.Keys[path] = name
	}
	if v := l.env["SUPERVISOR_RESTART"]; v != "" {
		l.override("node.restart", "SUPERVISOR_RESTART", func() { l.cfg.Node.Restart = restart.Policy(v) })
	}
}

// unknownVariable refuses what looks like a misspelt key, and lets other programs' variables be.
func (l *loader) unknownVariable(name string, keys map[string]string) {
	known := knownVariables()
	if slices.Contains(known, name) || strings.HasPrefix(name, "SUPERVISOR_FETCH") || strings.HasPrefix(name, "SUPERVISOR_EVENT") {
		return
	}
	candidates := known[:3]
	for k := range keys {
		candidates = append(candidates, k)
	}
	suggestion := suggest.Closest(name, candidates)
	table, _, _ := strings.Cut(strings.TrimPrefix(name, "SUPERVISOR_"), "_")
	_, isTable := keyField(&Config{}, strings.ToLower(table))
	switch {
	case suggestion != "":
		l.bad(name, fmt.Errorf("unknown variable (did you mean %s?)", suggestion))
	case isTable:
		l.bad(name, fmt.Errorf("unknown variable: [%s] has no such key", strings.ToLower(table)))
	default:
		l.warn("%s: unknown variable, ignored", name)
	}
}

// override sets a key from a variable of Cosmovisor's. They come after SUPERVISOR_<TABLE>_<KEY>, as for the home; two
// variables for one key are said, because one of them is without effect.
func (l *loader) override(path, at string, set func()) {
	if own := envName(path); l.origin.Of(path) == own && own != at {
		l.warn("%s and %s are both set: the former holds", at, own)
	}
	set()
	l.origin.Keys[path] = at
}

// daemonVar looks a variable of Cosmovisor's up: in the environment, else in its own configuration file. at is what an
// error names.
func (l *loader) daemonVar(name string) (value, at string) {
	if v := l.env[name]; v != "" {
		return v, name
	}
	v := l.legacy[name]
	return v.text, v.at
}

// applyDaemonEnv takes Cosmovisor's variables, in its own order of reporting: booleans, time format, recase, interval,
// delay, grace, retries, then name, home and backup directory.
func (l *loader) applyDaemonEnv() {
	c, flags := &l.cfg, &l.cfg.Cosmovisor
	l.daemonBool("DAEMON_ALLOW_DOWNLOAD_BINARIES", "upgrade.allow_download", func(b bool) { c.Upgrade.AllowDownload = b })
	l.daemonBool("DAEMON_DOWNLOAD_MUST_HAVE_CHECKSUM", "", func(b bool) { flags.MustHaveChecksum = b })
	l.daemonBool("DAEMON_RESTART_AFTER_UPGRADE", "upgrade.restart_after", func(b bool) { c.Upgrade.RestartAfter = b })
	l.daemonBool("UNSAFE_SKIP_BACKUP", "snapshot.skip", func(b bool) { c.Snapshot.Skip = b })
	l.daemonBool("COSMOVISOR_DISABLE_LOGS", "", func(b bool) { flags.DisableLogs = b })
	l.daemonBool("COSMOVISOR_COLOR_LOGS", "", func(b bool) { flags.ColorLogs = &b })
	l.daemonTimeFormat()
	l.daemonBool("COSMOVISOR_DISABLE_RECASE", "upgrade.recase", func(b bool) { c.Upgrade.Recase = !b })

	l.daemonDuration("DAEMON_POLL_INTERVAL", "upgrade.poll", &c.Upgrade.Poll)
	l.daemonDuration("DAEMON_RESTART_DELAY", "upgrade.delay", &c.Upgrade.Delay)
	l.daemonDuration("DAEMON_SHUTDOWN_GRACE", "node.stop_timeout", &c.Node.StopTimeout)
	if v, at := l.daemonVar("DAEMON_PREUPGRADE_MAX_RETRIES"); v != "" {
		if n, err := strconv.Atoi(v); err != nil {
			l.bad(unlessSame(at, "DAEMON_PREUPGRADE_MAX_RETRIES"), fmt.Errorf("DAEMON_PREUPGRADE_MAX_RETRIES could not be parsed to int: %w", err))
		} else {
			l.override("upgrade.pre_upgrade_max_retries", at, func() { c.Upgrade.PreUpgradeMaxRetries = n })
		}
	}
	l.daemonText("DAEMON_GRPC_ADDRESS", "height.grpc", &c.Height.GRPC)
	l.daemonText("COSMOVISOR_CUSTOM_PREUPGRADE", "upgrade.custom_pre_upgrade", &c.Upgrade.CustomPreUpgrade)
	l.daemonText("DAEMON_NAME", "node.name", &c.Node.Name)
	l.daemonText("DAEMON_HOME", "node.home", &c.Node.Home)
	l.daemonBackupDir()
}

func (l *loader) daemonText(name, path string, out *string) {
	if v, at := l.daemonVar(name); v != "" {
		l.override(path, at, func() { *out = v })
	}
}

func (l *loader) daemonBool(name, path string, set func(bool)) {
	v, at := l.daemonVar(name)
	lower := strings.ToLower(v)
	switch {
	case v == "":
	case lower != "true" && lower != "false":
		l.bad(unlessSame(at, name), fmt.Errorf("env variable %q must have a boolean value (\"true\" or \"false\"), got %q", name, lower))
	case path == "":
		set(lower == "true")
	default:
		l.override(path, at, func() { set(lower == "true") })
	}
}

func (l *loader) daemonDuration(name, path string, out *time.Duration) {
	v, at := l.daemonVar(name)
	if v == "" {
		return
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		err = fmt.Errorf("could not parse '%s' into a duration: %w", v, err)
	} else if d <= 0 {
		err = errors.New("must be greater than 0")
	}
	if err != nil {
		l.bad(unlessSame(at, name), fmt.Errorf("invalid: %s: %w", name, err))
		return
	}
	l.override(path, at, func() { *out = d })
}

// daemonBackupDir takes DAEMON_DATA_BACKUP_DIR. Cosmovisor's default for it is the home itself, where no store of
// snapshots belongs; that value therefore counts as not set.
func (l *loader) daemonBackupDir() {
	v, at := l.daemonVar("DAEMON_DATA_BACKUP_DIR")
	if v == "" || filepath.Clean(v) == filepath.Clean(l.cfg.Node.Home) {
		return
	}
	if !filepath.IsAbs(v) && !l.cfg.Snapshot.Skip {
		l.bad(unlessSame(at, "DAEMON_DATA_BACKUP_DIR"), fmt.Errorf("%s must be an absolute path", v))
		return
	}
	l.override("snapshot.dir", at, func() { l.cfg.Snapshot.Dir = v })
}

// daemonTimeFormat takes COSMOVISOR_TIMEFORMAT_LOGS, where set but empty is a value: no time at all.
func (l *loader) daemonTimeFormat() {
	const name = "COSMOVISOR_TIMEFORMAT_LOGS"
	v, at := l.daemonVar(name)
	if _, set := l.env[name]; v == "" && !set {
		return
	}
	layout, ok := timeLayout(v)
	if !ok {
		l.bad(unlessSame(at, name), fmt.Errorf("env variable %q must have a timeformat value (\"%s\"), got %q", name, strings.Join(timeFormats(), "|"), v))
		return
	}
	l.cfg.Cosmovisor.TimeFormat = &layout
}

// timeFormats are the words of COSMOVISOR_TIMEFORMAT_LOGS.
func timeFormats() []string {
	return strings.Fields("layout ansic unixdate rubydate rfc822 rfc822z rfc850 rfc1123 rfc1123z rfc3339 rfc3339nano kitchen")
}

// timeLayout is the layout of package time that a word means.
func timeLayout(word string) (layout string, ok bool) {
	layouts := []string{
		time.Layout, time.ANSIC, time.UnixDate, time.RubyDate, time.RFC822, time.RFC822Z, time.RFC850,
		time.RFC1123, time.RFC1123Z, time.RFC3339, time.RFC3339Nano, time.Kitchen,
	}
	if i := slices.Index(timeFormats(), word); i >= 0 {
		return layouts[i], true
	}
	return "", word == ""
}

// unlessSame leaves out a place that the message itself names.
func unlessSame(at, name string) string {
	if at == name {
		return ""
	}
	return at
}
