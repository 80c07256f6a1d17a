package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"nodevisor/internal/hint"
	"nodevisor/supervisor"
	"nodevisor/supervisor/client"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
)

func newUpgradeApply(a *app) *cobra.Command {
	var force, dryRun, yes bool
	cmd := &cobra.Command{
		Use: "apply NAME", Short: "Switch now, whatever the height", Args: exactArgs(1, "a name"),
		Long: `Stops the node, takes a snapshot, switches to the version NAME and starts it: for patch releases, and where an
operator knows that a plan's height has come. It works while held, too. Without a running supervisor everything but the
start is done; the next "supervisor run" starts the new version on probation.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, name, err := a.loadWithName(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := s.previewApply(cmd.Context(), name); err != nil || dryRun {
				return err
			}
			if err := a.confirm(yes, "Stop the node and switch to "+name+"?"); err != nil {
				return err
			}
			return s.operate(cmd.Context(), client.OpApply, client.Request{Name: name, Force: force}, func(o *offline) (client.Reply, error) {
				return o.apply(cmd.Context(), name, force)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&force, "force", false, "also a plan on the skip list")
	f.BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

// previewApply checks what can be checked before, and says what will be done.
func (s *session) previewApply(ctx context.Context, name string) error {
	to := supervisor.ApplyPlan(name, nil).To()
	ready := s.checker().Check(ctx, to)
	if !ready.Ready() && s.fetcher() == nil {
		return hint.New("apply", name, ready.Problems[0], "supervisor upgrade add "+name+" BINARY")
	}
	from, err := s.layout.Current()
	if err != nil {
		return &hint.Error{Op: "apply", Path: name, Err: err, Hint: "supervisor doctor --fix-link"}
	}
	store, err := s.store(nil)
	if err != nil {
		return err
	}
	snap := "none (switched off)"
	if s.snapshotOn("upgrade") {
		f, err := store.Forecast(ctx)
		if err != nil {
			return err
		}
		snap = fmt.Sprintf("%d files, %d bytes, by %s, in %s", f.Files, f.Bytes, f.Method, store.Dir())
	}
	s.say("stop the node\nsnapshot: %s\nswitch: %s -> %s (sha256 %s)\nrun %s pre-upgrade\nstart, on probation for %s",
		snap, from, to, ready.SHA256, s.layout.Binary(to), s.cfg.Upgrade.Probation.Up)
	return nil
}

// apply carries the upgrade out without a running supervisor, up to the start.
func (o *offline) apply(ctx context.Context, name string, force bool) (client.Reply, error) {
	if o.broken != nil {
		return client.Reply{}, o.broken
	}
	if u := o.engine.InFlight(); u != nil {
		return client.Reply{}, hint.New("apply", name, "the upgrade "+u.Plan.Name+" is in flight, at "+string(u.Phase),
			"supervisor upgrade resume, or: supervisor upgrade skip "+u.Plan.Name)
	}
	if err := o.atRest(ctx); err != nil {
		return client.Reply{}, err
	}
	p := supervisor.ApplyPlan(name, o.tracker().Pending())
	ready := o.checker.Check(ctx, p.To())
	if !ready.Ready() {
		return client.Reply{}, hint.New("apply", name, ready.Problems[0], "supervisor upgrade add "+name+" BINARY")
	}
	err := errors.Join(o.engine.Allow(name, force), o.engine.Release())
	if err == nil {
		err = o.engine.Begin(p, plan.ByOperator, ready, o.knownHeight())
	}
	if err == nil {
		err = o.engine.Carry(ctx)
	}
	if err != nil {
		return client.Reply{}, errors.Join(err, o.engine.HoldFor(err))
	}
	return client.Reply{Message: name + " is current; supervisor run starts it on probation"}, o.engine.Settle()
}

func newUpgradeResume(a *app) *cobra.Command {
	var restore, yes bool
	cmd := &cobra.Command{
		Use: "resume", Short: "Try the upgrade in flight again, with fresh attempts", Args: exactArgs(0, "no arguments"),
		Long: `Leaves the hold and starts the attempts again. --restore first puts the upgrade's own snapshot back, so that a fixed
binary starts from the data that the old version left. Where no height can be read it also confirms a version on probation
that has been up long enough.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			if restore {
				if err := a.confirm(yes, "Replace the node's data by the upgrade's snapshot?"); err != nil {
					return err
				}
			}
			return s.resume(cmd.Context(), client.Request{Restore: restore, Confirm: true}, true)
		},
	}
	cmd.Flags().BoolVar(&restore, "restore", false, "put the upgrade's own snapshot back first")
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

