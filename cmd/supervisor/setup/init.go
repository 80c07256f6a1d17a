// Package setup holds the commands that stand at the beginning and at the end: init makes a home a supervisor's, unit
// writes its service, uninit gives it back to Cosmovisor. One file holds one command.
package setup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/config"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/upgrade"
	"nodevisor/upgrade/version"
)

// NewInit makes `supervisor init`.
func NewInit(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "init [BINARY]", GroupID: "node", Short: "Create what is missing of the tree, install the first binary, write supervisor.toml",
		Long: `Creates what is missing: the tree of versions, the first version from BINARY, the link "current", the
supervisor's own directory and its configuration file, which --config may name. It never asks, leaves alone what is there
and says so, and ends with the two commands that come next.`,
		Example: "  DAEMON_HOME=/var/lib/simd DAEMON_NAME=simd supervisor init /usr/local/bin/simd",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) > 1:
				return cli.Usagef("init takes one path to an executable")
			case len(args) == 1 && args[0] == "": // a shell's variable that isn't set
				return cli.Usagef("no <path to executable> provided: it is empty")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			binary := ""
			if len(args) == 1 {
				binary = args[0]
			}
			a.Founds = true
			s, err := session.Load(cmd.Context(), a, true)
			if err != nil {
				return adviseName(a, err, binary)
			}
			return initialise(s, cmd, binary)
		},
	}
}

// adviseName has the hint for a missing name be the whole command, where the binary tells what the name probably is.
func adviseName(a *cli.App, err error, binary string) error {
	mistakes := (*config.Error)(nil)
	if binary == "" || !errors.As(err, &mistakes) {
		return err
	}
	for _, problem := range mistakes.Problems {
		p := (*config.Problem)(nil)
		if !errors.As(problem, &p) || !errors.Is(p.Err, config.ErrNoName) {
			continue
		}
		p.Hint = "DAEMON_NAME=" + hint.Quote(filepath.Base(binary)) + " supervisor"
		if a.Flags.Home != "" {
			p.Hint += " --home " + hint.Quote(a.Flags.Home)
		}
		p.Hint += " init " + hint.Quote(binary)
	}
	return err
}

// initialise makes each piece that isn't there. Every step can be done again.
func initialise(s *session.Session, cmd *cobra.Command, binary string) error {
	if binary != "" {
		if err := checkExecutable(binary); err != nil {
			return err
		}
	}
	l := s.Layout
	s.Log.Info("checking on the genesis/bin directory")
	for _, dir := range []string{filepath.Dir(l.Binary(version.Genesis)), filepath.Join(l.Root, "upgrades"), l.State()} {
		if err := makeDir(s, dir); err != nil {
			return err
		}
	}
	if err := installGenesis(s, cmd, binary); err != nil {
		return err
	}
	usable := warnOfGenesis(cmd.Context(), s)
	if err := linkFirst(s); err != nil {
		return err
	}
	if err := writeConfig(s); err != nil {
		return err
	}
	sayNext(s, usable)
	return sayNotTaken(cmd.Context(), s, binary)
}

// sayNext ends the first run with the two commands that come next, written so that they can be copied.
func sayNext(s *session.Session, usable bool) {
	self := "supervisor --home " + hint.Quote(s.Layout.Home)
	if s.Flags.Config != "" {
		self = "supervisor --config " + hint.Quote(s.Flags.Config)
	}
	v, err := s.Layout.Current()
	if err != nil || !s.Layout.HasBinary(v) {
		s.Say("\nThe tree of %s is there, its first binary isn't yet. Next:\n", s.Layout.Home)
		s.Say("  %s init BINARY\n      installs the node's binary; what is there already stays", self)
		s.Say("  %s doctor\n      looks at everything that the first start needs, and changes nothing", self)
		return
	}
	if bad := s.Layout.Binary(version.Genesis); !usable && v == version.Genesis {
		s.Say("\nThe tree of %s is there, but its first binary can't run here. Next:\n", s.Layout.Home)
		s.Say("  rm %s\n  %s init BINARY\n      installs another one; what else is there already stays", hint.Quote(bad), self)
		return
	}
	s.Say("\nReady: %s, version %s, in %s. Next:\n", s.Layout.Node, v.Name(), s.Layout.Home)
	s.Say("  %s doctor\n      looks at everything that the first start needs, changes nothing, and names what mends each failure", self)
	if name, ok := instance(s); ok {
		s.Say("  systemctl enable --now nodevisor@%s\n      starts the node, now and at every boot; supervisor status says how it is", name)
		return
	}
	args := " start"
	if len(s.Config.Node.Args) > 0 {
		args = ""
	}
	s.Say("  %s run%s\n      starts the node here, until Ctrl-C; %s unit prints the service that does so at every boot", self, args, self)
}

