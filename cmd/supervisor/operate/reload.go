package operate

import (
	"errors"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/hint"
	"nodevisor/supervisor/client"
)

// NewReload makes `supervisor reload`.
func NewReload(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "reload", GroupID: "node", Short: "Re-read the configuration, all of it but [node], or nothing", Args: cli.ExactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Load(cmd.Context(), a, false)
			if err != nil {
				return err
			}
			err = s.AskAlone(cmd.Context(), client.OpReload, client.Request{})
			if errors.Is(err, client.ErrNotRunning) {
				return &hint.Error{Op: "reload", Err: err, Hint: "nothing is to be done: the next run reads the file"}
			}
			return err
		},
	}
}
