package swap

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
)

const signer = "priv_validator_state.json"

// both runs a test for a directory that is swapped whole and for one whose entries are swapped one by one.
func both(t *testing.T, f func(t *testing.T, inside bool)) {
	for _, inside := range []bool{false, true} {
		t.Run(fmt.Sprintf("inside=%v", inside), func(t *testing.T) { f(t, inside) })
	}
}

// newPlace makes a live directory: two files, a folder, a signer's state at height 10.
func newPlace(t *testing.T, inside bool) *Place {
	p := &Place{Path: filepath.Join(t.TempDir(), "data"), Inside: inside, IsSigner: func(rel string) bool { return filepath.Base(rel) == signer }}
	fill(t, p.Path, "old", 10)
	put(t, filepath.Join(p.Path, "only-old"), "old")
	require.NoError(t, os.Mkdir(filepath.Join(p.Path, LostFound), 0o700))
	return p
}

func fill(t *testing.T, dir, content string, height int64) {
	put(t, filepath.Join(dir, "file"), content)
	put(t, filepath.Join(dir, "folder", "file"), content)
	put(t, filepath.Join(dir, signer), state(height, 0, 0))
}

func state(height, round, step int64) string {
	return fmt.Sprintf(`{"height":"%d","round":%d,"step":%d}`, height, round, step)
}

func put(t *testing.T, path, content string) {
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
}

func get(t *testing.T, path string) string {
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}

// tree reads everything below dir but our folder and fsck's.
func tree(t *testing.T, dir string) map[string]string {
	all := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == Within || d.Name() == LostFound {
			return fs.SkipDir
		}
		if rel, _ := filepath.Rel(dir, path); d.Type().IsRegular() {
			all[rel] = get(t, path)
		}
		return nil
	}))
	return all
}

var (
	oldTree = map[string]string{"file": "old", "folder/file": "old", "only-old": "old", signer: state(10, 0, 0)}
	// The live signer's state, 10, wins over the replacement's, 5.
	newTree = map[string]string{"file": "new", "folder/file": "new", signer: state(10, 0, 0)}
)

func stage(t *testing.T, p *Place) {
	dir, err := p.Begin("ID", []string{signer}, false)
	require.NoError(t, err)
	fill(t, dir, "new", 5)
	require.NoError(t, p.Staged())
}

func TestSwap(t *testing.T) {
	both(t, func(t *testing.T, inside bool) {
		p := newPlace(t, inside)
		stage(t, p)
		assert.Equal(t, oldTree, tree(t, p.Path), "nothing live is touched before the swap")
		require.NoError(t, p.Commit())
		require.Error(t, p.Abort(), "what is committed isn't aborted")
		require.Error(t, p.Done(), "nor ended before it is swapped")
		for range 3 { // done again it must not swap back
			before, signers, err := p.Swap()
			require.NoError(t, err)
			assert.Equal(t, []manifest.Signer{{Path: signer, Winner: "live", Height: 10}}, signers)
			assert.Equal(t, newTree, tree(t, p.Path))
			assert.Equal(t, oldTree, tree(t, before))
			assert.Equal(t, inside, strings.HasPrefix(before, p.Path+"/"), "a mount point keeps it within")
		}
		require.NoError(t, p.Done())
		require.NoError(t, p.Done())
		phase, err := p.Pending()
		require.NoError(t, err)
		assert.Empty(t, phase)
		assert.NoFileExists(t, p.journalPath(inside))
	})
}

func TestAbort(t *testing.T) {
	both(t, func(t *testing.T, inside bool) {
		p := newPlace(t, inside)
		stage(t, p)
		_, err := p.Begin("OTHER", nil, false)
		require.Error(t, err, "one restore at a time")
		require.NoError(t, p.Abort())
		require.NoError(t, p.Abort())
		assert.Equal(t, oldTree, tree(t, p.Path))
		assert.NoDirExists(t, p.Side())
	})
}

