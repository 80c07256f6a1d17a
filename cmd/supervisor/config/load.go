package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"

	"nodevisor/internal/capped"
	"nodevisor/internal/hint"
)

// maxConfigSize is the most that is read of a configuration file, in bytes.
const maxConfigSize = 1 << 20

// Options is what a command knows before it has a configuration.
type Options struct {
	HomeFlag         string   // --home
	ConfigFlag       string   // --config
	CosmovisorConfig string   // --cosmovisor-config: Cosmovisor's own config.toml
	Environ          []string // os.Environ(), or that of a unit
	SkipDirs         bool     // for `init`: directories needn't exist yet
}

// Origin says where the configuration came from.
type Origin struct {
	File     string            // the supervisor.toml that was read, absolute; "" = none
	Keys     map[string]string // "node.home" → "DAEMON_HOME", "/…/supervisor.toml:3:1", "--home"; absent = the default
	Warnings []string          // what was understood, and probably isn't what was meant
}

// Of says where the value of a key ("upgrade.poll") came from.
func (o Origin) Of(key string) string {
	if from, ok := o.Keys[key]; ok {
		return from
	}
	return "default"
}

// Error is every mistake of the configuration at once: exit code 2 of a command, 78 of `run`.
type Error struct{ Problems []error }

// Error is one mistake a line.
func (e *Error) Error() string { return errors.Join(e.Problems...).Error() }

// Unwrap gives the mistakes to errors.Is, errors.As and hint.Of.
func (e *Error) Unwrap() []error { return e.Problems }

// Problem is one mistake of the configuration. Its text is exactly "<at>: <err>": some are Cosmovisor's own texts, for
// which scripts look, so there is no "cannot …" before them.
type Problem struct {
	At   string // file:line:column, a variable or a flag; empty where the text names it
	Err  error
	Hint string // what to do; may be empty
}

// Error says where and what.
func (p *Problem) Error() string {
	if p.At == "" {
		return p.Err.Error()
	}
	return p.At + ": " + p.Err.Error()
}

// Unwrap carries the hint to hint.Of.
func (p *Problem) Unwrap() error {
	if p.Hint == "" {
		return p.Err
	}
	return &hint.Error{Op: "use configuration", Err: p.Err, Hint: p.Hint}
}

// Load composes the configuration: flag over environment over file over default. Where it fails the error is a
// *Error with all mistakes; the Config is then what could be read, for `doctor`.
func Load(o Options) (Config, Origin, error) {
	l := &loader{cfg: Default(), origin: Origin{Keys: map[string]string{}}, env: Variables(o.Environ)}
	if o.CosmovisorConfig != "" {
		l.readCosmovisor(o.CosmovisorConfig)
	}
	l.readFile(o)
	l.applySupervisorEnv()
	l.applyDaemonEnv()
	if o.HomeFlag != "" {
		l.cfg.Node.Home = o.HomeFlag
		l.origin.Keys["node.home"] = "--home"
	}
	l.checkIdentity(o.SkipDirs)
	for _, err := range hint.Split(l.cfg.Validate()) {
		l.problems = append(l.problems, &Problem{At: l.whence(err.Error()), Err: err})
	}
	if len(l.problems) > 0 {
		return l.cfg, l.origin, &Error{Problems: l.problems}
	}
	return l.cfg, l.origin, nil
}

// loader is one Load.
type loader struct {
	cfg      Config
	origin   Origin
	env      map[string]string
	legacy   map[string]legacyValue // by the variable's name: what --cosmovisor-config says, below the environment
	problems []error
	unread   bool // the file says nothing, because of a mistake: what is missing is missing because of it
}

func (l *loader) warn(format string, args ...any) {
	l.origin.Warnings = append(l.origin.Warnings, fmt.Sprintf(format, args...))
}

func (l *loader) bad(at string, err error) {
	l.problems = append(l.problems, &Problem{At: at, Err: err})
}

// readFile finds supervisor.toml and decodes it. Only the one in home may be missing; one that was named must exist.
func (l *loader) readFile(o Options) {
	path, named, at := o.ConfigFlag, true, "--config"
	if path == "" {
		path, at = l.env["SUPERVISOR_CONFIG"], "SUPERVISOR_CONFIG"
	}
	home := ""
	if path == "" {
		if home = l.earlyHome(o); home == "" {
			return
		}
		path, named, at = filepath.Join(home, "supervisor", "supervisor.toml"), false, ""
	}
	path, err := filepath.Abs(path)
	if err != nil {
		l.bad(at, err)
		return
	}
	text, err := capped.ReadFile(path, maxConfigSize)
	if errors.Is(err, fs.ErrNotExist) && (!named || o.SkipDirs) {
		return // `init` makes it
	}
	if err != nil {
		l.unread = true
		l.bad(at, fmt.Errorf("cannot read configuration: %w", err))
		return
	}
	l.origin.File = path
	mistakes := decodeToml(path, text, &l.cfg, l.origin.Keys)
	l.unread = len(mistakes) > 0 && len(l.origin.Keys) == 0
	l.problems = append(l.problems, mistakes...)
	if home != "" && l.cfg.Node.Home != "" && filepath.Clean(l.cfg.Node.Home) != filepath.Clean(home) {
		l.warn("%s says home = %q, and is read for %q: the latter holds", path, l.cfg.Node.Home, home)
	}
}

