package main

import (
	"errors"

	"github.com/spf13/cobra"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/client"
	"nodevisor/upgrade"
)

func newHalt(a *app) *cobra.Command {
	var r client.Request
	var when string
	var yes bool
	cmd := &cobra.Command{
		Use: "halt --height N | --time T | --now | --cancel", GroupID: "node", Short: "Stop the node there, take a snapshot, and hold",
		Args: exactArgs(0, "no arguments"),
		Long: `Stops the node at a height, at a time or now, takes a snapshot where [snapshot] on has "halt", and holds until
"supervisor resume". --height N: N is the first block that is not executed any more; the stop comes a little late, because
the node doesn't halt by itself.`,
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
			if !r.Cancel {
				if err := a.confirm(yes, "Stop the node there and hold?"); err != nil {
					return err
				}
			}
			return s.operate(cmd.Context(), client.OpHalt, r, func(o *offline) (client.Reply, error) {
				return o.halt(r)
			})
		},
	}
	f := cmd.Flags()
	f.Int64Var(&r.Height, "height", 0, "the first block that is not executed any more")
	f.StringVar(&when, "time", "", "when (RFC 3339: 2026-12-01T14:00:00Z)")
	f.BoolVar(&r.Now, "now", false, "at once")
	f.BoolVar(&r.Cancel, "cancel", false, "take a scheduled halt off")
	f.BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

// halt schedules a halt where no supervisor runs: the next one finds it.
func (o *offline) halt(r client.Request) (client.Reply, error) {
	switch {
	case o.broken != nil:
		return client.Reply{}, o.broken
	case r.Cancel:
		return client.Reply{Message: "no halt is scheduled any more"}, o.engine.SetHalt(nil, upgrade.Unknown)
	case r.Now:
		return client.Reply{Message: "held: the node is not started"},
			o.engine.Hold("halted now as an operator asked for", "supervisor resume")
	}
	h := &upgrade.Halt{Height: r.Height, Time: r.Time}
	return client.Reply{Message: "halting at " + h.When()}, o.engine.SetHalt(h, o.knownHeight())
}

func newReload(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "reload", GroupID: "node", Short: "Re-read the configuration, all of it but [node], or nothing", Args: exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			reply, err := client.New(s.cfg.ControlSocket(s.environ)).Do(cmd.Context(), client.OpReload, client.Request{})
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
