// Package config is everything that an operator can set, and where each value came from.
//
// A Config is data: one field for each table of supervisor.toml, most of them the Config of the package that they are for.
// Load composes it, flag over environment over file over default, and doesn't stop at the first mistake: a mistake has a
// place (file:line:column, a variable, a flag), and all of them are one Error. Three spellings mean the same key: the file's
// ("[upgrade] poll"), our variable's (SUPERVISOR_UPGRADE_POLL), and, where there is one, Cosmovisor's (DAEMON_POLL_INTERVAL).
package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodevisor/snapshot"
	"nodevisor/supervisor"
	"nodevisor/upgrade"
	"nodevisor/upgrade/source"
)

// MaxSocketPath is the longest path of a unix socket, without its closing NUL: sun_path, unix(7).
const MaxSocketPath = 107

// Config is everything that an operator can set: one field for each table of supervisor.toml. It is data alone; the
// constructors of the other packages take the few fields that they need.
type Config struct {
	Node     supervisor.Config  `toml:"node"`
	Versions map[string]Version `toml:"version"` // by the version's name, over [node]
	Upgrade  upgrade.Config     `toml:"upgrade"`
	Height   source.Config      `toml:"height"`
	Snapshot snapshot.Config    `toml:"snapshot"`
	Genesis  Genesis            `toml:"genesis"`
	Control  Control            `toml:"control"`
	Log      Log                `toml:"log"`
	Metrics  Metrics            `toml:"metrics"`
	Notify   Notify             `toml:"notify"`
	Systemd  Systemd            `toml:"systemd"`
	Units    []Unit             `toml:"unit"`
	Security Security           `toml:"security"`

	// Cosmovisor holds what only COSMOVISOR_* and DAEMON_* can say; it has no table.
	Cosmovisor Cosmovisor `toml:"-"`
}

// Version is one table [version."<name>"]: what differs from [node] while that version runs.
type Version struct {
	Args *[]string         `toml:"args"` // instead of [node] args; an empty list is a value too
	Env  map[string]string `toml:"env"`  // over [node] env, variable by variable
}

// Genesis is the table [genesis]: what a template is made of, and when.
type Genesis struct {
	Kind    string         `toml:"kind"`    // "" (none) | kwil | cosmos | command
	Version string         `toml:"version"` // kwil: v0.9 | v0.10
	From    string         `toml:"from"`    // the old genesis document: relative to home, or absolute
	Source  string         `toml:"source"`  // kwil: the name of the postgres source; "" = the only one
	Binary  string         `toml:"binary"`  // cosmos: migrates and validates; "" = the current version's
	Migrate string         `toml:"migrate"` // cosmos: the target of the binary's migrate; "" = none
	Export  []string       `toml:"export"`  // cosmos: further arguments of export
	Command []string       `toml:"command"` // command: a program and its arguments
	Timeout time.Duration  `toml:"timeout"` // for one template
	On      []string       `toml:"on"`      // halt, upgrade, stop
	Set     map[string]any `toml:"set"`
}

// Control is the table [control].
type Control struct {
	Socket string `toml:"socket"` // relative to home, or absolute; "" = see host.ControlSocket
	Group  string `toml:"group"`  // its members may read the status
}

// GroupID is the number of Group, which must not be empty.
func (c Control) GroupID() (int, error) {
	g, err := user.LookupGroup(c.Group)
	if err != nil {
		return -1, &Error{Problems: []error{fmt.Errorf("[control] group: %w", err)}}
	}
	return strconv.Atoi(g.Gid)
}

// Log is the table [log].
type Log struct {
	Format string `toml:"format"` // auto | text | json
	Level  string `toml:"level"`  // debug | info | warn | error
}

// Metrics is the table [metrics].
type Metrics struct {
	Listen string `toml:"listen"` // host:port; "" = none
}

// Notify is the table [notify].
type Notify struct {
	Command []string `toml:"command"` // a program and its arguments
	Webhook string   `toml:"webhook"` // an http or https address that is posted to
}

// Systemd is the table [systemd].
type Systemd struct {
	Ready      string `toml:"ready"`       // started | healthy
	NodeNotify bool   `toml:"node_notify"` // the node itself says READY=1
}

// Unit is one table [[unit]]: another unit of the host, acted upon over D-Bus.
type Unit struct {
	Name   string `toml:"name"`
	At     string `toml:"at"`     // before-stop | after-stop | before-start | after-healthy
	Action string `toml:"action"` // start | stop | restart | wait
}

// Security is the table [security].
type Security struct {
	AllowWritable []string `toml:"allow_writable"` // paths whose mode is accepted as it is, relative to home or absolute
}

// Cosmovisor holds the settings of Cosmovisor that have no counterpart of our own.
type Cosmovisor struct {
	MustHaveChecksum bool    // DAEMON_DOWNLOAD_MUST_HAVE_CHECKSUM: without effect, a checksum is always required
	DisableLogs      bool    // COSMOVISOR_DISABLE_LOGS: nothing below an error is logged
	ColorLogs        *bool   // COSMOVISOR_COLOR_LOGS; nil = not set
	TimeFormat       *string // COSMOVISOR_TIMEFORMAT_LOGS as a layout of package time; nil = not set, "" = no time
}

