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
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
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
			would, err := previewApply(cmd.Context(), s, name, force)
			switch {
			case err != nil:
				return err
			case dryRun && a.Flags.JSON:
				return cli.WriteJSON(a.Stdout, would)
			}
			s.Say("%s", would.text(s))
			if dryRun {
				return nil
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

// application is what `upgrade apply` would do.
type application struct {
	DryRun   bool          `json:"dry_run"`
	Name     string        `json:"name"`
	From     string        `json:"from"`
	To       string        `json:"to"`
	SHA256   *string       `json:"sha256"`   // null: it is still to be downloaded
	Snapshot *snapshotToBe `json:"snapshot"` // null: none is taken
	from, to version.Version
}

type snapshotToBe struct {
	Files  int    `json:"files"`
	Bytes  int64  `json:"bytes"`
	Method string `json:"method"`
	Dir    string `json:"dir"`
}

// text is the same for people.
func (w application) text(s *session.Session) string {
	snap, sum := "none (switched off)", "is downloaded"
	if t := w.Snapshot; t != nil {
		snap = fmt.Sprintf("%d files, %d bytes, by %s, in %s", t.Files, t.Bytes, t.Method, t.Dir)
	}
	if w.SHA256 != nil {
		sum = "sha256 " + *w.SHA256
	}
	return fmt.Sprintf("stop the node\nsnapshot: %s\nswitch: %s -> %s (%s)\nrun %s pre-upgrade\nstart, on probation for %s",
		snap, w.from, w.to, sum, s.Layout.Binary(w.to), s.Config.Upgrade.Probation.Up)
}

// previewApply checks what can be checked before, and returns what will be done.
func previewApply(ctx context.Context, s *session.Session, name string, force bool) (w application, err error) {
	w = application{DryRun: true, Name: name, to: supervisor.ApplyPlan(name, nil).To()}
	v, viewErr := s.View() // what can't be read is refused where it is carried out
	if u := v.Journal.Upgrade; viewErr == nil && u != nil {
		return w, inFlight(name, u)
	}
	ready := s.Checker().Check(ctx, w.to)
	if !ready.Ready() && s.Fetcher() == nil {
		return w, hint.New("apply", name, ready.Problems[0], "supervisor upgrade add "+hint.Quote(name)+" BINARY")
	}
	if ready.SHA256 != "" {
		w.SHA256 = &ready.SHA256
	}
	if w.from, err = s.Layout.Current(); err != nil {
		return w, &hint.Error{Op: "apply", Path: name, Err: err, Hint: "supervisor doctor --fix-link"}
	}
	w.From, w.To = w.from.Name(), w.to.Name()
	if w.from == w.to && !force && viewErr == nil {
		return w, hint.New("apply", name, "it is current already", "restart the node to run a binary that was replaced; or add --force")
	}
	store, err := s.Store(nil)
	if err != nil || !s.SnapshotOn("upgrade") {
		return w, err
	}
	f, err := store.Forecast(ctx)
	w.Snapshot = &snapshotToBe{Files: f.Files, Bytes: f.Bytes, Method: f.Method, Dir: store.Dir()}
	return w, err
}

// inFlight refuses an upgrade beside another, or the same one begun again.
func inFlight(name string, u *upgrade.Upgrade) error {
	return hint.New("apply", name, "the upgrade "+u.Plan.Name+" is in flight, at "+string(u.Phase),
		"supervisor upgrade resume, or: supervisor upgrade skip "+hint.Quote(u.Plan.Name))
}

// apply carries the upgrade out without a running supervisor, up to the start.
func apply(ctx context.Context, o *session.Offline, name string, force bool) (client.Reply, error) {
	if o.Broken != nil {
		return client.Reply{}, o.Broken
	}
	if u := o.Engine.InFlight(); u != nil {
		return client.Reply{}, inFlight(name, u)
	}
	if err := o.AtRest(ctx); err != nil {
		return client.Reply{}, err
	}
	p := supervisor.ApplyPlan(name, o.Tracker().Pending())
	ready := o.Checker.Check(ctx, p.To())
	if !ready.Ready() {
		return client.Reply{}, hint.New("apply", name, ready.Problems[0], "supervisor upgrade add "+hint.Quote(name)+" BINARY")
	}
	if err := upgrade.CheckScript(o.Layout, o.Config.Upgrade); err != nil {
		return client.Reply{}, err
	}
	if o.Engine.Snapshots != nil {
		if err := o.Engine.Snapshots.Room(ctx); err != nil {
			return client.Reply{}, err
		}
	}
	if err := o.Engine.Allow(name, force); err != nil {
		return client.Reply{}, err // refused: a hold stays what it is, and none comes of it
	}
	err := o.Engine.Release()
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
