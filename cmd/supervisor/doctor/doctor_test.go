package doctor

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// On a terminal the marks are signs; what mends a failure stands below it.
func TestPrintChecks(t *testing.T) {
	var b strings.Builder
	require.NoError(t, printChecks(&b, []check{
		{Name: "a", OK: new(true), Detail: "fine"}, {Name: "b", OK: new(false), Detail: "bad", Fix: new("mend it")}, {Name: "c", Detail: "?"},
	}, true))
	assert.Equal(t, "✓ a              fine\n✗ b              bad\n                 fix: mend it\n? c              ?\n", b.String())
}

func TestHostileTextsStayOnTheirLineOfTheDoctor(t *testing.T) {
	assert.Equal(t, "a b[2Jc d", oneLine("a\nb\x1b[2J\x00c\td\u202e"))
}
