package template

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/genesis"
	"nodevisor/genesis/kwil"
	"nodevisor/internal/hint"
)

// documentAt reads the document of a file, or of a template's directory.
func documentAt(path string) (*genesis.Document, []byte, string, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, genesis.DocumentName)
	}
	d, data, err := genesis.ReadFile(path)
	return d, data, path, err
}

func newGenesisShow(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "show FILE|DIR [PATH]", Short: "Show what a document holds, or the value at one path of it",
		Long: "Lists the document's fields, long ones cut. PATH (app_state.gov.params, validators.0) prints one value, whole.",
		Args: cli.BetweenArgs(1, 2, "a file and perhaps a path"),
		RunE: func(_ *cobra.Command, args []string) error {
			d, data, path, err := documentAt(args[0])
			if err != nil {
				return err
			}
			if len(args) == 2 {
				v, ok := d.Get(args[1])
				if !ok {
					return hint.New("show", args[1], "the document has nothing there", "supervisor genesis show "+path)
				}
				return cli.WriteJSON(a.Stdout, v)
			}
			kind, version := d.Detect()
			if a.Flags.JSON {
				return cli.WriteJSON(a.Stdout, map[string]any{
					"path": path, "bytes": len(data), "kind": orNull(kind), "version": orNull(version), "chain_id": orNull(d.ChainID()),
					"initial_height": d.Fields()["initial_height"], "genesis_time": d.Fields()["genesis_time"],
					"canonical_sha256": d.Hash(), "fields": slices.Sorted(maps.Keys(d.Fields())), "template": templateOf(path),
				})
			}
			text := fmt.Sprintf("# %s: %d bytes, kind %s %s\n# canonical sha256 %s\n", path, len(data), cmp.Or(kind, "unknown"), version, d.Hash())
			for _, line := range d.Summary() {
				text += line + "\n"
			}
			return a.Print("%s", text)
		},
	}
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// templateOf describes the template that a document lies in; nil where it lies in none.
func templateOf(path string) *genesis.Template {
	t, err := genesis.ReadTemplate(filepath.Dir(path))
	if err != nil {
		return nil
	}
	return t
}

func newGenesisValidate(a *cli.App) *cobra.Command {
	var kind, version, state, binary string
	cmd := &cobra.Command{
		Use: "validate FILE|DIR", Short: "Check a document by the rules of its kind, and its state against it", Args: cli.ExactArgs(1, "a file"),
		Long: `Checks the document's shape. The kind and Kwil's version are seen by its shape where they are not given. --state reads
Kwil's compressed state to its end and compares its hash with the document's; in a template's directory it is found by
itself. --binary lets a node of the Cosmos SDK judge the document with its own validate command.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			d, data, path, err := documentAt(args[0])
			if err != nil {
				return err
			}
			if kind == "" {
				kind, version = d.Detect()
			}
			if kind == "" {
				return &cli.UsageError{Err: hint.New("validate", path, "its kind can't be seen by its shape", "add --kind kwil, cosmos or command")}
			}
			if !slices.Contains(genesis.Kinds(), kind) {
				return cli.Usagef("--kind is kwil, cosmos or command")
			}
			if kind == genesis.Kwil && version == "" {
				_, version = d.Detect()
			}
			if t := templateOf(path); t != nil {
				if err := t.Verify(filepath.Dir(path)); err != nil {
					return err
				}
				if state == "" && t.State != nil {
					state = filepath.Join(filepath.Dir(path), *t.State)
				}
			}
			err = session.ValidateDocument(d, kind, version)
			if err == nil && state != "" {
				err = verifyState(data, state)
			}
			judged := false
			if err == nil && binary != "" {
				judged, err = judge(a, cmd, binary, d)
			}
			return printVerdict(a, path, kind, version, judged, err)
		},
	}
	f := cmd.Flags()
	f.StringVar(&kind, "kind", "", "kwil, cosmos or command; default: seen by the shape")
	f.StringVar(&version, "version", "", "kwil: v0.9 or v0.10; default: seen by the shape")
	f.StringVar(&state, "state", "", "kwil: the compressed state that belongs to it")
	f.StringVar(&binary, "binary", "", "cosmos: a node's binary that is to judge it too")
	return cmd
}

// verifyState compares Kwil's state with the document.
func verifyState(document []byte, state string) error {
	f, err := genesis.OpenRegular(state)
	if err != nil {
		return &hint.Error{Op: "read state", Path: state, Err: err, Hint: "give the path of the state's file"}
	}
	defer f.Close()
	if _, _, err := kwil.VerifyPair(document, f); err != nil {
		return &hint.Error{Op: "use state", Path: state, Err: err, Hint: "copy both files again, and compare them with their SHA256SUMS"}
	}
	return nil
}

// judge lets a node's binary validate the document in a directory of its own.
func judge(a *cli.App, cmd *cobra.Command, binary string, d *genesis.Document) (judged bool, err error) {
	if binary, err = filepath.Abs(binary); err != nil {
		return false, err
	}
	scratch, err := os.MkdirTemp("", "supervisor-genesis-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(scratch)
	sdk := genesis.SDK{New: genesis.Program{Path: binary, Env: a.Environ, Dir: scratch}, Timeout: time.Hour}
	judged, err = sdk.Judge(cmd.Context(), scratch, d)
	if err == nil && !judged {
		a.Say("%s has no command that validates a document", binary)
	}
	return judged, err
}

func printVerdict(a *cli.App, path, kind, version string, judged bool, err error) error {
	var problems []string
	for _, e := range hint.Split(err) {
		problems = append(problems, e.Error())
	}
	if a.Flags.JSON {
		verdict := map[string]any{
			"path": path, "ok": err == nil, "kind": kind, "version": orNull(version), "judged_by_binary": judged, "errors": append([]string{}, problems...),
		}
		if werr := cli.WriteJSON(a.Stdout, verdict); werr != nil || err == nil {
			return werr
		}
		return cli.ExitError(cli.ExitFailed)
	}
	if err != nil {
		return err
	}
	return a.Print("%s: ok (%s)\n", path, strings.TrimSpace(kind+" "+version))
}

func newGenesisDiff(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "diff OLD NEW", Short: "Show every field that differs between two documents", Args: cli.ExactArgs(2, "two files"),
		Long: "One line a field: path: old → new. Blanks and the order of keys make no difference. Ends with 0 also where they differ.",
		RunE: func(_ *cobra.Command, args []string) error {
			before, _, _, err := documentAt(args[0])
			if err != nil {
				return err
			}
			after, _, _, err := documentAt(args[1])
			if err != nil {
				return err
			}
			changes := genesis.Diff(before, after)
			if a.Flags.JSON {
				return cli.WriteJSON(a.Stdout, changes)
			}
			for _, c := range changes {
				if err := a.Print("%s\n", c); err != nil {
					return err
				}
			}
			if len(changes) == 0 {
				a.Say("no field differs")
			}
			return nil
		},
	}
}

func newGenesisHash(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "hash FILE|DIR", Short: "Print the hash of a document's meaning, for operators to compare", Args: cli.ExactArgs(1, "a file"),
		Long: "SHA-256 of the canonical form: sorted keys, no blanks, numbers as they are written. Files that mean the same have the same.",
		RunE: func(_ *cobra.Command, args []string) error {
			d, _, path, err := documentAt(args[0])
			if err != nil {
				return err
			}
			if a.Flags.JSON {
				return cli.WriteJSON(a.Stdout, map[string]any{"path": path, "canonical_sha256": d.Hash()})
			}
			return a.Print("%s\n", d.Hash())
		},
	}
}
