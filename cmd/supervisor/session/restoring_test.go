package session

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/genesis"
	"nodevisor/internal/hint"
	"nodevisor/internal/pgtest"
	"nodevisor/supervisor"
	"nodevisor/upgrade/source"
)

// restoringRoot is a root with the marker that `genesis init` leaves, and what the run loop has of it.
func restoringRoot(t *testing.T, m genesis.Marker) (root string, r *supervisor.Restoring, rec *source.Recorder, log *bytes.Buffer) {
	t.Helper()
	root, log = t.TempDir(), new(bytes.Buffer)
	s := &Session{Log: slog.New(slog.NewTextHandler(log, nil))}
	s.Config.Node.Home = root
	require.NoError(t, os.Mkdir(filepath.Join(root, "supervisor"), 0o750))
	require.NoError(t, m.Write(root))
	rec, err := source.OpenRecorder(filepath.Join(root, "supervisor", "height"))
	require.NoError(t, err)
	return root, s.Restoring(rec), rec, log
}

// The database of a restore that was interrupted is made anew before the next start; three starts in vain are a hold, and a
// resumed one is tried as often again. Once the node has shown a height nothing is ever dropped.
func TestRestoringRoot(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t)
	pg.Create("kwild", "")
	half := func() { pg.Exec("kwild", "CREATE TABLE half (i int)") }
	tables := func() string {
		return pg.Query("kwild", "SELECT count(*) FROM pg_class WHERE relname = 'half'")[0]
	}
	marker := genesis.Marker{Phase: genesis.Restoring, Kind: "kwil", Version: "v0.9", At: time.Now().Add(-time.Minute), Database: &genesis.MarkerDatabase{DSN: pg.DSN("kwild")}}
	root, r, rec, log := restoringRoot(t, marker)
	restores, err := r.Begin(t.Context())
	require.NoError(t, err)
	assert.True(t, restores)
	assert.NotContains(t, log.String(), "made anew", "the first start finds what init left")
	for range 2 {
		half()
		restores, err = r.Begin(t.Context())
		require.NoError(t, err)
		assert.True(t, restores)
		assert.Equal(t, "0", tables(), "half a state is dropped")
	}
	half()
	_, err = r.Begin(t.Context())
	require.ErrorContains(t, err, "it ended 3 times before its state was restored")
	assert.Contains(t, hint.Of(err), "supervisor resume")
	assert.Equal(t, "1", tables(), "nothing is dropped for a hold")
	restores, err = r.Begin(t.Context())
	require.NoError(t, err, "resumed")
	assert.True(t, restores)
	assert.Equal(t, "0", tables())

	// The node has come up, and the marker could not be removed then.
	half()
	require.NoError(t, rec.Note(7))
	require.NoError(t, rec.Flush())
	restores, err = r.Begin(t.Context())
	require.NoError(t, err)
	assert.False(t, restores)
	assert.Equal(t, "1", tables(), "a restored database is nobody's to drop")
	m, err := genesis.ReadMarker(root)
	require.NoError(t, err)
	assert.Nil(t, m)
	require.NoError(t, r.Done(), "done twice")
}

func TestRestoringRootThatIsNotReady(t *testing.T) {
	t.Parallel()
	_, r, _, _ := restoringRoot(t, genesis.Marker{Phase: genesis.Preparing, At: time.Now()})
	_, err := r.Begin(t.Context())
	require.ErrorContains(t, err, "setting it up was interrupted")
	assert.Contains(t, hint.Of(err), "supervisor genesis init")

	_, r, _, _ = restoringRoot(t, genesis.Marker{Phase: genesis.Restoring, At: time.Now()})
	restores, err := r.Begin(t.Context())
	require.NoError(t, err)
	assert.True(t, restores)
	_, err = r.Begin(t.Context())
	require.ErrorContains(t, err, "which database it is isn't known")
	restores, err = r.Begin(t.Context())
	require.NoError(t, err, "the operator has made it anew")
	assert.True(t, restores)
}
