package operate

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/hint"
	"nodevisor/snapshot"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade/plan"
)

// NewHalt makes `supervisor halt`.
func NewHalt(a *cli.App) *cobra.Command {
	var r client.Request
	var when string
	var yes bool
	cmd := &cobra.Command{
		Use: "halt --height N | --time T | --now | --cancel", GroupID: "node", Short: "Stop the node there, take a snapshot, and hold",
		Args: cli.ExactArgs(0, "no arguments"),
		Long: `Stops the node at a height, at a time or now, takes a snapshot where [snapshot] on has "halt" and a genesis template
where [genesis] on has it, and holds until "supervisor resume". --height N: N is the first block that is not executed any
more. A node that halts there by itself (--halt-height N among its arguments, or halt-height in its config/app.toml) stops
exactly; any other one is stopped when the height is read, a little late, and by how many blocks is said.

--now answers when the node is at rest and the snapshot is sealed, --wait does the same for a height or a time: the result
is printed, with the digests of the template and the commands that can follow; --json prints it as one object. The
snapshot is completed (hashed, archived) after that, while the node is held: "supervisor status" shows how far it is.`,
		Example: `  supervisor halt --height 500000 --wait --yes --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Reach(cmd.Context(), a)
			if err != nil {
				return err
			}
			if r.Time, err = parseTime(when, "supervisor halt --now"); err != nil {
				return err
			}
			given := 0
			for _, is := range []bool{r.Height > 0, !r.Time.IsZero(), r.Now, r.Cancel} {
				if is {
					given++
				}
			}
			if given != 1 || r.Height < 0 {
				return cli.Usagef("exactly one of --height, --time, --now and --cancel is needed")
			}
			if r.Wait && (r.Now || r.Cancel) {
				return cli.Usagef("--wait is for --height and --time")
			}
			if !r.Cancel {
				if err := a.Confirm(yes, "Stop the node there and hold?"); err != nil {
					return err
				}
			}
			return s.Operate(cmd.Context(), client.OpHalt, r, func(o *session.Offline) (client.Reply, error) {
				return halt(cmd.Context(), o, r)
			})
		},
	}
	f := cmd.Flags()
	f.Int64Var(&r.Height, "height", 0, "the first block that is not executed any more")
	f.StringVar(&when, "time", "", "when (RFC 3339: 2026-12-01T14:00:00Z)")
	f.BoolVar(&r.Now, "now", false, "at once")
	f.BoolVar(&r.Wait, "wait", false, "answer when the halt has come, with its result")
	f.BoolVar(&r.Cancel, "cancel", false, "take a scheduled halt off")
	f.BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

// halt schedules a halt where no supervisor runs: the next one finds it. A halt now takes of the node at rest what one
// beneath a running supervisor would take, and completes it.
func halt(ctx context.Context, o *session.Offline, r client.Request) (client.Reply, error) {
	switch {
	case o.Broken != nil:
		return client.Reply{}, o.Broken
	case r.Cancel:
		return client.Reply{Message: "no halt is scheduled any more"}, o.Engine.SetHalt(nil, plan.UnknownHeight)
	case r.Wait:
		return client.Reply{}, hint.New("wait for the halt", "", "no supervisor is running", "start it, or leave --wait out")
	case r.Now:
		return haltNow(ctx, o)
	}
	h := &plan.Halt{Height: r.Height, Time: r.Time}
	return client.Reply{Message: "halting at " + h.When()}, o.Engine.SetHalt(h, o.KnownHeight())
}

// haltNow does what a halt beneath a running supervisor does, in the same order where it matters: the halt takes the place of
// a scheduled one and is forgotten last, so that whoever is killed in between halts again, with the same snapshot. It holds
// before anything is copied: nobody starts the node on that meanwhile.
func haltNow(ctx context.Context, o *session.Offline) (client.Reply, error) {
	if hold := o.Engine.Journal().Hold; hold != nil {
		return client.Reply{Message: fmt.Sprintf("the node is stopped already: held, %s. Next: %s", hold.Reason, hold.Hint)}, nil
	}
	if err := o.AtRest(ctx); err != nil {
		return client.Reply{}, err
	}
	takes := o.SnapshotOn("halt") || o.TemplateOn("halt")
	if takes { // what can't be taken is refused while nothing is changed
		if _, err := o.Store.Do(ctx, session.SnapshotRequest{Op: "create", DryRun: true}.Raw(), true); err != nil {
			return client.Reply{}, err
		}
	}
	h := plan.Halt{Time: time.Now().UTC()}
	result := status.HaltResult{At: h.When(), Problems: []string{}, Next: []string{"supervisor resume"}}
	if err := o.Engine.SetHalt(&h, plan.UnknownHeight); err != nil {
		return client.Reply{}, err
	}
	height := o.KnownHeight()
	result.Measure(h, height, 0)
	if err := o.Engine.Hold(result.Text(), result.Next[0]); err != nil {
		return client.Reply{}, err
	}
	if takes {
		if err := takeHalted(ctx, o, height, &result); err != nil {
			return client.Reply{}, err
		}
	}
	if err := o.Engine.SetHalt(nil, plan.UnknownHeight); err != nil {
		return client.Reply{}, err
	}
	data, err := json.Marshal(result)
	return client.Reply{Message: "held: the node is not started; " + result.Text(), Result: data}, err
}

// takeHalted takes the snapshot and the template that the configuration asks for at a halt, and completes them.
func takeHalted(ctx context.Context, o *session.Offline, height int64, result *status.HaltResult) error {
	id, err := o.Engine.HaltSnapshot(snapshot.NewID(time.Now(), "halt", max(0, height)))
	if err != nil {
		return err
	}
	if _, err := o.Store.Do(ctx, session.SnapshotRequest{Op: "create", ID: id, Label: "halt", Height: max(0, height)}.Raw(), true); err != nil {
		return err
	}
	result.Snapshot = &id
	if o.TemplateOn("halt") {
		x := session.NewExporter(o.Session, o.Store)
		if err := x.Export(ctx, id, height); err != nil {
			result.Problems = append(result.Problems, "the genesis template could not be made: "+err.Error())
		} else if result.Template, err = x.Describe(id); err != nil {
			return err
		}
	}
	return o.Store.Complete(ctx, id)
}
