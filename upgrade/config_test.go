package upgrade

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestConfigReportsEveryMistakeAtOnce(t *testing.T) {
	require.NoError(t, DefaultConfig().Validate())
	c := DefaultConfig()
	c.OnFailure, c.Poll, c.Delay = "hope", 0, -time.Second
	c.Probation = Probation{Up: -time.Second, Attempts: 0}
	err := c.Validate()
	for _, want := range []string{`on_failure: "hope"`, "poll:", "delay:", "probation.up:", "probation.attempts:"} {
		assert.ErrorContains(t, err, want)
	}
	c = DefaultConfig()
	c.Probation.Up, c.PreUpgradeMaxRetries = 0, -1 // as Cosmovisor takes it
	require.NoError(t, c.Validate())
}
