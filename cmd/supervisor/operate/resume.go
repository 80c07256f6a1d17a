package operate

import (
	"context"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/hint"
	"nodevisor/supervisor/client"
)

// NewResume makes `supervisor resume`.
func NewResume(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "resume", GroupID: "node", Short: "Leave a hold", Args: cli.ExactArgs(0, "no arguments"),
		Long: "Takes the hold away. A running supervisor goes on at once; else the next \"supervisor run\" does.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Reach(cmd.Context(), a)
			if err != nil {
				return err
			}
			return resume(cmd.Context(), s, client.Request{})
		},
	}
}

func newUpgradeResume(a *cli.App) *cobra.Command {
	var restore, yes bool
	cmd := &cobra.Command{
		Use: "resume", Short: "Try the upgrade in flight again, with fresh attempts", Args: cli.ExactArgs(0, "no arguments"),
		Long: `Leaves the hold and starts the attempts again. --restore first puts the upgrade's own snapshot back, so that a fixed
binary starts from the data that the old version left. Where no height can be read it also confirms a version on probation
that has been up long enough.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Reach(cmd.Context(), a)
			if err != nil {
				return err
			}
			if restore {
				if err := a.Confirm(yes, "Replace the node's data by the upgrade's snapshot?"); err != nil {
					return err
				}
			}
			return resume(cmd.Context(), s, client.Request{Restore: restore, Confirm: true})
		},
	}
	cmd.Flags().BoolVar(&restore, "restore", false, "put the upgrade's own snapshot back first")
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

// resume leaves the hold, as a running supervisor does. With Confirm it also tries an upgrade again that isn't held.
func resume(ctx context.Context, s *session.Session, r client.Request) error {
	return s.Operate(ctx, client.OpResume, r, func(o *session.Offline) (client.Reply, error) {
		j := o.Engine.Journal()
		switch {
		case o.Broken != nil:
			return client.Reply{}, o.Broken
		case r.Restore && j.Upgrade == nil:
			return client.Reply{}, hint.New("restore the upgrade's snapshot", "", "no upgrade is in flight", "supervisor status")
		case j.Hold == nil && (!r.Confirm || j.Upgrade == nil):
			return client.Reply{}, hint.New("resume", "", "nothing is held", "supervisor status")
		case r.Restore:
			if err := o.AtRest(ctx); err != nil {
				return client.Reply{}, err
			}
			if err := o.Engine.Restart(ctx); err != nil {
				return client.Reply{}, err
			}
		}
		return client.Reply{Message: "resumed; supervisor run goes on"}, o.Engine.Resume()
	})
}
