package setup

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/config"
	"nodevisor/cmd/supervisor/host"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/hint"
	"nodevisor/systemd"
)

// NewUnit makes `supervisor unit`.
func NewUnit(a *cli.App) *cobra.Command {
	var c unitCommand
	cmd := &cobra.Command{
		Use: "unit", GroupID: "node", Short: "Print the systemd unit for this configuration", Args: cli.ExactArgs(0, "no arguments"),
		Long: `Prints a unit of systemd for this configuration on stdout: Type=notify with a watchdog, stopped in good order, restarted
when the supervisor itself fails. Nothing is installed.

--hardening=strict shuts the node out of the host but for its own directories: an exposure of at most 2.0 in
"systemd-analyze security". --hardening=standard (the default) takes away what no node misses.

--from FILE reads the unit of a node or of Cosmovisor, with its drop-ins (FILE.d/*.conf), and prints the migrated unit on
stdout, and on stderr what changed and why. What no rule concerns stays as it is; it is hardened only where --hardening is
given. The drop-ins are part of what is printed: remove them when it is installed, or they change it again.`,
		Example: "  supervisor unit --user simd --hardening=strict > /etc/systemd/system/simd.service\n" +
			"  supervisor unit --from /etc/systemd/system/cosmovisor.service > /tmp/cosmovisor.service",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains([]string{"", string(systemd.Standard), string(systemd.Strict)}, c.hardening) {
				return cli.Usagef("--hardening: %q is none of standard, strict", c.hardening)
			}
			if c.from != "" {
				return migrateUnit(a, c)
			}
			s, err := session.Load(cmd.Context(), a, true) // it may be printed before `init`
			if err != nil {
				return err
			}
			return printUnit(s, c)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.user, "user", "", "the user that the node runs as; default: the owner of its home")
	f.StringVar(&c.hardening, "hardening", "", "standard | strict")
	f.StringVar(&c.from, "from", "", "migrate this unit of a node or of Cosmovisor")
	_ = cmd.RegisterFlagCompletionFunc("hardening", cobra.FixedCompletions( // the flag is declared: no error
		[]cobra.Completion{string(systemd.Standard), string(systemd.Strict)}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// unitCommand is what the command line says.
type unitCommand struct {
	user, hardening, from string
}

// printUnit prints the unit for the loaded configuration.
func printUnit(s *session.Session, c unitCommand) error {
	program, err := ownPath()
	if err != nil {
		return err
	}
	environ, kept := unitEnviron(s.Environ)
	service := systemd.Service{
		Description: s.Config.Node.Name + " and its upgrades", User: c.user, Exec: unitExec(s, program), Environ: environ,
		StopTimeout: s.Config.Node.StopTimeout, Home: s.Config.Node.Home, Writable: writable(s), Hardening: systemd.Hardening(c.hardening),
	}
	if c.hardening == "" {
		service.Hardening = systemd.Standard
	}
	if service.User == "" {
		service.User = ownerOf(s.Config.Node.Home)
	} else if _, err := user.Lookup(service.User); err != nil {
		s.Say("there is no user %s on this host yet: useradd --system --home-dir %s %s", service.User, service.Home, service.User)
	}
	if hasLocalPostgres(s) {
		service.After = append(service.After, "postgresql.service")
	}
	if service.User == "root" {
		service.User = ""
		s.Say("the node would run as root; say --user NAME, and: chown -R NAME: %s", hint.Quote(service.Home))
	}
	for _, name := range kept {
		s.Say("%s may hold a secret and is left out: put it in a file of mode 0600 and add EnvironmentFile=FILE", name)
	}
	return s.Print("%s", service.Render())
}

// unitExec is the command line: the configuration by the shortest name that finds it again.
func unitExec(s *session.Session, program string) []string {
	words := []string{program}
	switch own := filepath.Join(s.Config.Node.Home, "supervisor", "supervisor.toml"); {
	case s.Origin.File != "" && s.Origin.File != own:
		words = append(words, "--config", s.Origin.File)
	case config.Variables(s.Environ)["DAEMON_HOME"] != s.Config.Node.Home:
		words = append(words, "--home", s.Config.Node.Home)
	}
	if s.Flags.CosmovisorConfig != "" {
		words = append(words, "--cosmovisor-config", s.Flags.CosmovisorConfig)
	}
	words = append(words, "run")
	if len(s.UnitArgs) > 0 {
		return append(words, s.UnitArgs...)
	}
	if len(s.Config.Node.Args) == 0 {
		return append(words, "start")
	}
	return words // [node] args are read again
}

// unitEnviron takes what configures the supervisor out of an environment. What may hold a secret isn't for a unit, which
// everybody may read: kept names it.
func unitEnviron(environ []string) (environment, kept []string) {
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		for _, prefix := range []string{"DAEMON_", "COSMOVISOR_", "SUPERVISOR_", "UNSAFE_SKIP_BACKUP"} {
			switch {
			case !strings.HasPrefix(name, prefix):
			case name == "SUPERVISOR_NOTIFY_WEBHOOK":
				kept = append(kept, name)
			default:
				environment = append(environment, entry)
			}
		}
	}
	slices.Sort(environment)
	return environment, kept
}

// writable lists the directories outside of home that supervisor and node write to.
func writable(s *session.Session) (dirs []string) {
	home := s.Config.Node.Home
	add := func(path string) {
		if !systemd.Below(home, path) && !slices.Contains(dirs, path) {
			dirs = append(dirs, path)
		}
	}
	add(s.Config.RootDir())
	add(s.Config.SnapshotDir())
	if s.Config.Control.Socket != "" {
		add(filepath.Dir(host.OwnSocket(s.Config, s.Environ)))
	}
	// Data is often a link to another disk; its frozen copy lies beside it, on the same file system.
	paths := []string{filepath.Join(home, "data")}
	for _, source := range s.Config.Snapshot.Sources {
		if source.Path != "" {
			paths = append(paths, s.Config.UnderHome(source.Path))
		}
	}
	for _, path := range paths {
		if at, err := filepath.EvalSymlinks(path); err == nil && !systemd.Below(home, at) {
			add(filepath.Dir(at))
		}
	}
	return dirs
}

// hasLocalPostgres tells whether a source is a database that may be this host's.
func hasLocalPostgres(s *session.Session) bool {
	for _, source := range s.Config.Snapshot.Sources {
		if source.Kind == "postgres" {
			return true
		}
	}
	return false
}

// ownerOf names the user that a directory belongs to; "" where it has no name.
func ownerOf(dir string) string {
	info, err := os.Stat(dir)
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	u, err := user.LookupId(strconv.FormatUint(uint64(st.Uid), 10))
	if err != nil {
		return ""
	}
	return u.Username
}

// ownPath is this program's path, as it was installed: a link is followed only where it must be.
func ownPath() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("cannot tell where this program lies: %w", err)
	}
	return path, nil
}

