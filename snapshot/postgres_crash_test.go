package snapshot

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Killed at spread statements of a restore, and again in the recovery: every source is as before, or every one is as in
// the snapshot; no database is missing, and nothing is left over.
func TestCrashInRestoreOfSet(t *testing.T) {
	for _, kept := range []int{0, 1} {
		s := newSet(t, "clone")
		crashAtStatements(t, s, "restore", kept, func(t *testing.T, ended bool) {
			state := s.state(t)
			switch {
			case ended:
				assert.Equal(t, allSnapshot, state)
			default:
				assert.Contains(t, []string{allSnapshot, allLater}, state)
			}
			ours := s.ours()
			assert.NotContains(t, ours, "staged")
			if state == allLater {
				assert.NotContains(t, ours, "before")
			} else {
				assert.Equal(t, 2, strings.Count(strings.Join(ours, " "), "before"))
			}
		})
	}
}

// Killed while the archives are made: the snapshot stays what it is, and is completed the next time.
func TestCrashInCompleteOfSet(t *testing.T) {
	s := newSet(t, "clone")
	crashAtStatements(t, s, "complete", 1, func(t *testing.T, _ bool) {
		assert.Equal(t, allLater, s.state(t))
		all, err := s.List()
		require.NoError(t, err)
		require.Len(t, all, 1)
		require.NoError(t, s.Complete(t.Context(), all[0].ID))
		r, err := s.Verify(t.Context(), all[0].ID, false)
		require.NoError(t, err)
		assert.True(t, r.OK && r.Hashed, "%v", r.Errors)
		entries, err := os.ReadDir(filepath.Join(s.Dir(), all[0].ID))
		require.NoError(t, err)
		assert.Len(t, entries, 4, "a folder for each source, and the manifest")
	})
}

// crashAtStatements lets a child do what to the set, through a proxy that kills it at the n-th statement: before the
// server sees it, or after the server has begun to answer it. Without n it counts them.
func crashAtStatements(t *testing.T, s *set, what string, kept int, check func(t *testing.T, ended bool)) {
	run := func(what, id string, at int) (statements int, ended bool) {
		p := newProxy(t, s.cluster.Dir, at)
		sources := setSources(p.dir, "clone")
		for i := range sources {
			if sources[i].Kind == "postgres" {
				sources[i].KeepClones = &kept
			}
		}
		text, err := json.Marshal(sources)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // only a hanging one takes so long
		defer cancel()
		cmd := exec.CommandContext(ctx, "/proc/self/exe")
		cmd.Env = append(os.Environ(), envChild+"="+what, "SNAPSHOT_TEST_HOME="+s.home, "SNAPSHOT_TEST_ID="+id, "SNAPSHOT_TEST_SOURCES="+string(text))
		stderr := new(limited)
		cmd.Stderr = stderr
		require.NoError(t, cmd.Start())
		p.kill(func() { _ = cmd.Process.Kill() })
		err = cmd.Wait()
		if at == 0 {
			require.NoError(t, err, "%s", stderr)
		}
		p.close()
		return p.count(), err == nil
	}
	prepare := func() string {
		s.drop()
		s.begin(t, "clone")
		for i := range s.slots {
			s.slots[i].cfg.KeepClones = &kept
			require.NoError(t, s.open(s.slots[i]))
		}
		id := create(t, s.Store, "crash", 1200)
		if what != "complete" {
			require.NoError(t, s.Complete(t.Context(), id))
		}
		s.goOn(t)
		return id
	}
	s.drop()
	s.begin(t, "clone")
	total, _ := run(what, prepare(), 0)
	check(t, true)
	moments := max(4, moments()/4)
	for i := range moments {
		id := prepare()
		at := 1 + i*(total-1)/(moments-1)
		_, ended := run(what, id, at*2+i%2) // the lowest bit: before, or after
		if i%2 == 0 {
			run("recover", id, (2+i)*2) // a second kill, in the recovery
		}
		for range 2 {
			require.NoError(t, s.Recover(t.Context()))
		}
		check(t, ended)
		if t.Failed() {
			t.Fatalf("%s, killed at statement %d of %d (%d)", what, at, total, i%2)
		}
	}
}
