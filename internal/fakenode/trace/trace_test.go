package trace_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
)

func TestReadOfNothing(t *testing.T) {
	events, err := trace.Read(filepath.Join(t.TempDir(), "none"))
	require.NoError(t, err)
	assert.Empty(t, events)
	assert.NoError(t, trace.Append("", trace.Event{Kind: trace.Start}), "no path is no trace")
}

func TestAppendByManyAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace")
	const writers, lines = 8, 50
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range lines {
				assert.NoError(t, trace.Append(path, trace.Event{Kind: trace.Block, PID: w, Height: int64(i + 1)}))
			}
		})
	}
	all.Wait()
	events, err := trace.Read(path)
	require.NoError(t, err)
	require.Len(t, events, writers*lines)
	last := map[int]int64{}
	for _, e := range events {
		assert.Equal(t, last[e.PID]+1, e.Height, "each writer's events keep their order")
		last[e.PID] = e.Height
	}
}

func TestReadLeavesAnUnfinishedLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace")
	require.NoError(t, trace.Append(path, trace.Event{Kind: trace.Start}))
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(`{"event":"ex`)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	events, err := trace.Read(path)
	require.NoError(t, err)
	assert.Len(t, events, 1)
}

func TestReadNamesABrokenLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace")
	require.NoError(t, os.WriteFile(path, []byte("{}\nnonsense\n"), 0o600))
	_, err := trace.Read(path)
	assert.ErrorContains(t, err, "line 2 of trace "+path)
}
