package postgres

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/snapshot/postgres/server"
)

// A fault names the table, and both counts and hashes.
func TestVerifyDeepNamesWhatDiffers(t *testing.T) {
	c, s := newChain(t, small+"; CREATE SEQUENCE s; SELECT nextval('s'), lo_from_bytea(0, 'x')", ModeDump)
	dir, rec := taken(t, s, snapshotID)
	at := filepath.Join(dir, "kwild")
	good, err := s.VerifyDeep(t.Context(), at, rec)
	require.NoError(t, err)
	assert.Empty(t, good)
	db := *rec.Database
	rec.Database = &db
	for i := range db.Tables {
		db.Tables[i].Hash = strings.Repeat("0", 64)
	}
	faults, err := s.VerifyDeep(t.Context(), at, rec)
	require.NoError(t, err)
	var paths []string
	for _, f := range faults {
		paths = append(paths, f.Path)
		assert.Contains(t, f.Want, "hash "+strings.Repeat("0", 64))
		assert.NotEqual(t, f.Want, f.Got)
	}
	assert.ElementsMatch(t, []string{"kwild/public.a", "kwild/public.s", "kwild/large objects"}, paths)
	assert.Equal(t, []string{"chain"}, databases(t, c), "the scratch database is gone")
}

// Cancelled anywhere, or left behind by a crash: the scratch database goes; one in use stays.
func TestScratchDatabasesAreTidied(t *testing.T) {
	c, s := newChain(t, big, ModeDump)
	dir, rec := taken(t, s, snapshotID)
	at := filepath.Join(dir, "kwild")
	ctx, cancel := context.WithCancel(t.Context())
	s.o.Observe = func(phase string, _, _ int64) {
		if phase == "restore" {
			cancel()
		}
	}
	_, err := s.VerifyDeep(ctx, at, rec)
	require.ErrorIs(t, err, context.Canceled)
	assert.Equal(t, []string{"chain"}, databases(t, c))

	maker := c.Connect("postgres")
	name := s.Owner.FreshName()
	require.NoError(t, holdScratch(t.Context(), maker, name))
	require.NoError(t, s.Owner.Create(t.Context(), maker, name, server.FreshOptions(rec.Database), s.Owner.NewMark(server.RoleScratch, "chain", "")))
	require.NoError(t, s.Abort())
	assert.Len(t, databases(t, c), 2, "it is in use")
	other := chainOf(t, c, t.TempDir(), ModeDump)
	require.NoError(t, other.Abort())
	require.NoError(t, maker.Close(t.Context()))
	require.NoError(t, other.Abort())
	assert.Len(t, databases(t, c), 2, "it is another home's")
	eventually(t, "its maker's session is over", func() bool {
		require.NoError(t, s.Abort())
		return len(databases(t, c)) == 1
	})
}

// Progress comes while a program runs, and ends with all of it.
func TestProgress(t *testing.T) {
	_, s := newChain(t, big, ModeDump)
	var mu sync.Mutex
	last := map[string][2]int64{}
	s.o.Observe = func(phase string, done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		assert.LessOrEqual(t, done, total, phase)
		last[phase] = [2]int64{done, total}
	}
	dir, rec := taken(t, s, snapshotID)
	_, err := s.VerifyDeep(t.Context(), filepath.Join(dir, "kwild"), rec)
	require.NoError(t, err)
	for _, phase := range []string{"dump", "snapshot hash", "snapshot content", "restore", "verify"} {
		require.Contains(t, last, phase)
		assert.Equal(t, last[phase][1], last[phase][0], phase)
		assert.Positive(t, last[phase][1], phase)
	}
}
