package app

import (
	"fmt"
	"io"

	"cosmossdk.io/depinject"
	"cosmossdk.io/log"
	upgradekeeper "cosmossdk.io/x/upgrade/keeper"
	dbm "github.com/cosmos/cosmos-db"

	"github.com/cosmos/cosmos-sdk/baseapp"
	"github.com/cosmos/cosmos-sdk/client"
	"github.com/cosmos/cosmos-sdk/codec"
	"github.com/cosmos/cosmos-sdk/runtime"
	servertypes "github.com/cosmos/cosmos-sdk/server/types"
	sdk "github.com/cosmos/cosmos-sdk/types"
	stakingkeeper "github.com/cosmos/cosmos-sdk/x/staking/keeper"
)

// App is the running application: what the runtime assembled, and the keepers that this package calls itself.
type App struct {
	*runtime.App

	cdc           codec.Codec
	txConfig      client.TxConfig
	stakingKeeper *stakingkeeper.Keeper
	upgradeKeeper *upgradekeeper.Keeper
}

// New assembles the application on db. With loadLatest false the caller loads a height itself.
func New(logger log.Logger, db dbm.DB, trace io.Writer, loadLatest bool, opts servertypes.AppOptions, base ...func(*baseapp.BaseApp)) (*App, error) {
	a := &App{}
	var builder *runtime.AppBuilder
	err := depinject.Inject(depinject.Configs(Config(), depinject.Supply(opts, logger)),
		&builder, &a.cdc, &a.txConfig, &a.stakingKeeper, &a.upgradeKeeper)
	if err != nil {
		return nil, fmt.Errorf("cannot assemble application: %w", err)
	}
	a.App = builder.Build(db, trace, base...)
	// The store loader must know of new stores before the stores are loaded.
	if err := a.registerUpgrades(); err != nil {
		return nil, err
	}
	if err := a.Load(loadLatest); err != nil {
		return nil, fmt.Errorf("cannot load application: %w", err)
	}
	return a, nil
}

// SetAddressPrefixes seals the address prefixes. Once for a process, before any command runs.
func SetAddressPrefixes() {
	c := sdk.GetConfig()
	c.SetBech32PrefixForAccount(bech32Prefix, bech32Prefix+"pub")
	c.SetBech32PrefixForValidator(bech32Prefix+"valoper", bech32Prefix+"valoperpub")
	c.SetBech32PrefixForConsensusNode(bech32Prefix+"valcons", bech32Prefix+"valconspub")
	c.Seal()
}
