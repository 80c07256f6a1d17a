package operate

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/hint"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/home"
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
				return notRunning(s, err)
			}
			return err
		},
	}
}

// notRunning tells a home that nobody supervises from one whose supervisor can't be asked.
func notRunning(s *session.Session, err error) error {
	if info, lockErr := home.ReadLock(s.Layout.LockPath()); lockErr == nil && info.Supervisor != nil {
		return &hint.Error{
			Op: "reload", Err: fmt.Errorf("%w: process %d has it, and nobody answers at %s", home.ErrLocked, info.Supervisor.Pid, s.Socket()),
			Hint: "supervisor status; where [control] socket was changed: change it back, or restart that process",
		}
	}
	return &hint.Error{Op: "reload", Err: err, Hint: "nothing is to be done: the next run reads the file"}
}
