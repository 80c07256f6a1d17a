// Command chaind is the node and the client of the small chain in package app. README.md shows how to build it as v1
// and as v2, and how to start a network of one validator.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/cosmos/cosmos-sdk/version"

	svrcmd "github.com/cosmos/cosmos-sdk/server/cmd"

	"nodevisor/testdata/chain/app"
)

func main() {
	app.SetAddressPrefixes()
	version.Name, version.AppName, version.Version = app.Name, app.Name, app.Release

	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func run() error {
	userHome, err := os.UserHomeDir()
	if err != nil {
		userHome = os.TempDir() // a service user may have none; --home is given then
	}
	home := filepath.Join(userHome, "."+app.Name)
	root, err := newRoot(home)
	if err != nil {
		return err
	}
	return svrcmd.Execute(root, "CHAIND", home)
}
