package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"nodevisor/internal/hint"
	"nodevisor/supervisor"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

func newUpgrade(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "upgrade", GroupID: "upgrade", Short: "Stage, schedule, carry out and undo upgrades",
		Args: onlyCommands,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, add := range []func(*app) *cobra.Command{
		newUpgradeAdd, newUpgradeList, newUpgradeHistory, newUpgradeCancel, newUpgradeApply, newUpgradeResume, newUpgradeSkip, newUpgradeUse,
	} {
		cmd.AddCommand(add(a))
	}
	return cmd
}

// addition is one version to stage, and its plan.
type addition struct {
	name, from, sha256 string
	height             int64
	at                 time.Time
	force              bool
	strict             bool // a binary that is there is an error, also where it is the same one (Cosmovisor's add-upgrade)
}

func newUpgradeAdd(a *app) *cobra.Command {
	var add addition
	var at string
	cmd := &cobra.Command{
		Use: "add NAME BINARY|DIR|URL", Short: "Stage a version, and schedule it",
		Long: `Copies BINARY, or DIR with a bin/, into the tree as the version NAME. Without --height and --time it waits for the
chain's own plan of that name. --height N: N is the first block that the new version executes.
A URL must be https and end in ?checksum=sha256:HEX; naming it counts as permission to download.
--force replaces a binary that is there, also that of a held upgrade; the old one is kept aside.`,
		Example: "  supervisor upgrade add v2 ./simd-v2 --sha256 9f86d0…\n  supervisor upgrade add v3 ./simd-v3 --height 120000",
		Args:    exactArgs(2, "a name and a binary"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			add.name, add.from = args[0], args[1]
			if add.at, err = parseTime(at, "supervisor upgrade add "+args[0]+" "+args[1]+", then: supervisor upgrade apply "+args[0]); err != nil {
				return err
			}
			if add.height < 0 || (add.height > 0 && !add.at.IsZero()) {
				return usagef("--height must be positive, and only one of --height and --time can be given")
			}
			return s.addUpgrade(cmd.Context(), add)
		},
	}
	f := cmd.Flags()
	f.Int64Var(&add.height, "height", 0, "the first block that the new version executes")
	f.StringVar(&at, "time", "", "when to switch (RFC 3339: 2026-12-01T14:00:00Z)")
	f.StringVar(&add.sha256, "sha256", "", "what the binary's SHA-256 must be")
	f.BoolVar(&add.force, "force", false, "replace what is there; the old binary is kept aside")
	return cmd
}

// parseTime reads --time; "" is none. A time that is past is refused, as a height is: it would stop the node at once, and
// more often is a slip of the pen. now is the command that means it.
func parseTime(s, now string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, usagef("--time: %q is no time in RFC 3339 form (2026-12-01T14:00:00Z)", s)
	}
	if t.Before(time.Now()) {
		return t, &usageError{hint.New("use --time", s, "it is past", now)}
	}
	return t.UTC(), nil
}

// addUpgrade stages a binary and schedules its plan. The binary goes first: a plan without its binary is a trap.
func (s *session) addUpgrade(ctx context.Context, add addition) error {
	name, err := version.NormaliseName(add.name, s.cfg.Upgrade.Recase)
	if err != nil {
		return err
	}
	to := version.Of(name)
	if err := s.stage(ctx, to, add); err != nil {
		return err
	}
	ready := s.checker().Check(ctx, to)
	if !ready.Ready() {
		s.log.Warn("the version is staged, but it can't run here", "version", name, "problem", ready.Problems[0])
	}
	p := plan.Plan{Name: name, Height: add.height, Time: add.at, Source: plan.FromOperator}
	if name != add.name {
		p.RawName = add.name
	}
	if add.height > 0 {
		s.log.Info(fmt.Sprintf("%s created, %s upgrade binary will switch at height %d", s.layout.SchedulePath(), name, add.height))
	}
	s.warnOfChainPlan(ctx, name)
	return s.operate(ctx, client.OpAdd, client.Request{Plan: p, Force: add.force}, func(o *offline) (client.Reply, error) {
		if o.broken != nil {
			return client.Reply{}, o.broken
		}
		return client.Reply{Message: supervisor.Scheduled(p)}, o.engine.AddPlan(ctx, p, o.knownHeight(), add.force)
	})
}

// stage puts the binary into the tree: copied, or downloaded and verified.
func (s *session) stage(ctx context.Context, to version.Version, add addition) error {
	if u, err := url.Parse(add.from); err == nil && u.Host != "" && (u.Scheme == "https" || u.Scheme == "http") {
		if s.layout.HasBinary(to) && !add.force {
			return &hint.Error{
				Op: "add", Path: to.Name(), Err: fmt.Errorf("%w: file already exists at %s", version.ErrExists, s.layout.Binary(to)),
				Hint: "add --force to replace it",
			}
		}
		return s.downloadFrom(ctx, add.from, to)
	}
	s.log.Info(fmt.Sprintf("Using %s for %s upgrade", add.from, to.Name()))
	if add.strict && !add.force && s.layout.HasBinary(to) {
		return &hint.Error{Op: "add", Path: to.Name(), Err: fmt.Errorf("file already exists at %s", s.layout.Binary(to)), Hint: "add --force to replace it"}
	}
	placed, err := version.Place(ctx, s.layout, version.Placement{Version: to, From: add.from, SHA256: add.sha256, Force: add.force})
	if err != nil {
		return err
	}
	if placed {
		s.log.Info("Upgrade binary located at " + s.layout.Binary(to))
	} else {
		s.log.Info("the same binary is there already", "binary", s.layout.Binary(to))
	}
	return nil
}

