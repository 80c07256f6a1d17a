package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// fill makes a store with so many committed blocks, and closes it.
func fill(t *testing.T, dir string, blocks int64, every int) {
	t.Helper()
	s, err := openStore(dir, every, false)
	require.NoError(t, err)
	for range blocks {
		require.NoError(t, s.storeBlock(s.state.Applied+1, nil))
		require.NoError(t, s.commit(""))
	}
	require.NoError(t, s.close())
}

func reopen(t *testing.T, dir string) (chainState, error) {
	t.Helper()
	s, err := openStore(dir, 4, false)
	if err != nil {
		return chainState{}, err
	}
	defer s.close() //nolint:errcheck // read only
	return s.state, nil
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestStoreLooksLikeLevelDB(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 5, 4) // two records a block: tables after blocks 2 and 4
	assert.Equal(t, []string{"000001.ldb", "000002.ldb", "000003.log", "CURRENT", "LOCK", "MANIFEST-000001"}, names(t, dir))
	current, err := os.ReadFile(filepath.Join(dir, "CURRENT"))
	require.NoError(t, err)
	assert.Equal(t, "MANIFEST-000001\n", string(current))
	state, err := reopen(t, dir)
	require.NoError(t, err)
	assert.Equal(t, int64(5), state.Applied)
	assert.Equal(t, int64(5), state.Stored)
}

func TestStoreNeverChangesATable(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 4, 4)
	before, err := os.Stat(filepath.Join(dir, "000001.ldb"))
	require.NoError(t, err)
	fill(t, dir, 40, 4)
	after, err := os.Stat(filepath.Join(dir, "000001.ldb"))
	require.NoError(t, err)
	assert.True(t, os.SameFile(before, after))
	assert.Equal(t, before.ModTime(), after.ModTime())
}

func TestStoreCutsOffAnUnfinishedRecord(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 3, 100)
	log := filepath.Join(dir, "000001.log")
	data, err := os.ReadFile(log)
	require.NoError(t, err)
	// Whatever part of the last record is there, the store opens with what was whole.
	for cut := range 20 {
		require.NoError(t, os.WriteFile(log, data[:len(data)-1-cut], 0o644))
		state, err := reopen(t, dir)
		require.NoError(t, err)
		assert.Equal(t, int64(2), state.Applied)
		assert.Equal(t, int64(3), state.Stored, "block 3 was stored and not executed")
	}
}

func TestStoreRefusesWhatDoesNotFit(t *testing.T) {
	damage := map[string]func(t *testing.T, dir string){
		"a table is gone": func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, "000001.ldb")))
		},
		"the log is gone": func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, "000003.log")))
		},
		"CURRENT is gone": func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, "CURRENT")))
		},
		"the manifest is gone": func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, manifestName)))
		},
		"a table is cut": func(t *testing.T, dir string) {
			require.NoError(t, os.Truncate(filepath.Join(dir, "000002.ldb"), 30))
		},
		"a digit of a table has changed": func(t *testing.T, dir string) {
			path := filepath.Join(dir, "000001.ldb")
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			data[len(data)-5] ^= 1
			require.NoError(t, os.WriteFile(path, data, 0o644))
		},
		"two moments are mixed": func(t *testing.T, dir string) {
			other := t.TempDir()
			fill(t, other, 9, 4)
			data, err := os.ReadFile(filepath.Join(other, "000005.log"))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "000003.log"), data, 0o644))
		},
	}
	for name, hurt := range damage {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			fill(t, dir, 5, 4)
			hurt(t, dir)
			_, err := reopen(t, dir)
			assert.ErrorIs(t, err, errCorrupt)
		})
	}
}

// A roll that is killed leaves files that the manifest doesn't name, or a log that is a table already.
func TestStoreClearsUpAfterAKilledRoll(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, 3, 100)
	for _, name := range []string{"000001.ldb", "000002.log", "000009.ldb.tmp"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("half a table"), 0o644))
	}
	require.NoError(t, appendTo(filepath.Join(dir, manifestName), `{"table":1,"lo`))
	state, err := reopen(t, dir)
	require.NoError(t, err)
	assert.Equal(t, int64(3), state.Applied)
	assert.Equal(t, []string{"000001.log", "CURRENT", "LOCK", manifestName}, names(t, dir))
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // the write is what counts
	_, err = f.WriteString(text)
	return err
}

// The tables of a snapshot may be hard links, the rest has to be copied: the rule that the snapshot code follows.
func TestStoreFromHardLinksAndCopies(t *testing.T) {
	live, frozen := t.TempDir(), t.TempDir()
	fill(t, live, 5, 4)
	for _, name := range names(t, live) {
		if filepath.Ext(name) == ".ldb" {
			require.NoError(t, os.Link(filepath.Join(live, name), filepath.Join(frozen, name)))
			continue
		}
		data, err := os.ReadFile(filepath.Join(live, name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(frozen, name), data, 0o644))
	}
	fill(t, live, 20, 4)
	state, err := reopen(t, frozen)
	require.NoError(t, err)
	assert.Equal(t, int64(5), state.Applied)
}

func TestStoreIsLockedWhileOpen(t *testing.T) {
	dir := t.TempDir()
	s, err := openStore(dir, 4, false)
	require.NoError(t, err)
	_, err = openStore(dir, 4, false)
	require.ErrorIs(t, err, unix.EAGAIN)
	assert.Equal(t, "resource temporarily unavailable", err.Error())
	require.NoError(t, s.close())
	_, err = reopen(t, dir)
	assert.NoError(t, err)
}

func TestStateRefusesWrongOrder(t *testing.T) {
	for name, r := range map[string]record{
		"a gap":           {Store: 2},
		"not stored":      {Commit: 1},
		"a block of zero": {},
	} {
		assert.Error(t, new(chainState).apply(r), name)
	}
	st := chainState{}
	require.NoError(t, st.apply(record{Store: 1}))
	assert.ErrorContains(t, st.apply(record{Commit: 1, Hash: "00"}), "hash of height 1")
}

func TestSigner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "priv_validator_state.json")
	s, err := openSigner(path, false)
	require.NoError(t, err)
	for _, step := range []struct {
		height int64
		signs  bool
	}{{1, true}, {2, true}, {2, false}, {1, false}, {7, true}} {
		signed, err := s.sign(step.height)
		require.NoError(t, err)
		assert.Equal(t, step.signs, signed, "height %d", step.height)
	}
	var got map[string]any
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &got))
	assert.Equal(t, "7", got["height"], "a string, as CometBFT writes it")
	assert.Equal(t, 0.0, got["round"])
	assert.Equal(t, 3.0, got["step"])
	again, err := openSigner(path, false)
	require.NoError(t, err)
	assert.Equal(t, int64(7), again.height)
	for _, broken := range []string{"", "{", `{"height":7}`, `{"height":"x"}`} {
		require.NoError(t, os.WriteFile(path, []byte(broken), 0o600))
		_, err := openSigner(path, false)
		assert.ErrorContains(t, err, "error reading PrivValidator state", broken)
	}
}
