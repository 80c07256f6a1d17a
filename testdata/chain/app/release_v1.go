//go:build !v2

package app

// Release is the name of the plan that this binary was built for, and what `chaind version` prints.
const Release = "v1"

func releaseParts() []part { return nil }

// registerUpgrades registers nothing: v1 is what the chain starts with, so it stops at every plan.
func (a *App) registerUpgrades() error { return nil }
