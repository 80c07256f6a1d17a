package main

import (
	"fmt"
	"os"
	"time"

	"cosmossdk.io/client/v2/autocli"
	"cosmossdk.io/depinject"
	"cosmossdk.io/log"
	cmtcfg "github.com/cometbft/cometbft/config"
	"github.com/spf13/cobra"
	"github.com/spf13/viper"

	"github.com/cosmos/cosmos-sdk/client"
	"github.com/cosmos/cosmos-sdk/client/config"
	"github.com/cosmos/cosmos-sdk/codec"
	codectypes "github.com/cosmos/cosmos-sdk/codec/types"
	"github.com/cosmos/cosmos-sdk/server"
	serverconfig "github.com/cosmos/cosmos-sdk/server/config"
	servertypes "github.com/cosmos/cosmos-sdk/server/types"
	"github.com/cosmos/cosmos-sdk/types/module"
	authtypes "github.com/cosmos/cosmos-sdk/x/auth/types"

	"nodevisor/testdata/chain/app"
)

// wired is what the application's own wiring yields for its commands.
type wired struct {
	basics    module.BasicManager
	autocli   autocli.AppOptions
	clientCtx client.Context
}

// wire assembles the modules without a database, to learn their commands, messages and addresses.
func wire() (wired, error) {
	var w wired
	err := depinject.Inject(
		depinject.Configs(
			app.Config(),
			depinject.Supply(log.NewNopLogger(), servertypes.AppOptions(viper.New())),
			depinject.Provide(ProvideClientContext),
		),
		&w.basics, &w.autocli, &w.clientCtx,
	)
	if err != nil {
		return wired{}, fmt.Errorf("cannot wire commands: %w", err)
	}
	return w, nil
}

// ProvideClientContext gives the commands their codecs. It is exported because depinject names its providers; the
// home follows from the flags, once they are parsed.
func ProvideClientContext(cdc codec.Codec, registry codectypes.InterfaceRegistry, tx client.TxConfig, amino *codec.LegacyAmino) client.Context {
	return client.Context{}.
		WithCodec(cdc).
		WithInterfaceRegistry(registry).
		WithTxConfig(tx).
		WithLegacyAmino(amino).
		WithInput(os.Stdin).
		WithAccountRetriever(authtypes.AccountRetriever{})
}

// newRoot builds the command tree: the node's own commands by hand, tx and query of the modules by AutoCLI.
func newRoot(home string) (*cobra.Command, error) {
	w, err := wire()
	if err != nil {
		return nil, err
	}
	root := &cobra.Command{
		Use:           app.Name,
		Short:         "Node and client of a small chain that exists to be upgraded",
		SilenceErrors: true, // main prints them, once
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return prepare(cmd, w.clientCtx)
		},
	}
	addCommands(root, w, home)
	if err := w.autocli.EnhanceRootCommand(root); err != nil {
		return nil, fmt.Errorf("cannot build tx and query commands: %w", err)
	}
	return root, nil
}

// prepare reads client.toml, config.toml and app.toml, and writes those that are missing. The order of precedence is
// the SDK's: flag, environment (CHAIND_…), file, default.
func prepare(cmd *cobra.Command, initial client.Context) error {
	cmd.SetOut(cmd.OutOrStdout())
	cmd.SetErr(cmd.ErrOrStderr())

	ctx, err := client.ReadPersistentCommandFlags(initial.WithCmdContext(cmd.Context()).WithViper("CHAIND"), cmd.Flags())
	if err != nil {
		return err
	}
	if ctx, err = config.ReadFromClientConfig(ctx); err != nil {
		return err
	}
	if err := client.SetCmdClientContextHandler(ctx, cmd); err != nil {
		return err
	}
	return server.InterceptConfigsPreRunHandler(cmd, serverconfig.DefaultConfigTemplate, nodeDefaults(), cometDefaults())
}

// nodeDefaults is what a new app.toml says: no fees, and no port but gRPC's.
func nodeDefaults() *serverconfig.Config {
	c := serverconfig.DefaultConfig()
	c.MinGasPrices = "0stake"
	c.GRPCWeb.Enable = false
	return c
}

// cometDefaults is what a new config.toml says: four blocks a second, no profiler, and LevelDB in pure Go.
func cometDefaults() *cmtcfg.Config {
	c := cmtcfg.DefaultConfig()
	c.Consensus.TimeoutCommit = 250 * time.Millisecond
	c.DBBackend = "goleveldb"
	c.P2P.AddrBookStrict = false
	c.P2P.PexReactor = false
	return c
}
