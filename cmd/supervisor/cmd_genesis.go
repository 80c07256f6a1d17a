package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"nodevisor/genesis"
	"nodevisor/internal/hint"
	"nodevisor/supervisor/home"
)

func newGenesis(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "genesis", GroupID: "node", Short: "Make, compare and use the documents from which networks start",
		Args: onlyCommands,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, add := range []func(*app) *cobra.Command{
		newGenesisCreate, newGenesisShow, newGenesisValidate, newGenesisDiff, newGenesisHash, newGenesisInit,
	} {
		cmd.AddCommand(add(a))
	}
	return cmd
}

func newGenesisCreate(a *app) *cobra.Command {
	var id, out string
	var sets []string
	cmd := &cobra.Command{
		Use: "create", Short: "Make a template: the document from which a new network can start, and its state", Args: exactArgs(0, "no arguments"),
		Long: `Makes a template as [genesis] says, of the node's state at rest, or of a snapshot. The template that a halt made beside its
snapshot is handed on: with --out it is copied, with --set its document is changed. Prints the digests and paths of the
files, as sha256sum does; SHA256SUMS lies beside them. An older template is replaced only by a finished one.`,
		Example: "  supervisor genesis create --snapshot ID --out ./new-network --set chain_id=kwil-2",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.load(cmd.Context(), false)
			if err != nil {
				return err
			}
			set, err := parseSets(sets)
			if err != nil {
				return err
			}
			dir, t, err := s.createTemplate(cmd.Context(), id, out, set)
			if err != nil {
				return err
			}
			return a.printTemplate(dir, t)
		},
	}
	f := cmd.Flags()
	f.StringVar(&id, "snapshot", "", "of this snapshot, instead of the node's state as it is")
	f.StringVar(&out, "out", "", "the directory; default: beside the snapshot, or <home>/supervisor/genesis")
	f.StringArrayVar(&sets, "set", nil, "PATH=VALUE in the document: chain_id=kwil-2, initial_height=1, validators=[...]; may be repeated")
	return cmd
}

// parseSets reads --set.
func parseSets(sets []string) ([]assignment, error) {
	var all []assignment
	for _, s := range sets {
		path, value, ok := strings.Cut(s, "=")
		if !ok || path == "" {
			return nil, usagef("--set %s: want PATH=VALUE", s)
		}
		all = append(all, assignment{path, value})
	}
	return all, nil
}

// createTemplate hands the snapshot's template on, or makes one.
func (s *session) createTemplate(ctx context.Context, id, out string, set []assignment) (dir string, t *genesis.Template, err error) {
	if out != "" {
		if out, err = filepath.Abs(out); err != nil {
			return "", nil, err
		}
	}
	if id != "" {
		store, err := s.store(nil)
		if err != nil {
			return "", nil, err
		}
		if _, err := store.Get(id); err != nil {
			return "", nil, err
		}
		beside := genesis.PathOf(store.Dir(), id)
		dir = or(out, beside)
		switch t, err = genesis.ReadTemplate(beside); {
		case err == nil && dir == beside && len(set) == 0:
			return dir, t, t.Verify(dir)
		case err == nil:
			t, err = s.handOn(ctx, beside, dir, set)
			return dir, t, err
		case !errors.Is(err, os.ErrNotExist):
			return "", nil, err
		}
		x := newExporter(s, store)
		if x == nil {
			return "", nil, noKind()
		}
		t, err = x.ofSnapshot(ctx, dir, id, set)
		return dir, t, err
	}
	dir = or(out, filepath.Join(s.layout.State(), "genesis"))
	t, err = s.createAtRest(ctx, dir, set)
	return dir, t, err
}

func or(given, otherwise string) string {
	if given != "" {
		return given
	}
	return otherwise
}

func noKind() error {
	return &usageError{err: hint.New("make a template", "", "[genesis] kind is not set",
		`set [genesis] kind = "kwil", "cosmos" or "command" in the configuration`)}
}

// createAtRest makes a template of the node's state, which must be at rest and stay so.
func (s *session) createAtRest(ctx context.Context, dir string, set []assignment) (t *genesis.Template, err error) {
	if s.cfg.Genesis.Kind == "" {
		return nil, noKind()
	}
	height := s.snapshotHeight(ctx)
	err = s.underLock(ctx, func(o *offline) error {
		if err := o.atRest(ctx); err != nil {
			return err
		}
		t, err = newExporter(s, o.store).make(ctx, dir, templateJob{height: height, set: set})
		return err
	})
	if errors.Is(err, home.ErrLocked) || errors.Is(err, home.ErrForeign) {
		err = &hint.Error{
			Op: "make a template of the node's state", Err: err,
			Hint: "supervisor halt --now, then supervisor genesis create; or of a snapshot: --snapshot ID",
		}
	}
	return t, err
}

// templateAnswer is a template with where it is.
type templateAnswer struct {
	Dir string `json:"dir"`
	*genesis.Template
}

func (a *app) printTemplate(dir string, t *genesis.Template) error {
	if a.flags.json {
		return writeJSON(a.stdout, templateAnswer{dir, t})
	}
	for _, name := range t.Files() {
		fmt.Fprintf(a.stdout, "%s  %s\n", t.SHA256[name], filepath.Join(dir, name))
	}
	a.say("chain id %s, document %s", t.ChainID, t.Canonical)
	for _, d := range t.Defaults {
		a.say("not set: %s", d)
	}
	return nil
}
