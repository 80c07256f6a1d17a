package main

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/host"
	"nodevisor/internal/hint"
	"nodevisor/snapshot"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade/plan"
)

func newHalt(a *app) *cobra.Command {
	var r client.Request
	var when string
	var yes bool
	cmd := &cobra.Command{
		Use: "halt --height N | --time T | --now | --cancel", GroupID: "node", Short: "Stop the node there, take a snapshot, and hold",
		Args: exactArgs(0, "no arguments"),
		Long: `Stops the node at a height, at a time or now, takes a snapshot where [snapshot] on has "halt" and a genesis template
where [genesis] on has it, and holds until "supervisor resume". --height N: N is the first block that is not executed any
more. A node that halts there by itself (--halt-height N among its arguments) stops exactly; any other one is stopped when
the height is read, a little late, and by how many blocks is said.

--now answers when the node is at rest and the snapshot is sealed, --wait does the same for a height or a time: the result
is printed, with the digests of the template and the commands that can follow; --json prints it as one object. The
snapshot is completed (hashed, archived) after that, while the node is held: "supervisor status" shows how far it is.`,
		Example: `  supervisor halt --height 500000 --wait --yes --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd.Context(), false)
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
				return usagef("exactly one of --height, --time, --now and --cancel is needed")
			}
			if r.Wait && (r.Now || r.Cancel) {
				return usagef("--wait is for --height and --time")
			}
			if !r.Cancel {
				if err := a.confirm(yes, "Stop the node there and hold?"); err != nil {
					return err
				}
			}
			return s.operate(cmd.Context(), client.OpHalt, r, func(o *offline) (client.Reply, error) {
				return o.halt(cmd.Context(), r)
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
func (o *offline) halt(ctx context.Context, r client.Request) (client.Reply, error) {
	switch {
	case o.broken != nil:
		return client.Reply{}, o.broken
	case r.Cancel:
		return client.Reply{Message: "no halt is scheduled any more"}, o.engine.SetHalt(nil, plan.UnknownHeight)
	case r.Wait:
		return client.Reply{}, hint.New("wait for the halt", "", "no supervisor is running", "start it, or leave --wait out")
	case r.Now:
		return o.haltNow(ctx)
	}
	h := &plan.Halt{Height: r.Height, Time: r.Time}
	return client.Reply{Message: "halting at " + h.When()}, o.engine.SetHalt(h, o.knownHeight())
}

// haltNow holds first: killed in between, nobody starts the node on what is being copied.
func (o *offline) haltNow(ctx context.Context) (client.Reply, error) {
	if err := o.atRest(ctx); err != nil {
		return client.Reply{}, err
	}
	result := status.HaltResult{At: "now", Exact: true, Problems: []string{}, Next: []string{"supervisor resume"}}
	if err := o.engine.Hold("halted now as an operator asked for", result.Next[0]); err != nil {
		return client.Reply{}, err
	}
	height := o.knownHeight()
	if height != plan.UnknownHeight {
		result.Height = &height
	}
	if err := o.takeHalted(ctx, height, &result); err != nil {
		return client.Reply{}, err
	}
	data, err := json.Marshal(result)
	return client.Reply{Message: "held: the node is not started; " + result.Text(), Result: data}, err
}

func (o *offline) takeHalted(ctx context.Context, height int64, result *status.HaltResult) error {
	if !o.snapshotOn("halt") && !o.templateOn("halt") {
		return nil
	}
	id := snapshot.NewID(time.Now(), "halt", max(0, height))
	if _, err := o.store.Do(ctx, rawJSON(snapshotRequest{Op: "create", ID: id, Label: "halt", Height: max(0, height)}), true); err != nil {
		return err
	}
	result.Snapshot = &id
	if o.templateOn("halt") {
		x := newExporter(o.session, o.store)
		if err := x.Export(ctx, id, height); err != nil {
			result.Problems = append(result.Problems, "the genesis template could not be made: "+err.Error())
		} else if result.Template, err = x.describe(id); err != nil {
			return err
		}
	}
	return o.store.Complete(ctx, id)
}

func newReload(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "reload", GroupID: "node", Short: "Re-read the configuration, all of it but [node], or nothing", Args: exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			reply, err := client.New(host.ControlSocket(s.cfg, s.environ)).Do(cmd.Context(), client.OpReload, client.Request{})
			if errors.Is(err, client.ErrNotRunning) {
				return &hint.Error{Op: "reload", Err: err, Hint: "nothing is to be done: the next run reads the file"}
			}
			if err != nil {
				return err
			}
			return s.printReply(reply, true)
		},
	}
}
