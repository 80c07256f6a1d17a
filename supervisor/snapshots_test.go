package supervisor

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
)

// An operation that needs the node at rest stops it, and starts it again; a restore holds.
func TestSnapshotsByHand(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.Node.Hold = HoldWait
	r := h.start()
	h.awaitState(status.Running)
	reply, err := h.do(client.OpSnapshots, client.Request{Stop: true, Snapshots: raw(map[string]any{"op": "create", "label": "mine", "height": 7})})
	require.NoError(t, err)
	var id string
	require.NoError(t, json.Unmarshal(reply.Result, &id))
	h.awaitCount(2, trace.FirstBlock, "v1")
	h.awaitState(status.Running)
	h.wait("it is verified", h.verified)
	refused := filepath.Join(h.layout().State(), "refused")
	require.NoError(t, os.WriteFile(refused, nil, 0o600))
	pid := h.status().PID
	_, err = h.do(client.OpSnapshots, client.Request{Stop: true, Snapshots: raw(map[string]any{"op": "create"})})
	require.ErrorContains(t, err, "refused")
	assert.Equal(t, pid, h.status().PID, "the node wasn't stopped for it")
	require.NoError(t, os.Remove(refused))
	signed := h.signerHeight()
	_, err = h.do(client.OpSnapshots, client.Request{Stop: true, Snapshots: raw(map[string]any{"op": "restore", "id": id})})
	require.NoError(t, err)
	st := h.awaitState(status.Held)
	assert.Equal(t, "a snapshot was restored", st.Hold.Reason)
	assert.GreaterOrEqual(t, h.signerHeight(), signed, "the signer's state isn't taken back")
	_, err = h.do(client.OpResume, client.Request{})
	require.NoError(t, err)
	h.awaitCount(3, trace.FirstBlock, "v1")
	r.stop()
	h.singleNode()
}

// What is done to the store in the pause after a crash ends the pause no sooner, and is no downtime of its own.
func TestSnapshotsKeepThePauseAfterACrash(t *testing.T) {
	t.Parallel()
	for _, pause := range []time.Duration{time.Hour, 3 * time.Second} {
		h := newHome(t)
		h.Node.Backoff, h.Node.BackoffMax = pause, pause
		h.set("CRASH_AT_START", "1")
		r := h.start()
		crashed := h.awaitState(status.Backoff).LastExit.At
		reply, err := h.do(client.OpSnapshots, client.Request{Stop: true, Snapshots: raw(map[string]any{"op": "create", "label": "mine"})})
		require.NoError(t, err)
		assert.Zero(t, reply.DowntimeMS, "the node wasn't stopped for it")
		var id string
		require.NoError(t, json.Unmarshal(reply.Result, &id))
		state, starts := h.status().State, h.count(trace.Start, "v1")
		if time.Since(crashed) < pause { // chance only lengthens the pause
			assert.Equal(t, status.Backoff, state)
			assert.Equal(t, 1, starts)
		}
		if pause < time.Hour {
			h.awaitCount(2, trace.Start, "v1")
			assert.Greater(t, time.Since(crashed), pause)
		}
		r.stop()
	}
}
