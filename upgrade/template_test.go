package upgrade

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/upgrade/version"
)

// The template is made of the sealed snapshot's data, and before the phase is recorded.
func TestTemplateBeforeSnapshotted(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	h.begin(e)
	require.NoError(t, e.Carry(t.Context()))
	assert.Equal(t, []string{"v2-100 100"}, h.snaps.exports)
	assert.Equal(t, "v1", h.read(h.snaps.template("v2-100")))
}

// A template that fails holds the upgrade: old version, old data. Resumed, the same snapshot is found, and the template is
// made then.
func TestTemplateFails(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	h.begin(e)
	h.snaps.failTemplate = &hint.Error{Op: "run", Path: "simd export", Err: errors.New("exit status 1"), Hint: "look at its output"}
	err := e.Carry(t.Context())
	require.ErrorContains(t, err, "cannot make the genesis template before the upgrade v2: cannot run simd export: exit status 1")
	assert.Contains(t, hint.Of(err), "look at its output; then: supervisor upgrade resume")
	require.NoError(t, e.HoldFor(err))
	j := h.onDisk()
	assert.Equal(t, Stopped, j.Upgrade.Phase)
	assert.Equal(t, hint.Of(err), j.Hold.Hint)
	assert.Equal(t, version.Genesis, h.current())
	assert.Equal(t, "v1", h.read(h.app()))

	h.snaps.failTemplate = nil
	e = h.engine()
	require.NoError(t, e.Resume())
	require.NoError(t, e.Carry(t.Context()))
	assert.Equal(t, staged, h.current())
	assert.Equal(t, "v1", h.read(h.snaps.template("v2-100")))
}

// Without a snapshot there is nothing that a template could belong to.
func TestNoTemplateWithoutSnapshot(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.unloaded()
	e.Snapshots = nil
	require.NoError(t, e.Load())
	h.begin(e)
	require.NoError(t, e.Carry(t.Context()))
	assert.Empty(t, h.snaps.exports)
	assert.Equal(t, Migrated, e.Journal().Upgrade.Phase)
}
