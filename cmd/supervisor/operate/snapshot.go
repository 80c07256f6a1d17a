package operate

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/console"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/snapshot"
)

// NewSnapshot makes `supervisor snapshot` with the commands below it.
func NewSnapshot(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "snapshot", GroupID: "node", Short: "Take, verify, restore and prune snapshots",
		Args: cli.OnlyCommands,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, add := range []func(*cli.App) *cobra.Command{
		newSnapshotCreate, newSnapshotList, newSnapshotShow, newSnapshotVerify, newSnapshotRestore, newSnapshotPrune,
	} {
		cmd.AddCommand(add(a))
	}
	cmd.AddCommand(
		newSnapshotMark(a, "pin", "Keep a snapshot from every pruning", false),
		newSnapshotMark(a, "unpin", "Let a pinned snapshot be pruned again", false),
		newSnapshotMark(a, "delete", "Delete a snapshot", true),
	)
	return cmd
}

func newSnapshotCreate(a *cli.App) *cobra.Command {
	var label string
	var stop bool
	cmd := &cobra.Command{
		Use: "create", Short: "Take a snapshot", Args: cli.ExactArgs(0, "no arguments"),
		Long: `Prints the id alone on stdout. While the node runs it needs --stop: stop, freeze, start; the downtime is printed. Where
every source is a database with mode = "dump" it needs none: each is dumped from one moment, beneath the node.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Reach(cmd.Context(), a)
			if err != nil {
				return err
			}
			height, err := s.SnapshotHeight(cmd.Context())
			if err != nil {
				return err
			}
			r := session.SnapshotRequest{Op: "create", Label: label, Height: height}
			reply, err := s.Snapshots(cmd.Context(), r, stop)
			if err != nil {
				return err
			}
			if a.Flags.JSON {
				return cli.WriteJSON(a.Stdout, reply.Result)
			}
			var made snapshot.Info
			if err := json.Unmarshal(reply.Result, &made); err != nil {
				return err
			}
			if err := a.Print("%s\n", made.ID); err != nil {
				return err
			}
			if reply.DowntimeMS > 0 {
				a.Say("the node was down for %d ms", reply.DowntimeMS)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&label, "label", "manual", "a word for the id and the list")
	cmd.Flags().BoolVar(&stop, "stop", false, "stop the node for it, and start it again")
	return cmd
}

func newSnapshotList(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the snapshots, newest first", Args: cli.ExactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := openStore(cmd.Context(), a)
			if err != nil {
				return err
			}
			all, err := store.List()
			if err != nil {
				return err
			}
			if a.Flags.JSON {
				return cli.WriteJSON(a.Stdout, all)
			}
			w := tabwriter.NewWriter(a.Stdout, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tLABEL\tHEIGHT\tCREATED\tBYTES\tSTATE\tPINNED")
			for _, i := range all {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", i.ID, i.Label, orDash(i.Height), i.CreatedAt.Format(time.RFC3339), i.Bytes, i.State, pinned(i.Pinned))
			}
			return w.Flush()
		},
	}
}

func pinned(is bool) string {
	if is {
		return "pinned"
	}
	return ""
}

// openStore is for commands that only read: finished snapshots don't change, so they need neither socket nor lock.
func openStore(ctx context.Context, a *cli.App) (*session.Snapshots, error) {
	s, err := session.Reach(ctx, a)
	if err != nil {
		return nil, err
	}
	return s.Store(nil)
}

func newSnapshotShow(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Print a snapshot's manifest (JSON)", Args: cli.ExactArgs(1, "an id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := openStore(cmd.Context(), a)
			if err != nil {
				return err
			}
			m, err := store.Get(args[0])
			if err != nil {
				return err
			}
			return cli.WriteJSON(a.Stdout, m)
		},
	}
}

func newSnapshotVerify(a *cli.App) *cobra.Command {
	var deep bool
	cmd := &cobra.Command{
		Use: "verify ID", Short: "Compare a snapshot with its manifest, file by file", Args: cli.ExactArgs(1, "an id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := openStore(cmd.Context(), a)
			if err != nil {
				return err
			}
			r, err := store.Verify(cmd.Context(), args[0], deep)
			if err != nil {
				return err
			}
			if a.Flags.JSON {
				err = cli.WriteJSON(a.Stdout, r)
			} else if r.OK {
				err = a.Print("%s: ok\n", r.ID)
			}
			for _, e := range r.Errors {
				a.Say("%s: want %s, got %s", e.Path, e.Want, e.Got)
			}
			if err == nil && !r.OK {
				return cli.ExitError(cli.ExitFailed)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&deep, "deep", false, "also restore each database into a scratch one, compare it table by table, and drop it")
	return cmd
}

func newSnapshotRestore(a *cli.App) *cobra.Command {
	var r session.SnapshotRequest
	var stop, yes bool
	var signer string
	cmd := &cobra.Command{
		Use: "restore ID|PATH", Short: "Put a snapshot in the place of the data, or elsewhere with --to and --into", Args: cli.ExactArgs(1, "an id or a path"),
		Long: `The data of before is kept beside it, under a name that is printed. The signer's state is never taken back: the live
one wins where it is at least as high; without a live one --signer-state snapshot is needed. While the node runs it needs
--stop; afterwards the node stays stopped, held. While an upgrade is in flight it is refused: "supervisor rollback" and
"supervisor upgrade resume --restore" put the upgrade's own snapshot back.

A database is restored into a fresh one, compared row by row, and swapped in by renaming. Where the server grants no
CREATEDB, --into NAME=DSN fills an existing empty database instead; the node and the other sources stay as they are.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := session.Reach(cmd.Context(), a)
			if err != nil {
				return err
			}
			r.Op, r.ID = "restore", args[0]
			if signer != "" && signer != "snapshot" {
				return cli.Usagef("--signer-state is snapshot, or not given")
			}
			r.Signer = signer == "snapshot"
			if len(r.Into) == 0 {
				r.Into = nil
			} else if r.To != "" {
				return cli.Usagef("--to and --into exclude each other")
			}
			if r.ReplacesData() {
				if err := a.Confirm(yes, "Replace the node's data by the snapshot "+r.ID+"?"); err != nil {
					return err
				}
			}
			reply, err := s.Snapshots(cmd.Context(), r, stop && r.ReplacesData())
			if err != nil {
				return err
			}
			if a.Flags.JSON {
				return cli.WriteJSON(a.Stdout, reply.Result)
			}
			return printRestored(a.Stdout, reply.Result)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.To, "to", "", "a directory that is empty or doesn't exist; the node's data stays")
	f.StringToStringVar(&r.Into, "into", nil, "NAME=DSN: the database of that source into this empty one; may be repeated")
	f.StringVar(&signer, "signer-state", "", "snapshot: take the snapshot's, where there is no live one")
	f.BoolVar(&r.DryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&stop, "stop", false, "stop the node for it")
	f.BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

// printRestored says in a line for each source what was restored, or would be, and where the data of before lies.
func printRestored(w io.Writer, result json.RawMessage) error {
	var r snapshot.RestoreResult
	if err := json.Unmarshal(result, &r); err != nil {
		return err
	}
	done := "restored"
	if r.DryRun {
		done = "would be restored"
	}
	var b strings.Builder
	for _, s := range r.Sources {
		fmt.Fprintf(&b, "%s: %s %s", s.Name, s.Path, done)
		if s.Files > 0 {
			fmt.Fprintf(&b, ", %d files, %s", s.Files, console.Size(s.Bytes))
		}
		if s.Before != nil {
			fmt.Fprintf(&b, "; the one of before is kept as %s", *s.Before)
		}
		for _, signer := range s.Signer {
			fmt.Fprintf(&b, "; %s is the %s one, at height %d", signer.Path, signer.Winner, signer.Height)
		}
		b.WriteString("\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func newSnapshotMark(a *cli.App, op, short string, destructive bool) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: op + " ID", Short: short, Args: cli.ExactArgs(1, "an id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := session.Reach(cmd.Context(), a)
			if err != nil {
				return err
			}
			if destructive {
				if err := a.Confirm(yes, "Delete the snapshot "+args[0]+"?"); err != nil {
					return err
				}
			}
			reply, err := s.Snapshots(cmd.Context(), session.SnapshotRequest{Op: op, ID: args[0]}, false)
			if err != nil || !a.Flags.JSON {
				return err
			}
			return cli.WriteJSON(a.Stdout, reply.Result)
		},
	}
	if destructive {
		cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	}
	return cmd
}

func newSnapshotPrune(a *cli.App) *cobra.Command {
	var dryRun, yes bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Delete what [snapshot] keep and min_free don't keep", Args: cli.ExactArgs(0, "no arguments"),
		Long: "Never deletes the last verified one, pinned ones, and that of an upgrade in flight.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Reach(cmd.Context(), a)
			if err != nil {
				return err
			}
			if !dryRun {
				if err := a.Confirm(yes, "Delete the snapshots that are not kept?"); err != nil {
					return err
				}
			}
			reply, err := s.Snapshots(cmd.Context(), session.SnapshotRequest{Op: "prune", DryRun: dryRun}, false)
			if err != nil {
				return err
			}
			if a.Flags.JSON {
				return cli.WriteJSON(a.Stdout, reply.Result)
			}
			var done struct{ Deleted []string }
			if err := json.Unmarshal(reply.Result, &done); err != nil {
				return err
			}
			for _, id := range done.Deleted {
				if err := a.Print("%s\n", id); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be deleted, and do nothing")
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}
