package main

import (
	"fmt"
	"io"

	"cosmossdk.io/log"
	dbm "github.com/cosmos/cosmos-db"
	"github.com/spf13/cobra"

	"github.com/cosmos/cosmos-sdk/client"
	"github.com/cosmos/cosmos-sdk/client/flags"
	"github.com/cosmos/cosmos-sdk/client/keys"
	"github.com/cosmos/cosmos-sdk/server"
	servertypes "github.com/cosmos/cosmos-sdk/server/types"
	authcli "github.com/cosmos/cosmos-sdk/x/auth/client/cli"
	genutilcli "github.com/cosmos/cosmos-sdk/x/genutil/client/cli"

	"nodevisor/testdata/chain/app"
)

func addCommands(root *cobra.Command, w wired, home string) {
	root.AddCommand(
		genutilcli.InitCmd(w.basics, home),
		genutilcli.Commands(w.clientCtx.TxConfig, w.basics, home),
		server.StatusCommand(),
		keys.Commands(),
		preUpgrade(),
		query(),
		tx(),
	)
	// start, comet, export, version, rollback
	server.AddCommands(root, home, newNode, app.Export, func(*cobra.Command) {})
}

func newNode(logger log.Logger, db dbm.DB, trace io.Writer, opts servertypes.AppOptions) servertypes.Application {
	a, err := app.New(logger, db, trace, true, opts, server.DefaultBaseappOptions(opts)...)
	if err != nil {
		panic(err) // the SDK's start command knows no other way
	}
	return a
}

// preUpgrade is what a supervisor runs with the new binary between the old node's end and the new one's start. There
// is nothing to prepare here; 0 says so.
func preUpgrade() *cobra.Command {
	return &cobra.Command{
		Use:   "pre-upgrade",
		Short: "Prepare the home for this release (nothing to do)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "pre-upgrade to", app.Release, "done")
			return err
		},
	}
}

// query and tx hold what no module offers by itself; AutoCLI adds the modules' commands.
func query() *cobra.Command {
	cmd := &cobra.Command{Use: "query", Aliases: []string{"q"}, Short: "Ask a running node", RunE: client.ValidateCmd}
	cmd.AddCommand(server.QueryBlockCmd(), authcli.QueryTxCmd())
	return cmd
}

func tx() *cobra.Command {
	cmd := &cobra.Command{Use: "tx", Short: "Send a transaction", RunE: client.ValidateCmd}
	cmd.AddCommand(authcli.GetBroadcastCommand())
	cmd.PersistentFlags().String(flags.FlagChainID, "", "The network chain ID")
	return cmd
}
