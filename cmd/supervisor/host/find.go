package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"nodevisor/cmd/supervisor/config"
	"nodevisor/internal/capped"
	"nodevisor/internal/hint"
	"nodevisor/systemd"
)

// UnitOfFile is what the unit in a file says of its process, as ReadUnit reads it of one that systemd knows.
func UnitOfFile(f *systemd.File) (Unit, error) {
	u := Unit{Name: filepath.Base(f.Path)}
	env := map[string]string{}
	for _, value := range f.Values("Service", "Environment") {
		for _, e := range systemd.Words(value) {
			k, v, _ := strings.Cut(e, "=")
			env[k] = v
		}
	}
	for _, file := range f.Values("Service", "EnvironmentFile") {
		path, missing := file, "no" // as systemctl says whether it may be missing
		if rest, ok := strings.CutPrefix(file, "-"); ok {
			path, missing = rest, "yes"
		}
		entries := map[string]string{}
		if err := readEnvironmentFiles(fmt.Sprintf("%s (ignore_errors=%s)", path, missing), entries); err != nil {
			return u, &hint.Error{Op: "read environment of unit", Path: f.Path, Err: err, Hint: "run the command as root"}
		}
		for k, v := range entries {
			env[k] = v
		}
	}
	for k, v := range env {
		u.Environ = append(u.Environ, k+"="+v)
	}
	slices.Sort(u.Environ)
	if all := f.Values("Service", "ExecStart"); len(all) > 0 {
		u.Argv = expandWords(systemd.Words(strings.TrimLeft(all[0], "-@:+!|")), env)
	}
	return u, nil
}

// UnitsOfHome lists the services that systemd has loaded and that name the home, or the configuration file in use ("" =
// none), in their command or their environment.
func UnitsOfHome(ctx context.Context, home, file string) []string {
	out, err := Systemctl(ctx, "show", "--no-pager", "--all", "-p", "Id", "-p", "Environment", "-p", "ExecStart", "--", "*.service")
	if err != nil {
		return nil
	}
	return namingHome(out, home, file)
}

// namingHome reads what systemctl shows of several units: blocks of KEY=VALUE, an empty line between them.
func namingHome(text, home, file string) (names []string) {
	for block := range strings.SplitSeq(text, "\n\n") {
		id, named := "", false
		for line := range strings.Lines(block) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch key {
			case "Id":
				id = value
			case "Environment":
				words, err := unquoteWords(value)
				env := config.Variables(words)
				named = named || err == nil && (env["DAEMON_HOME"] == home || file != "" && env["SUPERVISOR_CONFIG"] == file)
			case "ExecStart":
				argv := execStartArgv(value)
				ours := len(argv) > 0 && slices.ContainsFunc([]string{"supervisor", "cosmovisor"}, func(n string) bool {
					return strings.Contains(filepath.Base(argv[0]), n)
				})
				named = named || ours && slices.ContainsFunc(argv, func(a string) bool {
					_, value, _ := strings.Cut(a, "=")
					return slices.ContainsFunc([]string{home, file, filepath.Join(home, "supervisor", "supervisor.toml")}, func(own string) bool {
						return own != "" && (a == own || value == own)
					})
				})
			}
		}
		if named && id != "" && !slices.Contains(names, id) {
			names = append(names, id)
		}
	}
	return names
}

// UnitOfProcess is the systemd service that a process belongs to, by its control group (cgroups(7)); "" where it is none. A
// user's own manager is a service too, and not meant.
func UnitOfProcess(pid int) string {
	return serviceOf(capped.Lines("/proc/" + strconv.Itoa(pid) + "/cgroup"))
}

func serviceOf(groups []string) string {
	for _, line := range groups {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) < 3 || (parts[0] != "0" && parts[1] != "name=systemd") {
			continue
		}
		if name := filepath.Base(parts[2]); strings.HasSuffix(name, ".service") && !strings.HasPrefix(name, "user@") {
			return name
		}
	}
	return ""
}

// Environ reads what configures a running supervisor from its environment, so that a command sees what it sees.
func Environ(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return nil
	}
	var ours []string
	for _, entry := range strings.Split(string(data), "\x00") {
		if configures(entry) {
			ours = append(ours, entry)
		}
	}
	return ours
}

// Mistakes adds to the mistakes of a configuration (err: a *config.Error, or nil) what only this host can tell: that there is no
// such [control] group. Any other error stays as it is.
func Mistakes(c config.Control, err error) error {
	bad, problems := (*config.Error)(nil), []error(nil)
	if c.Group == "" || err != nil && !errors.As(err, &bad) {
		return err
	}
	_, unknown := c.GroupID()
	if unknown == nil {
		return err
	}
	if bad != nil {
		problems = slices.Clone(bad.Problems)
	}
	return &config.Error{Problems: append(problems, &config.Problem{
		Err: unknown, Hint: "groupadd --system " + hint.Quote(c.Group) + ", or name another one",
	})}
}

// StopCommand is the command that stops a process: that of its unit, where it has one.
func StopCommand(pid int) string {
	if unit := UnitOfProcess(pid); unit != "" {
		return "systemctl stop " + unit
	}
	return fmt.Sprintf("kill %d", pid)
}
