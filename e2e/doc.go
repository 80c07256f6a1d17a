// Package e2e upgrades a real chain under the real supervisor: a network of one validator (testdata/chain), a software
// upgrade voted through governance, and Cosmovisor (testdata/peer) as the neighbour whose homes are taken over and
// given back. Everything is a process of its own; nothing is imported from the product.
//
// The tests carry the build tag e2e and are run by `make e2e`. The first run compiles the chain's SDK, which takes
// minutes; SUPERVISOR_BIN, CHAIN_V1_BIN, CHAIN_V2_BIN and COSMOVISOR_BIN name binaries that exist already.
package e2e
