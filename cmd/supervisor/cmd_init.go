package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/config"
	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/upgrade"
	"nodevisor/upgrade/version"
)

func newInit(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "init [BINARY]", GroupID: "node", Short: "Create what is missing of the tree, install the first binary, write supervisor.toml",
		Long: `Creates what is missing: the tree of versions, the first version from BINARY, the link "current", the
supervisor's own directory and its configuration file, which --config may name. It never asks, leaves alone what is there
and says so, and ends with the two commands that come next.`,
		Example: "  DAEMON_HOME=/var/lib/simd DAEMON_NAME=simd supervisor init /usr/local/bin/simd",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("init takes one path to an executable")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			binary := ""
			if len(args) == 1 {
				binary = args[0]
			}
			s, err := a.load(cmd.Context(), true)
			if err != nil {
				return a.adviseName(err, binary)
			}
			return s.init(cmd, binary)
		},
	}
}

// adviseName has the hint for a missing name be the whole command, where the binary tells what the name probably is.
func (a *app) adviseName(err error, binary string) error {
	mistakes := (*config.Error)(nil)
	if binary == "" || !errors.As(err, &mistakes) {
		return err
	}
	for _, problem := range mistakes.Problems {
		p := (*config.Problem)(nil)
		if !errors.As(problem, &p) || !errors.Is(p.Err, config.ErrNoName) {
			continue
		}
		p.Hint = "DAEMON_NAME=" + shellQuote(filepath.Base(binary)) + " supervisor"
		if a.flags.home != "" {
			p.Hint += " --home " + shellQuote(a.flags.home)
		}
		p.Hint += " init " + shellQuote(binary)
	}
	return err
}

// init makes each piece that isn't there. Every step can be done again.
func (s *session) init(cmd *cobra.Command, binary string) error {
	if binary != "" {
		if err := checkExecutable(binary); err != nil {
			return err
		}
	}
	l := s.layout
	s.log.Info("checking on the genesis/bin directory")
	for _, dir := range []string{filepath.Dir(l.Binary(version.Genesis)), filepath.Join(l.Root, "upgrades"), l.State()} {
		if err := s.makeDir(dir); err != nil {
			return err
		}
	}
	if err := s.installGenesis(cmd, binary); err != nil {
		return err
	}
	usable := s.warnOfGenesis(cmd.Context())
	if err := s.linkFirst(); err != nil {
		return err
	}
	if err := s.writeConfig(); err != nil {
		return err
	}
	s.sayNext(usable)
	return nil
}

// sayNext ends the first run with the two commands that come next, written so that they can be copied.
func (s *session) sayNext(usable bool) {
	self := "supervisor --home " + shellQuote(s.layout.Home)
	if s.flags.config != "" {
		self = "supervisor --config " + shellQuote(s.flags.config)
	}
	v, err := s.layout.Current()
	if err != nil || !s.layout.HasBinary(v) {
		s.say("\nThe tree of %s is there, its first binary isn't yet. Next:\n", s.layout.Home)
		s.say("  %s init BINARY\n      installs the node's binary; what is there already stays", self)
		s.say("  %s doctor\n      looks at everything that the first start needs, and changes nothing", self)
		return
	}
	if bad := s.layout.Binary(version.Genesis); !usable && v == version.Genesis {
		s.say("\nThe tree of %s is there, but its first binary can't run here. Next:\n", s.layout.Home)
		s.say("  rm %s\n  %s init BINARY\n      installs another one; what else is there already stays", shellQuote(bad), self)
		return
	}
	s.say("\nReady: %s, version %s, in %s. Next:\n", s.layout.Node, v.Name(), s.layout.Home)
	s.say("  %s doctor\n      looks at everything that the first start needs, changes nothing, and names what mends each failure", self)
	if name, ok := s.instance(); ok {
		s.say("  systemctl enable --now nodevisor@%s\n      starts the node, now and at every boot; supervisor status says how it is", name)
		return
	}
	args := " start"
	if len(s.cfg.Node.Args) > 0 {
		args = ""
	}
	s.say("  %s run%s\n      starts the node here, until Ctrl-C; %s unit prints the service that does so at every boot", self, args, self)
}

// instance is the NAME for which nodevisor@NAME.service reads this configuration, where packages put them.
func (s *session) instance() (name string, ok bool) {
	dir, file := filepath.Split(s.flags.config)
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

func (s *session) makeDir(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		s.log.Info(fmt.Sprintf("the %q directory already exists", dir))
		return nil
	case err == nil:
		return hint.New("create", dir, fmt.Sprintf("the path %q already exists but is not a directory", dir), "move it away")
	}
	s.log.Info(fmt.Sprintf("creating directory (and any parents): %q", dir))
	return atomicfile.MkdirAll(dir, 0o750)
}

func (s *session) installGenesis(cmd *cobra.Command, binary string) error {
	dst := s.layout.Binary(version.Genesis)
	s.log.Info("checking on the genesis/bin executable")
	info, err := os.Stat(dst)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return hint.New("install", dst, s.layout.Node+" is not a regular file", "move it away")
	case err == nil:
		s.log.Info(fmt.Sprintf("the %q file already exists", dst))
	case binary == "":
		s.log.Warn("no binary is installed yet", "hint", "supervisor init BINARY")
		return nil
	default:
		s.log.Info(fmt.Sprintf("copying executable into place: %q", dst))
		if _, err := version.Place(cmd.Context(), s.layout, version.Placement{Version: version.Genesis, From: binary}); err != nil {
			return err
		}
	}
	s.log.Info(fmt.Sprintf("making sure %q is executable", dst))
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
func (s *session) warnOfGenesis(ctx context.Context) (usable bool) {
	if !s.layout.HasBinary(version.Genesis) {
		return true
	}
	ready := s.checker().Check(ctx, version.Genesis)
	if !ready.Ready() {
		s.log.Warn("the binary is installed, but it can't run here", "problem", ready.Problems[0],
			"hint", "remove "+s.layout.Binary(version.Genesis)+", then: supervisor init BINARY")
	}
	return ready.Ready()
}

// linkFirst makes `current` where there is none and the home never saw an upgrade.
func (s *session) linkFirst() error {
	l := s.layout
	s.log.Info("checking on the current symlink and creating it if needed")
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
	s.log.Info(fmt.Sprintf("the current symlink points to: %q", l.Binary(v)))
	return nil
}

func (s *session) writeConfig() error {
	path := filepath.Join(s.layout.State(), "supervisor.toml")
	if s.flags.config != "" {
		path = s.flags.config
	}
	if _, err := os.Lstat(path); err == nil {
		s.log.Info("file already exists, not overriding", "file", path)
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := atomicfile.WriteFile(path, []byte(config.RenderToml(s.cfg)), 0o640); err != nil {
		return err
	}
	s.log.Info("configuration written", "file", path)
	return nil
}
