package snapshot

import (
	"context"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/snapshot/manifest"
)

// Concurrent callers: a list and a pin while one is completed.
func TestConcurrentUse(t *testing.T) {
	home := newHome(t, 1)
	s := open(t, home)
	id := create(t, s, "", 1)
	done := make(chan error, 1)
	go func() { done <- s.Complete(context.Background(), id) }()
	require.NoError(t, s.Pin(id))
	_, err := s.List()
	require.NoError(t, err)
	require.NoError(t, <-done)
	m, err := s.Get(id)
	require.NoError(t, err)
	assert.True(t, m.Pinned, "neither change is lost")
	assert.Equal(t, manifest.Verified, m.State)
}

// Random single bit flips, in the data and in the manifest: each is found.
func TestVerifyFindsEveryBitFlip(t *testing.T) {
	home := newHome(t, 1)
	require.NoError(t, os.RemoveAll(filepath.Join(home, "data", "application.db"))) // a small tree: it is read a thousand times
	s := open(t, home, func(o *Options) { o.Config.Method = "copy" })
	id := completed(t, s, "", 1)
	dir := filepath.Join(s.Dir(), id)
	var files []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && stat(t, path).Size > 0 {
			files = append(files, path)
		}
		return err
	}))
	rounds := 1000
	if testing.Short() {
		rounds = 100
	}
	for i := range rounds {
		path := files[rand.IntN(len(files))]
		if i%4 == 0 {
			path = filepath.Join(dir, manifest.Name)
		}
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		bit := rand.IntN(len(data) * 8)
		data[bit/8] ^= 1 << (bit % 8)
		require.NoError(t, os.WriteFile(path, data, 0o600))
		r, err := s.Verify(context.Background(), id, false)
		require.NoError(t, err)
		rel, _ := filepath.Rel(dir, path)
		if assert.False(t, r.OK, "bit %d of %s", bit, rel) && assert.NotEmpty(t, r.Errors) {
			assert.Equal(t, rel, r.Errors[0].Path)
			assert.NotEqual(t, r.Errors[0].Want, r.Errors[0].Got)
		}
		data[bit/8] ^= 1 << (bit % 8)
		require.NoError(t, os.WriteFile(path, data, 0o600))
	}
	r, err := s.Verify(context.Background(), id, false)
	require.NoError(t, err)
	assert.True(t, r.OK)
}
