package rename

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/snapshot/postgres/server"
)

func TestDamagedJournal(t *testing.T) {
	p := &Place{
		Server: server.New(server.Config{Source: "kwild", DSN: "host=/nowhere dbname=chain"}),
		Owner:  server.Owner{Home: "/home/of/node", Source: "kwild"}, State: t.TempDir(),
	}
	for _, text := range []string{"", "{", `{"schema":2}`, `{"schema":1,"phase":"swap","live":"chain","stage":"x","before":"y"}`, strings.Repeat(" ", maxJournal+1)} {
		require.NoError(t, os.WriteFile(p.record().Path, []byte(text), 0o600))
		_, err := p.Pending()
		require.Error(t, err)
		assert.NotEmpty(t, hint.Of(err))
		require.Error(t, p.Abort())
		require.Error(t, p.Commit())
	}
}
