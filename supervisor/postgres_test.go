package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/internal/pgtest"
	"nodevisor/snapshot"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
)

// pgHome is the home of a node whose blocks lie in a database of its own on a cluster that several homes share.
type pgHome struct {
	*testHome
	pg   *pgtest.Cluster
	name string
}

// newPgHome makes the database, with something in it that is worth a copy. mode is the source's.
func newPgHome(t *testing.T, pg *pgtest.Cluster, name, mode string, versions ...string) *pgHome {
	t.Helper()
	h := &pgHome{testHome: newHome(t, versions...), pg: pg, name: name}
	pg.Create(name, "CREATE TABLE ballast AS SELECT i, md5(i::text) AS hash FROM generate_series(1, 20000) i")
	h.set("POSTGRES", pg.DSN(name))
	h.set("BLOCK_TIME", "20ms")
	h.Sources = []snapshot.SourceConfig{
		{Name: "data", Kind: "dir", Path: "data"},
		{Name: "blocks", Kind: "postgres", DSN: pg.DSN(name), Mode: mode, Fallback: "hold", After: []string{"data"}},
	}
	return h
}

// content is every row of the tables that the node has.
func (h *pgHome) content() string {
	h.Helper()
	return strings.Join(h.pg.Query(h.name, `SELECT count(*), md5(string_agg(b::text, chr(10) ORDER BY height)),
		(SELECT md5(string_agg(s::text, chr(10) ORDER BY key)) FROM state s), (SELECT sum(i)::text || md5(string_agg(hash, '' ORDER BY i)) FROM ballast)
		FROM blocks b`), "\n")
}

// ours are the databases that the store made for this home, by their roles.
func (h *pgHome) ours() (roles []string) {
	h.Helper()
	return h.pg.Query("postgres", `SELECT shobj_description(oid, 'pg_database')::json->>'role' FROM pg_database
		WHERE datname LIKE 'sv\_%' AND shobj_description(oid, 'pg_database')::json->>'home' = '`+h.dir+`' ORDER BY 1`)
}

