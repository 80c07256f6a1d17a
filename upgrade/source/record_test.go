package source

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
)

func recorded(t *testing.T, path string) int64 {
	t.Helper()
	r, ok, err := LoadRecord(path)
	require.NoError(t, err)
	require.Equal(t, ok, r.Height > 0)
	return r.Height
}

func TestRecordRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "height")
	_, ok, err := LoadRecord(path)
	require.NoError(t, err)
	assert.False(t, ok, "a missing file")
	want := Record{Height: 1234, At: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)}
	require.NoError(t, saveRecord(path, want, atomicfile.Full))
	got, ok, err := LoadRecord(path)
	require.NoError(t, err)
	assert.True(t, ok)
	assert.Equal(t, want, got)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, `{"height":1234,"at":"2026-03-04T05:06:07Z"}`+"\n", string(text))
}

func TestGarbageIsNoRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "height")
	for name, content := range map[string]string{
		"empty": "", "text": "1234", "cut short": `{"height":12`, "zero": `{"height":0}`, "negative": `{"height":-1}`, "string": `{"height":"1"}`,
		"two": `{"height":1}{"height":2}`, "huge": `{"height":1` + string(make([]byte, 8<<10)) + `}`,
	} {
		write(t, path, content)
		_, ok, err := LoadRecord(path)
		require.Error(t, err, name)
		assert.False(t, ok, name)
		assert.NotEmpty(t, hint.Of(err), name)
		r, err := OpenRecorder(path)
		require.Error(t, err, name)
		_, known := r.Last()
		assert.False(t, known, name)
		require.NoError(t, r.Note(7), name)
		assert.EqualValues(t, 7, recorded(t, path), "%s: written anew", name)
	}
}

func TestRecorderWritesSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "height")
		r, err := OpenRecorder(path)
		require.NoError(t, err)
		_, ok := r.Last()
		assert.False(t, ok)
		require.NoError(t, r.Flush(), "nothing to write")

		require.NoError(t, r.Note(100))
		assert.EqualValues(t, 100, recorded(t, path), "the first one at once")
		for h := int64(101); h <= 159; h++ {
			time.Sleep(time.Second)
			require.NoError(t, r.Note(h))
		}
		assert.EqualValues(t, 100, recorded(t, path), "59 s later")
		last, _ := r.Last()
		assert.EqualValues(t, 159, last.Height)
		time.Sleep(time.Second)
		require.NoError(t, r.Note(160))
		assert.EqualValues(t, 160, recorded(t, path), "a minute later")

		require.NoError(t, r.Note(161))
		require.NoError(t, r.Flush())
		assert.EqualValues(t, 161, recorded(t, path), "flushed")
	})
}

func TestRecorderFollowsANewLifeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "height")
		require.NoError(t, saveRecord(path, Record{Height: 5000, At: time.Now()}, atomicfile.Full))
		r, err := OpenRecorder(path)
		require.NoError(t, err)
		require.NoError(t, r.Note(3))
		assert.EqualValues(t, 3, recorded(t, path), "lower than what an earlier process recorded")
		require.NoError(t, r.Note(10))
		require.NoError(t, r.Note(5))
		assert.EqualValues(t, 5, recorded(t, path), "lower than what was noted, though higher than what is written")
		assert.Error(t, r.Note(0), "not known")
		assert.Error(t, r.Note(-1))
		assert.EqualValues(t, 5, recorded(t, path))
	})
}

func TestRecorderSurvivesAFailedWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "supervisor")
		r, err := OpenRecorder(filepath.Join(dir, "height"))
		require.NoError(t, err)
		require.Error(t, r.Note(7), "no directory")
		last, ok := r.Last()
		assert.True(t, ok)
		assert.EqualValues(t, 7, last.Height, "known all the same")
		require.NoError(t, os.Mkdir(dir, 0o755))
		require.NoError(t, r.Note(8), "not tried again before its time")
		require.NoError(t, r.Flush())
		assert.EqualValues(t, 8, recorded(t, r.path))
	})
}

func TestRecorderIsSafeForConcurrentUse(t *testing.T) {
	r, err := OpenRecorder(filepath.Join(t.TempDir(), "height"))
	require.NoError(t, err)
	var wg sync.WaitGroup
	for g := range int64(4) {
		wg.Go(func() {
			for i := range int64(50) {
				assert.NoError(t, r.Note(1+g+i))
				_, _ = r.Last()
			}
		})
	}
	wg.Wait()
	require.NoError(t, r.Flush())
	last, _ := r.Last()
	assert.Equal(t, last.Height, recorded(t, r.path))
}
