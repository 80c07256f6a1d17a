package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"cosmossdk.io/log"
	cmtproto "github.com/cometbft/cometbft/proto/tendermint/types"
	dbm "github.com/cosmos/cosmos-db"

	servertypes "github.com/cosmos/cosmos-sdk/server/types"
	"github.com/cosmos/cosmos-sdk/x/staking"
)

// Export renders the state at height as the parts of a genesis document; height -1 means the last one. A new chain
// at height 0 out of it is not offered: that takes a reset of every validator's books, and no test asks for it.
func Export(
	logger log.Logger, db dbm.DB, trace io.Writer, height int64, forZeroHeight bool,
	_ []string, opts servertypes.AppOptions, modules []string,
) (servertypes.ExportedApp, error) {
	if forZeroHeight {
		return servertypes.ExportedApp{}, errors.New("cannot export for height 0: not offered by this application")
	}
	a, err := New(logger, db, trace, height == -1, opts)
	if err != nil {
		return servertypes.ExportedApp{}, err
	}
	if height != -1 {
		if err := a.LoadHeight(height); err != nil {
			return servertypes.ExportedApp{}, fmt.Errorf("cannot load height %d: %w", height, err)
		}
	}

	ctx := a.NewContextLegacy(true, cmtproto.Header{Height: a.LastBlockHeight()})
	state, err := a.ModuleManager.ExportGenesisForModules(ctx, a.cdc, modules)
	if err != nil {
		return servertypes.ExportedApp{}, fmt.Errorf("cannot export state: %w", err)
	}
	document, err := json.MarshalIndent(state, "", "  ")
	if err != nil {
		return servertypes.ExportedApp{}, fmt.Errorf("cannot render state: %w", err)
	}
	validators, err := staking.WriteValidators(ctx, a.stakingKeeper)
	return servertypes.ExportedApp{
		AppState:        document,
		Validators:      validators,
		Height:          a.LastBlockHeight() + 1,
		ConsensusParams: a.GetConsensusParams(ctx),
	}, err
}
