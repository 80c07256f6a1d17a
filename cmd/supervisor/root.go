package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/doctor"
	"nodevisor/cmd/supervisor/operate"
	"nodevisor/cmd/supervisor/setup"
	"nodevisor/cmd/supervisor/template"
	"nodevisor/internal/suggest"
)

const rootLong = `Supervisor runs one blockchain node in place of the node's own command, and carries its upgrades out as
transactions: rehearsed before, recorded while they run, resumed after a crash, verified after, and taken back where the
chain allows it. It is a drop-in for Cosmovisor.

Exit codes: 0 ok; 1 failure; 2 usage or configuration; 3 held, needs an operator; 4 locked.
"run" hands the node's own code on (128+n for a signal); its own are 78 configuration or usage, 79 held, 75 locked.`

// newRoot builds the tree of commands.
func newRoot(a *cli.App) *cobra.Command {
	root := &cobra.Command{
		Use: "supervisor", Short: "Runs one blockchain node and its upgrades", Long: rootLong,
		SilenceErrors: true, SilenceUsage: true, TraverseChildren: true, Version: a.Release,
		Args:              cli.OnlyCommands,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return refuseJSON(a, cmd) },
	}
	root.SetArgs(a.Args)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.SetFlagErrorFunc(flagError)
	f := root.PersistentFlags()
	f.StringVar(&a.Flags.Home, "home", "", "the node's home directory (DAEMON_HOME)")
	f.StringVar(&a.Flags.Config, "config", "", "the configuration file (SUPERVISOR_CONFIG)")
	f.StringVar(&a.Flags.Unit, "unit", "", "take user, environment and arguments from this systemd unit")
	f.StringVarP(&a.Flags.CosmovisorConfig, "cosmovisor-config", "c", "", "Cosmovisor's own config.toml")
	f.BoolVar(&a.Flags.JSON, "json", false, "print JSON")
	root.Flags().BoolVar(&a.Flags.Takeover, "takeover", false, "with run: first stop what an earlier supervisor left behind")
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
		a.Commands = append(a.Commands, cmd.Name())
		if cmd.Name() == "completion" {
			cmd.Args = cli.OnlyCommands
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
	addCompletions(a, root)
	return root
}

// commands lists every command, in the order of the help.
var commands = []func(*cli.App) *cobra.Command{
	newRun, setup.NewInit, setup.NewUninit, operate.NewStatus, doctor.New, operate.NewResume, operate.NewHalt, operate.NewReload, setup.NewUnit,
	operate.NewUpgrade, operate.NewRollback, operate.NewSnapshot, template.New,
	newAddUpgrade, newAddBatchUpgrade, newPrepareUpgrade, newShowUpgradeInfo, newConfig, newVersion,
	newMan,
}

// textOnly are the commands whose output is a file of another form: a unit, a page, a shell's script.
var textOnly = []string{"unit", "completion", "man"}

// refuseJSON refuses --json where there is none: a script must not take a text for a document.
func refuseJSON(a *cli.App, cmd *cobra.Command) error {
	for c := cmd; c.HasParent(); c = c.Parent() {
		if !c.Parent().HasParent() && a.Flags.JSON && slices.Contains(textOnly, c.Name()) {
			return &cli.UsageError{Err: cli.Advise(fmt.Errorf("%s has no JSON form", cmd.CommandPath()), "leave --json out")}
		}
	}
	return nil
}

// isFlagError tells what the flags' parser says from everything else.
func isFlagError(err error) bool {
	usage, unknown, missing := (*cli.UsageError)(nil), (*pflag.NotExistError)(nil), (*pflag.ValueRequiredError)(nil)
	value, syntax := (*pflag.InvalidValueError)(nil), (*pflag.InvalidSyntaxError)(nil)
	return !errors.As(err, &usage) &&
		(errors.As(err, &unknown) || errors.As(err, &missing) || errors.As(err, &value) || errors.As(err, &syntax))
}

// flagError says which flag was probably meant.
func flagError(cmd *cobra.Command, err error) error {
	help := cmd.CommandPath() + " --help"
	unknown := (*pflag.NotExistError)(nil)
	if !errors.As(err, &unknown) {
		return &cli.UsageError{Err: cli.Advise(err, help)}
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	if name := suggest.Closest(unknown.GetSpecifiedName(), names); name != "" && len(unknown.GetSpecifiedName()) > 1 {
		err = fmt.Errorf("%w (did you mean \"--%s\"?)", err, name)
	} else if strings.Contains(cmd.Use, " NAME") { // a chain may name its plan so, and then every advice does
		help += "    # a name that begins with a dash: put -- before it, behind all flags"
	}
	return &cli.UsageError{Err: cli.Advise(err, help)}
}

// guess finds out what the flags' parser no longer came to, because it stops at the first mistake: whether the command is
// `run`, whose exit codes are its own, and whether the answer is to be JSON.
func guess(a *cli.App) {
	takesValue := []string{"--home", "--config", "--unit", "--cosmovisor-config", "-c"}
	command := ""
	for i := 0; i < len(a.Args) && a.Args[i] != "--"; i++ {
		switch word := a.Args[i]; {
		case slices.Contains(takesValue, word):
			i++
		case word == "--json" || word == "--json=true":
			a.Flags.JSON = true
		case command == "" && slices.Contains(a.Commands, word):
			command = word
			if command == "run" { // everything behind it is the node's
				a.Running = true
				return
			}
		}
	}
}
