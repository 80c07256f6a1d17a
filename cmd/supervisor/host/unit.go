package host

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodevisor/cmd/supervisor/config"
	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
)

// Unit is what a systemd unit says of the `run` in it, ours or Cosmovisor's.
type Unit struct {
	Name       string   // with its suffix
	User       string   // "" = root
	WorkingDir string   // "" = /
	Environ    []string // Environment= and, over it, EnvironmentFile=
	Argv       []string // of its (first) ExecStart=, variables expanded; an argument with blanks can't be told from several
}

// Bounds of systemctl.
const (
	systemctlTimeout = 10 * time.Second // it waits for a busy bus
	maxSystemctl     = 8 << 20          // of its output, in bytes: some hundred services with their environment are far less
)

// Systemctl returns what systemctl prints on its stdout. After 10 s it is ended.
func Systemctl(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, systemctlTimeout)
	defer cancel()
	cmd := exec.Command("systemctl", args...)
	out, err := proc.Output(ctx, cmd, maxSystemctl)
	if err == nil && out.Truncated {
		err = fmt.Errorf("systemctl: more than %d bytes", maxSystemctl)
	}
	return string(out.Stdout), err
}

// UnitError says that the unit which a command line names can't be read, for a reason that the next try would meet, too: a
// mistake on the command line or in the unit.
type UnitError struct{ Err error }

func (e *UnitError) Error() string { return e.Err.Error() }

// Unwrap is the reason, with its hint.
func (e *UnitError) Unwrap() error { return e.Err }

// ReadUnit asks systemd for a unit (".service" may be left out) and reads its environment files. The error is a *UnitError
// but where systemd is only too busy to answer.
func ReadUnit(ctx context.Context, name string) (Unit, error) {
	u, err := readUnit(ctx, name)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		err = &UnitError{err}
	}
	return u, err
}

func readUnit(ctx context.Context, name string) (Unit, error) {
	if !strings.Contains(name, ".") {
		name += ".service"
	}
	if strings.HasPrefix(name, "-") || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/ \n") {
		return Unit{}, hint.New("read unit", name, "not a unit's name", "systemctl list-units --type=service")
	}
	out, err := Systemctl(ctx, "show", name, "--no-pager", "-p", "LoadState", "-p", "User",
		"-p", "WorkingDirectory", "-p", "Environment", "-p", "EnvironmentFiles", "-p", "ExecStart")
	if err != nil {
		return Unit{}, &hint.Error{Op: "read unit", Path: name, Err: err, Hint: "say --home and --config instead of --unit"}
	}
	return parseUnit(name, out)
}

// parseUnit reads the output of `systemctl show`. It is documented as made for programs (systemctl(1)), the quoting
// within is as systemd 252 to 257 write it.
func parseUnit(name, text string) (Unit, error) {
	u := Unit{Name: name}
	var files []string
	env := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch key {
		case "LoadState":
			if value == "not-found" {
				return u, hint.New("read unit", name, "systemd knows no such unit", "systemctl list-unit-files --type=service")
			}
		case "User":
			u.User = value
		case "WorkingDirectory":
			u.WorkingDir = strings.TrimPrefix(value, "!")
		case "Environment":
			entries, err := unquoteWords(value)
			if err != nil {
				return u, &hint.Error{Op: "read environment of unit", Path: name, Err: err}
			}
			maps.Copy(env, config.Variables(entries))
		case "EnvironmentFiles":
			files = append(files, value)
		case "ExecStart":
			if u.Argv == nil {
				u.Argv = execStartArgv(value)
			}
		}
	}
	for _, f := range files {
		if err := readEnvironmentFiles(f, env); err != nil {
			return u, &hint.Error{Op: "read environment of unit", Path: name, Err: err, Hint: "run the command as root, or as " + orRoot(u.User)}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(env)) {
		u.Environ = append(u.Environ, k+"="+env[k])
	}
	u.Argv = expandWords(u.Argv, env)
	return u, nil
}

func orRoot(user string) string {
	if user == "" {
		return "root"
	}
	return user
}

// Options is what config.Load needs to see what the unit's `run` sees. environ is the caller's: what begins with
// DAEMON_, COSMOVISOR_, SUPERVISOR_ or UNSAFE_ in it belongs to the caller, not to the unit, and is left out.
func (u Unit) Options(environ []string) config.Options {
	var o config.Options
	for _, entry := range environ {
		if !configures(entry) {
			o.Environ = append(o.Environ, entry)
		}
	}
	o.Environ = append(o.Environ, u.Environ...)
	flags := map[string]*string{
		"--home": &o.HomeFlag, "--config": &o.ConfigFlag, "--cosmovisor-config": &o.CosmovisorConfig,
	}
	if len(u.Argv) > 0 && strings.Contains(filepath.Base(u.Argv[0]), "cosmovisor") {
		flags["-c"] = &o.CosmovisorConfig // of `sh -c` it is something else
	}
	running := false
	for i := 1; i < len(u.Argv); i++ {
		arg, value, joined := strings.Cut(u.Argv[i], "=")
		running = running || arg == "run"
		out, ok := flags[arg]
		if !ok || (running && u.Argv[i] != "--cosmovisor-config") { // behind `run` everything else is the node's
			continue
		}
		if !joined && i+1 < len(u.Argv) {
			i++
			value = u.Argv[i]
		}
		if value != "" && !filepath.IsAbs(value) && u.WorkingDir != "" {
			value = filepath.Join(u.WorkingDir, value)
		}
		*out = value
	}
	return o
}

