package operate

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/genesis"
	"nodevisor/internal/hint"
	"nodevisor/supervisor"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

// NewUpgrade makes `supervisor upgrade` with the commands below it.
func NewUpgrade(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "upgrade", GroupID: "upgrade", Short: "Stage, schedule, carry out and undo upgrades",
		Args: cli.OnlyCommands,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, add := range []func(*cli.App) *cobra.Command{
		newUpgradeAdd, newUpgradeList, newUpgradeHistory, newUpgradeCancel, newUpgradeApply, newUpgradeResume, newUpgradeSkip, newUpgradeUse,
	} {
		cmd.AddCommand(add(a))
	}
	return cmd
}

// Addition is one version to stage, and its plan.
type Addition struct {
	Name, From, SHA256 string
	Height             int64
	At                 time.Time
	Force              bool
	Strict             bool // a binary that is there is an error, also where it is the same one (Cosmovisor's add-upgrade)
}

func newUpgradeAdd(a *cli.App) *cobra.Command {
	var add Addition
	var at string
	cmd := &cobra.Command{
		Use: "add NAME BINARY|DIR|URL", Short: "Stage a version, and schedule it",
		Long: `Copies BINARY into the tree as the version NAME; DIR with a bin/ is taken whole, without one its binary alone. Without --height and --time it waits for the
chain's own plan of that name. --height N: N is the first block that the new version executes.
A URL must be https and end in ?checksum=sha256:HEX; naming it counts as permission to download.
--force replaces a binary that is there, also that of a held upgrade; the old one is kept aside.`,
		Example: "  supervisor upgrade add v2 ./simd-v2 --sha256 9f86d0…\n  supervisor upgrade add v3 ./simd-v3 --height 120000",
		Args:    cli.ExactArgs(2, "a name and a binary"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := session.Load(cmd.Context(), a, false)
			if err != nil {
				return err
			}
			add.Name, add.From = args[0], args[1]
			if add.At, err = parseTime(at, "supervisor upgrade add "+hint.Quote(args[0])+" "+hint.Quote(args[1])+", then: supervisor upgrade apply "+hint.Quote(args[0])); err != nil {
				return err
			}
			if add.Height < 0 || (add.Height == 0 && cmd.Flags().Changed("height")) || (add.Height > 0 && !add.At.IsZero()) {
				return cli.Usagef("--height must be positive, and only one of --height and --time can be given")
			}
			return AddUpgrade(cmd.Context(), s, add)
		},
	}
	f := cmd.Flags()
	f.Int64Var(&add.Height, "height", 0, "the first block that the new version executes")
	f.StringVar(&at, "time", "", "when to switch (RFC 3339: 2026-12-01T14:00:00Z)")
	f.StringVar(&add.SHA256, "sha256", "", "what the binary's SHA-256 must be")
	f.BoolVar(&add.Force, "force", false, "replace what is there; the old binary is kept aside")
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
		return t, cli.Usagef("--time: %q is no time in RFC 3339 form (2026-12-01T14:00:00Z)", s)
	}
	if t.Before(time.Now()) {
		return t, &cli.UsageError{Err: hint.New("use --time", s, "it is past", now)}
	}
	return t.UTC(), nil
}

// AddUpgrade stages a binary and schedules its plan. The binary goes first: a plan without its binary is a trap. What would be
// refused is refused before both.
func AddUpgrade(ctx context.Context, s *session.Session, add Addition) error {
	name, err := version.NormaliseName(add.Name, s.Config.Upgrade.Recase)
	if err != nil {
		return &cli.UsageError{Err: err}
	}
	if name == string(version.Genesis) { // apply and use mean the first version by that name
		return &cli.UsageError{Err: hint.New("add", name, "that is the first version's name",
			"supervisor init BINARY; or, for a chain's plan of that very name, put the binary there by hand: "+hint.Quote(s.Layout.Binary(version.Of(name))))}
	}
	if add.SHA256 != "" && !genesis.IsSum(add.SHA256) {
		return cli.Usagef("--sha256: want 64 hexadecimal digits")
	}
	if add.SHA256 != "" && isURL(add.From) {
		return cli.Usagef("--sha256 is for a file; a URL ends in ?checksum=sha256:HEX")
	}
	to := version.Of(name)
	p := plan.Plan{Name: name, Height: add.Height, Time: add.At, Source: plan.FromOperator}
	if name != add.Name {
		p.RawName = add.Name
	}
	if _, _, err := schedule(ctx, s, p, add.Force, true); err != nil {
		return err // while nothing was changed
	}
	if err := stage(ctx, s, to, add); err != nil {
		return err
	}
	ready := s.Checker().Check(ctx, to)
	warnOfChainPlan(ctx, s, name)
	reply, live, err := schedule(ctx, s, p, add.Force, false)
	if err != nil {
		return err
	}
	if add.Height > 0 {
		s.Log.Info(fmt.Sprintf("%s created, %s upgrade binary will switch at height %d", s.Layout.SchedulePath(), name, add.Height))
	}
	if !ready.Ready() {
		reply.Message += ", but NOT READY: " + ready.Problems[0] + "; " + session.StageAgain(to)
	}
	return s.PrintReply(reply, live)
}

