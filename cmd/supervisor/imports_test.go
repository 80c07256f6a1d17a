package main

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// forbidden names, for each part of the tree, what it must not reach: the import directions of docs/architecture.md, and
// the weight that must stay out of the process that sits beside a validator's keys.
var forbidden = map[string][]string{
	"nodevisor/internal/...":              {"nodevisor/supervisor", "nodevisor/upgrade", "nodevisor/snapshot", "nodevisor/cmd"},
	"nodevisor/upgrade/source":            {"nodevisor/upgrade", "nodevisor/supervisor", "nodevisor/snapshot", "nodevisor/cmd"},
	"nodevisor/upgrade":                   {"nodevisor/supervisor", "nodevisor/snapshot", "nodevisor/cmd"},
	"nodevisor/snapshot/...":              {"nodevisor/supervisor", "nodevisor/upgrade", "nodevisor/cmd"},
	"nodevisor/systemd":                   {"nodevisor/supervisor", "nodevisor/upgrade", "nodevisor/snapshot", "nodevisor/cmd"},
	"nodevisor/genesis/...":               {"nodevisor/supervisor", "nodevisor/upgrade", "nodevisor/snapshot", "nodevisor/cmd"},
	"nodevisor/supervisor/...":            {"nodevisor/snapshot", "nodevisor/systemd", "nodevisor/cmd", "github.com/spf13/cobra"},
	"nodevisor/cmd/supervisor/config":     {"nodevisor/cmd/supervisor/host", "nodevisor/cmd/supervisor/console", "github.com/spf13/cobra"},
	"nodevisor/cmd/supervisor/cli":        {"nodevisor/cmd/supervisor/session", "nodevisor/cmd/supervisor/host"},
	"nodevisor/cmd/supervisor/session":    {"nodevisor/cmd/supervisor/doctor", "nodevisor/cmd/supervisor/operate", "nodevisor/cmd/supervisor/setup", "nodevisor/cmd/supervisor/template"},
	"nodevisor/cmd/supervisor/doctor":     {"nodevisor/cmd/supervisor/operate", "nodevisor/cmd/supervisor/setup", "nodevisor/cmd/supervisor/template"},
	"nodevisor/cmd/supervisor/operate":    {"nodevisor/cmd/supervisor/doctor", "nodevisor/cmd/supervisor/setup", "nodevisor/cmd/supervisor/template"},
	"nodevisor/cmd/supervisor/setup":      {"nodevisor/cmd/supervisor/doctor", "nodevisor/cmd/supervisor/operate", "nodevisor/cmd/supervisor/template"},
	"nodevisor/cmd/supervisor/template":   {"nodevisor/cmd/supervisor/doctor", "nodevisor/cmd/supervisor/operate", "nodevisor/cmd/supervisor/setup"},
	"nodevisor/cmd/supervisor/host":       {"nodevisor/cmd/supervisor/console", "github.com/spf13/cobra"},
	"nodevisor/cmd/supervisor/console":    {"nodevisor/cmd/supervisor/host", "github.com/spf13/cobra"},
	"nodevisor/cmd/supervisor":            {"github.com/hashicorp/go-getter", "google.golang.org/grpc", "cloud.google.com/go", "github.com/aws/aws-sdk-go-v2"},
	"nodevisor/snapshot/postgres/archive": {"nodevisor/snapshot/postgres", "github.com/jackc/pgx"},
	"nodevisor/snapshot/postgres/server":  {"nodevisor/snapshot/postgres"},
	"nodevisor/snapshot/postgres/kwildb":  {"nodevisor/snapshot/postgres/dump", "nodevisor/snapshot/postgres/rename"},
	"nodevisor/upgrade/plan":              {"nodevisor/upgrade/source", "nodevisor/supervisor", "nodevisor/snapshot", "nodevisor/cmd"},
	"nodevisor/upgrade/version":           {"nodevisor/upgrade", "nodevisor/supervisor", "nodevisor/snapshot", "nodevisor/cmd"},
	"nodevisor/upgrade/state":             {"nodevisor/upgrade", "nodevisor/supervisor", "nodevisor/snapshot", "nodevisor/cmd"},
	"nodevisor/supervisor/child":          {"nodevisor/supervisor", "nodevisor/upgrade"},
	"nodevisor/supervisor/home":           {"nodevisor/supervisor", "nodevisor/upgrade"},
}

func TestImportDirections(t *testing.T) {
	for pattern, banned := range forbidden {
		t.Run(pattern, func(t *testing.T) {
			t.Parallel()
			out, err := exec.Command("go", "list", "-f", "{{.ImportPath}}: {{join .Deps \" \"}}", pattern).Output()
			require.NoError(t, err)
			for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
				from, deps, _ := strings.Cut(line, ": ")
				for _, dep := range strings.Fields(deps) {
					for _, b := range banned {
						if dep == b || (strings.HasPrefix(dep, b+"/") && !strings.HasPrefix(dep, from+"/")) {
							t.Errorf("%s reaches %s", from, dep)
						}
					}
				}
			}
		})
	}
}
