package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/pgtest"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres/server"
)

// A proxy stands between a client and a cluster's socket, and calls before and after for each statement: before it is
// passed on, and when it was, without waiting for its answer.
type proxy struct {
	dir string // the host of a DSN

	mu            sync.Mutex // guards before, after
	before, after func(sql string)
}

// hook sets what is called; nil is nothing.
func (p *proxy) hook(before, after func(sql string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.before, p.after = before, after
}

func (p *proxy) hooks() (before, after func(sql string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, after = p.before, p.after
	if before == nil {
		before = func(string) {}
	}
	if after == nil {
		after = func(string) {}
	}
	return before, after
}

func newProxy(t testing.TB, c *pgtest.Cluster) *proxy {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pp") // short: the path of a socket has 107 bytes at most
	require.NoError(t, err)
	l, err := net.Listen("unix", filepath.Join(dir, ".s.PGSQL.5432"))
	require.NoError(t, err)
	p := &proxy{dir: dir}
	var all sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		all.Wait()
		os.RemoveAll(dir)
	})
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { p.serve(client, filepath.Join(c.Dir, ".s.PGSQL.5432")) })
		}
	})
	return p
}

// serve passes messages on (PostgreSQL manual, "Message Formats"): a length of four bytes that counts itself, in front of
// it a byte with the type, but for the first message.
func (p *proxy) serve(client net.Conn, socket string) {
	defer client.Close()
	server, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(client, server)
		client.Close()
	}()
	for first := true; ; first = false {
		head := make([]byte, 5)
		if first {
			head = head[:4]
		}
		if _, err := io.ReadFull(client, head); err != nil {
			return
		}
		body := make([]byte, max(0, int(binary.BigEndian.Uint32(head[len(head)-4:]))-4))
		if _, err := io.ReadFull(client, body); err != nil {
			return
		}
		sql := ""
		switch {
		case first:
		case head[0] == 'Q':
			sql = string(body[:len(body)-1])
		case head[0] == 'E': // Execute: its text came with a Parse, which does nothing yet
			sql = "execute"
		}
		before, after := p.hooks()
		if sql != "" {
			before(sql)
		}
		if _, err := server.Write(append(head, body...)); err != nil {
			return
		}
		if sql != "" {
			after(sql)
		}
	}
}

func isCreate(sql string) bool { return strings.HasPrefix(sql, "CREATE DATABASE") }

const crashEnv = "POSTGRES_TEST_CRASH"

// TestCrashChild is no test: it is what runs in the processes that the tests below kill.
func TestCrashChild(t *testing.T) {
	what, dsn, found := strings.Cut(os.Getenv(crashEnv), " ")
	if !found {
		return
	}
	s := newSource(t, dsn, func(o *Options) { noFallback(o); o.Home = "/home/of/the/crash" })
	do := map[string]func() error{
		"freeze": func() error { _, err := s.Freeze(t.Context(), newJob(t, "one")); return err },
		"drop":   func() error { return s.Drop("one") },
		"retire": func() error { return s.Retire("one") },
	}[what]
	require.NoError(t, do())
}

// crashing is a process that does what.
func crashing(t *testing.T, p *proxy, what string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe, "-test.run=^TestCrashChild$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s host=%s user=postgres dbname=chain", crashEnv, what, p.dir))
	return cmd
}

// runCrash has a process do what, and kills it at its nth statement, before or after that is passed on. It tells how many
// statements there were, and whether the process came to its end.
func runCrash(t *testing.T, p *proxy, what string, n int64, after bool) (statements int64, ended bool) {
	t.Helper()
	cmd := crashing(t, p, what)
	var count atomic.Int64
	started := make(chan struct{})
	kill := func() {
		<-started
		_ = cmd.Process.Kill()
	}
	p.hook(func(string) {
		if count.Add(1) == n && !after {
			kill()
		}
	}, func(string) {
		if count.Load() == n && after {
			kill()
		}
	})
	defer p.hook(nil, nil)
	out := new(strings.Builder)
	cmd.Stdout, cmd.Stderr = out, out
	require.NoError(t, cmd.Start())
	close(started)
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() != -1 {
		require.NoError(t, err, "%s: %s", what, out)
	}
	return count.Load(), err == nil
}

// A process is killed at each statement of a freeze, the next one at another, and the third comes to the end: there is
// one clone, whole, and the original is as it was. Then the same with dropping it.
func TestKilledAtEachStatement(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	p := newProxy(t, c)
	s := newSource(t, c.DSN("chain"), func(o *Options) { noFallback(o); o.Home = "/home/of/the/crash" })
	want := c.Query("chain", chainSum)
	total, ended := runCrash(t, p, "freeze", 0, false)
	require.True(t, ended)
	require.Greater(t, total, int64(10))
	for n := int64(1); n <= total; n++ { // before every second one, after the others; the second kill the other way round
		require.NoError(t, s.Drop("one"))
		runCrash(t, p, "freeze", n, n%2 == 0)
		runCrash(t, p, "freeze", 1+(n*7)%total, n%2 != 0)
		rec, err := s.Freeze(t.Context(), newJob(t, "one"))
		require.NoError(t, err, "statement %d", n)
		assertWhole(t, c, s, rec, want)
	}
}

