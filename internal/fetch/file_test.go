package fetch

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A state is compressed, and stays so: its digest is that of the file which the next program reads.
func TestFileIsKeptAsItWasSent(t *testing.T) {
	t.Parallel()
	state := targz(t, "state.sql", "SELECT 1;")
	url := serve(t, answer(state))
	req := request(t, url+"/state.sql.gz?checksum=sha256:"+sum256(state))
	req.Name = "state.sql.gz"
	file, sum, err := File(t.Context(), req)
	require.NoError(t, err)
	assert.Equal(t, sum256(state), sum)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, state, string(data))
	info, err := os.Stat(file)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())
	require.NoError(t, os.RemoveAll(filepath.Dir(file)))
	nothingLeft(t, req.Dir)

	for _, query := range []string{"", "?checksum=sha256:" + sum256("other")} {
		req := request(t, url+"/x"+query)
		_, _, err := File(t.Context(), req)
		require.Error(t, err)
		nothingLeft(t, req.Dir)
	}
	req = request(t, url+"/x?checksum=sha256:"+sum256(state))
	req.MaxBytes = 10
	_, _, err = File(t.Context(), req)
	require.Error(t, err, "too long")
	nothingLeft(t, req.Dir)
	req.Name = "../x"
	_, _, err = File(t.Context(), req)
	require.ErrorContains(t, err, "not a file name")
}
