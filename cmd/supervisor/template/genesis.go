// Package template is `supervisor genesis`: making the documents from which networks start, reading and comparing them, and
// setting up the root of a new Kwil node from one (init.go has the command, root.go does it).
package template

import (
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/genesis"
)

// New makes `supervisor genesis` with the commands below it.
func New(a *cli.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "genesis", GroupID: "node", Short: "Make, compare and use the documents from which networks start",
		Args: cli.OnlyCommands,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, add := range []func(*cli.App) *cobra.Command{
		newGenesisCreate, newGenesisShow, newGenesisValidate, newGenesisDiff, newGenesisHash, newGenesisInit,
	} {
		cmd.AddCommand(add(a))
	}
	return cmd
}

func newGenesisCreate(a *cli.App) *cobra.Command {
	var id, out string
	var sets []string
	cmd := &cobra.Command{
		Use: "create", Short: "Make a template: the document from which a new network can start, and its state", Args: cli.ExactArgs(0, "no arguments"),
		Long: `Makes a template as [genesis] says, of the node's state at rest, or of a snapshot. The template that a halt made beside its
snapshot is handed on: with --out it is copied, with --set its document is changed. Prints the digests and paths of the
files, as sha256sum does; SHA256SUMS lies beside them. An older template is replaced only by a finished one.`,
		Example: "  supervisor genesis create --snapshot ID --out ./new-network --set chain_id=kwil-2",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Load(cmd.Context(), a, false)
			if err != nil {
				return err
			}
			set, err := parseSets(sets)
			if err != nil {
				return err
			}
			dir, t, err := s.CreateTemplate(cmd.Context(), id, out, set)
			if err != nil {
				return err
			}
			return printTemplate(a, dir, t)
		},
	}
	f := cmd.Flags()
	f.StringVar(&id, "snapshot", "", "of this snapshot, instead of the node's state as it is")
	f.StringVar(&out, "out", "", "the directory; default: beside the snapshot, or <home>/supervisor/genesis")
	f.StringArrayVar(&sets, "set", nil, "PATH=VALUE in the document: chain_id=kwil-2, initial_height=1, validators=[...]; may be repeated")
	return cmd
}

// parseSets reads --set.
func parseSets(sets []string) ([]session.Assignment, error) {
	var all []session.Assignment
	for _, s := range sets {
		path, value, ok := strings.Cut(s, "=")
		if !ok || path == "" {
			return nil, cli.Usagef("--set %s: want PATH=VALUE", s)
		}
		all = append(all, session.Assignment{Path: path, Value: value})
	}
	return all, nil
}

// templateAnswer is a template with where it is.
type templateAnswer struct {
	Dir string `json:"dir"`
	*genesis.Template
}

func printTemplate(a *cli.App, dir string, t *genesis.Template) error {
	if a.Flags.JSON {
		return cli.WriteJSON(a.Stdout, templateAnswer{dir, t})
	}
	for _, name := range t.Files() {
		if err := a.Print("%s  %s\n", t.SHA256[name], filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	a.Say("chain id %s, document %s", t.ChainID, t.Canonical)
	for _, d := range t.Defaults {
		a.Say("not set: %s", d)
	}
	return nil
}
