//go:build faults

package faults

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/internal/proc"
	"nodevisor/upgrade"
	"nodevisor/upgrade/source"
	"nodevisor/upgrade/version"
)

// golden is the exact chain of phases of a committed upgrade, however often it was interrupted.
var golden = []upgrade.Phase{
	upgrade.Staged, upgrade.Stopped, upgrade.Snapshotted, upgrade.Switched, upgrade.Migrated, upgrade.OnProbation, upgrade.Committed,
}

// invariants holds after every end of the program, whatever ended it.
func (h *home) invariants() {
	h.Helper()
	// I1: current names a version whose binary is there, whole.
	if _, err := os.Lstat(h.below.Link()); err == nil || upgrade.Seen(h.below) {
		v, err := h.below.Current()
		require.NoError(h, err)
		name := map[version.Version]string{"genesis": "v1", "upgrades/v2": "v2"}[v]
		require.NotEmpty(h, name, "%s", v)
		whole, err := os.Stat(filepath.Join(h.m.below, name))
		require.NoError(h, err)
		got, err := os.Stat(h.below.Binary(v))
		require.NoError(h, err)
		require.True(h, os.SameFile(whole, got), "another binary")
	}
	_, err := upgrade.LoadJournal(h.below.JournalPath())
	require.NoError(h, err, "a journal that can be read, or none")

	migrated, signed := false, int64(0)
	var running []int
	for _, e := range h.events() {
		switch e.Kind {
		case trace.PreUpgrade:
			migrated = true
		case trace.Start:
			// I2: the old binary never runs on migrated data: only after a roll-back, which is recorded once the data is back.
			require.False(h, migrated && e.Version == "v1" && (h.done == upgrade.ResultCommitted || !h.finished()), "the old version was started on migrated data")
			// I4: at most one node. One that was killed records no end; of an earlier life nothing was left.
			running = slices.DeleteFunc(running, func(pid int) bool { return h.gone[pid] })
			require.Empty(h, running, "a second node")
			running = append(running, e.PID)
		case trace.Exit:
			running = slices.DeleteFunc(running, func(pid int) bool { return pid == e.PID })
		case trace.Block:
			// I6, as the node saw it: nothing is signed twice.
			require.False(h, e.Signed && e.Height <= signed, "height %d was signed again", e.Height)
			if e.Signed {
				signed = e.Height
			}
		}
	}
	// I7: no migration is begun beside itself.
	require.NoFileExists(h, filepath.Join(h.out, "overlap"))
	// I3: what was migrated has a snapshot.
	require.False(h, migrated && len(h.manifests()) == 0, "migrated without a snapshot")
	// I6: the signer's state never goes back.
	if height, ok, err := source.SignerHeight(h.below.Home); ok && err == nil {
		require.GreaterOrEqual(h, height, h.signed, "the signer's state went back")
		h.signed = height
	}
}

// converged holds once the story is over and the program was stopped: as if nothing had ever failed.
func (h *home) converged() {
	h.Helper()
	all, err := upgrade.LoadHistory(h.below.HistoryDir())
	require.NoError(h, err)
	require.Len(h, all, 1)
	u := all[0].Upgrade
	require.Equal(h, h.done, all[0].Result)
	j, err := upgrade.LoadJournal(h.below.JournalPath())
	require.NoError(h, err)
	require.Nil(h, j.Upgrade)
	current, err := h.below.Current()
	require.NoError(h, err)
	if h.done == upgrade.ResultCommitted {
		var phases []upgrade.Phase
		for _, p := range u.Phases {
			phases = append(phases, p.Phase)
		}
		assert.Equal(h, golden, phases)
		assert.Equal(h, version.Version("upgrades/v2"), current)
		assert.Nil(h, j.Hold)
	} else {
		assert.Equal(h, version.Version("genesis"), current)
	}
	assert.False(h, u.Skipped, "the snapshot was left out")
	assert.Len(h, h.manifests(), 1)
	assert.True(h, h.done != upgrade.ResultCommitted || h.verified(), "the snapshot was never verified")
	plan, err := os.ReadFile(h.below.Plan)
	require.NoError(h, err)
	assert.Contains(h, string(plan), `"v2"`, "the node's file is the node's")
	// I5: nothing is left over.
	require.NoError(h, filepath.WalkDir(h.below.Home, func(path string, _ os.DirEntry, err error) error {
		for _, part := range []string{".atomic-", ".partial", ".stage", "stage-"} {
			assert.False(h, strings.Contains(filepath.Base(path), part), "left over: %s", path)
		}
		return err
	}))
}

// recover starts the program anew, undisturbed, until the story is over: what it held for is resumed, as it asked for.
func (h *home) recover() {
	h.Helper()
	for try := 0; ; try++ {
		require.Less(h, try, 4, "it doesn't converge")
		code, _ := h.live(fault{})
		j, err := upgrade.LoadJournal(h.below.JournalPath())
		require.NoError(h, err)
		switch {
		case h.finished() && code == 0:
			h.converged()
			return
		case code == held:
			require.NotNil(h, j.Hold)
			h.answer(j.Hold.Reason)
		}
		time.Sleep(time.Millisecond)
	}
}

// answer leaves a hold by a command that it names. One that doesn't know the height (killed before it was recorded) never
// rolls back by itself, however often it is resumed: a person decides.
func (h *home) answer(reason string) {
	h.Helper()
	args := []string{"resume"}
	if strings.Contains(reason, "the height is unknown") {
		args, h.done = []string{"upgrade", "skip", "v2"}, upgrade.ResultSkipped
	}
	h.lives = append(h.lives, strings.Join(args, " "))
	require.NoError(h, proc.Run(h.command(args...)), "%s", args)
}
