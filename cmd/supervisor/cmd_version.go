package main

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/hint"
	"nodevisor/internal/proc"
	"nodevisor/upgrade"
	"nodevisor/upgrade/version"
)

// versionTimeout bounds how long the node's binary may take to say its version.
const versionTimeout = 10 * time.Second

func newVersion(a *cli.App) *cobra.Command {
	var output string
	var only bool
	cmd := &cobra.Command{
		Use: "version [NODE-FLAGS...]", GroupID: "cosmovisor", Short: "Print the versions of the supervisor and of the node",
		Long: `Asks the binary that current names directly: no lock, no journal, at most 10 s. Words and flags that aren't the
supervisor's own are the node's: supervisor version --long.`,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			ours, args := splitFlags(cmd, args)
			if err := cmd.Flags().Parse(ours); err != nil {
				return err
			}
			if help, err := cmd.Flags().GetBool("help"); help && err == nil {
				return cmd.Help()
			}
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

// splitFlags tells the flags of cmd, with their values, from what the node is to be given. After "--" all is the node's.
func splitFlags(cmd *cobra.Command, args []string) (ours, nodes []string) {
	cmd.InheritedFlags() // makes them known to Flags
	for i := 0; i < len(args); i++ {
		word := args[i]
		if word == "--" {
			return ours, append(nodes, args[i+1:]...)
		}
		name, _, valued := strings.Cut(strings.TrimLeft(word, "-"), "=")
		var flag *pflag.Flag
		switch {
		case strings.HasPrefix(word, "--"):
			flag = cmd.Flags().Lookup(name)
		case strings.HasPrefix(word, "-") && name != "":
			flag = cmd.Flags().ShorthandLookup(name[:1])
			valued = len(word) > 2
		}
		if flag == nil {
			nodes = append(nodes, word)
			continue
		}
		if ours = append(ours, word); !valued && flag.NoOptDefVal == "" && i+1 < len(args) {
			i++
			ours = append(ours, args[i])
		}
	}
	return ours, nodes
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
	env, as := s.Beside(v)
	cmd.Env, cmd.Dir, cmd.SysProcAttr = env, s.Layout.Root, &syscall.SysProcAttr{Credential: as}
	proc.EndWithUs(cmd)
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
