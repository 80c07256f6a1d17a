package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/build"
	"nodevisor/internal/fakenode/trace"
	"nodevisor/internal/pgtest"
)

// chain makes blocks in a database and in a state, as a node does.
func chain(t *testing.T, d *database, st *chainState, upTo int64, upgrade string) {
	t.Helper()
	for h := st.Applied + 1; h <= upTo; h++ {
		require.NoError(t, st.apply(record{Store: h}))
		hash := st.nextHash(h, upgrade)
		require.NoError(t, d.commit(h, hash, upgrade))
		require.NoError(t, st.apply(record{Commit: h, Upgrade: upgrade, Hash: hash}))
	}
}

// reopened is a fresh connection that sees what is committed; err is that of the opening, or of the look whether it fits.
func reopened(t *testing.T, dsn string, st chainState, handled ...string) error {
	t.Helper()
	d, err := openDatabase(dsn)
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = d.close() })
	return d.fits(st, "v9", handled)
}

func TestDatabase(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t)
	pg.Create("node", "")
	dsn := pg.DSN("node")
	d, err := openDatabase(dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.close() })
	st := chainState{}
	chain(t, d, &st, 5, "")
	require.NoError(t, reopened(t, dsn, st, "v1"))

	t.Run("one block ahead of the store", func(t *testing.T) {
		ahead := st
		require.NoError(t, st.apply(record{Store: 6}))
		require.NoError(t, d.commit(6, st.nextHash(6, ""), ""))
		assert.ErrorContains(t, reopened(t, dsn, ahead, "v1"), "disagree: height 6 and 5")
		require.NoError(t, reopened(t, dsn, st, "v1"), "a kill between the two commits")
		require.NoError(t, d.commit(6, st.nextHash(6, ""), ""), "made again")
		assert.ErrorContains(t, d.commit(6, "another", ""), "block 6 is another one")
		require.NoError(t, st.apply(record{Commit: 6, Hash: st.nextHash(6, "")}))
	})
	t.Run("the moment of another copy", func(t *testing.T) {
		old := chainState{}
		require.NoError(t, old.apply(record{Store: 1}))
		assert.ErrorContains(t, reopened(t, dsn, old, "v1"), "disagree: height 6 and 0")
		other := st
		other.Hash = "another"
		assert.ErrorContains(t, reopened(t, dsn, other, "v1"), "disagree about block 6")
	})
	t.Run("migrated", func(t *testing.T) {
		chain(t, d, &st, 7, "v2")
		require.NoError(t, reopened(t, dsn, st, "v2"))
		assert.ErrorContains(t, reopened(t, dsn, st, "v1"), "wrong app version v1, the tables were migrated for v2")
		require.NoError(t, reopened(t, dsn, st, "v9"), "the next version's binary, at its height")
		assert.Equal(t, []string{"migrated"}, pg.Query("node", `SELECT DISTINCT of_v2 FROM blocks`))
	})
	t.Run("damaged", func(t *testing.T) {
		require.NoError(t, d.damage())
		assert.ErrorContains(t, reopened(t, dsn, st, "v2"), "damaged")
	})
	t.Run("no server", func(t *testing.T) {
		_, err := openDatabase("host=" + t.TempDir() + " dbname=node")
		assert.ErrorContains(t, err, "failed to connect to the database")
	})
}

// The whole program: killed at any moment it starts again, upgraded it goes on, and an old binary is refused then.
func TestNodeWithDatabase(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t)
	pg.Create("node", "")
	home := t.TempDir()
	log := filepath.Join(home, "trace")
	start := func(version string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(context.Background(), build.Binary(t, version), append([]string{"start"}, args...)...)
		cmd.Env = append(os.Environ(), "DAEMON_HOME="+home, "FAKENODE_TRACE="+log, "FAKENODE_BLOCK_TIME=2ms", "FAKENODE_POSTGRES="+pg.DSN("node"))
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		return cmd
	}
	rows := func() string { return pg.Query("node", "SELECT count(*) FROM blocks")[0] }
	for n := range 5 {
		cmd := start("v1")
		require.Eventually(t, func() bool { return len(countOf(t, log, trace.FirstBlock)) > n }, 2*time.Minute, 2*time.Millisecond)
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
	}
	halted := start("v1", "--upgrade", "v2@400")
	build.WaitEvent(t, log, 2*time.Minute, build.Kind(trace.Halted, "v1"))
	assert.Equal(t, "399", rows())
	require.NoError(t, halted.Process.Signal(syscall.SIGTERM))
	require.NoError(t, halted.Wait())
	upgraded := start("v2", "--upgrade", "v2@400")
	build.WaitEvent(t, log, 2*time.Minute, build.Kind(trace.FirstBlock, "v2"))
	require.NoError(t, upgraded.Process.Signal(syscall.SIGTERM))
	require.NoError(t, upgraded.Wait())
	old := start("v1")
	require.Error(t, old.Wait())
	assert.Equal(t, 1, old.ProcessState.ExitCode())
}

func countOf(t *testing.T, log string, kind trace.Kind) (found []trace.Event) {
	t.Helper()
	all, err := trace.Read(log)
	require.NoError(t, err)
	for _, e := range all {
		if e.Kind == kind {
			found = append(found, e)
		}
	}
	return found
}
