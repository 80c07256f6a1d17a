package operate

import (
	"context"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/supervisor"
	"nodevisor/supervisor/client"
	"nodevisor/upgrade"
)

// NewRollback makes `supervisor rollback`.
func NewRollback(a *cli.App) *cobra.Command {
	var binaryOnly, dryRun, yes bool
	cmd := &cobra.Command{
		Use: "rollback", GroupID: "upgrade", Short: "Undo the upgrade in flight, or the last one", Args: cli.ExactArgs(0, "no arguments"),
		Long: `Puts the upgrade's snapshot and the old version back, and holds with the node stopped. It refuses once the new version
has committed a block above the plan's height: a chain can't be rolled back. --binary-only leaves the data alone.
The signer's state is never taken back.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Reach(cmd.Context(), a)
			if err != nil {
				return err
			}
			if dryRun {
				return previewRollback(cmd.Context(), s, binaryOnly)
			}
			if err := a.Confirm(yes, "Stop the node and go back to the version before the upgrade?"); err != nil {
				return err
			}
			return s.Operate(cmd.Context(), client.OpRollback, client.Request{BinaryOnly: binaryOnly}, func(o *session.Offline) (client.Reply, error) {
				return rollback(cmd.Context(), o, binaryOnly)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&binaryOnly, "binary-only", false, "leave the data alone (only where the new version did not migrate it)")
	f.BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

func previewRollback(ctx context.Context, s *session.Session, binaryOnly bool) error {
	j, err := upgrade.LoadJournal(s.Layout.JournalPath())
	if err != nil {
		return err
	}
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	switch {
	case !st.Rollback.Possible && !binaryOnly:
		s.Say("not possible: %s", *st.Rollback.Reason)
	case j.Upgrade == nil:
		s.Say("the last upgrade would be undone, if it left a snapshot; see: supervisor upgrade history")
	case binaryOnly:
		s.Say("switch: %s -> %s; the data stays", j.Upgrade.To, j.Upgrade.From)
	default:
		s.Say("restore: snapshot %s\nswitch: %s -> %s\nhold, with the node stopped", j.Upgrade.Snapshot, j.Upgrade.To, j.Upgrade.From)
	}
	return nil
}

func rollback(ctx context.Context, o *session.Offline, binaryOnly bool) (client.Reply, error) {
	if o.Broken != nil {
		return client.Reply{}, o.Broken
	}
	if err := o.AtRest(ctx); err != nil {
		return client.Reply{}, err
	}
	if err := o.Engine.Reopen(o.KnownHeight(), binaryOnly); err != nil {
		return client.Reply{}, err
	}
	if err := o.Engine.RollBack(ctx, binaryOnly); err != nil {
		return client.Reply{}, err
	}
	name := o.Engine.InFlight().Plan.Name
	next := supervisor.HintAfterRollback(name)
	return client.Reply{Message: name + " was rolled back; held. Next: " + next},
		o.Engine.CloseHeld("the upgrade "+name+" was rolled back", next)
}