// Killed while it recorded the decision: the journal of before stands, and the half-written one goes with it.
func TestAbortAfterAnInterruptedCommit(t *testing.T) {
	both(t, func(t *testing.T, inside bool) {
		p := newPlace(t, inside)
		stage(t, p)
		require.NoError(t, os.WriteFile(filepath.Join(p.Side(), ".atomic-1"), []byte(`{"phase":`), 0o600))
		require.NoError(t, p.Abort())
		assert.Equal(t, oldTree, tree(t, p.Path))
		assert.NoDirExists(t, p.Side())
	})
}

func TestUndo(t *testing.T) {
	both(t, func(t *testing.T, inside bool) {
		p := newPlace(t, inside)
		stage(t, p)
		require.NoError(t, p.Commit())
		if inside { // half of it is done
			j, err := p.pending()
			require.NoError(t, err)
			require.NoError(t, os.Mkdir(p.beforeOf(j), 0o700))
			require.NoError(t, move(p.Path, p.beforeOf(j), j.Old))
			require.NoError(t, move(p.stageOf(j), p.Path, j.New[:1]))
		}
		require.NoError(t, p.Undo())
		assert.Equal(t, oldTree, tree(t, p.Path))
		require.NoError(t, p.Abort())
		assert.Equal(t, oldTree, tree(t, p.Path))
		assert.NoDirExists(t, p.Side())
	})
}

// Between two renames the name is free: the swap goes on from there.
func TestSwapAfterFirstRename(t *testing.T) {
	p := newPlace(t, false)
	stage(t, p)
	require.NoError(t, p.Commit())
	j, err := p.pending()
	require.NoError(t, err)
	require.NoError(t, os.Rename(p.Path, p.beforeOf(j)))
	before, _, err := p.Swap()
	require.NoError(t, err)
	assert.Equal(t, newTree, tree(t, p.Path))
	assert.Equal(t, oldTree, tree(t, before))
}

// After the exchange the old data lies in the stage: it must be put aside, not removed with it.
func TestSwapAfterExchange(t *testing.T) {
	p := newPlace(t, false)
	stage(t, p)
	require.NoError(t, p.Commit())
	j, err := p.pending()
	require.NoError(t, err)
	require.NoError(t, exchange(p.stageOf(j), p.Path, p.beforeOf(j)))
	require.Error(t, p.Done(), "the data of before is still in the stage")
	assert.DirExists(t, p.stageOf(j))
	before, _, err := p.Swap()
	require.NoError(t, err)
	assert.Equal(t, newTree, tree(t, p.Path))
	assert.Equal(t, oldTree, tree(t, before))
	require.NoError(t, p.Done())
}

// Every mixture of moved and unmoved entries is carried to the end.
func TestSwapEntriesFromEveryPoint(t *testing.T) {
	for at := range 7 { // 4 old entries, 3 new ones
		p := newPlace(t, true)
		stage(t, p)
		require.NoError(t, p.Commit())
		j, err := p.pending()
		require.NoError(t, err)
		require.NoError(t, os.Mkdir(p.beforeOf(j), 0o700))
		require.NoError(t, move(p.Path, p.beforeOf(j), j.Old[:min(at, 4)]))
		require.NoError(t, move(p.stageOf(j), p.Path, j.New[:max(0, at-4)]))
		for range 2 {
			before, _, err := p.Swap()
			require.NoError(t, err)
			assert.Equal(t, newTree, tree(t, p.Path), "from point %d", at)
			assert.Equal(t, oldTree, tree(t, before), "from point %d", at)
		}
		require.NoError(t, p.Done())
		assert.DirExists(t, filepath.Join(p.Path, LostFound), "it is fsck's")
	}
}

