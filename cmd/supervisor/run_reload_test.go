package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/source"
)

func TestRefuseFixed(t *testing.T) {
	t.Parallel()
	taken := []string{
		"upgrade.delay", "upgrade.probation.up", "upgrade.poll", "height.url", "height.log", "genesis.kind", "control.group", "control.socket",
		"log.level", "log.format", "metrics.listen", "notify.webhook", "systemd.ready", "systemd.node_notify", "unit", "security.allow_writable",
		"node.args", "version",
	}
	resting := []string{"upgrade.plan_file", "upgrade.recase", "snapshot.on", "snapshot.source"}
	require.NoError(t, refuseFixed(append(resting, taken...), false))
	require.NoError(t, refuseFixed(taken, true))
	err := refuseFixed(append(resting, taken...), true)
	for _, key := range []string{"[upgrade] plan_file", "[upgrade] recase", "[snapshot] on", "[snapshot] source"} {
		require.ErrorContains(t, err, "cannot reload "+key+": can't change while an upgrade is in flight")
	}
	assert.NotContains(t, err.Error(), "delay")
	err = refuseFixed([]string{"table.of.later"}, false)
	require.ErrorContains(t, err, "cannot reload [table.of] later: can't change while run lives")
	assert.NotEmpty(t, hint.Of(err))
}

// What was made from the configuration is used in other goroutines while a reload makes a new one: nothing that they share
// is written. The race detector is what fails here.
func TestReloadBesideQuestions(t *testing.T) {
	t.Parallel()
	home := newHome(t)
	file := filepath.Join(home, "supervisor", "supervisor.toml")
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	configure := func(delay int) {
		text := fmt.Sprintf("[upgrade]\ndelay = \"%ds\"\n[height]\ngrpc = \"127.0.0.1:%d\"\n[snapshot]\nkeep = %d\n", delay, delay+1, delay+1)
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	}
	configure(0)
	s := runSession(t, home)
	l := &live{Session: s, Config: s.Config, lines: new(source.Lines), alerts: newAlerts(s)}
	t.Cleanup(func() { l.alerts.Close(0) })
	var err error
	l.made, err = l.make(s, nil)
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	asking := make(chan struct{})
	go func() {
		defer close(asking)
		for ctx.Err() == nil {
			_, _ = s.ChainPlan(ctx)
			s.SnapshotOn("upgrade")
			s.Command("genesis")
			s.Fetcher()
		}
	}()
	for i := 1; i <= 20; i++ {
		configure(i)
		before := l.made
		fresh, takeEffect, err := l.reload(false)
		require.NoError(t, err)
		assert.Equal(t, before.Upgrade, l.made.Upgrade, "nothing is changed before the end")
		takeEffect()
		assert.Equal(t, time.Duration(i)*time.Second, fresh.Upgrade.Delay)
		assert.NotSame(t, before.Heights, fresh.Heights)
		assert.Same(t, before.Checker, fresh.Checker, "what is the same stays, with what it knows")
	}
	configure(20)
	same, _, err := l.reload(false)
	require.NoError(t, err)
	assert.Same(t, l.made.Heights, same.Heights)
	assert.Same(t, l.made.Snapshots, same.Snapshots)
	cancel()
	<-asking
	assert.Zero(t, s.Config.Upgrade.Delay, "the session is as it was at the start")
}

// runSession is the session of a `run` of that home, which says nothing.
func runSession(t *testing.T, home string, environ ...string) *session.Session {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { null.Close() })
	a := newApp(nil, append([]string{"DAEMON_NAME=simd", "DAEMON_HOME=" + home}, environ...), null, null, null)
	a.Running = true
	s, err := session.Load(t.Context(), a, false)
	require.NoError(t, err)
	return s
}

// newHome makes a home with a tree of versions.
func newHome(t *testing.T) string {
	t.Helper()
	home := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(home, "cosmovisor", "genesis", "bin"), 0o755))
	return home
}
