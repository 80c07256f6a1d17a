package main

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

	"nodevisor/cmd/supervisor/config"
	"nodevisor/cmd/supervisor/host"
	"nodevisor/internal/hint"
	"nodevisor/systemd"
)

func newUnit(a *app) *cobra.Command {
	var c unitCommand
	cmd := &cobra.Command{
		Use: "unit", GroupID: "node", Short: "Print the systemd unit for this configuration", Args: exactArgs(0, "no arguments"),
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
				return usagef("--hardening: %q is none of standard, strict", c.hardening)
			}
			if c.from != "" {
				return a.migrateUnit(c)
			}
			s, err := a.load(cmd.Context(), true) // it may be printed before `init`
			if err != nil {
				return err
			}
			return s.printUnit(c)
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
func (s *session) printUnit(c unitCommand) error {
	program, err := ownPath()
	if err != nil {
		return err
	}
	environ, kept := unitEnviron(s.environ)
	service := systemd.Service{
		Description: s.cfg.Node.Name + " and its upgrades", User: c.user, Exec: s.unitExec(program), Environ: environ,
		StopTimeout: s.cfg.Node.StopTimeout, Home: s.cfg.Node.Home, Writable: s.writable(), Hardening: systemd.Hardening(c.hardening),
	}
	if c.hardening == "" {
		service.Hardening = systemd.Standard
	}
	if service.User == "" {
		service.User = ownerOf(s.cfg.Node.Home)
	} else if _, err := user.Lookup(service.User); err != nil {
		s.say("there is no user %s on this host yet: useradd --system --home-dir %s %s", service.User, service.Home, service.User)
	}
	if s.hasLocalPostgres() {
		service.After = append(service.After, "postgresql.service")
	}
	if service.User == "root" {
		service.User = ""
		s.say("the node would run as root; say --user NAME, and chown -R NAME: %s", service.Home)
	}
	for _, name := range kept {
		s.say("%s may hold a secret and is left out: put it in a file of mode 0600 and add EnvironmentFile=FILE", name)
	}
	fmt.Fprint(s.stdout, service.Render())
	return nil
}

// unitExec is the command line: the configuration by the shortest name that finds it again.
func (s *session) unitExec(program string) []string {
	words := []string{program}
	switch own := filepath.Join(s.cfg.Node.Home, "supervisor", "supervisor.toml"); {
	case s.origin.File != "" && s.origin.File != own:
		words = append(words, "--config", s.origin.File)
	case config.Variables(s.environ)["DAEMON_HOME"] != s.cfg.Node.Home:
		words = append(words, "--home", s.cfg.Node.Home)
	}
	if s.flags.cosmovisorConfig != "" {
		words = append(words, "--cosmovisor-config", s.flags.cosmovisorConfig)
	}
	words = append(words, "run")
	if len(s.unitArgs) > 0 {
		return append(words, s.unitArgs...)
	}
	if len(s.cfg.Node.Args) == 0 {
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
func (s *session) writable() (dirs []string) {
	home := s.cfg.Node.Home
	add := func(path string) {
		if !systemd.Below(home, path) && !slices.Contains(dirs, path) {
			dirs = append(dirs, path)
		}
	}
	add(s.cfg.RootDir())
	add(s.cfg.SnapshotDir())
	if s.cfg.Control.Socket != "" {
		add(filepath.Dir(host.ControlSocket(s.cfg, s.environ)))
	}
	// Data is often a link to another disk; its frozen copy lies beside it, on the same file system.
	paths := []string{filepath.Join(home, "data")}
	for _, source := range s.cfg.Snapshot.Sources {
		if source.Path != "" {
			paths = append(paths, s.cfg.UnderHome(source.Path))
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
func (s *session) hasLocalPostgres() bool {
	for _, source := range s.cfg.Snapshot.Sources {
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
func (a *app) migrateUnit(c unitCommand) error {
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
	o := u.Options(a.environ)
	if a.flags.home != "" {
		o.HomeFlag = a.flags.home
	}
	if service.Environ, err = a.identify(u, &o, f); err != nil {
		return err
	}
	o.Environ = append(o.Environ, service.Environ...)
	// What is wrong with this configuration is said by the doctor; here its directories and its times are enough.
	cfg, origin, _ := config.Load(o) //nolint:errcheck // see above
	s := &session{app: a, cfg: cfg, origin: origin, environ: o.Environ}
	service.StopTimeout, service.Home, service.Writable = cfg.Node.StopTimeout, cfg.Node.Home, s.writable()
	changes, err := f.Migrate(service)
	if err != nil {
		return err
	}
	fmt.Fprint(a.stdout, f)
	for _, change := range changes {
		a.say("%s", change)
	}
	if len(f.DropIns) > 0 {
		quoted := make([]string, len(f.DropIns))
		for i, path := range f.DropIns {
			quoted[i] = shellQuote(path)
		}
		a.say("the printed unit holds its drop-ins, and they would change it again: remove them when you install it:\n  rm %s", strings.Join(quoted, " "))
	}
	return nil
}

// identify finds out which node of which home a unit runs, where that isn't said in the variables that Cosmovisor and we
// know: then the node itself is what is started, and its --home says the rest.
func (a *app) identify(u host.Unit, o *config.Options, f *systemd.File) (environ []string, err error) {
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
	a.say("first: DAEMON_NAME=%s DAEMON_HOME=%s supervisor init %s", shellQuote(program), shellQuote(home), shellQuote(f.Program()))
	return append(environ, "DAEMON_HOME="+home), nil
}
