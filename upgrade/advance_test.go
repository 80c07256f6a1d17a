package upgrade

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/plan"
)

func TestAJournalThatCantBeWritten(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	blocked := func() func() { // a directory in its place: it fails for root, too
		require.NoError(t, os.Rename(h.l.JournalPath(), h.l.JournalPath()+".aside"))
		require.NoError(t, os.Mkdir(h.l.JournalPath(), 0o755))
		return func() {
			require.NoError(t, os.Remove(h.l.JournalPath()))
			require.NoError(t, os.Rename(h.l.JournalPath()+".aside", h.l.JournalPath()))
		}
	}
	h.write(h.l.JournalPath(), "")
	free := blocked()
	h.announce("V2", 100)
	p, _, err := plan.ReadFile(h.l.Plan, true)
	require.NoError(t, err)
	require.Error(t, e.Announce(p, plan.ByFile, 99))
	assert.Nil(t, e.InFlight(), "what can't be recorded is not begun")
	require.Error(t, e.Begin(p, plan.ByFile, e.Checker.Check(t.Context(), staged), 99))
	assert.Nil(t, e.InFlight())
	free()

	h.beginFile(e)
	free = blocked()
	err = e.Carry(t.Context())
	require.Error(t, err)
	assert.Contains(t, hint.Of(err), "supervisor resume")
	assert.Equal(t, Staged, e.InFlight().Phase, "the memory never runs ahead of the disk")
	require.Error(t, e.Hold("full", ""))
	assert.NotNil(t, e.Journal().Hold, "but a hold holds also where it can't be written")
	free()
	require.NoError(t, e.Release())
	require.NoError(t, e.Carry(t.Context()))

	free = blocked()
	require.Error(t, e.Attempt())
	assert.Zero(t, e.InFlight().Attempts)
	free()
	require.NoError(t, e.Attempt())
	free = blocked()
	require.Error(t, e.Commit(101))
	assert.Equal(t, OnProbation, e.InFlight().Phase, "it is committed again, by itself")
	free()
	require.NoError(t, e.Commit(101))
	require.Len(t, h.history(), 1, "and stands in the history once")
	assert.Equal(t, golden, phaseNames(h.history()[0].Upgrade))
}

// A snapshot whose `stopped` can't be recorded isn't sealed: after a crash the old version would go on, and a later snapshot
// of that name would be taken for done.
func TestStoppedThatCannotBeRecorded(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	e := h.engine()
	h.begin(e)
	journal := h.l.JournalPath()
	require.NoError(t, os.Rename(journal, journal+".away"))
	require.NoError(t, os.Mkdir(journal, 0o700))
	err := e.Carry(t.Context())
	require.ErrorIs(t, err, atomicfile.ErrNotRegular)
	assert.Contains(t, hint.Of(err), "supervisor resume")
	assert.Equal(t, Staged, e.InFlight().Phase, "memory doesn't run ahead of the disk")
	assert.NoFileExists(t, h.snaps.path("v2-100"))

	require.NoError(t, os.Remove(journal))
	require.NoError(t, os.Rename(journal+".away", journal))
	require.NoError(t, e.Carry(t.Context()))
	assert.Equal(t, Migrated, e.InFlight().Phase)
	assert.FileExists(t, h.snaps.path("v2-100"))
}

// A journal whose fsync fails is written once more, whole, and nothing comes of that. Where the second one fails, too, the
// phase isn't reached: the disk has the journal from before, and the next start goes on from there.
func TestAJournalIsWrittenOnceMore(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	dir := scratch(t)
	journal := regexp.MustCompile(`(?m)^fsync\(\d+</[^>]*/supervisor/\.atomic-\d+>\) += -1 EIO .*INJECTED`)
	// upgrade carries one out that fails from the nth fsync to the last one, and tells whether the nth was a journal's.
	upgrade := func(h *home, n, last int) (hit, more bool, err error) {
		trace := h.l.Home + ".trace"
		cmd := exec.CommandContext(t.Context(), "strace", "-qq", "-y", "-o", trace, "-e", "trace=fsync",
			fmt.Sprintf("--inject=fsync:error=EIO:when=%d..%d", n, last), self)
		cmd.Env = append(os.Environ(), actEnv+"=upgrade", homeEnv+"="+h.l.Home, "GOMAXPROCS=1", "GOGC=off", "GORACE=atexit_sleep_ms=0")
		err = cmd.Run()
		calls := h.read(trace)
		return journal.MatchString(calls), regexp.MustCompile("INJECTED").MatchString(calls), err
	}
	var reached []Phase
	for n, more := 1, true; more; n++ {
		var hit bool
		h := crashHome(t, filepath.Join(dir, fmt.Sprint(n)))
		if hit, more, err = upgrade(h, n, n); !hit {
			continue // another file's; or none is left
		}
		require.NoError(t, err, "the fsync %d", n)
		requireCommitted(t, h)

		h = crashHome(t, filepath.Join(dir, fmt.Sprint(n, "twice")))
		_, _, err = upgrade(h, n, n+1)
		require.Error(t, err)
		phase := Phase("none")
		if u := h.onDisk().Upgrade; u != nil {
			phase = u.Phase
		}
		reached = append(reached, phase)
		act(t, "upgrade", h.l.Home, place{})
		requireCommitted(t, h)
	}
	assert.Equal(t, []Phase{"none", Stopped, Snapshotted, Switched, OnProbation}, reached, "each time that of the record before")
}