// migrateUnit prints the migrated unit, and what changed.
func migrateUnit(a *cli.App, c unitCommand) error {
	program, err := ownPath()
	if err != nil {
		return err
	}
	f, err := systemd.ReadFile(c.from)
	if err != nil {
		return err
	}
	if err := f.Command(); err != nil {
		return err
	}
	u, err := host.UnitOfFile(f)
	if err != nil {
		return err
	}
	service := systemd.Service{Exec: []string{program}, Hardening: systemd.Hardening(c.hardening)}
	o := u.Options(a.Environ)
	if a.Flags.Home != "" {
		o.HomeFlag = a.Flags.Home
	}
	if service.Environ, err = identify(a, u, &o, f); err != nil {
		return err
	}
	o.Environ = append(o.Environ, service.Environ...)
	// What is wrong with this configuration is said by the doctor; here its directories and its times are enough.
	cfg, origin, _ := config.Load(o) //nolint:errcheck // see above
	s := &session.Session{App: a, Config: cfg, Origin: origin, Environ: o.Environ}
	service.StopTimeout, service.Home, service.Writable = cfg.Node.StopTimeout, cfg.Node.Home, writable(s)
	changes, err := f.Migrate(service)
	if err != nil {
		return err
	}
	if err := a.Print("%s", f); err != nil {
		return err
	}
	for _, change := range changes {
		a.Say("%s", change)
	}
	if len(f.DropIns) > 0 {
		quoted := make([]string, len(f.DropIns))
		for i, path := range f.DropIns {
			quoted[i] = hint.Quote(path)
		}
		a.Say("the printed unit holds its drop-ins, and they would change it again: remove them when you install it:\n  rm %s", strings.Join(quoted, " "))
	}
	return nil
}

// identify finds out which node of which home a unit runs, where that isn't said in the variables that Cosmovisor and we
// know: then the node itself is what is started, and its --home says the rest.
func identify(a *cli.App, u host.Unit, o *config.Options, f *systemd.File) (environ []string, err error) {
	env := config.Variables(u.Environ)
	program := filepath.Base(f.Program())
	if o.ConfigFlag != "" || strings.Contains(program, "cosmovisor") || program == "supervisor" || env["SUPERVISOR_CONFIG"] != "" {
		return nil, nil
	}
	if env["DAEMON_NAME"] == "" {
		environ = append(environ, "DAEMON_NAME="+program)
	}
	if env["DAEMON_HOME"] != "" {
		return environ, nil
	}
	home := o.HomeFlag
	for i, word := range u.Argv {
		flag, value, joined := strings.Cut(word, "=")
		if home != "" || !slices.Contains([]string{"--home", "--root", "--root-dir", "-r"}, flag) {
			continue
		}
		if !joined && i+1 < len(u.Argv) {
			value = u.Argv[i+1]
		}
		home = value
	}
	if !filepath.IsAbs(home) {
		return nil, hint.New("migrate", f.Path, "it doesn't say where the node's home is",
			"supervisor --home DIR unit --from "+f.Path)
	}
	a.Say("first: DAEMON_NAME=%s DAEMON_HOME=%s supervisor init %s", hint.Quote(program), hint.Quote(home), hint.Quote(f.Program()))
	return append(environ, "DAEMON_HOME="+home), nil
}
