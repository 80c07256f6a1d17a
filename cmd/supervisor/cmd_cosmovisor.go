package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/config"
	"nodevisor/cmd/supervisor/operate"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/capped"
	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
	"nodevisor/upgrade"
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
			errs = append(errs, err)
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
machine into the tree. This command counts as the permission to download; the checksum is required all the same.`,
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
	s.Log.Info("Using gRPC address", "address", s.Config.Height.GRPC)
	p, err := s.ChainPlan(ctx)
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
			return hint.New("prepare", p.Name, r.Problems[0], "supervisor upgrade add "+p.Name+" BINARY --force")
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

// versionTimeout bounds how long the node's binary may take to say its version.
const versionTimeout = 10 * time.Second

func newVersion(a *cli.App) *cobra.Command {
	var output string
	var only bool
	cmd := &cobra.Command{
		Use: "version [NODE-FLAGS...]", GroupID: "cosmovisor", Short: "Print the versions of the supervisor and of the node",
		Long: "Asks the binary that current names directly: no lock, no journal, at most 10 s.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return cli.Usagef("--output is text or json, not %q", output)
			}
			return printVersion(cmd.Context(), a, output == "json" || a.Flags.JSON, only, args)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().BoolVar(&only, "cosmovisor-only", false, "the supervisor's version alone")
	cmd.Flags().BoolVar(&only, "supervisor-only", false, "the same")
	return cmd
}

func printVersion(ctx context.Context, a *cli.App, asJSON, only bool, args []string) error {
	if only {
		if asJSON {
			return json.NewEncoder(a.Stdout).Encode(map[string]string{"cosmovisor_version": a.Release})
		}
		return a.Print("cosmovisor version: %s\n", a.Release)
	}
	if !asJSON {
		if err := a.Print("cosmovisor version: %s\n", a.Release); err != nil {
			return err
		}
	}
	s, err := session.Load(ctx, a, true)
	if err != nil {
		return err
	}
	v, err := s.Layout.Current()
	if errors.Is(err, version.ErrNoLink) && !upgrade.Seen(s.Layout) {
		v, err = version.Genesis, nil
	}
	if err != nil {
		return &hint.Error{Op: "ask the node for its version", Err: err, Hint: "supervisor doctor --fix-link"}
	}
	return nodeVersion(ctx, s, v, asJSON, args)
}

func nodeVersion(ctx context.Context, s *session.Session, v version.Version, asJSON bool, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	argv := append([]string{"version"}, args...)
	if asJSON {
		argv = append([]string{"version", "--long", "--output", "json"}, args...)
	}
	cmd := exec.Command(s.Layout.Binary(v), argv...)
	_, cmd.Env = s.Command(v)
	cmd.Dir = s.Layout.Root
	res, err := proc.Output(ctx, cmd, 1<<20)
	if err != nil {
		return &hint.Error{Op: "ask the node for its version", Err: err, Hint: "supervisor doctor"}
	}
	out := res.Stdout
	if len(out) == 0 {
		out = res.Stderr // SDKs up to 0.45 print it there
	}
	if !asJSON {
		_, err = s.Stdout.Write(out)
		return err
	}
	if !json.Valid(out) {
		return hint.New("print the node's version", "", "it is no JSON: "+strings.TrimSpace(string(out)), "supervisor version")
	}
	return json.NewEncoder(s.Stdout).Encode(struct {
		Cosmovisor string          `json:"cosmovisor_version"`
		App        json.RawMessage `json:"app_version"`
	}{s.Release, out})
}
