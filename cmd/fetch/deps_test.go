package main

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestOnlyThisProgramLinksGoGetter: one import in the wrong place would bring hundreds of packages, with their start-up
// code, into the process beside a validator's keys.
func TestOnlyThisProgramLinksGoGetter(t *testing.T) {
	const getter = "github.com/hashicorp/go-getter"
	list := exec.CommandContext(t.Context(), "go", "list", "-e", "-f", `{{.ImportPath}}{{range .Deps}} {{.}}{{end}}`, "nodevisor/...")
	out, err := list.Output()
	require.NoError(t, err)
	packages := map[string]bool{}
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		deps := strings.Fields(line)
		linked := false
		for _, dep := range deps[1:] {
			linked = linked || dep == getter || strings.HasPrefix(dep, getter+"/")
		}
		packages[deps[0]] = linked
	}
	require.Contains(t, packages, "nodevisor/internal/fetch")
	for name, linked := range packages {
		assert.Equal(t, name == "nodevisor/cmd/fetch", linked, "%s links go-getter", name)
	}
}
