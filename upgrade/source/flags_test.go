package source

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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
		assert.Equal(t, want.halt, HaltHeight(t.TempDir(), args), command)
		assert.Equal(t, want.skips, SkipHeights(args), command)
	}
}

// The arguments win over config/app.toml, as they do for the SDK; a 0 among them takes the halt off.
func TestHaltHeightOfTheConfiguration(t *testing.T) {
	for _, c := range []struct {
		toml, args string
		want       int64
	}{
		{"halt-height = 12", "start", 12},
		{`halt-height = "12"`, "start", 12},
		{"halt-height = 12", "start --halt-height 9", 9},
		{"halt-height = 12", "start --halt-height=0", 0},
		{"halt-height = -3", "start", 0},
		{"halt-height = 0", "start", 0},
		{"[grpc]\nhalt-height = 12", "start", 0},
		{"halt-height = ", "start", 0},
	} {
		home := t.TempDir()
		require.NoError(t, os.Mkdir(filepath.Join(home, "config"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(home, "config", "app.toml"), []byte(c.toml+"\n"), 0o600))
		assert.Equal(t, c.want, HaltHeight(home, strings.Fields(c.args)), c)
	}
}
