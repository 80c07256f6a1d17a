package source

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestFlagsOfTheNode(t *testing.T) {
	for command, want := range map[string]struct {
		halt  int64
		skips map[int64]bool
	}{
		"":                                       {0, map[int64]bool{}},
		"start --halt-height=7":                  {7, map[int64]bool{}},
		"start --halt-height 7 --x":              {7, map[int64]bool{}},
		"start --halt-height":                    {0, map[int64]bool{}},
		"start --halt-height soon":               {0, map[int64]bool{}},
		"start --halt-height=0":                  {0, map[int64]bool{}},
		"start --unsafe-skip-upgrades=5,6 --x 9": {0, map[int64]bool{5: true, 6: true}},
		"start --unsafe-skip-upgrades 5 6 --halt-height 8":           {8, map[int64]bool{5: true, 6: true}},
		"--unsafe-skip-upgrades=5 start --unsafe-skip-upgrades 6,x7": {0, map[int64]bool{5: true, 6: true}},
	} {
		args := strings.Fields(command)
		assert.Equal(t, want.halt, HaltHeight(args), command)
		assert.Equal(t, want.skips, SkipHeights(args), command)
	}
}