// A person ran the node between the crash and the recovery: what it signed then must not be taken back.
func TestSignerMovesOnBeforeTheSwap(t *testing.T) {
	both(t, func(t *testing.T, inside bool) {
		p := newPlace(t, inside)
		stage(t, p)
		require.NoError(t, p.Commit())
		f, err := os.OpenFile(filepath.Join(p.Path, signer), os.O_WRONLY|os.O_TRUNC, 0) // in place: the same inode
		require.NoError(t, err)
		_, err = f.WriteString(state(99, 0, 0))
		require.NoError(t, err)
		require.NoError(t, f.Close())
		for range 2 {
			_, _, err = p.Swap()
			require.NoError(t, err)
			assert.Equal(t, state(99, 0, 0), get(t, filepath.Join(p.Path, signer)))
			assert.Equal(t, "new", get(t, filepath.Join(p.Path, "file")))
		}
		require.NoError(t, p.Done())
	})
}

func TestRefusesStrangers(t *testing.T) {
	both(t, func(t *testing.T, inside bool) {
		p := newPlace(t, inside)
		stage(t, p)
		require.NoError(t, p.Commit())
		if inside {
			put(t, filepath.Join(p.Path, "appeared"), "x")
		} else {
			require.NoError(t, os.Rename(p.Path, p.Path+".moved-by-hand"))
			fill(t, p.Path, "third", 1)
		}
		now := tree(t, p.Path)
		_, _, err := p.Swap()
		require.Error(t, err)
		assert.NotEmpty(t, hint.Of(err))
		assert.Equal(t, now, tree(t, p.Path), "nothing was touched")
	})
}

func TestJournalInDoubt(t *testing.T) {
	both(t, func(t *testing.T, inside bool) {
		p := newPlace(t, inside)
		stage(t, p)
		require.NoError(t, p.Commit())
		path := p.journalPath(inside)
		good := get(t, path)
		for name, bad := range map[string]string{
			"empty":     "",
			"truncated": good[:len(good)/2],
			"schema":    strings.Replace(good, `"schema":1`, `"schema":99`, 1),
			"phase":     strings.Replace(good, `"swap"`, `"later"`, 1),
			"stage":     strings.Replace(good, `"stage":"`, `"stage":"../`, 1),
			"before":    strings.Replace(good, `"before":"`, `"before":"/`, 1),
			"name":      strings.Replace(good, `"old":[{"name":"`, `"old":[{"name":"../`, 1),
			"place":     strings.Replace(good, fmt.Sprintf(`"inside":%v`, inside), fmt.Sprintf(`"inside":%v`, !inside), 1),
		} {
			require.NotEqual(t, good, bad, name)
			put(t, path, bad)
			for _, f := range []func() error{p.Commit, p.Done, p.Abort, p.Undo, func() error { _, _, err := p.Swap(); return err }} {
				err := f()
				require.Error(t, err, name)
				assert.NotEmpty(t, hint.Of(err), name)
			}
		}
		assert.Equal(t, oldTree, tree(t, p.Path))
	})
}

func TestNoLiveDirectory(t *testing.T) {
	p := newPlace(t, false)
	require.NoError(t, os.RemoveAll(p.Path))
	dir, err := p.Begin("ID", []string{signer}, false)
	require.NoError(t, err)
	fill(t, dir, "new", 5)
	require.Error(t, p.Staged(), "there is no live state to compare with")
	require.NoError(t, p.Abort())

	dir, err = p.Begin("ID", []string{signer}, true)
	require.NoError(t, err)
	fill(t, dir, "new", 5)
	require.NoError(t, p.Staged())
	require.NoError(t, p.Commit())
	for range 2 {
		before, signers, err := p.Swap()
		require.NoError(t, err)
		assert.Empty(t, before)
		assert.Equal(t, []manifest.Signer{{Path: signer, Winner: "snapshot", Height: 5}}, signers)
	}
	require.NoError(t, p.Done())
	assert.Equal(t, state(5, 0, 0), get(t, filepath.Join(p.Path, signer)))
}