// sayNotTaken says that another binary than the given one is installed: what is there stays.
func sayNotTaken(ctx context.Context, s *session.Session, binary string) error {
	if binary == "" {
		return nil
	}
	installed := s.Layout.Binary(version.Genesis)
	there, err := version.HashFile(ctx, installed)
	if err != nil {
		return err
	}
	if given, err := version.HashFile(ctx, binary); err != nil || given == there {
		return err
	}
	s.Say("\n%s was NOT TAKEN: %s is another binary, and stays. To run the given one from here on:\n"+
		"  supervisor --home %[3]s upgrade add NAME %[1]s\n  supervisor --home %[3]s upgrade apply NAME",
		hint.Quote(binary), installed, hint.Quote(s.Layout.Home))
	return nil
}

// instance is the NAME for which nodevisor@NAME.service reads this configuration, where packages put them.
func instance(s *session.Session) (name string, ok bool) {
	dir, file := filepath.Split(s.Flags.Config)
	name, ok = strings.CutSuffix(file, ".toml")
	_, err := os.Stat("/usr/lib/systemd/system/nodevisor@.service")
	return name, ok && dir == "/etc/nodevisor/" && err == nil
}

func checkExecutable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return &hint.Error{Op: "install", Path: path, Err: fmt.Errorf("executable file not found: %w", err), Hint: "check the path"}
	case info.IsDir():
		return hint.New("install", path, "invalid path to executable: must not be a directory", "name the binary itself")
	}
	return nil
}

func makeDir(s *session.Session, dir string) error {
	info, err := os.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		s.Log.Info(fmt.Sprintf("the %q directory already exists", dir))
		return nil
	case err == nil:
		return hint.New("create", dir, fmt.Sprintf("the path %q already exists but is not a directory", dir), "move it away")
	}
	s.Log.Info(fmt.Sprintf("creating directory (and any parents): %q", dir))
	return atomicfile.MkdirAll(dir, 0o750)
}

func installGenesis(s *session.Session, cmd *cobra.Command, binary string) error {
	dst := s.Layout.Binary(version.Genesis)
	s.Log.Info("checking on the genesis/bin executable")
	info, err := os.Stat(dst)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return hint.New("install", dst, s.Layout.Node+" is not a regular file", "move it away")
	case err == nil:
		s.Log.Info(fmt.Sprintf("the %q file already exists", dst))
	case binary == "":
		s.Log.Warn("no binary is installed yet", "hint", "supervisor init BINARY")
		return nil
	default:
		s.Log.Info(fmt.Sprintf("copying executable into place: %q", dst))
		if _, err := version.Place(cmd.Context(), s.Layout, version.Placement{Version: version.Genesis, From: binary}); err != nil {
			return err
		}
	}
	s.Log.Info(fmt.Sprintf("making sure %q is executable", dst))
	if info, err = os.Stat(dst); err != nil {
		return err
	}
	if want := info.Mode().Perm() | 0o111; want != info.Mode().Perm() {
		return os.Chmod(dst, want)
	}
	return nil
}

// warnOfGenesis says at once what the first start would find: a text file, a binary for another machine. A binary that
// isn't there is no unusable one.
func warnOfGenesis(ctx context.Context, s *session.Session) (usable bool) {
	if !s.Layout.HasBinary(version.Genesis) {
		return true
	}
	ready := s.Checker().Check(ctx, version.Genesis)
	if !ready.Ready() {
		s.Log.Warn("the binary is installed, but it can't run here", "problem", ready.Problems[0],
			"hint", "rm "+hint.Quote(s.Layout.Binary(version.Genesis))+", then: supervisor init BINARY")
	}
	return ready.Ready()
}

// linkFirst makes `current` where there is none and the home never saw an upgrade.
func linkFirst(s *session.Session) error {
	l := s.Layout
	s.Log.Info("checking on the current symlink and creating it if needed")
	v, err := l.Current()
	switch {
	case err == nil:
	case !errors.Is(err, version.ErrNoLink):
		return &hint.Error{Op: "use", Path: l.Link(), Err: err, Hint: "supervisor doctor --fix-link"}
	case !l.HasBinary(version.Genesis):
		return nil
	case upgrade.Seen(l):
		return hint.New("link", l.Link(), "it is missing, and this home has seen an upgrade", "supervisor doctor --fix-link, or: supervisor upgrade use VERSION")
	default:
		if err := l.SwitchTo(version.Genesis); err != nil {
			return err
		}
		v = version.Genesis
	}
	s.Log.Info(fmt.Sprintf("the current symlink points to: %q", l.Binary(v)))
	return nil
}

func writeConfig(s *session.Session) error {
	path := filepath.Join(s.Layout.State(), "supervisor.toml")
	if s.Flags.Config != "" {
		path = s.Flags.Config
	}
	if _, err := os.Lstat(path); err == nil {
		s.Log.Info("file already exists, not overriding", "file", path)
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := atomicfile.WriteFile(path, []byte(config.RenderToml(s.Config)), 0o640); err != nil {
		return err
	}
	s.Log.Info("configuration written", "file", path)
	return nil
}
