package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"nodevisor/snapshot"
	"nodevisor/supervisor"
	"nodevisor/supervisor/client"
)

func newSnapshot(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "snapshot", GroupID: "node", Short: "Take, verify, restore and prune snapshots",
		Args: onlyCommands,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, add := range []func(*app) *cobra.Command{
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

// snapshots does one request: through the running supervisor, or under the lock.
func (s *session) snapshots(ctx context.Context, r snapshotRequest, stop bool) (client.Reply, error) {
	var out client.Reply
	req := client.Request{Snapshots: rawJSON(r), Stop: stop}
	reply, err := s.ask(ctx, client.OpSnapshots, req)
	if err == nil || !notRunning(err) {
		return reply, err
	}
	err = s.underLock(ctx, func(o *offline) error {
		if r.Op == "create" || r.replacesData() {
			if err := o.atRest(ctx); err != nil {
				return err
			}
		}
		undo, err := o.holdForRestore(r)
		if err != nil {
			return err
		}
		v, err := o.store.Do(ctx, req.Snapshots, true)
		if err != nil {
			return errors.Join(err, undo())
		}
		if out.Result, err = json.Marshal(v); err != nil {
			return err
		}
		return o.completeByHand(ctx, r, out.Result)
	})
	return out, err
}

// replacesData tells whether the request puts a snapshot in the place of the node's data.
func (r snapshotRequest) replacesData() bool {
	return r.Op == "restore" && r.To == "" && len(r.Into) == 0 && !r.DryRun
}

// holdForRestore holds before the data is replaced: killed in between, nobody starts a version on data that may be
// another's. undo takes the hold away again where the restore failed and nothing was held before.
func (o *offline) holdForRestore(r snapshotRequest) (undo func() error, err error) {
	undo = func() error { return nil }
	if !r.replacesData() || o.broken != nil || o.engine.Journal().Hold != nil {
		return undo, nil // a journal that can't be trusted holds by itself
	}
	return o.engine.Release, o.engine.Hold("a snapshot was restored", supervisor.HintAfterRestore)
}

// completeByHand verifies a snapshot that was taken without a running supervisor: nobody else would.
func (o *offline) completeByHand(ctx context.Context, r snapshotRequest, result json.RawMessage) error {
	if r.Op != "create" {
		return nil
	}
	var made snapshot.Info
	if err := json.Unmarshal(result, &made); err != nil {
		return err
	}
	return o.store.Complete(ctx, made.ID)
}

func newSnapshotCreate(a *app) *cobra.Command {
	var label string
	var stop bool
	cmd := &cobra.Command{
		Use: "create", Short: "Take a snapshot", Args: exactArgs(0, "no arguments"),
		Long: `Prints the id alone on stdout. While the node runs it needs --stop: stop, freeze, start; the downtime is printed. Where
every source is a database with mode = "dump" it needs none: each is dumped from one moment, beneath the node.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			r := snapshotRequest{Op: "create", Label: label, Height: s.snapshotHeight(cmd.Context())}
			reply, err := s.snapshots(cmd.Context(), r, stop)
			if err != nil {
				return err
			}
			if a.flags.json {
				return writeJSON(a.stdout, reply.Result)
			}
			var made snapshot.Info
			if err := json.Unmarshal(reply.Result, &made); err != nil {
				return err
			}
			fmt.Fprintln(a.stdout, made.ID)
			if reply.DowntimeMS > 0 {
				a.say("the node was down for %d ms", reply.DowntimeMS)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&label, "label", "manual", "a word for the id and the list")
	cmd.Flags().BoolVar(&stop, "stop", false, "stop the node for it, and start it again")
	return cmd
}

// snapshotHeight is the best that is known of the height, for the manifest; 0 = unknown.
func (s *session) snapshotHeight(ctx context.Context) int64 {
	if st, err := s.status(ctx); err == nil && st.Height != nil {
		return *st.Height
	}
	return 0
}

func newSnapshotList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the snapshots, newest first", Args: exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := a.openStore(cmd.Context())
			if err != nil {
				return err
			}
			all, err := store.List()
			if err != nil {
				return err
			}
			if a.flags.json {
				return writeJSON(a.stdout, all)
			}
			w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
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
func (a *app) openStore(ctx context.Context) (*snapshots, error) {
	s, err := a.load(ctx, false)
	if err != nil {
		return nil, err
	}
	return s.store(nil)
}

func newSnapshotShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Print a snapshot's manifest (JSON)", Args: exactArgs(1, "an id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := a.openStore(cmd.Context())
			if err != nil {
				return err
			}
			m, err := store.Get(args[0])
			if err != nil {
				return err
			}
			return writeJSON(a.stdout, m)
		},
	}
}

func newSnapshotVerify(a *app) *cobra.Command {
	var deep bool
	cmd := &cobra.Command{
		Use: "verify ID", Short: "Compare a snapshot with its manifest, file by file", Args: exactArgs(1, "an id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := a.openStore(cmd.Context())
			if err != nil {
				return err
			}
			r, err := store.Verify(cmd.Context(), args[0], deep)
			if err != nil {
				return err
			}
			if a.flags.json {
				err = writeJSON(a.stdout, r)
			} else if r.OK {
				fmt.Fprintf(a.stdout, "%s: ok\n", r.ID)
			}
			for _, e := range r.Errors {
				a.say("%s: want %s, got %s", e.Path, e.Want, e.Got)
			}
			if err == nil && !r.OK {
				return exitError{exitFailed}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&deep, "deep", false, "also restore each database into a scratch one, compare it table by table, and drop it")
	return cmd
}

func newSnapshotRestore(a *app) *cobra.Command {
	var r snapshotRequest
	var stop, yes bool
	var signer string
	cmd := &cobra.Command{
		Use: "restore ID|PATH", Short: "Put a snapshot in the place of the data, or elsewhere with --to and --into", Args: exactArgs(1, "an id or a path"),
		Long: `The data of before is kept beside it, under a name that is printed. The signer's state is never taken back: the live
one wins where it is at least as high; without a live one --signer-state snapshot is needed. While the node runs it needs
--stop; afterwards the node stays stopped, held.

A database is restored into a fresh one, compared row by row, and swapped in by renaming. Where the server grants no
CREATEDB, --into NAME=DSN fills an existing empty database instead; the node and the other sources stay as they are.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			r.Op, r.ID = "restore", args[0]
			if signer != "" && signer != "snapshot" {
				return usagef("--signer-state is snapshot, or not given")
			}
			r.Signer = signer == "snapshot"
			if len(r.Into) == 0 {
				r.Into = nil
			} else if r.To != "" {
				return usagef("--to and --into exclude each other")
			}
			if r.replacesData() {
				if err := a.confirm(yes, "Replace the node's data by the snapshot "+r.ID+"?"); err != nil {
					return err
				}
			}
			reply, err := s.snapshots(cmd.Context(), r, stop && r.replacesData())
			if err != nil {
				return err
			}
			return writeJSON(a.stdout, reply.Result)
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

func newSnapshotMark(a *app, op, short string, destructive bool) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: op + " ID", Short: short, Args: exactArgs(1, "an id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			if destructive {
				if err := a.confirm(yes, "Delete the snapshot "+args[0]+"?"); err != nil {
					return err
				}
			}
			reply, err := s.snapshots(cmd.Context(), snapshotRequest{Op: op, ID: args[0]}, false)
			if err != nil || !a.flags.json {
				return err
			}
			return writeJSON(a.stdout, reply.Result)
		},
	}
	if destructive {
		cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	}
	return cmd
}

func newSnapshotPrune(a *app) *cobra.Command {
	var dryRun, yes bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Delete what [snapshot] keep and min_free don't keep", Args: exactArgs(0, "no arguments"),
		Long: "Never deletes the last verified one, pinned ones, and that of an upgrade in flight.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			if !dryRun {
				if err := a.confirm(yes, "Delete the snapshots that are not kept?"); err != nil {
					return err
				}
			}
			reply, err := s.snapshots(cmd.Context(), snapshotRequest{Op: "prune", DryRun: dryRun}, false)
			if err != nil {
				return err
			}
			if a.flags.json {
				return writeJSON(a.stdout, reply.Result)
			}
			var done struct{ Deleted []string }
			if err := json.Unmarshal(reply.Result, &done); err != nil {
				return err
			}
			for _, id := range done.Deleted {
				fmt.Fprintln(a.stdout, id)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be deleted, and do nothing")
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}
