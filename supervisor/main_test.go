package supervisor

import (
	"testing"

	"nodevisor/internal/proctest"
)

func TestMain(m *testing.M) {
	proctest.Main(m, map[string]proctest.Helper{
		"run":    helperRun,
		"host":   helperHost,
		"notify": helperNotify, // a program of the node's that speaks to systemd
	})
}
