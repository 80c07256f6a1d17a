package supervisor

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/internal/pgtest"
	"nodevisor/internal/proc"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// A stop while a dump waits for a table that another session holds ends it, between two effects. A password that turned
// wrong meanwhile is a hold of the next start, before the switch. And a password, right or wrong, is in no argument of a
// program, no log, no journal, no status, and no file of the home.
func TestStopInADumpAndAWrongPassword(t *testing.T) {
	t.Parallel()
	const right, wrong = "correcthorse", "batterystaple"
	pg := pgtest.Start(t, pgtest.HBA("local all guarded scram-sha-256", "local all all trust"))
	pg.Exec("postgres", fmt.Sprintf("CREATE ROLE guarded LOGIN SUPERUSER PASSWORD '%s'", right))
	h := newPgHome(t, pg, "node", "dump", "v2")
	h.set("UPGRADE", "v2@6")
	h.Node.Hold = HoldWait
	file := filepath.Join(t.TempDir(), "password")
	password := func(text string) { require.NoError(t, os.WriteFile(file, []byte(text+"\n"), 0o600)) }
	password(right)
	h.Sources[1].DSN, h.Sources[1].PasswordFile = strings.Replace(pg.DSN("node"), "user=postgres", "user=guarded", 1), file
	holder := pg.Connect("node")
	_, err := holder.Exec(t.Context(), "BEGIN; LOCK TABLE ballast IN ACCESS EXCLUSIVE MODE")
	require.NoError(t, err)

	r := h.start()
	const waiting = "SELECT pid FROM pg_stat_activity WHERE application_name = 'nodevisor' AND wait_event_type = 'Lock'"
	h.wait("the dump waits", func() bool { return len(pg.Query("postgres", waiting)) > 0 })
	args := arguments(t)
	assert.Contains(t, args, "pg_dump")
	assert.Contains(t, args, "--lock-wait-timeout=30000", "it waits for no lock for ever")
	assert.NotContains(t, args, right)
	r.stop()
	assert.Equal(t, upgrade.Stopped, h.journal().Upgrade.Phase)
	assert.Nil(t, h.journal().Hold)
	h.wait("its sessions are gone", func() bool { return len(pg.Query("postgres", waiting)) == 0 })

	password(wrong)
	r = h.start()
	st := h.awaitState(status.Held)
	assert.Contains(t, st.Hold.Reason, "password is wrong")
	assert.Contains(t, st.Hold.Hint, "password_file")
	assert.Equal(t, upgrade.Stopped, st.Upgrade.Phase)
	assert.Equal(t, "genesis", h.current())
	assert.Zero(t, h.count(trace.Start, "v2"))
	shown, err := json.Marshal(st)
	require.NoError(t, err)
	h.keepsSecret(shown, right, wrong)

	password(right)
	_, err = holder.Exec(t.Context(), "ROLLBACK")
	require.NoError(t, err)
	_, err = h.do(client.OpResume, client.Request{})
	require.NoError(t, err)
	h.awaitResult(upgrade.ResultCommitted)
	h.wait("the snapshot is verified", h.verified)
	r.stop()
	h.keepsSecret(nil, right, wrong)
}

// arguments are those of every process, which any user of the host may read.
func arguments(t *testing.T) string {
	t.Helper()
	pids, err := proc.Pids()
	require.NoError(t, err)
	var all []byte
	for _, pid := range pids {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // many end meanwhile
		all = append(append(all, line...), '\n')
	}
	return string(all)
}

// keepsSecret looks for words in what was shown, and in every file of the home, the log and the journal among them.
func (h *testHome) keepsSecret(shown []byte, words ...string) {
	h.Helper()
	require.NoError(h, filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		for _, word := range words {
			assert.False(h, bytes.Contains(data, []byte(word)), "%s is in %s", word, path)
			assert.False(h, bytes.Contains(shown, []byte(word)))
		}
		return err
	}))
}
