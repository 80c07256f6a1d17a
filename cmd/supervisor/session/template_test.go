package session

import (
	"context"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/genesis"
	"nodevisor/genesis/kwil"
)

// The template of a halt is handed on with the new network's name; the state's hash stays the state's.
func TestHandOn(t *testing.T) {
	t.Parallel()
	const pair, state = "../../../testdata/kwil/v0.9.4", "kwildb-snapshot.sql.gz"
	document, err := os.ReadFile(filepath.Join(pair, "genesis.json"))
	require.NoError(t, err)
	f, err := os.Open(filepath.Join(pair, state))
	require.NoError(t, err)
	defer f.Close()
	version, read, err := kwil.VerifyPair(document, f)
	require.NoError(t, err)
	made := &genesis.Template{Kind: genesis.Kwil, Version: string(version), State: new(state), StateSum: new(hex.EncodeToString(read.SHA256[:]))}
	from := filepath.Join(t.TempDir(), "pair")
	require.NoError(t, genesis.Build(t.Context(), from, made, func(_ context.Context, dir string) error {
		for _, name := range []string{"genesis.json", state} {
			sum, err := genesis.SumFile(filepath.Join(pair, name))
			require.NoError(t, err)
			require.NoError(t, genesis.CopyFile(filepath.Join(pair, name), filepath.Join(dir, name), sum))
		}
		return nil
	}))

	handed, err := handOn(t.Context(), from, from+"-handed", []Assignment{{"chain_id", "other-net"}})
	require.NoError(t, err)
	assert.Equal(t, "other-net", handed.ChainID)
	assert.Equal(t, made.SHA256[state], handed.SHA256[state])
	require.NoError(t, handed.Verify(from+"-handed"))
	_, err = handOn(t.Context(), from, from+"-handed", []Assignment{{"app_hash", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}})
	require.ErrorContains(t, err, "computed from the state")
}
