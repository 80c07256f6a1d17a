package postgres

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/internal/pgtest"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/server"
)

// noFallback makes what prevents a clone visible.
func noFallback(o *Options) { o.Mode, o.Fallback = ModeClone, "hold" }

// stay connects as app and stays.
func stay(t testing.TB, dsn, app string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn+" application_name='"+app+"'")
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func TestASessionThatStaysIsNamedAndLeftAlone(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	grafana := stay(t, c.DSN("chain"), "grafana")
	s := newSource(t, c.DSN("chain"), noFallback)
	_, err := s.Freeze(t.Context(), newJob(t, "one"))
	require.ErrorIs(t, err, server.ErrInUse)
	require.ErrorContains(t, err, fmt.Sprintf("grafana (pid %d, user postgres, from a local socket, since ", grafana.PgConn().PID()))
	assert.Contains(t, hint.Of(err), `disconnect = ["grafana"]`)
	require.NoError(t, grafana.Ping(t.Context()), "it was not ended")
	assert.Empty(t, clonesOf(c))

	s = newSource(t, c.DSN("chain"), func(o *Options) { noFallback(o); o.Disconnect = []string{"grafana"} })
	_, err = s.Freeze(t.Context(), newJob(t, "one"))
	require.NoError(t, err)
	require.Error(t, grafana.Ping(t.Context()))
}

// Who is listed in disconnect, and can't be ended, isn't to be listed again: the right to end it is what lacks.
func TestASessionThatMayBeEndedButCannotNamesTheRight(t *testing.T) {
	c := pgtest.Start(t)
	c.Exec("postgres", "CREATE ROLE node LOGIN CREATEDB")
	c.Exec("postgres", "CREATE DATABASE chain OWNER node")
	stay(t, c.DSN("chain"), "grafana")
	s := newSource(t, strings.Replace(c.DSN("chain"), "user=postgres", "user=node", 1), func(o *Options) {
		noFallback(o)
		o.Disconnect, o.FreeSpace = []string{"grafana"}, 1<<30
	})
	_, err := s.Freeze(t.Context(), newJob(t, "one"))
	require.ErrorIs(t, err, server.ErrInUse)
	assert.NotContains(t, hint.Of(err), "disconnect = [")
	assert.Contains(t, hint.Of(err), `GRANT pg_signal_backend TO "node", for a superuser's set admin_dsn to a superuser`)
}

func TestAFailedCloneIsFollowedByADump(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	stay(t, c.DSN("chain"), "grafana")
	s := newSource(t, c.DSN("chain"), nil)
	rec, err := s.Freeze(t.Context(), newJob(t, "one"))
	require.NoError(t, err)
	assert.Equal(t, manifest.Dump, rec.Method)
	assert.Empty(t, clonesOf(c))
}

// An exporter asks every moment, as a role of its own. It doesn't prevent a clone, and isn't ended.
func TestAnExporterThatComesAndGoesIsNoHindrance(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	c.Exec("postgres", "CREATE ROLE exporter LOGIN")
	dsn := strings.Replace(c.DSN("chain"), "user=postgres", "user=exporter", 1) + " application_name=exporter"
	ctx, cancel := context.WithCancel(t.Context())
	var asked, failed atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if conn, err := pgx.Connect(context.Background(), dsn); err != nil {
				failed.Add(1)
			} else {
				_, err = conn.Exec(context.Background(), "SELECT pg_sleep(0.05)")
				if err != nil {
					failed.Add(1)
				}
				asked.Add(1)
				_ = conn.Close(context.Background())
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second / 2): // oftener than the usual second, and gone in between on a busy machine, too
			}
		}
	}()
	eventually(t, "the exporter", func() bool { return asked.Load() > 0 })
	s := newSource(t, c.DSN("chain"), noFallback)
	for i := range 3 {
		_, err := s.Freeze(t.Context(), newJob(t, fmt.Sprint(i)))
		require.NoError(t, err)
	}
	cancel()
	<-ended
	assert.Zero(t, failed.Load(), "of %d", asked.Load())
	assert.Len(t, clonesOf(c), 3)
}

// One that connects again at once, whenever it is thrown out, can't win: while the clone is made nobody gets in.
func TestAStubbornSessionIsEndedWhereItIsListed(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	ctx, cancel := context.WithCancel(t.Context())
	var connected atomic.Int64
	ended := make(chan struct{})
	for range 3 {
		go func() {
			defer func() { ended <- struct{}{} }()
			for ctx.Err() == nil {
				if conn, err := pgx.Connect(ctx, c.DSN("chain")+" application_name=stubborn"); err == nil {
					connected.Add(1)
					_, _ = conn.Exec(ctx, "SELECT pg_sleep(60)")
					_ = conn.Close(context.Background())
				}
			}
		}()
	}
	eventually(t, "the sessions", func() bool { return connected.Load() >= 3 })
	s := newSource(t, c.DSN("chain"), func(o *Options) { noFallback(o); o.Disconnect = []string{"stubborn"} })
	_, err := s.Freeze(t.Context(), newJob(t, "one"))
	require.NoError(t, err)
	eventually(t, "their return: they were ended", func() bool { return connected.Load() > 3 })
	cancel()
	for range 3 {
		<-ended
	}
}

