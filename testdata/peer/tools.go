//go:build tools

// Package peer pins Cosmovisor, whose homes Nodevisor takes over and gives back. Nothing here is ever compiled into
// Nodevisor: the module exists so that the end-to-end tests can build the very release they compare with, offline and
// by checksum. See README.md for the command.
package peer

import _ "cosmossdk.io/tools/cosmovisor/cmd/cosmovisor"
