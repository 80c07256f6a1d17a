package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/pgtest"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/server"
)

func chmod(path string, mode os.FileMode) error { return os.Chmod(path, mode) }

// smallDisk mounts a file system of that many MiB, which outlives the cluster that is started after it.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pd")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0700", size)), "mounting needs root")
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

// The database lies on a disk that has no room for a second one.
func TestTheServersDiskIsTooSmall(t *testing.T) {
	disk := smallDisk(t, 40)
	c := pgtest.Start(t)
	c.Own(disk)
	c.Exec("postgres", "CREATE TABLESPACE small LOCATION '"+disk+"'")
	c.Exec("postgres", "CREATE DATABASE chain TABLESPACE small")
	c.Exec("chain", chainSQL+"; CREATE TABLE filler AS SELECT n, repeat(md5(n::text), 30) AS x FROM generate_series(1, 20000) n")
	want := c.Query("chain", chainSum)

	s := newSource(t, c.DSN("chain"), nil)
	e, err := s.Forecast(t.Context(), t.TempDir())
	require.NoError(t, err)
	assert.Equal(t, manifest.Dump, e.Method)
	_, by := verdicts(s.Check(t.Context(), t.TempDir()))
	assert.Contains(t, by["method"].Detail, disk+" has room for ")

	_, err = newSource(t, c.DSN("chain"), noFallback).Forecast(t.Context(), t.TempDir())
	require.ErrorContains(t, err, "has room for", "no way is left, and the node still runs")

	// It looked as if there were room, and then it isn't there.
	optimist := func(o *Options) { o.Free = func(string) (int64, error) { return 1 << 40, nil } }
	s = newSource(t, c.DSN("chain"), func(o *Options) { noFallback(o); optimist(o) })
	_, err = s.Freeze(t.Context(), newJob(t, "one"))
	require.ErrorContains(t, err, "the server's disk is full")
	assert.Equal(t, server.StateDiskFull, server.State(err))
	assert.Empty(t, clonesOf(c))
	rec, err := newSource(t, c.DSN("chain"), optimist).Freeze(t.Context(), newJob(t, "one"))
	require.NoError(t, err)
	assert.Equal(t, manifest.Dump, rec.Method)
	assert.Equal(t, want, c.Query("chain", chainSum))
}

func TestRoomThatIsNotKnownMeansADump(t *testing.T) {
	c := pgtest.Start(t)
	c.Exec("postgres", "CREATE ROLE node LOGIN CREATEDB")
	c.Exec("postgres", "CREATE DATABASE chain OWNER node")
	dsn := strings.Replace(c.DSN("chain"), "user=postgres", "user=node", 1)
	for name, tc := range map[string]struct {
		mode string
		free int64
		want string
	}{
		"auto, not known":   {ModeAuto, -1, manifest.Dump},
		"auto, said":        {ModeAuto, 1 << 30, manifest.Clone},
		"auto, too little":  {ModeAuto, 1 << 20, manifest.Dump},
		"clone, not known":  {ModeClone, -1, manifest.Clone},
		"clone, too little": {ModeClone, 1 << 20, manifest.Dump},
		"dump":              {ModeDump, 1 << 30, manifest.Dump},
	} {
		e, err := newSource(t, dsn, func(o *Options) { o.Mode, o.FreeSpace = tc.mode, tc.free }).Forecast(t.Context(), t.TempDir())
		require.NoError(t, err, name)
		assert.Equal(t, tc.want, e.Method, name)
	}
}

// What Forecast decided holds for the Freeze that follows, whatever has changed; the one after that is decided anew.
func TestTheDecisionIsKept(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	var room int64
	s := newSource(t, c.DSN("chain"), func(o *Options) { o.Free = func(string) (int64, error) { return room, nil } })
	_, err := s.Forecast(t.Context(), t.TempDir())
	require.NoError(t, err)
	room = 1 << 40
	for _, want := range []string{manifest.Dump, manifest.Clone} {
		rec, err := s.Freeze(t.Context(), newJob(t, want))
		require.NoError(t, err)
		assert.Equal(t, want, rec.Method)
	}
}

// A database that is locked by the running node is measured all the same.
func TestALockedTableDelaysNoForecast(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	node := stay(t, c.DSN("chain"), "node")
	_, err := node.Exec(t.Context(), "BEGIN; LOCK TABLE blocks IN ACCESS EXCLUSIVE MODE")
	require.NoError(t, err)
	begin := time.Now()
	s := newSource(t, c.DSN("chain"), nil)
	e, err := s.Forecast(t.Context(), t.TempDir())
	require.NoError(t, err)
	assert.Equal(t, manifest.Clone, e.Method)
	_, by := verdicts(s.Check(t.Context(), t.TempDir()))
	assert.Contains(t, by, "sessions")
	assert.Less(t, time.Since(begin), 10*time.Second)
}

func TestWhichDirectoryIsTheServers(t *testing.T) {
	c := pgtest.Start(t)
	conn := c.Connect("postgres")
	data := filepath.Join(c.Dir, "data")
	unseen, err := isDataOf(t.Context(), conn, data)
	require.NoError(t, err)
	assert.Empty(t, unseen)
	for _, dir := range []string{"/nowhere", "/dev/null", t.TempDir()} {
		unseen, err := isDataOf(t.Context(), conn, dir)
		require.NoError(t, err)
		assert.Equal(t, elsewhere, unseen, dir)
	}
	// Another server's, of the same port, started at another time.
	fake := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(fake, "postmaster.pid"), []byte("1\n"+fake+"\n1500000000\n5432\n"), 0o600))
	unseen, err = isDataOf(t.Context(), conn, fake)
	require.NoError(t, err)
	assert.Equal(t, elsewhere, unseen)
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1 << 20: "1.0 MiB", 5 << 39: "2.5 TiB"} {
		assert.Equal(t, want, human(n))
	}
}