// schedule hands p to the supervisor, or to the engine where none runs; with check it only asks what would be refused.
func schedule(ctx context.Context, s *session.Session, p plan.Plan, force, check bool) (reply client.Reply, live bool, err error) {
	return s.CarryOut(ctx, client.OpAdd, client.Request{Plan: p, Force: force, Check: check}, func(o *session.Offline) (client.Reply, error) {
		switch {
		case o.Broken != nil:
			return client.Reply{}, o.Broken
		case check:
			return client.Reply{}, o.Engine.CheckPlan(p, o.KnownHeight(), force)
		}
		return client.Reply{Message: supervisor.Scheduled(p)}, o.Engine.AddPlan(ctx, p, o.KnownHeight(), force)
	})
}

func isURL(from string) bool {
	u, err := url.Parse(from)
	return err == nil && u.Host != "" && (u.Scheme == "https" || u.Scheme == "http")
}

// stage puts the binary into the tree: copied, or downloaded and verified.
func stage(ctx context.Context, s *session.Session, to version.Version, add Addition) error {
	if isURL(add.From) {
		if s.Layout.HasBinary(to) && !add.Force {
			return &hint.Error{
				Op: "add", Path: to.Name(), Err: fmt.Errorf("%w: file already exists at %s", version.ErrExists, s.Layout.Binary(to)),
				Hint: "add --force to replace it; the old one is kept aside",
			}
		}
		return s.DownloadFrom(ctx, add.From, to)
	}
	s.Log.Info(fmt.Sprintf("Using %s for %s upgrade", add.From, to.Name()))
	if add.Strict && !add.Force && s.Layout.HasBinary(to) {
		return &hint.Error{Op: "add", Path: to.Name(), Err: fmt.Errorf("file already exists at %s", s.Layout.Binary(to)), Hint: "add --force to replace it"}
	}
	placed, err := version.Place(ctx, s.Layout, version.Placement{Version: to, From: add.From, SHA256: add.SHA256, Force: add.Force})
	if err != nil {
		return err
	}
	if placed {
		s.Log.Info("Upgrade binary located at " + s.Layout.Binary(to))
	} else {
		s.Log.Info("the same binary is there already", "binary", s.Layout.Binary(to))
	}
	return nil
}

// warnOfChainPlan asks the chain once, where its gRPC answers, whether its plan has exactly this name.
func warnOfChainPlan(ctx context.Context, s *session.Session, name string) {
	ctx, cancel := context.WithTimeout(ctx, session.ChainTimeout)
	defer cancel()
	p, err := s.ChainPlan(ctx)
	if err != nil || p == nil || p.Name == name || s.Layout.HasBinary(version.Of(p.Name)) {
		return
	}
	s.Log.Warn("the chain's own plan has another name, and no version of that name is staged", "plan", p.Name, "height", p.Height,
		"staged", name, "hint", "supervisor upgrade add "+hint.Quote(p.Name)+" BINARY")
}

func newUpgradeList(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the plans that are to come", Args: cli.ExactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Reach(cmd.Context(), a)
			if err != nil {
				return err
			}
			plans, err := s.Plans(cmd.Context())
			if err != nil {
				return err
			}
			if a.Flags.JSON {
				return cli.WriteJSON(a.Stdout, plans)
			}
			defer s.SayIdle(cmd.Context(), plans)
			defer sayPassedOver(s)
			w := tabwriter.NewWriter(a.Stdout, 0, 4, 2, ' ', 0)
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

func newUpgradeHistory(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "history", Short: "List the upgrades that have ended, newest first", Args: cli.ExactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Reach(cmd.Context(), a)
			if err != nil {
				return err
			}
			all, err := upgrade.LoadHistory(s.Layout.HistoryDir())
			if err != nil {
				return err
			}
			if bad := upgrade.DamagedHistory(s.Layout.HistoryDir()); len(bad) > 0 {
				s.Log.Warn("documents of the history can't be read and are left out", "files", strings.Join(bad, " "), "dir", s.Layout.HistoryDir())
			}
			list := []status.LastUpgrade{}
			for _, f := range all {
				list = append(list, status.DescribeFinished(f))
			}
			if a.Flags.JSON {
				return cli.WriteJSON(a.Stdout, list)
			}
			w := tabwriter.NewWriter(a.Stdout, 0, 4, 2, ' ', 0)
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

func loadWithName(ctx context.Context, a *cli.App, raw string) (*session.Session, string, error) {
	s, err := session.Reach(ctx, a)
	if err != nil {
		return nil, "", err
	}
	name, err := version.NormaliseName(raw, s.Config.Upgrade.Recase)
	if err != nil {
		return nil, "", &cli.UsageError{Err: err}
	}
	return s, name, nil
}

func newUpgradeUse(a *cli.App) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "use VERSION", Short: "Set current by hand while the node is down, and record it", Args: cli.ExactArgs(1, "a version"),
		Long:    "Links current to VERSION (genesis, or an upgrade's name). --force gives up an upgrade in flight where it stands.",
		Example: "  supervisor upgrade use genesis",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := session.Load(cmd.Context(), a, false)
			if err != nil {
				return err
			}
			v, err := version.Parse(args[0], s.Config.Upgrade.Recase)
			if err != nil {
				return &cli.UsageError{Err: err}
			}
			return s.UnderLock(cmd.Context(), func(o *session.Offline) error {
				if err := o.AtRest(cmd.Context()); err != nil {
					return err
				}
				if o.Broken != nil {
					if !force {
						return o.Broken
					}
					if err := o.Engine.SetAside(); err != nil {
						return err
					}
				}
				if err := o.Engine.Use(cmd.Context(), v, force); err != nil {
					return err
				}
				return s.PrintReply(client.Reply{Message: "current is " + v.Name()}, false)
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "give up an upgrade in flight, or a journal that can't be trusted (it is kept aside)")
	return cmd
}
