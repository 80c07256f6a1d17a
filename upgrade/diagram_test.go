package upgrade

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// A drawing that is kept by hand rots: the page holds exactly what the table of phases says.
func TestTheArchitecturePageHoldsTheDiagram(t *testing.T) {
	page, err := os.ReadFile("../docs/architecture.md")
	require.NoError(t, err)
	require.Contains(t, string(page), "```mermaid\n"+Diagram()+"```\n", "put this into docs/architecture.md:\n%s", Diagram())
}
