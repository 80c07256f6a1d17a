package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/config"
	"nodevisor/cmd/supervisor/operate"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/capped"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/source"
	"nodevisor/upgrade/version"
)

// Cosmovisor's own names for what the other commands do, with its arguments and texts.

func newAddUpgrade(a *cli.App) *cobra.Command {
	var force bool
	var height int64
	cmd := &cobra.Command{
		Use: "add-upgrade NAME PATH", GroupID: "cosmovisor", Short: "Stage an upgrade's binary, and schedule it",
		Long:    "The same as `supervisor upgrade add NAME PATH`, under Cosmovisor's name and with its flags.",
		Example: "  supervisor add-upgrade v2 ./simd-v2 --upgrade-height 1000",
		Args:    cli.ExactArgs(2, "a name and a path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := session.Load(cmd.Context(), a, false)
			if err != nil {
				return err
			}
			return operate.AddUpgrade(cmd.Context(), s, operate.Addition{Name: args[0], From: args[1], Height: max(0, height), Force: force, Strict: true})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "overwrite an existing upgrade binary; the old one is kept aside")
	cmd.Flags().Int64Var(&height, "upgrade-height", 0, "the first block that the new version executes")
	return cmd
}

func newAddBatchUpgrade(a *cli.App) *cobra.Command {
	var file string
	var list []string
	cmd := &cobra.Command{
		Use: "add-batch-upgrade --upgrade-file FILE | --upgrade-list NAME:PATH:HEIGHT,…", GroupID: "cosmovisor",
		Short: "Stage and schedule several upgrades", Args: cli.ExactArgs(0, "no arguments"),
		Long: `Takes a CSV file of name,path,height without a header, or a list of name:path:height. All entries are checked before
the first one is staged.`,
		Example: "  supervisor add-batch-upgrade --upgrade-file upgrades.csv",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Load(cmd.Context(), a, false)
			if err != nil {
				return err
			}
			if (file == "") == (len(list) == 0) {
				return cli.Usagef("exactly one of --upgrade-file and --upgrade-list is needed")
			}
			var batch []operate.Addition
			if file != "" {
				batch, err = readBatch(file)
			} else {
				batch, err = parseBatch(list)
			}
			if err != nil {
				return err
			}
			return addBatch(cmd.Context(), s, batch)
		},
	}
	cmd.Flags().StringVar(&file, "upgrade-file", "", "a CSV file: name,path,height")
	cmd.Flags().StringSliceVar(&list, "upgrade-list", nil, "a list: name:path:height,…")
	return cmd
}