func newResume(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "resume", GroupID: "node", Short: "Leave a hold", Args: exactArgs(0, "no arguments"),
		Long: "Takes the hold away. A running supervisor goes on at once; else the next \"supervisor run\" does.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			return s.resume(cmd.Context(), client.Request{}, false)
		},
	}
}

func (s *session) resume(ctx context.Context, r client.Request, needsUpgrade bool) error {
	return s.operate(ctx, client.OpResume, r, func(o *offline) (client.Reply, error) {
		j := o.engine.Journal()
		switch {
		case o.broken != nil:
			return client.Reply{}, o.broken
		case needsUpgrade && j.Upgrade == nil:
			return client.Reply{}, hint.New("resume", "", "no upgrade is in flight", "supervisor status")
		case j.Hold == nil && !needsUpgrade:
			return client.Reply{}, hint.New("resume", "", "nothing is held", "supervisor status")
		case r.Restore:
			if err := o.atRest(ctx); err != nil {
				return client.Reply{}, err
			}
			if err := o.engine.Restart(ctx); err != nil {
				return client.Reply{}, err
			}
		}
		return client.Reply{Message: "resumed; supervisor run goes on"}, o.engine.Resume()
	})
}

func newRollback(a *app) *cobra.Command {
	var binaryOnly, dryRun, yes bool
	cmd := &cobra.Command{
		Use: "rollback", GroupID: "upgrade", Short: "Undo the upgrade in flight, or the last one", Args: exactArgs(0, "no arguments"),
		Long: `Puts the upgrade's snapshot and the old version back, and holds with the node stopped. It refuses once the new version
has committed a block above the plan's height: a chain can't be rolled back. --binary-only leaves the data alone.
The signer's state is never taken back.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			if dryRun {
				return s.previewRollback(cmd.Context(), binaryOnly)
			}
			if err := a.confirm(yes, "Stop the node and go back to the version before the upgrade?"); err != nil {
				return err
			}
			return s.operate(cmd.Context(), client.OpRollback, client.Request{BinaryOnly: binaryOnly}, func(o *offline) (client.Reply, error) {
				return o.rollback(cmd.Context(), binaryOnly)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&binaryOnly, "binary-only", false, "leave the data alone (only where the new version did not migrate it)")
	f.BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

func (s *session) previewRollback(ctx context.Context, binaryOnly bool) error {
	j, err := upgrade.LoadJournal(s.layout.JournalPath())
	if err != nil {
		return err
	}
	st, err := s.status(ctx)
	if err != nil {
		return err
	}
	switch {
	case !st.Rollback.Possible && !binaryOnly:
		s.say("not possible: %s", *st.Rollback.Reason)
	case j.Upgrade == nil:
		s.say("the last upgrade would be undone, if it left a snapshot; see: supervisor upgrade history")
	case binaryOnly:
		s.say("switch: %s -> %s; the data stays", j.Upgrade.To, j.Upgrade.From)
	default:
		s.say("restore: snapshot %s\nswitch: %s -> %s\nhold, with the node stopped", j.Upgrade.Snapshot, j.Upgrade.To, j.Upgrade.From)
	}
	return nil
}

func (o *offline) rollback(ctx context.Context, binaryOnly bool) (client.Reply, error) {
	if o.broken != nil {
		return client.Reply{}, o.broken
	}
	if err := o.atRest(ctx); err != nil {
		return client.Reply{}, err
	}
	if err := o.engine.Reopen(o.knownHeight(), binaryOnly); err != nil {
		return client.Reply{}, err
	}
	if err := o.engine.RollBack(ctx, binaryOnly); err != nil {
		return client.Reply{}, err
	}
	name := o.engine.InFlight().Plan.Name
	next := supervisor.HintAfterRollback(name)
	return client.Reply{Message: name + " was rolled back; held. Next: " + next},
		o.engine.CloseHeld("the upgrade "+name+" was rolled back", next)
}
