package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nodevisor/internal/suggest"
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
		SilenceErrors: true, SilenceUsage: true, TraverseChildren: true, Version: release,
		Args: onlyCommands,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetArgs(a.args)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(flagError)
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
	root.InitDefaultCompletionCmd() // now, so that a shell it doesn't know is refused as any unknown command is
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Args = onlyCommands
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
	addCompletions(a, root)
	return root
}

// commands lists every command, in the order of the help.
var commands = []func(*app) *cobra.Command{
	newRun, newInit, newUninit, newStatus, newDoctor, newResume, newHalt, newReload, newUnit,
	newUpgrade, newRollback, newSnapshot, newGenesis,
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
	e := advised{fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath()), cmd.CommandPath() + " --help"}
	if name := suggest.Closest(args[0], names); name != "" {
		e = advised{fmt.Errorf("%w (did you mean %q?)", e.error, name), cmd.CommandPath() + " " + name}
	}
	return &usageError{e}
}

// isFlagError tells what the flags' parser says from everything else.
func isFlagError(err error) bool {
	usage, unknown, missing := (*usageError)(nil), (*pflag.NotExistError)(nil), (*pflag.ValueRequiredError)(nil)
	value, syntax := (*pflag.InvalidValueError)(nil), (*pflag.InvalidSyntaxError)(nil)
	return !errors.As(err, &usage) &&
		(errors.As(err, &unknown) || errors.As(err, &missing) || errors.As(err, &value) || errors.As(err, &syntax))
}

// flagError says which flag was probably meant.
func flagError(cmd *cobra.Command, err error) error {
	help := cmd.CommandPath() + " --help"
	unknown := (*pflag.NotExistError)(nil)
	if !errors.As(err, &unknown) {
		return &usageError{advised{err, help}}
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	if name := suggest.Closest(unknown.GetSpecifiedName(), names); name != "" && len(unknown.GetSpecifiedName()) > 1 {
		err = fmt.Errorf("%w (did you mean \"--%s\"?)", err, name)
	}
	return &usageError{advised{err, help}}
}

// exactArgs is cobra.ExactArgs with our exit code.
func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return &usageError{advised{fmt.Errorf("%s needs %s", cmd.CommandPath(), what), cmd.CommandPath() + " --help"}}
		}
		return nil
	}
}