// addBatch stages all entries; mistakes in any of them are reported before anything is changed.
func addBatch(ctx context.Context, s *session.Session, batch []operate.Addition) error {
	var errs []error
	for _, b := range batch {
		if _, err := version.NormaliseName(b.Name, s.Config.Upgrade.Recase); err != nil {
			errs = append(errs, &cli.UsageError{Err: err})
		}
		if _, err := os.Stat(b.From); err != nil {
			errs = append(errs, &hint.Error{Op: "add", Path: b.From, Err: fmt.Errorf("invalid executable path: %w", err), Hint: "check the path"})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, b := range batch {
		if err := operate.AddUpgrade(ctx, s, b); err != nil {
			return err
		}
	}
	return nil
}

// maxBatch caps what is read of a batch file, and of a plan file that is shown, in bytes.
const maxBatch = 1 << 20

func readBatch(path string) ([]operate.Addition, error) {
	text, err := capped.ReadFile(path, maxBatch)
	if err != nil {
		return nil, &hint.Error{Op: "read", Path: path, Err: err, Hint: "check the path"}
	}
	r := csv.NewReader(strings.NewReader(text))
	r.FieldsPerRecord, r.TrimLeadingSpace = 3, true
	records, err := r.ReadAll()
	if err != nil {
		return nil, &hint.Error{Op: "read", Path: path, Err: err, Hint: "each line is name,path,height"}
	}
	return additions(records)
}

func parseBatch(list []string) ([]operate.Addition, error) {
	var records [][]string
	for i, item := range list {
		fields := strings.Split(item, ":")
		if len(fields) > 3 { // a path may hold colons: the name is before the first one, the height behind the last
			fields = []string{fields[0], strings.Join(fields[1:len(fields)-1], ":"), fields[len(fields)-1]}
		}
		if len(fields) != 3 {
			return nil, cli.Usagef("argument at position %d (%s) is invalid", i, item)
		}
		records = append(records, fields)
	}
	return additions(records)
}

func additions(records [][]string) ([]operate.Addition, error) {
	var batch []operate.Addition
	for i, r := range records {
		height, err := strconv.ParseInt(strings.TrimSpace(r[2]), 10, 64)
		if err != nil || height <= 0 {
			return nil, cli.Usagef("upgrade height at position %d (%s) is invalid", i, r[2])
		}
		batch = append(batch, operate.Addition{Name: filepath.Base(strings.TrimSpace(r[0])), From: strings.TrimSpace(r[1]), Height: height, Force: true})
	}
	return batch, nil
}

func newPrepareUpgrade(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "prepare-upgrade", GroupID: "cosmovisor", Short: "Ask the chain for its plan and download its binary", Args: cli.ExactArgs(0, "no arguments"),
		Long: `Asks the chain over gRPC for the plan that governance passed, and places the binary that its info names for this
machine into the tree. The address is [height] grpc (DAEMON_GRPC_ADDRESS), else what the node's arguments and config/app.toml
say, else localhost:9090. This command counts as the permission to download; the checksum is required all the same.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Load(cmd.Context(), a, false)
			if err != nil {
				return err
			}
			return prepareUpgrade(cmd.Context(), s)
		},
	}
}

func prepareUpgrade(ctx context.Context, s *session.Session) error {
	addr, err := s.ChainAddress()
	switch {
	case errors.Is(err, source.ErrNoAppConfig):
		addr = s.Config.Height.GRPC // an operator asks, once: Cosmovisor's default will do
	case err != nil:
		return &hint.Error{Op: "ask the chain for its plan", Err: err, Hint: "start the node with its gRPC on, or set [height] grpc (DAEMON_GRPC_ADDRESS)"}
	}
	s.Log.Info("Using gRPC address", "address", addr)
	p, err := s.ChainPlanAt(ctx, addr)
	if err != nil {
		return err
	}
	if p == nil {
		s.Log.Info("No active upgrade plan found")
		return nil
	}
	s.Log.Info("Preparing for upgrade", "name", p.Name, "height", p.Height)
	to := version.Of(p.Name)
	checker := s.Checker()
	if r := checker.Check(ctx, to); !r.Ready() || !s.Layout.HasBinary(to) {
		s.Log.Info("Downloading upgrade binary", "plan", p.Name)
		if err := s.Download(ctx, *p, to); err != nil {
			return err
		}
		if r = checker.Check(ctx, to); !r.Ready() {
			return hint.New("prepare", p.Name, r.Problems[0], session.StageAgain(to))
		}
	}
	s.Log.Info("Upgrade preparation complete", "name", p.Name, "binary", s.Layout.Binary(to))
	return nil
}

func newShowUpgradeInfo(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "show-upgrade-info", GroupID: "cosmovisor", Short: "Print the node's plan file", Args: cli.ExactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Load(cmd.Context(), a, false)
			if err != nil {
				return err
			}
			path := s.Layout.Plan
			text, err := capped.ReadFile(path, maxBatch)
			if errors.Is(err, fs.ErrNotExist) && a.Flags.JSON {
				return cli.WriteJSON(a.Stdout, nil)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return a.Print("No upgrade info found at %s\n", path)
			}
			if err != nil {
				return err
			}
			if a.Flags.JSON && !json.Valid([]byte(text)) {
				return hint.New("show", path, "it is no JSON; the node may be writing it", "supervisor doctor")
			}
			return a.Print("%s\n", text)
		},
	}
}

func newConfig(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "config", GroupID: "cosmovisor", Short: "Print the configuration as Cosmovisor does", Args: cli.ExactArgs(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Load(cmd.Context(), a, false)
			if err != nil {
				return err
			}
			if a.Flags.JSON {
				return cli.WriteJSON(a.Stdout, config.CosmovisorDocument(s.Config))
			}
			return config.RenderCosmovisor(s.Config, a.Stdout)
		},
	}
}