// Default is what holds where neither file, environment nor flag says otherwise.
func Default() Config {
	return Config{
		Node: supervisor.DefaultConfig(), Upgrade: upgrade.DefaultConfig(), Height: source.DefaultConfig(),
		Snapshot: snapshot.DefaultConfig(), Genesis: Genesis{Timeout: time.Hour, On: []string{"halt"}},
		Log: Log{Format: "auto", Level: "info"}, Systemd: Systemd{Ready: "started"},
	}
}

// RootDir is the tree of versions, absolute.
func (c Config) RootDir() string { return c.UnderHome(c.Node.Root) }

// SnapshotDir is where snapshots lie, absolute.
func (c Config) SnapshotDir() string {
	if c.Snapshot.Dir == "" {
		return c.UnderHome("supervisor/snapshots")
	}
	return c.UnderHome(c.Snapshot.Dir)
}

// UnderHome makes path absolute: relative ones are relative to home.
func (c Config) UnderHome(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(c.Node.Home, path)
}

// Validate reports every mistake of the values at once, each text beginning with "[table] key: ". Name and home are
// not its matter, and it reads no file: see Load.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	oneOf := func(key, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			bad("%s: %q is none of %s", key, value, strings.Join(allowed, ", "))
		}
	}
	errs = append(errs, c.Node.Validate(), c.Upgrade.Validate(), c.Height.Validate(), c.Snapshot.Validate())

	errs = append(errs, c.Genesis.validate())
	oneOf("[log] format", c.Log.Format, "auto", "text", "json")
	oneOf("[log] level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf("[systemd] ready", c.Systemd.Ready, "started", "healthy")
	if c.Metrics.Listen != "" {
		if _, port, err := net.SplitHostPort(c.Metrics.Listen); err != nil || port == "" {
			bad("[metrics] listen: %q is no host:port", c.Metrics.Listen)
		}
	}
	if c.Notify.Webhook != "" {
		// The address may hold a secret, so it isn't repeated in the error, which goes to logs.
		if u, err := url.Parse(c.Notify.Webhook); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			bad("[notify] webhook: not an http or https address")
		}
	}
	if len(c.Notify.Command) > 0 && c.Notify.Command[0] == "" {
		bad("[notify] command: the program must not be empty")
	}
	for i, u := range c.Units {
		if u.Name == "" || !strings.Contains(u.Name, ".") || strings.ContainsAny(u.Name, "/ \t\n") {
			bad("[unit] %d: name: %q is no unit's name, such as price-feeder.service", i+1, u.Name)
		}
		oneOf(fmt.Sprintf("[unit] %d: at", i+1), u.At, "before-stop", "after-stop", "before-start", "after-healthy")
		oneOf(fmt.Sprintf("[unit] %d: action", i+1), u.Action, "start", "stop", "restart", "wait")
	}
	return errors.Join(append(errs, c.validateNames(), c.validateAcross())...)
}

// validateNames checks what is used in a path or handed to exec.
func (c Config) validateNames() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	environ := func(key string, env map[string]string) {
		for name := range env {
			if name == "" || strings.ContainsAny(name, "=\x00\n") {
				bad("%s: %q is no variable's name", key, name)
			}
		}
	}
	environ("[node] env", c.Node.Env)
	for name, v := range c.Versions {
		if name == "" {
			bad("[version]: the name must not be empty")
		}
		environ(fmt.Sprintf("[version] %s.env", name), v.Env)
	}
	if n := c.Node.Name; n != "" && (n == "." || n == ".." || len(n) > 255 || strings.ContainsAny(n, "/\x00\n")) {
		bad("[node] name: %q is no plain file name", n)
	}
	if r := c.Node.Root; r == "" || (!filepath.IsAbs(r) && !filepath.IsLocal(r)) {
		bad("[node] root: %q is neither absolute nor below home", r)
	}
	if p := c.Upgrade.PlanFile; p != "" && !filepath.IsLocal(p) {
		bad("[upgrade] plan_file: %q is not below home", p)
	}
	if s := c.Control.Socket; s != "" && len(c.UnderHome(s)) > MaxSocketPath {
		bad("[control] socket: longer than %d bytes, which no unix socket's path may be", MaxSocketPath)
	}
	return errors.Join(errs...)
}

// validateAcross checks keys that only together make a mistake.
func (c Config) validateAcross() error {
	var errs []error
	if c.Snapshot.Skip && c.Upgrade.OnFailure == upgrade.OnFailureRollback {
		errs = append(errs, errors.New(`[snapshot] skip: with on_failure = "rollback" there would be nothing to roll back to`))
	}
	if c.Upgrade.PreUpgradeMaxRetries < 0 {
		// Cosmovisor takes a negative number, and then fails every upgrade without having called pre-upgrade.
		errs = append(errs, errors.New("[upgrade] pre_upgrade_max_retries: must not be negative"))
	}
	return errors.Join(errs...)
}