// rounds runs the subtests of a test with so many moments, a few side by side.
func rounds(t *testing.T, n, beside int, round func(t *testing.T, i int)) {
	var all sync.WaitGroup
	next := make(chan int)
	for range beside {
		all.Go(func() {
			for i := range next {
				t.Run(fmt.Sprintf("%02d", i), func(t *testing.T) { round(t, i) })
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
}

// A supervisor that is killed at any moment of an upgrade of a node with a database, and killed again while it recovers,
// ends where it would have ended undisturbed: directory and database of one moment, one snapshot of both, nothing left.
func TestKilledAtAnyMomentWithADatabase(t *testing.T) {
	t.Parallel()
	const moments = 12
	pg := pgtest.Start(t)
	upgraded := func(t *testing.T, i int, kills ...time.Duration) time.Duration {
		h := newPgHome(t, pg, fmt.Sprintf("node%d", i), "clone", "v2")
		h.set("UPGRADE", "v2@4")
		host := newHost(h.testHome)
		begun := time.Now()
		for _, after := range kills {
			pid := host.boot()
			time.Sleep(after) // the moment is the test: there is no fact to wait for
			host.killRun(pid)
			host.invariants()
			if node := host.leftNode(); node != 0 {
				host.killNode(node)
			}
		}
		pid := host.boot()
		h.awaitResult(upgrade.ResultCommitted)
		whole := time.Since(begun)
		host.finishAndCheck(pid)
		assert.Equal(t, []string{"v2"}, pg.Query(h.name, "SELECT name FROM migrations"))
		assert.Equal(t, []string{"clone"}, h.ours(), "the clone that is kept, and nothing else")
		return whole
	}
	whole := upgraded(t, moments)
	t.Logf("undisturbed: %s", whole)
	rounds(t, moments, 3, func(t *testing.T, i int) {
		kills := []time.Duration{whole * time.Duration(i) / moments}
		if i%2 == 1 {
			kills = append(kills, whole*time.Duration((i*7)%moments)/moments)
		}
		upgraded(t, i, kills...)
	})
}

// heldAfterDamage is a home whose upgrade damaged the database, and holds. before is what the database held at the stop.
func heldAfterDamage(t *testing.T, pg *pgtest.Cluster, name string) (h *pgHome, host *host, pid int, before string) {
	t.Helper()
	h = newPgHome(t, pg, name, "clone")
	h.set("UPGRADE", "v2@6")
	h.setOf("v2", "DAMAGE", "true")
	h.Node.Hold, h.Upgrade.Probation.Attempts = HoldWait, 1
	host = newHost(h.testHome)
	pid = host.boot()
	h.awaitState(status.WaitingForBinary) // it stands at its height
	before = h.content()
	h.stage("upgrades/v2", "v2")
	h.awaitState(status.Held)
	require.NotEqual(t, before, h.content())
	return h, host, pid, before
}

// The same for the way back: whatever was killed, the database is what it was, and so is the link.
func TestKilledWhileRollingBackADatabase(t *testing.T) {
	t.Parallel()
	const moments = 8
	pg := pgtest.Start(t)
	rolled := func(t *testing.T, i int, kills ...time.Duration) time.Duration {
		h, host, pid, before := heldAfterDamage(t, pg, fmt.Sprintf("back%d", i))
		isBack := func() bool {
			all := h.history()
			return len(all) == 1 && all[0].Result == upgrade.ResultRolledBack
		}
		for _, after := range kills {
			go h.do(client.OpRollback, client.Request{}) //nolint:errcheck // it is killed
			time.Sleep(after)                            // the moment is the test
			host.killRun(pid)
			host.invariants()
			pid = host.boot()
			h.awaitState(status.Held)
		}
		begun := time.Now()
		if !isBack() {
			_, err := h.do(client.OpRollback, client.Request{})
			require.NoError(t, err)
		}
		took := time.Since(begun)
		h.wait("it is back", isBack)
		assert.Equal(t, before, h.content())
		assert.Equal(t, "genesis", h.current())
		assert.ElementsMatch(t, []string{"before"}, slices.DeleteFunc(h.ours(), func(role string) bool { return role == "clone" }),
			"also where it was killed between the swap and its record in the journal")
		_, err := h.do(client.OpSkip, client.Request{Name: "v2"})
		require.NoError(t, err)
		_, err = h.do(client.OpResume, client.Request{})
		require.NoError(t, err)
		h.awaitCount(2, trace.Start, "v1")
		require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
		require.Equal(t, 0, host.exit())
		assert.NotContains(t, h.lines(), "disagree")
		return took
	}
	whole := rolled(t, moments)
	t.Logf("undisturbed: %s", whole)
	rounds(t, moments, 2, func(t *testing.T, i int) {
		kills := []time.Duration{whole * time.Duration(i+1) / moments}
		if i%2 == 1 {
			kills = append(kills, whole*time.Duration((i*3)%moments)/moments)
		}
		rolled(t, i, kills...)
	})
}

// A server that goes away in the window is a hold: the old version, nothing lost. Once it is back the upgrade goes on.
func TestServerAwayInTheWindow(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t)
	h := newPgHome(t, pg, "node", "clone", "v2")
	h.set("UPGRADE", "v2@6")
	h.Node.Hold = HoldWait
	h.write("block", "")
	block := filepath.Join(h.dir, "block")
	h.Systemd.Units = []unitSpec{{At: AfterStop, Name: "x", Blocking: block}} // the window in which the server goes
	r := h.start()
	h.wait("the window", func() bool { return h.unitsActed()[0] == "after-stop x" })
	before := h.content()
	pg.StopServer()
	require.NoError(t, os.Remove(block))
	st := h.awaitState(status.Held)
	assert.Equal(t, upgrade.Stopped, st.Upgrade.Phase)
	assert.Equal(t, "genesis", h.current())
	assert.NotEmpty(t, st.Hold.Hint)
	assert.Zero(t, h.count(trace.Start, "v2"))
	pg.StartServer()
	assert.Equal(t, before, h.content())
	_, err := h.do(client.OpResume, client.Request{})
	require.NoError(t, err)
	h.awaitResult(upgrade.ResultCommitted)
	r.stop()
}

// Sessions in the way are named; the upgrade holds rather than to end what nobody listed, and goes on once they are gone.
func TestSessionInTheWay(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t)
	h := newPgHome(t, pg, "node", "clone", "v2")
	h.set("UPGRADE", "v2@6")
	h.Node.Hold = HoldWait
	conn := pg.Connect("node")
	_, err := conn.Exec(t.Context(), "SET application_name = 'exporter'")
	require.NoError(t, err)
	r := h.start()
	st := h.awaitState(status.Held)
	assert.Contains(t, st.Hold.Reason, "exporter")
	assert.Equal(t, "genesis", h.current())
	require.NoError(t, conn.Close(t.Context()))
	_, err = h.do(client.OpResume, client.Request{})
	require.NoError(t, err)
	h.awaitResult(upgrade.ResultCommitted)
	r.stop()
}

// Where a clone isn't proven possible, a dump is announced before the stop; and one event takes the set at a stop, too.
func TestDumpIsAnnounced(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t)
	pg.Exec("postgres", "CREATE ROLE plain LOGIN")
	h := newPgHome(t, pg, "node", "auto", "v2")
	pg.Exec("postgres", "ALTER DATABASE node OWNER TO plain")
	pg.Exec("node", "ALTER TABLE ballast OWNER TO plain; GRANT ALL ON SCHEMA public TO plain")
	dsn := strings.Replace(pg.DSN("node"), "user=postgres", "user=plain", 1)
	h.Sources[1].DSN, h.Sources[1].Fallback = dsn, "dump"
	h.set("POSTGRES", dsn)
	h.set("UPGRADE", "v2@40")
	h.SnapshotOn = []string{"upgrade", "stop"}
	r := h.start()
	h.awaitResult(upgrade.ResultCommitted)
	log := h.lines()
	announced, stopped := strings.Index(log, "database will be taken by dump"), strings.Index(log, "daemon shutting down")
	require.Positive(t, announced, log)
	assert.Less(t, announced, stopped)
	r.stop()
	assert.ElementsMatch(t, []string{"v2", "stop"}, h.taken())
	assert.Empty(t, h.ours())
}