// A node that was killed amid a statement leaves a session that the server takes for alive.
func TestTheNodesLeftOversAreEnded(t *testing.T) {
	pgtest.CleanEnv(t)
	c := pgtest.Start(t, pgtest.TCP())
	c.Exec("postgres", "CREATE ROLE node LOGIN SUPERUSER PASSWORD 'x'; CREATE ROLE reader LOGIN PASSWORD 'x'")
	c.Create("chain", chainSQL)
	t.Setenv("PGPASSWORD", "x")
	for name, dsn := range map[string]string{
		"socket": strings.Replace(c.DSN("chain"), "user=postgres", "user=node", 1),
		"tcp":    c.TCPDSN("chain", "node"),
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource(t, dsn, noFallback)
			leaveBehind(t, c, s)
			_, err := s.Freeze(t.Context(), newJob(t, "one"))
			require.NoError(t, err)
			require.NoError(t, s.Drop("one"))

			alive := stay(t, dsn, "psql") // an operator's, of the node's role: its client lives
			_, err = s.Freeze(t.Context(), newJob(t, "one"))
			require.ErrorIs(t, err, server.ErrInUse)
			require.NoError(t, alive.Ping(t.Context()))
			require.NoError(t, alive.Close(t.Context()))
		})
	}
	t.Run("another role's", func(t *testing.T) {
		s := newSource(t, c.TCPDSN("chain", "node"), noFallback)
		leaveBehind(t, c, newSource(t, c.TCPDSN("chain", "reader"), nil))
		_, err := s.Freeze(t.Context(), newJob(t, "one"))
		require.ErrorIs(t, err, server.ErrInUse, "the node's alone are ended without being listed")
		require.ErrorContains(t, err, "user reader, from 127.0.0.1")
	})
}

// leaveBehind has a process killed amid a statement.
func leaveBehind(t *testing.T, c *pgtest.Cluster, s *Source) {
	t.Helper()
	cmd, err := s.Server.Program("psql", "", "-XAtc", "SELECT pg_sleep(300)")
	require.NoError(t, err)
	for i, v := range cmd.Env {
		if strings.HasPrefix(v, "PGAPPNAME=") {
			cmd.Env[i] = "PGAPPNAME=kwild"
		}
	}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	asleep := func() bool {
		return c.Query("postgres", "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'kwild' AND wait_event = 'PgSleep'")[0] == "1"
	}
	eventually(t, "the statement", asleep)
	require.NoError(t, cmd.Process.Kill())
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit)
	require.True(t, asleep(), "the server hasn't noticed")
}

func TestAPreparedTransactionIsNeverCopiedAround(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	c.Exec("chain", "BEGIN; INSERT INTO blocks VALUES (2000, 'x'); PREPARE TRANSACTION 'block 2000'")
	for _, change := range []func(*Options){nil, noFallback, func(o *Options) { o.Mode = ModeDump }} {
		_, err := newSource(t, c.DSN("chain"), change).Freeze(t.Context(), newJob(t, "one"))
		require.ErrorIs(t, err, server.ErrPrepared)
		require.ErrorContains(t, err, `"block 2000" (1 in all)`)
		assert.Contains(t, hint.Of(err), "start the old node once")
		assert.Contains(t, hint.Of(err), "ROLLBACK PREPARED 'block 2000'")
	}
	assert.Empty(t, clonesOf(c))
	c.Exec("chain", "ROLLBACK PREPARED 'block 2000'")
	_, err := newSource(t, c.DSN("chain"), noFallback).Freeze(t.Context(), newJob(t, "one"))
	require.NoError(t, err)
}

func TestSlotsAndSubscriptionsAreFound(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	c.Exec("chain", "SELECT pg_create_logical_replication_slot('kept', 'pgoutput'); CREATE SUBSCRIPTION sub CONNECTION 'host=/nowhere' PUBLICATION p WITH (connect = false)")
	c.Exec("postgres", "CREATE ROLE reader LOGIN")
	for _, user := range []string{"postgres", "reader"} {
		conn, err := pgx.Connect(t.Context(), strings.Replace(c.DSN("postgres"), "user=postgres", "user="+user, 1))
		require.NoError(t, err)
		found, err := server.Subscriptions(t.Context(), conn, "chain")
		require.NoError(t, err)
		assert.Equal(t, []string{"replication slot kept", "subscription sub"}, found, user)
		require.NoError(t, conn.Close(t.Context()))
	}
	_, err := newSource(t, c.DSN("chain"), noFallback).Freeze(t.Context(), newJob(t, "one"))
	require.NoError(t, err, "they don't prevent a clone")
}
