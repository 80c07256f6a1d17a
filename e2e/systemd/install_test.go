//go:build e2e

package systemd

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/build"
)

// blocks takes the commands out of a document: each of its blocks of shell.
func blocks(t *testing.T, document string) (all []string) {
	t.Helper()
	text, err := os.ReadFile(document)
	require.NoError(t, err)
	for _, found := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		all = append(all, found[1])
	}
	return all
}

// What a new operator does, from the package to its removal, is done as the document says, in its order and by its words.
func TestInstallAsTheDocumentSays(t *testing.T) {
	t.Parallel()
	h := bootFor(t, "") // without our programs: the package brings them
	for from, to := range map[string]string{deb: "nodevisor.deb", build.Binary(t, "v1"): "simd", build.Binary(t, "v2"): "simd-v2"} {
		data, err := os.ReadFile(from)
		require.NoError(t, err)
		h.write(t, "/srv/install/"+to, string(data), 0o755)
	}
	// What the booted host can't give: as many open files.
	h.write(t, "/etc/systemd/system/simd.service.d/test.conf", "[Service]\nLimitNOFILE=16384\nEnvironment=FAKENODE_RPC=127.0.0.1:26657\n", 0o644)

	exports, pid, outputs := "", "", []string{}
	for _, block := range blocks(t, "../../docs/how-to/install.md") {
		for line := range strings.Lines(block) {
			if strings.HasPrefix(line, "export ") {
				exports += line
			}
		}
		out := h.run(t, "bash", "-euo", "pipefail", "-c", "cd /srv/install\n"+exports+block)
		outputs = append(outputs, out)
		switch {
		case strings.Contains(block, "dpkg -i"):
			assert.Empty(t, h.run(t, "systemctl", "list-units", "--plain", "--no-legend", "nodevisor*", "simd*"), "nothing is started")
		case strings.Contains(block, "enable --now"):
			assert.Equal(t, "active", h.show("simd.service", "ActiveState"))
			assert.Contains(t, out, "Status: \"running, version genesis")
		case strings.Contains(block, "upgrade apply"):
			assert.Contains(t, out, "v2")
			pid = h.show("simd.service", "MainPID")
		case strings.Contains(block, "journalctl"):
			assert.Contains(t, out, "phase reached phase=switched plan=v2")
		case strings.Contains(block, "/metrics"):
			assert.Contains(t, out, `supervisor_node_up{node="simd"} 1`)
		case strings.Contains(block, "dpkg -r"):
			assert.Equal(t, "active", h.show("simd.service", "ActiveState"))
			assert.Equal(t, pid, h.show("simd.service", "MainPID"), "neither stopped nor restarted")
			assert.NoFileExists(t, h.file("/usr/bin/supervisor"))
		}
	}
	assert.Equal(t, "inactive", h.show("simd.service", "ActiveState"))
	h.run(t, "test", "-d", "/var/lib/simd/data")
	require.GreaterOrEqual(t, len(outputs), 9, "the document's steps")
}