// configures tells the variables that configure a run from all others.
func configures(entry string) bool {
	return slices.ContainsFunc([]string{"DAEMON_", "COSMOVISOR_", "SUPERVISOR_", "UNSAFE_SKIP_BACKUP="}, func(prefix string) bool {
		return strings.HasPrefix(entry, prefix)
	})
}

// NodeArgs are the arguments behind `run`, as far as they can be told: see Argv.
func (u Unit) NodeArgs() []string {
	i := slices.Index(u.Argv, "run")
	if i < 0 {
		return nil
	}
	args := slices.Clone(u.Argv[i+1:])
	if i := slices.Index(args, "--cosmovisor-config"); i >= 0 {
		args = slices.Delete(args, i, min(i+2, len(args)))
	}
	return args
}

// execStartArgv takes the arguments from "{ path=… ; argv[]=… ; ignore_errors=no ; … }". They are joined by blanks
// without any quoting, and may hold semicolons themselves: the last " ; ignore_errors=" ends them.
func execStartArgv(value string) []string {
	_, rest, ok := strings.Cut(value, "argv[]=")
	end := strings.LastIndex(rest, " ; ignore_errors=")
	if !ok || end < 0 {
		return nil
	}
	return strings.Fields(rest[:end])
}

// expandWords replaces variables as systemd does: ${X} anywhere, $X as a word of its own, which is then split at its
// blanks; $$ is a dollar (systemd.service(5), "COMMAND LINES"). The program itself is not expanded.
func expandWords(words []string, env map[string]string) (out []string) {
	for i, w := range words {
		name, isWord := strings.CutPrefix(w, "$")
		switch {
		case i == 0 || !strings.Contains(w, "$"):
			out = append(out, w)
		case isWord && isVariable(name):
			out = append(out, strings.Fields(env[name])...)
		default:
			out = append(out, expandBraces(w, env))
		}
	}
	return out
}

func expandBraces(w string, env map[string]string) string {
	var b strings.Builder
	for w != "" {
		i := strings.IndexByte(w, '$')
		if i < 0 || i+1 == len(w) {
			break
		}
		b.WriteString(w[:i])
		w = w[i+1:]
		end := strings.IndexByte(w, '}')
		switch {
		case w[0] == '$':
			b.WriteByte('$')
			w = w[1:]
		case w[0] == '{' && end > 0 && isVariable(w[1:end]):
			b.WriteString(env[w[1:end]])
			w = w[end+1:]
		default:
			b.WriteByte('$')
		}
	}
	return b.String() + w
}

// isVariable tells a variable's name: letters, digits and _, no digit first.
func isVariable(name string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
	return name != "" && strings.Trim(name[:1], letters) == "" && strings.Trim(name, letters+"0123456789") == ""
}

// unquoteWords splits what systemd joined: words by blanks, those that need it in "…" with C's escapes, or in $'…'
// since systemd writes them for a shell.
func unquoteWords(text string) (words []string, err error) {
	for text = strings.TrimLeft(text, " "); text != ""; text = strings.TrimLeft(text, " ") {
		open, end := "", strings.IndexByte(text, ' ')
		switch {
		case text[0] == '"':
			open = `"`
		case strings.HasPrefix(text, "$'"):
			open = "$'"
		}
		if open == "" {
			if end < 0 {
				end = len(text)
			}
			words, text = append(words, text[:end]), text[end:]
			continue
		}
		quote, i := open[len(open)-1], len(open)
		for i < len(text) && text[i] != quote {
			if text[i] == '\\' {
				i++
			}
			i++
		}
		if i >= len(text) {
			return nil, fmt.Errorf("a quote isn't closed in %.80q", text)
		}
		words, text = append(words, unescape(text[len(open):i])), text[i+1:]
	}
	return words, nil
}

// unescape undoes C's escapes; a backslash before anything else stands for what follows it.
func unescape(s string) string {
	var b strings.Builder
	for s != "" {
		i := strings.IndexByte(s, '\\')
		if i < 0 || i+1 == len(s) {
			break
		}
		b.WriteString(s[:i])
		s = s[i:]
		if strings.ContainsRune(`abfnrtvx01234567uU`, rune(s[1])) {
			if c, multibyte, tail, err := strconv.UnquoteChar(s, 0); err == nil {
				if multibyte {
					b.WriteRune(c)
				} else {
					b.WriteByte(byte(c))
				}
				s = tail
				continue
			}
		}
		b.WriteByte(s[1])
		s = s[2:]
	}
	return b.String() + s
}
