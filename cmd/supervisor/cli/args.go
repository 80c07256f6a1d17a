package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"nodevisor/internal/suggest"
)

// OnlyCommands refuses what is no command of cmd, and says what was probably meant.
func OnlyCommands(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		names = append(names, c.Name())
	}
	err, next := fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath()), cmd.CommandPath()+" --help"
	if name := suggest.Closest(args[0], names); name != "" {
		err, next = fmt.Errorf("%w (did you mean %q?)", err, name), cmd.CommandPath()+" "+name
	}
	return &UsageError{Err: Advise(err, next)}
}

// ExactArgs is cobra.ExactArgs with our exit code.
func ExactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return &UsageError{Err: Advise(fmt.Errorf("%s needs %s", cmd.CommandPath(), what), cmd.CommandPath()+" --help")}
		}
		return nil
	}
}

// BetweenArgs is ExactArgs for a range.
func BetweenArgs(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return Usagef("%s needs %s\nRun '%s --help' for usage", cmd.CommandPath(), what, cmd.CommandPath())
		}
		return nil
	}
}
