package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzStatus: what CometBFT's /status, or a status command with warnings before it, answers is a height, or unknown.
func FuzzStatus(f *testing.F) {
	f.Add([]byte(`{"jsonrpc":"2.0","id":-1,"result":{"sync_info":{"latest_block_height":"12","catching_up":false}}}`), "WARN")
	f.Add([]byte(`{"SyncInfo":{"latest_block_height":"12","catching_up":true}}`), "")
	f.Add([]byte(`{"sync_info":{"latest_block_height":"0"}}`), "{}")
	f.Fuzz(func(t *testing.T, answer []byte, warning string) {
		want, err := parseStatus(answer)
		if err == nil {
			require.Positive(t, want.Height)
		} else {
			require.Zero(t, want)
		}
		var object map[string]json.RawMessage
		if bytes.ContainsAny(answer, "\n\r") || json.Unmarshal(answer, &object) != nil || object == nil || !bytes.HasPrefix(answer, []byte("{")) {
			return
		}
		if strings.ContainsAny(warning, "{}[]\"0123456789tfn") { // what begins as JSON does may be one
			return
		}
		got, errPrinted := parseStatusOutput([]byte(warning + "\n" + string(answer) + "\n"))
		require.Equal(t, want, got)
		require.Equal(t, err == nil, errPrinted == nil)
		require.Equal(t, errors.Is(err, errNoBlock), errors.Is(errPrinted, errNoBlock))
	})
}

// FuzzNeeded: the announcement is found wherever it stands in a line, and however often a logger quoted it.
func FuzzNeeded(f *testing.F) {
	f.Add("v2", int64(32), "ERR ", ": {}", uint8(0))
	f.Add("V2.0-rc_1", int64(1)<<62, "\x1b[31mUPGRADE \"", "\" NEEDED", uint8(2))
	f.Fuzz(func(t *testing.T, name string, height int64, before, after string, quotes uint8) {
		plain := name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+- ") == ""
		if !plain || len(name) > 255 || height <= 0 || len(before) > 4096 || len(after) > 4096 || strings.Contains(after, "NEEDED") {
			return
		}
		if strings.Contains(name, "UPGRADE ") || strings.HasSuffix(stripped(before), "UPGRADE ") || after != "" && after[0] >= '0' && after[0] <= '9' {
			return
		}
		line := before + `UPGRADE "` + name + `" NEEDED at height: ` + strconv.FormatInt(height, 10) + after
		for range quotes % 3 {
			quoted, err := json.Marshal(line)
			require.NoError(t, err)
			line = string(quoted)
		}
		l, err := NewLines("")
		require.NoError(t, err)
		l.Line([]byte(line))
		got, ok := l.Needed()
		require.True(t, ok, "%q", line)
		require.Equal(t, name, got.Name, "%q", line)
		require.Equal(t, height, got.Height, "%q", line)
	})
}

func stripped(text string) string { return string(stripColours([]byte(text))) }

// FuzzSignedHeight: the height is the one that CometBFT would read, which knows keys as they are spelt.
func FuzzSignedHeight(f *testing.F) {
	f.Add([]byte(`{"height":"12","round":0,"step":3}`))
	f.Add([]byte(`{"height":"12","height":"13"}`))
	f.Add([]byte(`{"height":"12","HEIGHT":"13"}`))
	f.Add([]byte(`{"height":"-1"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := signedHeight(data, nil)
		if err != nil {
			return
		}
		var members map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(data, &members))
		var text string
		require.NoError(t, json.Unmarshal(members["height"], &text))
		want, err := strconv.ParseInt(text, 10, 64)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.GreaterOrEqual(t, got, int64(0))
	})
}

// FuzzEndpoint: an address that is accepted can be asked, at the place that it names.
func FuzzEndpoint(f *testing.F) {
	for _, address := range []string{"tcp://127.0.0.1:26657", "unix:///run/x.sock", "unix:x", "https://h:1/path", ":1", "[::]:9090", "dns:///h:1", "h"} {
		f.Add(address)
	}
	f.Fuzz(func(t *testing.T, address string) {
		e, err := parseEndpoint(address)
		if err != nil {
			return
		}
		require.NotEmpty(t, e.address)
		require.Contains(t, address, e.address)
		require.Contains(t, []string{"tcp", "unix"}, e.network)
		require.False(t, e.tls && e.network == "unix")
	})
}
