package upgrade

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestPhaseTable(t *testing.T) {
	for i, tr := range transitions {
		assert.True(t, tr.from.Known() && tr.to.Known(), "%s -> %s", tr.from, tr.to)
		assert.NotEmpty(t, tr.effect)
		for _, other := range transitions[i+1:] {
			assert.False(t, tr.from == other.from && tr.to == other.to, "the edge %s -> %s is there twice", tr.from, tr.to)
		}
	}
	assert.False(t, Phase("half-done").Known())

	forward := []Phase{Planned, Staged, Stopped, Snapshotted, Switched, Migrated, OnProbation, Committed}
	for i, p := range forward[:len(forward)-1] {
		assert.True(t, p.canFollow(forward[i+1]), "%s -> %s", p, forward[i+1])
	}
	for _, p := range Phases() {
		for _, next := range Phases() {
			i, j := slices.Index(forward, p), slices.Index(forward, next)
			skips := i >= 0 && j > i+1
			back := i >= 0 && j >= 0 && j < i
			if skips || back {
				assert.False(t, p.canFollow(next), "%s -> %s skips a phase or goes back", p, next)
			}
		}
		assert.False(t, Committed.canFollow(p), "nothing follows committed, not %s", p)
		assert.False(t, RolledBack.canFollow(p), "nothing follows rolled-back, not %s", p)
	}
	for _, p := range []Phase{Planned, Staged} {
		assert.False(t, p.canFollow(RollingBack), "%s has changed nothing", p)
	}
}

func TestPhaseClasses(t *testing.T) {
	var atRest, onNew []Phase
	for _, p := range Phases() {
		if p.AtRest() {
			atRest = append(atRest, p)
		}
		if p.OnNew() {
			onNew = append(onNew, p)
		}
	}
	assert.Equal(t, []Phase{Stopped, Snapshotted, Switched, Migrated, RollingBack}, atRest)
	assert.Equal(t, []Phase{Switched, Migrated, OnProbation, Committed}, onNew)
}
