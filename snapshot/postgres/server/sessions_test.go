package server

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A session that is only leaving is no reason to refuse; one that stays is.
func TestStaying(t *testing.T) { synctest.Test(t, staying) }

func staying(t *testing.T) {
	looks := 0
	found, err := Staying(t.Context(), func() ([]string, error) {
		if looks++; looks < 3 {
			return []string{"psql (pid 7)"}, nil
		}
		return nil, nil
	})
	require.NoError(t, err)
	assert.Empty(t, found)
	assert.Equal(t, 3, looks)
	found, err = Staying(t.Context(), func() ([]string, error) { return []string{"psql (pid 7)"}, nil })
	require.NoError(t, err)
	assert.Equal(t, []string{"psql (pid 7)"}, found)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Staying(ctx, func() ([]string, error) { return []string{"psql (pid 7)"}, nil })
	require.ErrorIs(t, err, context.Canceled)
}
