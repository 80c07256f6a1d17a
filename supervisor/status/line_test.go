package status

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"nodevisor/upgrade"
)

func TestLine(t *testing.T) {
	st := &Document{Message: "running"}
	assert.Equal(t, "running", st.Line(""))
	st.Version, st.Height = new("v2"), new(int64(1234))
	assert.Equal(t, "running, version v2, height 1234", st.Line(""))
	st.Progress = &Progress{Phase: "snapshot", Done: 5_332_000_000, Total: 12_400_000_000}
	assert.Equal(t, "running, version v2, height 1234; snapshot 43 % of 12.4 GB", st.Line(""))
	st.Progress = &Progress{Phase: "download", Done: 900}
	assert.Equal(t, "running, version v2, height 1234; download 900 B; the node: syncing", st.Line("syncing"))
	st.Message, st.Hold = "HELD: why", &upgrade.Hold{}
	assert.Equal(t, "HELD: why", st.Line("syncing"))

	for n, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 12_400_000_000: "12.4 GB", 1 << 62: "4.6 EB",
	} {
		assert.Equal(t, want, byteText(n))
	}
}
