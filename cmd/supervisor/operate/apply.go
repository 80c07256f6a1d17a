package operate

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/hint"
	"nodevisor/supervisor"
	"nodevisor/supervisor/client"
	"nodevisor/upgrade/plan"
)

func newUpgradeApply(a *cli.App) *cobra.Command {
	var force, dryRun, yes bool
	cmd := &cobra.Command{
		Use: "apply NAME", Short: "Switch now, whatever the height", Args: cli.ExactArgs(1, "a name"),
		Long: `Stops the node, takes a snapshot, switches to the version NAME and starts it: for patch releases, and where an
operator knows that a plan's height has come. It works while held, too. Without a running supervisor everything but the
start is done; the next "supervisor run" starts the new version on probation.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, name, err := loadWithName(cmd.Context(), a, args[0])
			if err != nil {
				return err
			}
			if err := previewApply(cmd.Context(), s, name, force); err != nil || dryRun {
				return err
			}
			if err := a.Confirm(yes, "Stop the node and switch to "+name+"?"); err != nil {
				return err
			}
			return s.Operate(cmd.Context(), client.OpApply, client.Request{Name: name, Force: force}, func(o *session.Offline) (client.Reply, error) {
				return apply(cmd.Context(), o, name, force)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&force, "force", false, "also a plan on the skip list, and the version that is current")
	f.BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

// previewApply checks what can be checked before, and says what will be done.
func previewApply(ctx context.Context, s *session.Session, name string, force bool) error {
	to := supervisor.ApplyPlan(name, nil).To()
	ready := s.Checker().Check(ctx, to)
	if !ready.Ready() && s.Fetcher() == nil {
		return hint.New("apply", name, ready.Problems[0], "supervisor upgrade add "+name+" BINARY")
	}
	from, err := s.Layout.Current()
	if err != nil {
		return &hint.Error{Op: "apply", Path: name, Err: err, Hint: "supervisor doctor --fix-link"}
	}
	if v, err := s.View(); from == to && !force && err == nil && v.Journal.Upgrade == nil { // one in flight is resumed
		return hint.New("apply", name, "it is current already", "restart the node to run a binary that was replaced; or add --force")
	}
	store, err := s.Store(nil)
	if err != nil {
		return err
	}
	snap := "none (switched off)"
	if s.SnapshotOn("upgrade") {
		f, err := store.Forecast(ctx)
		if err != nil {
			return err
		}
		snap = fmt.Sprintf("%d files, %d bytes, by %s, in %s", f.Files, f.Bytes, f.Method, store.Dir())
	}
	s.Say("stop the node\nsnapshot: %s\nswitch: %s -> %s (sha256 %s)\nrun %s pre-upgrade\nstart, on probation for %s",
		snap, from, to, ready.SHA256, s.Layout.Binary(to), s.Config.Upgrade.Probation.Up)
	return nil
}

// apply carries the upgrade out without a running supervisor, up to the start.
func apply(ctx context.Context, o *session.Offline, name string, force bool) (client.Reply, error) {
	if o.Broken != nil {
		return client.Reply{}, o.Broken
	}
	if u := o.Engine.InFlight(); u != nil {
		return client.Reply{}, hint.New("apply", name, "the upgrade "+u.Plan.Name+" is in flight, at "+string(u.Phase),
			"supervisor upgrade resume, or: supervisor upgrade skip "+u.Plan.Name)
	}
	if err := o.AtRest(ctx); err != nil {
		return client.Reply{}, err
	}
	p := supervisor.ApplyPlan(name, o.Tracker().Pending())
	ready := o.Checker.Check(ctx, p.To())
	if !ready.Ready() {
		return client.Reply{}, hint.New("apply", name, ready.Problems[0], "supervisor upgrade add "+name+" BINARY")
	}
	err := errors.Join(o.Engine.Allow(name, force), o.Engine.Release())
	if err == nil {
		err = o.Engine.Begin(p, plan.ByOperator, ready, o.KnownHeight())
	}
	if err == nil {
		err = o.Engine.Carry(ctx)
	}
	if err != nil {
		return client.Reply{}, errors.Join(err, o.Engine.HoldFor(err))
	}
	return client.Reply{Message: name + " is current; supervisor run starts it on probation"}, o.Engine.Settle()
}
