package template

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/genesis"
	"nodevisor/genesis/kwil"
	"nodevisor/snapshot/postgres/server"
)

// initFlags are the arguments of `genesis init`.
type initFlags struct {
	root, document, state  string
	documentSum, stateSum  string
	key, dsn, passwordFile string
	pgBin                  string
	restoreNow, skipTrial  bool
}

// kwildDSN is what kwild itself assumes where its configuration says nothing.
const kwildDSN = "host=127.0.0.1 port=5432 user=kwild dbname=kwild"

func newGenesisInit(a *cli.App) *cobra.Command {
	var f initFlags
	cmd := &cobra.Command{
		Use: "init --root-dir DIR --genesis FILE|URL --genesis-state FILE|URL", Short: "Set up a new Kwil node's root from a document and a state",
		Args: cli.ExactArgs(0, "no arguments"),
		Long: `Verifies everything before it touches anything: the document's shape, the state to its last byte and its hash against the
document's, digests that are given or lie beside the files as SHA256SUMS, and the state itself by restoring it into a scratch
database, whose rows are compared and which is dropped. Then it writes genesis.json, genesis-state.sql.gz, config.toml with
the database's settings and the validator's key into DIR, each with mode 0600. A root that holds anything but cosmovisor/ and
supervisor/ is refused; an init that was interrupted is done again from clean.

The node restores the state at its first start, which "supervisor run" treats as a restoring one. --restore-now restores it
here, in one transaction, and does what the node does afterwards. URLs need the digests, and are downloaded as binaries are.`,
		Example: "  supervisor genesis init --root-dir /var/lib/kwild --genesis genesis.json --genesis-state snapshot.sql.gz --key nodekey.json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			i := &rootInit{App: a, f: f}
			result, err := i.run(cmd.Context())
			if err != nil {
				return err
			}
			if a.Flags.JSON {
				return cli.WriteJSON(a.Stdout, result)
			}
			for _, name := range result.Files {
				if err := a.Print("%s\n", filepath.Join(result.Root, name)); err != nil {
					return err
				}
			}
			a.Say("chain id %s, %d rows in %d tables; %s", result.ChainID, result.Rows, result.Tables, result.Next)
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.root, "root-dir", "", "the new node's root directory")
	fl.StringVar(&f.document, "genesis", "", "the genesis document: a file, or a URL")
	fl.StringVar(&f.state, "genesis-state", "", "its state: a file, or a URL")
	fl.StringVar(&f.documentSum, "sha256", "", "the document's digest; required for a URL")
	fl.StringVar(&f.stateSum, "state-sha256", "", "the digest of the state's file; required for a URL")
	fl.StringVar(&f.key, "key", "", "the validator's private key: copied with mode 0600")
	fl.StringVar(&f.dsn, "dsn", kwildDSN, "the new node's database, without a password")
	fl.StringVar(&f.passwordFile, "password-file", "", "holds the database's password alone, mode 0600; default: PGPASSWORD, PGPASSFILE")
	fl.StringVar(&f.pgBin, "pg-bin", "", "where psql lies; default: PATH")
	fl.BoolVar(&f.restoreNow, "restore-now", false, "restore the state here and now, instead of at the node's first start")
	fl.BoolVar(&f.skipTrial, "skip-trial", false, "don't try the state on the server, and leave the database alone")
	return cmd
}

func (f *initFlags) check() (err error) {
	switch {
	case f.root == "" || f.document == "" || f.state == "":
		return cli.Usagef("--root-dir, --genesis and --genesis-state are needed")
	case f.restoreNow && f.skipTrial:
		return cli.Usagef("--restore-now and --skip-trial exclude each other")
	}
	if errs := server.CheckDSN("--dsn", f.dsn); len(errs) > 0 {
		return cli.Usagef("%v", errors.Join(errs...))
	}
	for _, s := range [][2]string{{"--sha256", f.documentSum}, {"--state-sha256", f.stateSum}} {
		if s[1] != "" && !genesis.IsSum(s[1]) {
			return cli.Usagef("%s: want 64 hexadecimal digits", s[0])
		}
	}
	for _, s := range [][3]string{{f.document, f.documentSum, "--sha256"}, {f.state, f.stateSum, "--state-sha256"}} {
		if isURL(s[0]) && s[1] == "" {
			return cli.Usagef("a URL needs %s: what a server sends today is believed by its digest alone", s[2])
		}
	}
	for _, path := range []*string{&f.root, &f.key, &f.passwordFile} {
		if *path != "" {
			if *path, err = filepath.Abs(*path); err != nil {
				return err
			}
		}
	}
	return nil
}

func isURL(s string) bool { return strings.Contains(s, "://") }

// initResult is the answer with --json.
type initResult struct {
	Root     string   `json:"root"`
	Kind     string   `json:"kind"`
	Version  string   `json:"version"`
	ChainID  string   `json:"chain_id"`
	Document string   `json:"canonical_sha256"`
	State    string   `json:"state_sha256"` // decompressed
	Tables   int      `json:"tables"`
	Rows     int64    `json:"rows"`
	Files    []string `json:"files"`
	Tried    bool     `json:"tried"`    // in a scratch database
	Restored bool     `json:"restored"` // else the first start does it
	Next     string   `json:"next"`
}

// rootInit is one `genesis init`.
type rootInit struct {
	*cli.App
	f       initFlags
	version kwil.Version
	doc     *genesis.Document
	data    []byte // the document as it was verified
	state   string // the state's file
	sum     string // of that file
	found   kwil.State
}

func (i *rootInit) run(ctx context.Context) (result *initResult, err error) {
	if _, err := genesis.CheckRoot(i.f.root); err != nil {
		return nil, err
	}
	staging := filepath.Join(filepath.Dir(i.f.root), "."+filepath.Base(i.f.root)+".genesis")
	if err := i.fetch(ctx, staging); err != nil {
		return nil, err
	}
	if isURL(i.f.document) || isURL(i.f.state) {
		defer func() { err = errors.Join(err, removeStaging(staging)) }()
	}
	key, err := i.verify()
	if err != nil {
		return nil, err
	}
	target, settings, err := i.tryOut(ctx)
	if err != nil {
		return nil, err
	}
	files := []genesis.RootFile{
		{Name: genesis.DocumentName, Data: i.data},
		{Name: genesis.StateName, From: i.state, Sum: i.sum},
		{Name: "config.toml", Data: kwildConfig(i.version, i.f.root, settings)},
	}
	if key != nil {
		files = append(files, genesis.RootFile{Name: keyName(i.version), Data: key})
	}
	if err := i.write(ctx, target, files); err != nil {
		return nil, err
	}
	result = &initResult{
		Root: i.f.root, Kind: genesis.Kwil, Version: string(i.version), ChainID: i.doc.ChainID(), Document: i.doc.Hash(),
		State: fmt.Sprintf("%x", i.found.SHA256), Tables: len(i.found.Tables), Rows: i.found.Rows(), Tried: !i.f.skipTrial, Restored: i.f.restoreNow,
		Next: "next: supervisor --home " + i.f.root + " init BINARY, then run",
	}
	for _, f := range files {
		result.Files = append(result.Files, f.Name)
	}
	if key == nil {
		i.Say("no --key: the node makes a new one, and is no validator until the network accepts it")
	}
	return result, nil
}
