// Package app is a small, real Cosmos SDK application: accounts, a bank, staking, governance and the upgrade module.
//
// It exists to be upgraded. The build tag v2 adds the module epochs with a store of its own and the handler of the
// plan "v2"; without the tag the node stops at the plan's height, writes data/upgrade-info.json and says
// `UPGRADE "v2" NEEDED`, as every chain on cosmossdk.io/x/upgrade does.
package app

import (
	"slices"

	runtimev1alpha1 "cosmossdk.io/api/cosmos/app/runtime/v1alpha1"
	appv1alpha1 "cosmossdk.io/api/cosmos/app/v1alpha1"
	authmodulev1 "cosmossdk.io/api/cosmos/auth/module/v1"
	bankmodulev1 "cosmossdk.io/api/cosmos/bank/module/v1"
	consensusmodulev1 "cosmossdk.io/api/cosmos/consensus/module/v1"
	distrmodulev1 "cosmossdk.io/api/cosmos/distribution/module/v1"
	genutilmodulev1 "cosmossdk.io/api/cosmos/genutil/module/v1"
	govmodulev1 "cosmossdk.io/api/cosmos/gov/module/v1"
	stakingmodulev1 "cosmossdk.io/api/cosmos/staking/module/v1"
	txconfigv1 "cosmossdk.io/api/cosmos/tx/config/v1"
	upgrademodulev1 "cosmossdk.io/api/cosmos/upgrade/module/v1"
	"cosmossdk.io/core/appconfig"
	"cosmossdk.io/depinject"
	"github.com/cosmos/gogoproto/proto"

	_ "cosmossdk.io/x/upgrade"                        // wires itself by being imported, like the following
	_ "github.com/cosmos/cosmos-sdk/x/auth"           //
	_ "github.com/cosmos/cosmos-sdk/x/auth/tx/config" //
	_ "github.com/cosmos/cosmos-sdk/x/bank"           //
	_ "github.com/cosmos/cosmos-sdk/x/consensus"      //
	_ "github.com/cosmos/cosmos-sdk/x/distribution"   //
	_ "github.com/cosmos/cosmos-sdk/x/gov"            //
	_ "github.com/cosmos/cosmos-sdk/x/staking"        //

	"github.com/cosmos/cosmos-sdk/types/module"
	"github.com/cosmos/cosmos-sdk/x/genutil"
	genutiltypes "github.com/cosmos/cosmos-sdk/x/genutil/types"
)

// Name is the application's and the binary's name. The version module prints it, and DAEMON_NAME is set to it.
const Name = "chaind"

const bech32Prefix = "chain"

// part is one module and the hooks of a block that it takes part in.
type part struct {
	name   string
	config proto.Message
	pre    bool // runs before the block
	begin  bool // runs at the block's begin
	end    bool // runs at the block's end
}

// parts lists the modules in the order of their genesis and of their hooks. Governance stands before staking at the
// end of a block in larger chains; with one validator and no change of the set the order here is enough.
func parts() []part {
	common := []part{
		{name: "upgrade", config: &upgrademodulev1.Module{}, pre: true},
		{name: "auth", config: &authmodulev1.Module{Bech32Prefix: bech32Prefix, ModuleAccountPermissions: moduleAccounts()}, pre: true},
		{name: "bank", config: &bankmodulev1.Module{}},
		{name: "distribution", config: &distrmodulev1.Module{}, begin: true},
		{name: "staking", config: &stakingmodulev1.Module{}, begin: true, end: true},
		{name: "gov", config: &govmodulev1.Module{}, end: true},
		{name: "genutil", config: &genutilmodulev1.Module{}},
		{name: "consensus", config: &consensusmodulev1.Module{}},
	}
	return append(common, releaseParts()...)
}

func moduleAccounts() []*authmodulev1.ModuleAccountPermission {
	return []*authmodulev1.ModuleAccountPermission{
		{Account: "fee_collector"},
		{Account: "distribution"},
		{Account: "bonded_tokens_pool", Permissions: []string{"burner", "staking"}},
		{Account: "not_bonded_tokens_pool", Permissions: []string{"burner", "staking"}},
		{Account: "gov", Permissions: []string{"burner"}},
	}
}

// Config composes the application for depinject.
func Config() depinject.Config {
	all := parts()
	runtime := &runtimev1alpha1.Module{
		AppName:       Name,
		PreBlockers:   names(all, func(p part) bool { return p.pre }),
		BeginBlockers: names(all, func(p part) bool { return p.begin }),
		EndBlockers:   names(all, func(p part) bool { return p.end }),
		InitGenesis:   names(all, func(part) bool { return true }),
		// The store of the signing state is named "acc" since the first release of the SDK, whatever the module's name.
		OverrideStoreKeys: []*runtimev1alpha1.StoreKeyConfig{{ModuleName: "auth", KvStoreKey: "acc"}},
	}

	modules := []*appv1alpha1.ModuleConfig{
		{Name: "runtime", Config: appconfig.WrapAny(runtime)},
		{Name: "tx", Config: appconfig.WrapAny(&txconfigv1.Config{})},
	}
	for _, p := range all {
		modules = append(modules, &appv1alpha1.ModuleConfig{Name: p.name, Config: appconfig.WrapAny(p.config)})
	}
	return depinject.Configs(
		appconfig.Compose(&appv1alpha1.Config{Modules: modules}),
		depinject.Supply(map[string]module.AppModuleBasic{
			// The genesis commands look for this very type.
			genutiltypes.ModuleName: genutil.NewAppModuleBasic(genutiltypes.DefaultMessageValidator),
		}),
	)
}

func names(all []part, with func(part) bool) []string {
	var out []string
	for p := range slices.Values(all) {
		if with(p) {
			out = append(out, p.name)
		}
	}
	return out
}