// warnOfChainPlan asks the chain once, where its gRPC answers, whether its plan has exactly this name.
func (s *session) warnOfChainPlan(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(ctx, chainTimeout)
	defer cancel()
	p, err := s.chainPlan(ctx)
	if err != nil || p == nil || p.Name == name || s.layout.HasBinary(version.Of(p.Name)) {
		return
	}
	s.log.Warn("the chain's own plan has another name, and no version of that name is staged", "plan", p.Name, "height", p.Height,
		"staged", name, "hint", "supervisor upgrade add "+strconv.Quote(p.Name)+" BINARY")
}

// chainTimeout bounds the question for the chain's plan on the way of another command.
const chainTimeout = 2 * time.Second

func newUpgradeList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the plans that are to come", Args: exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			plans, err := s.plans(cmd.Context())
			if err != nil {
				return err
			}
			if a.flags.json {
				return writeJSON(a.stdout, plans)
			}
			w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tAT\tSOURCE\tREADY\tBLOCKS LEFT\tPROBLEM")
			for _, p := range plans {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, at(p), p.Source, yesNo(p.Ready), orDash(p.BlocksLeft), first(p.Problems))
			}
			return w.Flush()
		},
	}
}

func at(p status.Plan) string {
	if p.Time != nil {
		return p.Time.Format(time.RFC3339)
	}
	return orDash(p.Height)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "NO"
}

func orDash(n *int64) string {
	if n == nil {
		return "-"
	}
	return strconv.FormatInt(*n, 10)
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

func newUpgradeHistory(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "history", Short: "List the upgrades that have ended, newest first", Args: exactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			all, err := upgrade.LoadHistory(s.layout.HistoryDir())
			if err != nil {
				return err
			}
			list := []status.LastUpgrade{}
			for _, f := range all {
				list = append(list, status.DescribeFinished(f))
			}
			if a.flags.json {
				return writeJSON(a.stdout, list)
			}
			w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "AT\tNAME\tFROM\tTO\tRESULT\tDOWNTIME MS\tSNAPSHOT")
			for _, l := range list {
				snap := "-"
				if l.Snapshot != nil {
					snap = *l.Snapshot
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.At.Format(time.RFC3339), l.Name, l.From, l.To, l.Result, orDash(l.DowntimeMS), snap)
			}
			return w.Flush()
		},
	}
}

func newUpgradeCancel(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "cancel NAME", Short: "Take a plan off the schedule; its binary stays", Args: exactArgs(1, "a name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, name, err := a.loadWithName(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return s.operate(cmd.Context(), client.OpCancel, client.Request{Name: name}, func(o *offline) (client.Reply, error) {
				return client.Reply{Message: name + " is cancelled"}, errors.Join(o.broken, o.engine.CancelPlan(name))
			})
		},
	}
}

func (a *app) loadWithName(ctx context.Context, raw string) (*session, string, error) {
	s, err := a.load(ctx, false)
	if err != nil {
		return nil, "", err
	}
	name, err := version.NormaliseName(raw, s.cfg.Upgrade.Recase)
	return s, name, err
}

func newUpgradeSkip(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "skip NAME", Short: "Pass a plan over for good; the previous version starts", Args: exactArgs(1, "a name"),
		Long: `Puts the plan on the durable skip list. An upgrade of that name in flight is undone first, with its snapshot, as long
as the new version has made no block of its own. A governance plan halts the old version again at its height, unless the
node is told, too: --unsafe-skip-upgrades HEIGHT among its arguments.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, name, err := a.loadWithName(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return s.operate(cmd.Context(), client.OpSkip, client.Request{Name: name}, func(o *offline) (client.Reply, error) {
				if o.broken != nil {
					return client.Reply{}, o.broken
				}
				if u := o.engine.InFlight(); u != nil && u.Plan.Name == name {
					if err := o.atRest(cmd.Context()); err != nil {
						return client.Reply{}, err
					}
				}
				return client.Reply{Message: name + " is passed over"}, o.engine.SkipPlan(cmd.Context(), name, o.heightOf(name), o.knownHeight())
			})
		},
	}
}

func newUpgradeUse(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "use VERSION", Short: "Set current by hand while the node is down, and record it", Args: exactArgs(1, "a version"),
		Long:    "Links current to VERSION (genesis, or an upgrade's name). --force gives up an upgrade in flight where it stands.",
		Example: "  supervisor upgrade use genesis",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			v, err := version.Parse(args[0], s.cfg.Upgrade.Recase)
			if err != nil {
				return err
			}
			return s.underLock(cmd.Context(), func(o *offline) error {
				if err := o.atRest(cmd.Context()); err != nil {
					return err
				}
				if o.broken != nil {
					if !force {
						return o.broken
					}
					if err := o.engine.SetAside(); err != nil {
						return err
					}
				}
				if err := o.engine.Use(cmd.Context(), v, force); err != nil {
					return err
				}
				return s.printReply(client.Reply{Message: "current is " + v.Name()}, false)
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "give up an upgrade in flight, or a journal that can't be trusted (it is kept aside)")
	return cmd
}

// knownHeight is the best lower bound of the node's height without asking it.
func (o *offline) knownHeight() int64 {
	if t := o.tracker(); t != nil {
		return t.Known()
	}
	return plan.UnknownHeight
}

// heightOf finds the height of a pending plan by its name; 0 = none is known.
func (o *offline) heightOf(name string) int64 {
	for _, p := range o.tracker().Pending() {
		if p.Name == name {
			return p.Height
		}
	}
	return 0
}
