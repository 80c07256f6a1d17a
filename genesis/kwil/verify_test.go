package kwil

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func packed(t testing.TB, s sample) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(testdata, s.dir, s.version.StateFile()))
	require.NoError(t, err)
	return raw
}

func TestVerifySamples(t *testing.T) {
	for _, s := range samples(t) {
		v, state, err := VerifyPair(s.document, bytes.NewReader(packed(t, s)))
		require.NoError(t, err, s.dir)
		assert.Equal(t, s.version, v)
		assert.Equal(t, s.hash, hex.EncodeToString(state.SHA256[:]))
		assert.EqualValues(t, len(s.sql), state.Bytes)
		rows := map[string]int64{}
		for _, table := range state.Tables {
			rows[table.Name] = table.Rows
		}
		assert.EqualValues(t, 0, rows[VotersTable])
		assert.EqualValues(t, 1, rows["kwild_accts.accounts"])
		if v == V09 {
			assert.EqualValues(t, 5, rows["ds_x49e13be82f0041a6ec894830052a513b274a29f13855dbc12503993b.posts"])
		} else {
			assert.EqualValues(t, 3, rows["snaptest.posts"])
		}
	}
}

// TestR2AlteredState: any bit that flips is found, in the archive and in the document's hash.
func TestR2AlteredState(t *testing.T) {
	s := samples(t)[1]
	whole := packed(t, s)
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		bad := bytes.Clone(whole)
		at := 10 + r.IntN(len(bad)-10) // after the header, which says nothing of the content
		bad[at] ^= 1 << r.IntN(8)
		_, _, err := VerifyPair(s.document, bytes.NewReader(bad))
		require.Error(t, err, "byte %d", at)
	}
	other := bytes.Replace(s.document, []byte(`"state_hash": "44`), []byte(`"state_hash": "45`), 1)
	_, _, err := VerifyPair(other, bytes.NewReader(whole))
	require.ErrorContains(t, err, "its hash is 4406ebb8")
}

// TestR3TruncatedState: also where the cut lies between two members of the archive.
func TestR3TruncatedState(t *testing.T) {
	s := samples(t)[0]
	whole := packed(t, s)
	for n := range whole {
		_, err := VerifyState(bytes.NewReader(whole[:n]))
		require.Error(t, err, "after %d bytes", n)
	}
	half := strings.Index(s.sql, "COPY kwild_accts.accounts")
	_, err := VerifyState(bytes.NewReader(compressed(t, []byte(s.sql[:half]), 1000)))
	require.ErrorIs(t, err, ErrTruncated)
	two := append(compressed(t, []byte(s.sql[:half]), 1000), compressed(t, []byte(s.sql[half:]), 1000)...)
	state, err := VerifyState(bytes.NewReader(two))
	require.NoError(t, err, "two members are as good as one")
	assert.Equal(t, s.hash, hex.EncodeToString(state.SHA256[:]))
	_, err = VerifyState(bytes.NewReader(append(bytes.Clone(whole), "junk"...)))
	require.Error(t, err, "something after the end")
}

// TestR10StateWithoutHash: Kwil's node would ignore the state and start an empty network.
func TestR10StateWithoutHash(t *testing.T) {
	for _, s := range samples(t) {
		field := s.version.hashField()
		bad := strings.Replace(string(s.document), `"`+field+`"`, `"other"`, 1)
		require.NoError(t, Validate(s.version, []byte(bad)), "a new network without a state has none")
		_, _, err := VerifyPair([]byte(bad), bytes.NewReader(packed(t, s)))
		require.ErrorContains(t, err, "no "+field)
	}
}

// TestVerifyOldToolsRestrict: what Kwil's tool wrote with a newer pg_dump is whole, and not the same twice.
func TestVerifyOldToolsRestrict(t *testing.T) {
	s := samples(t)[0]
	state, err := VerifyState(bytes.NewReader(compressed(t, []byte("\\restrict abc\n"+s.sql), 1000)))
	require.NoError(t, err)
	require.Len(t, state.Notes, 1)
	assert.Contains(t, state.Notes[0], `\restrict`)
	_, err = VerifyState(bytes.NewReader(compressed(t, []byte("\\! id\n"+s.sql), 1000)))
	require.ErrorIs(t, err, ErrUnexpected)
}
