package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

const rootLong = `Supervisor runs one blockchain node in place of the node's own command, and carries its upgrades out as
transactions: rehearsed before, recorded while they run, resumed after a crash, verified after, and taken back where the
chain allows it. It is a drop-in for Cosmovisor.

Exit codes: 0 ok; 1 failure; 2 usage or configuration; 3 held, needs an operator; 4 locked.
"run" hands the node's own code on (128+n for a signal); its own are 78 configuration or usage, 79 held, 75 locked.`

// newRoot builds the tree of commands.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use: "supervisor", Short: "Runs one blockchain node and its upgrades", Long: rootLong,
		SilenceErrors: true, SilenceUsage: true, TraverseChildren: true, Version: version,
		Args: onlyCommands,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetArgs(a.args)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	f := root.PersistentFlags()
	f.StringVar(&a.flags.home, "home", "", "the node's home directory (DAEMON_HOME)")
	f.StringVar(&a.flags.config, "config", "", "the configuration file (SUPERVISOR_CONFIG)")
	f.StringVar(&a.flags.unit, "unit", "", "take user, environment and arguments from this systemd unit")
	f.StringVarP(&a.flags.cosmovisorConfig, "cosmovisor-config", "c", "", "Cosmovisor's own config.toml")
	f.BoolVar(&a.flags.json, "json", false, "print JSON")
	root.Flags().BoolVar(&a.flags.takeover, "takeover", false, "with run: first stop a node that an earlier supervisor left behind")
	root.AddGroup(
		&cobra.Group{ID: "node", Title: "The node:"},
		&cobra.Group{ID: "upgrade", Title: "Upgrades:"},
		&cobra.Group{ID: "cosmovisor", Title: "Cosmovisor's own names:"},
	)
	for _, add := range commands {
		root.AddCommand(add(a))
	}
	return root
}

// commands lists every command, in the order of the help.
var commands = []func(*app) *cobra.Command{
	newRun, newInit, newUninit, newStatus, newDoctor, newResume, newHalt, newReload, newUnit,
	newUpgrade, newRollback, newSnapshot,
	newAddUpgrade, newAddBatchUpgrade, newPrepareUpgrade, newShowUpgradeInfo, newConfig, newVersion,
	newMan,
}

// onlyCommands refuses what is no command of cmd, and says what was probably meant.
func onlyCommands(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		names = append(names, c.Name())
	}
	meant := ""
	if name := closest(args[0], names); name != "" {
		meant = fmt.Sprintf(" (did you mean %q?)", name)
	}
	return usagef("unknown command %q for %q%s\nRun '%s --help' for usage", args[0], cmd.CommandPath(), meant, cmd.CommandPath())
}

// exactArgs is cobra.ExactArgs with our exit code.
func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usagef("%s needs %s\nRun '%s --help' for usage", cmd.CommandPath(), what, cmd.CommandPath())
		}
		return nil
	}
}

func isTerminal(f *os.File) bool { return f != nil && term.IsTerminal(int(f.Fd())) }
