package operate

import (
	"context"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/supervisor"
	"nodevisor/supervisor/client"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
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

// previewRollback says what a rollback would do, or fails with why it would be refused: it asks the engine the same question.
func previewRollback(ctx context.Context, s *session.Session, binaryOnly bool) error {
	st, err := s.Status(ctx)
	if err != nil {
		return err
	}
	known := plan.UnknownHeight
	if st.Height != nil {
		known = *st.Height
	}
	e := upgrade.NewEngine(upgrade.Options{Layout: s.Layout, Config: s.Config.Upgrade, Log: s.Log})
	if err := e.Load(); err != nil {
		return err
	}
	if err := e.Reopen(known, binaryOnly); err != nil {
		return err
	}
	u := e.InFlight()
	would := struct {
		DryRun   bool    `json:"dry_run"`
		Name     string  `json:"name"`
		From     string  `json:"from"`
		To       string  `json:"to"`
		Snapshot *string `json:"snapshot"` // null: the data stays
	}{true, u.Plan.Name, u.To.Name(), u.From.Name(), nil}
	if u.Snapshot != "" && !binaryOnly {
		would.Snapshot = &u.Snapshot
	}
	if s.Flags.JSON {
		return cli.WriteJSON(s.Stdout, would)
	}
	if would.Snapshot != nil {
		s.Say("restore: snapshot %s", *would.Snapshot)
	} else {
		s.Say("the data stays")
	}
	s.Say("switch: %s -> %s\nhold, with the node stopped", u.To, u.From)
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
