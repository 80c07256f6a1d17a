package fetch

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestInfo(t *testing.T) {
	info := func(body, query string) ([]byte, error) {
		req := request(t, serve(t, answer(body))+query)
		data, err := req.info(t.Context())
		nothingLeft(t, req.Dir)
		return data, err
	}
	const doc = `{"binaries":{"any":"https://h/simd"}}`
	data, err := info(doc, "/info.json?checksum=sha256:"+sum256(doc))
	require.NoError(t, err)
	assert.Equal(t, doc, string(data))
	archive := targz(t, "info", doc)
	data, err = info(archive, "/info.tar.gz?checksum=sha256:"+sum256(archive))
	require.NoError(t, err)
	assert.Equal(t, archive, string(data), "an info is never unpacked")
	full := strings.Repeat("x", maxInfo)
	data, err = info(full, "?checksum=sha256:"+sum256(full))
	require.NoError(t, err)
	assert.Len(t, data, maxInfo)

	_, err = info(full+"x", "?checksum=sha256:"+sum256(full+"x"))
	require.ErrorContains(t, err, "more than 1048576 bytes")
	_, err = info(doc, "")
	require.ErrorContains(t, err, "missing checksum")
	data, err = info(doc, "?checksum=sha256:"+sum256("another"))
	require.ErrorIs(t, err, ErrChecksum)
	assert.Nil(t, data, "what isn't verified isn't handed out")
	_, err = Info(t.Context(), "https://h/info.json")
	require.ErrorContains(t, err, "missing checksum")
}
