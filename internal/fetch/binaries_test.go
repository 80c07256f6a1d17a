package fetch

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

func TestSelectBinary(t *testing.T) {
	for info, want := range map[string]string{
		`{"binaries":{"linux/amd64":"https://h/amd64","any":"https://h/any"}}`:         "https://h/amd64",
		`{"binaries":{"any":"https://h/any","linux/arm64":"https://h/arm64"}}`:         "https://h/any",
		` {"binaries":{"linux/amd64":"","any":"https://h/any"}} ` + "\n":               "https://h/any",
		`{"name":"v2","more":{"binaries":1},"binaries":{"linux/amd64":"https://h/a"}}`: "https://h/a",
	} {
		url, err := SelectBinary([]byte(info), "linux", "amd64")
		require.NoError(t, err, info)
		assert.Equal(t, want, url, info)
	}
}

func TestSelectBinaryRefuses(t *testing.T) {
	for info, reason := range map[string]string{
		"":                  "plan info must not be blank",
		" \n\t":             "plan info must not be blank",
		`{}`:                "cannot find binary for os/arch: neither linux/amd64, nor any",
		`{"binaries":{}}`:   "neither linux/amd64, nor any",
		`{"binaries":null}`: "not an object",
		`{"binaries":{"linux/arm64":"https://h/a"}}`:                          "neither linux/amd64, nor any",
		`{"binaries":{"Linux/AMD64":"https://h/a"}}`:                          "neither linux/amd64, nor any",
		`{"binaries":"https://h/a"}`:                                          "not an object",
		`{"binaries":["https://h/a"]}`:                                        "not an object",
		`{"binaries":{"linux/amd64":1}}`:                                      "cannot parse upgrade info",
		`{"binaries":{"linux/amd64":{"url":"x"}}}`:                            "cannot parse upgrade info",
		`{"binaries":{"linux/amd64":"https://h/a"`:                            "cannot parse upgrade info",
		`{"binaries":{"any":"https://h/a"}} trailing`:                         "cannot parse upgrade info",
		`https://h/info.json`:                                                 "cannot parse upgrade info",
		`{"binaries":{"any":"https://h/a","any":"https://h/b"}}`:              "any occurs twice",
		`{"binaries":{"any":"https://h/a"},"binaries":{"any":"https://h/b"}}`: "binaries occurs twice",
		`{"binaries":{"any":"https://h/a"},"BINARIES":{"any":"https://h/b"}}`: "binaries occurs twice",
		`{"binaries":{"any":"` + strings.Repeat("x", maxInfo) + `"}}`:         "larger than",
		strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000): "cannot parse upgrade info",
	} {
		_, err := SelectBinary([]byte(info), "linux", "amd64")
		require.ErrorContains(t, err, reason, "%.80s", info)
	}
	_, err := SelectBinary([]byte(`{}`), "linux", "amd64")
	assert.Contains(t, hint.Of(err), "upgrade add")
}