func assertWhole(t *testing.T, c *pgtest.Cluster, s *Source, rec manifest.Source, want []string) {
	t.Helper()
	faults, err := s.VerifyClone(t.Context(), rec)
	require.NoError(t, err)
	require.Empty(t, faults)
	require.Equal(t, []string{*rec.Frozen}, clonesOf(c))
	shut, err := s.Owner.Open(t.Context(), s.Server, *rec.Frozen, s.o.Log)
	require.NoError(t, err)
	require.Equal(t, want, c.Query(*rec.Frozen, chainSum))
	shut()
	require.Equal(t, want, c.Query("chain", chainSum))
}

func TestKilledWhileDroppingAndRetiring(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	p := newProxy(t, c)
	s := newSource(t, c.DSN("chain"), func(o *Options) { noFallback(o); o.Home = "/home/of/the/crash" })
	freeze := func() {
		_, err := s.Freeze(t.Context(), newJob(t, "one"))
		require.NoError(t, err)
	}
	for _, what := range []string{"drop", "retire"} {
		freeze()
		total, ended := runCrash(t, p, what, 0, false)
		require.True(t, ended)
		for n := int64(1); n <= total; n++ {
			freeze()
			runCrash(t, p, what, n, n%2 == 0)
			runCrash(t, p, what, 1+(n*3)%total, n%2 != 0)
			if what == "retire" {
				require.NoError(t, s.Retire("one"))
				assert.Len(t, clonesOf(c), 1, "the one that is kept")
			}
			require.NoError(t, s.Drop("one"))
			assert.Empty(t, clonesOf(c), "%s, statement %d", what, n)
		}
	}
}

// CREATE DATABASE goes on in the server after its client was killed, until the server notices: the next attempt neither
// trips over it nor leaves two.
func TestAnOrphanedCreationIsEnded(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	p := newProxy(t, c)
	s := newSource(t, c.DSN("chain"), func(o *Options) { noFallback(o); o.Home = "/home/of/the/crash" })
	cmd := crashing(t, p, "freeze")
	started := make(chan struct{})
	p.hook(late(t, c), func(sql string) {
		if isCreate(sql) {
			<-started
			_ = cmd.Process.Kill()
		}
	})
	require.NoError(t, cmd.Start())
	close(started)
	require.Error(t, cmd.Wait())
	p.hook(nil, nil)
	begin := time.Now()
	require.NoError(t, s.Drop("one"))
	t.Logf("dropped after %s", time.Since(begin))
	eventually(t, "no creation", func() bool {
		return c.Query("postgres", "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND starts_with(query, 'CREATE DATABASE')")[0] == "0"
	})
	assert.Empty(t, clonesOf(c))
}

// late has a session come after the look at the sessions: the creation waits for it.
func late(t *testing.T, c *pgtest.Cluster) func(sql string) {
	return func(sql string) {
		if isCreate(sql) {
			stay(t, c.DSN("chain"), "late")
		}
	}
}

func TestASecondSignalCancelsAClone(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	p := newProxy(t, c)
	s := newSource(t, "host="+p.dir+" user=postgres dbname=chain", nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	p.hook(late(t, c), func(sql string) {
		if isCreate(sql) {
			cancel(errors.New("second signal"))
		}
	})
	begin := time.Now()
	_, err := s.Freeze(ctx, newJob(t, "one"))
	require.ErrorContains(t, err, "second signal")
	assert.Less(t, time.Since(begin), 30*time.Second)
	assert.Empty(t, clonesOf(c))
	assert.Equal(t, []string{"0"}, c.Query("postgres", "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND starts_with(query, 'CREATE DATABASE')"))
}

// A session that comes between the look at the sessions and the creation is waited for, as long as the server does, and
// then named.
func TestASessionThatComesInTheLastMoment(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	p := newProxy(t, c)
	p.hook(late(t, c), nil)
	dsn := "host=" + p.dir + " user=postgres dbname=chain"
	_, err := newSource(t, dsn, noFallback).Freeze(t.Context(), newJob(t, "one"))
	require.ErrorIs(t, err, server.ErrInUse)
	require.ErrorContains(t, err, "late (pid ")
	assert.Equal(t, server.StateInUse, server.State(err))
	assert.Empty(t, clonesOf(c))

	_, err = newSource(t, dsn, func(o *Options) { noFallback(o); o.Disconnect = []string{"late"} }).Freeze(t.Context(), newJob(t, "one"))
	require.NoError(t, err)
}

func TestTheServerGoesAmidAClone(t *testing.T) {
	c := pgtest.Start(t)
	c.Create("chain", chainSQL)
	p := newProxy(t, c)
	stopped := make(chan struct{})
	p.hook(nil, func(sql string) {
		if isCreate(sql) {
			c.StopServer()
			close(stopped)
		}
	})
	s := newSource(t, "host="+p.dir+" user=postgres dbname=chain", nil)
	_, err := s.Freeze(t.Context(), newJob(t, "one"))
	require.ErrorIs(t, err, manifest.ErrAway, "and no dump is tried")
	<-stopped
	p.hook(nil, nil)
	c.StartServer()
	rec, err := s.Freeze(t.Context(), newJob(t, "one"))
	require.NoError(t, err)
	assertWhole(t, c, s, rec, c.Query("chain", chainSum))
}
