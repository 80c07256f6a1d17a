//go:build v2

package app

import (
	"context"
	"fmt"

	epochsmodulev1 "cosmossdk.io/api/cosmos/epochs/module/v1"
	storetypes "cosmossdk.io/store/types"
	upgradetypes "cosmossdk.io/x/upgrade/types"

	"github.com/cosmos/cosmos-sdk/types/module"
	epochstypes "github.com/cosmos/cosmos-sdk/x/epochs/types"

	_ "github.com/cosmos/cosmos-sdk/x/epochs" // wires itself by being imported
)

// Release is the name of the plan that this binary was built for, and what `chaind version` prints.
const Release = "v2"

// releaseParts adds epochs: it writes at the begin of every epoch, so its store is used and not merely mounted.
func releaseParts() []part {
	return []part{{name: epochstypes.ModuleName, config: &epochsmodulev1.Module{}, begin: true}}
}

// registerUpgrades registers the plan's handler, and mounts the new store if the plan's height is the next one. The
// store may only be added at exactly that height: before, the root hash would differ from the network's; after, it is
// already there.
func (a *App) registerUpgrades() error {
	a.upgradeKeeper.SetUpgradeHandler(Release, func(ctx context.Context, _ upgradetypes.Plan, from module.VersionMap) (module.VersionMap, error) {
		return a.ModuleManager.RunMigrations(ctx, a.Configurator(), from)
	})
	plan, err := a.upgradeKeeper.ReadUpgradeInfoFromDisk()
	if err != nil {
		return fmt.Errorf("cannot read upgrade-info.json: %w", err)
	}
	if plan.Name == Release && !a.upgradeKeeper.IsSkipHeight(plan.Height) {
		added := &storetypes.StoreUpgrades{Added: []string{epochstypes.StoreKey}}
		a.SetStoreLoader(upgradetypes.UpgradeStoreLoader(plan.Height, added))
	}
	return nil
}