// earlyHome is the home as far as it is known without a file.
func (l *loader) earlyHome(o Options) string {
	daemonHome, _ := l.daemonVar("DAEMON_HOME")
	for _, home := range []string{o.HomeFlag, daemonHome, l.env["SUPERVISOR_NODE_HOME"]} {
		if home != "" {
			if !filepath.IsAbs(home) {
				return "" // checkIdentity refuses it
			}
			return home
		}
	}
	return ""
}

// ErrNoName is the Err of the Problem that the node has no name; it is said in Cosmovisor's words.
var ErrNoName = errors.New("DAEMON_NAME is not set")

// checkIdentity checks name and home, without which nothing works, in Cosmovisor's words and order; then the directories.
func (l *loader) checkIdentity(skipDirs bool) {
	c := &l.cfg
	if c.Node.Name == "" && !l.unread {
		l.problems = append(l.problems, &Problem{
			Err: ErrNoName, Hint: "set DAEMON_NAME=<file name of the node's binary>, or [node] name in the configuration file",
		})
	}
	switch {
	case c.Node.Home == "" && l.unread:
		return
	case c.Node.Home == "":
		l.problems = append(l.problems, &Problem{
			Err: errors.New("DAEMON_HOME is not set"), Hint: "set DAEMON_HOME=<the node's home directory>, or say --home DIR",
		})
		return
	case !filepath.IsAbs(c.Node.Home):
		p := &Problem{Err: errors.New("DAEMON_HOME must be an absolute path"), Hint: "give the whole path, beginning with /"}
		if from := l.origin.Of("node.home"); from != "DAEMON_HOME" {
			p.At = from
		}
		l.problems = append(l.problems, p)
		return
	}
	c.Node.Home = filepath.Clean(c.Node.Home)
	if !skipDirs {
		l.checkDirs()
		l.checkGenesis()
	}
}

// checkDirs wants the tree of versions, and the directory for backups where Cosmovisor's variable names one.
func (l *loader) checkDirs() {
	root := l.cfg.RootDir()
	switch info, err := os.Stat(root); {
	case err != nil:
		l.problems = append(l.problems, &Problem{
			Err: fmt.Errorf("cannot stat home dir: %w", err), Hint: l.adviseDir(),
		})
	case !info.IsDir():
		l.problems = append(l.problems, &Problem{
			Err: fmt.Errorf("%s is not a directory", root), Hint: "move it away, then supervisor init BINARY",
		})
	}
	if l.origin.Of("snapshot.dir") != "DAEMON_DATA_BACKUP_DIR" || l.cfg.Snapshot.Skip || !filepath.IsAbs(l.cfg.Snapshot.Dir) {
		return
	}
	switch info, err := os.Stat(l.cfg.Snapshot.Dir); {
	case err != nil:
		l.bad("", fmt.Errorf("%q must be a valid directory: %w", l.cfg.Snapshot.Dir, err))
	case !info.IsDir():
		l.bad("", fmt.Errorf("%q must be a valid directory", l.cfg.Snapshot.Dir))
	}
}

// adviseDir tells a home that isn't set up yet from one that isn't there, which as a rule is misspelt.
func (l *loader) adviseDir() string {
	if _, err := os.Stat(l.cfg.Node.Home); errors.Is(err, fs.ErrNotExist) {
		return "supervisor init BINARY    # or check the path: there is no such home"
	}
	return "supervisor init BINARY"
}

// whence finds where the value came from of which a message of Validate ("[table] key: …") speaks; "" for a default.
func (l *loader) whence(message string) string {
	table, rest, ok := strings.Cut(strings.TrimPrefix(message, "["), "] ")
	key, after, _ := strings.Cut(rest, ":")
	if !ok {
		return ""
	}
	path := join(table, key)
	for i, s := range l.cfg.Snapshot.Sources {
		if key == fmt.Sprintf("source %q", s.Name) || key == fmt.Sprintf("source %d", i+1) {
			path = fmt.Sprintf("snapshot.source[%d]", i)
			inner, _, _ := strings.Cut(strings.TrimSpace(after), ":")
			if from, ok := l.origin.Keys[join(path, inner)]; ok {
				return from
			}
		}
	}
	if table == "unit" {
		inner, _, _ := strings.Cut(strings.TrimSpace(after), ":")
		n, _ := strconv.Atoi(key) // written by Validate
		path = fmt.Sprintf("unit[%d]", n-1)
		if from, ok := l.origin.Keys[join(path, inner)]; ok {
			return from
		}
	}
	return l.origin.Keys[path]
}

// keyField finds the field of a scalar key of cfg by its path.
func keyField(cfg *Config, path string) (reflect.Value, bool) {
	v, ok := reflect.ValueOf(cfg).Elem(), false
	for key := range strings.SplitSeq(path, ".") {
		if v.Kind() != reflect.Struct {
			return v, false
		}
		if v, ok = fieldOf(v, key); !ok {
			return v, false
		}
	}
	return v, true
}
