package source

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseEndpoint(t *testing.T) {
	for text, want := range map[string]struct{ network, address, base string }{
		"localhost:9090":            {"tcp", "localhost:9090", "http://localhost:9090"},
		" 127.0.0.1:9090 ":          {"tcp", "127.0.0.1:9090", "http://127.0.0.1:9090"},
		"tcp://127.0.0.1:26657":     {"tcp", "127.0.0.1:26657", "http://127.0.0.1:26657"},
		"tcp://0.0.0.0:26657":       {"tcp", "0.0.0.0:26657", "http://0.0.0.0:26657"},
		"tcp://[::1]:26657":         {"tcp", "[::1]:26657", "http://[::1]:26657"},
		"tcp://:26657":              {"tcp", ":26657", "http://localhost:26657"},
		"http://node:9090/":         {"tcp", "node:9090", "http://node:9090"},
		"https://node.example:443":  {"tcp", "node.example:443", "https://node.example:443"},
		"dns:///node:9090":          {"tcp", "node:9090", "http://node:9090"},
		"unix:///run/node/rpc.sock": {"unix", "/run/node/rpc.sock", "http://localhost"},
		"unix:/run/node/rpc.sock":   {"unix", "/run/node/rpc.sock", "http://localhost"},
	} {
		e, err := parseEndpoint(text)
		require.NoError(t, err, text)
		assert.Equal(t, want.network, e.network, text)
		assert.Equal(t, want.address, e.address, text)
		assert.Equal(t, want.base, e.base(), text)
	}
	for _, text := range []string{"", "localhost", "localhost:", "tcp://", "unix://", "unix:", "ftp://host:1", "a:b:c", "tcp:/x"} {
		_, err := parseEndpoint(text)
		assert.Error(t, err, text)
	}
}

func TestConfigValidate(t *testing.T) {
	empty := ""
	for name, c := range map[string]Config{
		"default": DefaultConfig(), "nothing": {}, "tls": {GRPC: "https://node:443"},
		"all": {URL: "https://node/status", Path: "a[0].b", Body: &empty, GRPC: "localhost:1", Log: `h=(?P<height>\d+)`},
	} {
		assert.NoError(t, c.Validate(), name)
	}
	err := Config{URL: "node/status", Path: "a..b", GRPC: "localhost", Log: "("}.Validate()
	require.Error(t, err)
	for _, part := range []string{"url:", "a..b", "grpc:", "log:"} {
		assert.ErrorContains(t, err, part, "every mistake at once")
	}
	assert.ErrorContains(t, Config{URL: "http://node"}.Validate(), "path: must name")
}
