package upgrade

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

// customScript configures a custom pre-upgrade script.
func (h *home) customScript(body string) {
	h.t.Helper()
	h.cfg.CustomPreUpgrade = "before.sh"
	script(h.t, filepath.Join(h.l.Root, "before.sh"), body)
}

func TestCustomPreUpgradeThatFails(t *testing.T) {
	at := func(h *home) string { return filepath.Join(h.l.Root, "before.sh") }
	for name, c := range map[string]struct {
		change func(h *home)
		want   string
	}{
		"non-zero":    {func(h *home) { h.customScript("echo no room >&2; exit 3") }, "exit status 3: no room"},
		"by a signal": {func(h *home) { h.customScript("kill -KILL $$") }, "signal: killed"},
		"missing":     {func(h *home) { require.NoError(h.t, os.Remove(at(h))) }, "no such file"},
		"a directory": {func(h *home) { require.NoError(h.t, os.Remove(at(h))); require.NoError(h.t, os.Mkdir(at(h), 0o755)) }, "not a regular file"},
		"no program":  {func(h *home) { h.write(at(h), "#!/nonexistent/sh\n") }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.stage(staged, v2)
			h.customScript("exit 0")
			c.change(h)
			e := h.engine()
			h.begin(e)
			err := e.Carry(t.Context())
			require.ErrorContains(t, err, c.want)
			assert.Contains(t, hint.Of(err), "supervisor resume")
			assert.Equal(t, version.Genesis, h.current(), "current is untouched")
			assert.Equal(t, Snapshotted, h.onDisk().Upgrade.Phase)

			require.NoError(t, os.RemoveAll(at(h)))
			h.customScript("exit 0") // mended
			require.NoError(t, e.Resume())
			require.NoError(t, e.Carry(t.Context()))
		})
	}
}

func TestCustomPreUpgradeIsMadeExecutable(t *testing.T) {
	h := newHome(t)
	h.stage(staged, v2)
	h.customScript("exit 0")
	require.NoError(t, os.Chmod(filepath.Join(h.l.Root, "before.sh"), 0o644))
	e := h.engine()
	h.begin(e)
	require.NoError(t, e.Carry(t.Context()))
	info, err := os.Stat(filepath.Join(h.l.Root, "before.sh"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o744), info.Mode().Perm())
}

// The exit codes of `<node> pre-upgrade`, and how often it is called.
func TestPreUpgradeCodes(t *testing.T) {
	for _, c := range []struct {
		exit    string
		retries int
		calls   int
		want    string // "" = it goes on
	}{
		{"exit 0", 0, 1, ""},
		{"exit 1", 0, 1, ""},  // there is no such command
		{"exit 2", 0, 1, ""},  // any other code counts as done
		{"exit 99", 3, 1, ""}, // also with retries
		{"echo broken >&2; exit 30", 3, 1, "exit status 30: broken"},
		{"kill -TERM $$", 3, 1, "signal: terminated"},
		{"exit 31", 0, 1, "reached max attempt of retries - 0"},
		{"exit 31", 2, 3, "reached max attempt of retries - 2"},
		{"exit 31", -1, 0, "reached max attempt of retries - -1"}, // never run, as by Cosmovisor
		{`test "$(wc -l < "$HOME_DIR/calls")" -gt 1 || exit 31`, 2, 2, ""},
	} {
		t.Run(fmt.Sprintf("%s, %d retries", c.exit, c.retries), func(t *testing.T) {
			t.Parallel() // pauses lie between retries
			h := newHome(t)
			calls := filepath.Join(h.l.Home, "calls")
			h.stage(staged, `test "$1" = pre-upgrade || exit 0; echo "$# $PWD" >> "$HOME_DIR/calls"; `+c.exit)
			h.cfg.PreUpgradeMaxRetries = c.retries
			e := h.engine()
			h.begin(e)
			err := e.Carry(t.Context())
			assert.Equal(t, c.calls, lines(calls))
			if c.calls > 0 {
				assert.True(t, strings.HasPrefix(h.read(calls), "1 "+h.l.Root+"\n"), "one argument, in root, as by Cosmovisor")
			}
			assert.Equal(t, staged, h.current(), "the link was switched before")
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
			assert.Contains(t, hint.Of(err), "supervisor rollback")
			assert.Equal(t, Switched, h.onDisk().Upgrade.Phase, "the next run does not start it without its pre-upgrade")
		})
	}
}

// A pre-upgrade that ran for a while and then says that there is none may have been stopped together with us: the new
// version isn't started on what it left.
func TestPreUpgradeThatWasStopped(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	h.stage(staged, `test "$1" = pre-upgrade || exit 0; sleep 1.2; touch "$HOME_DIR/ended"; exit 1`)
	e := h.engine()
	h.begin(e)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(h.l.Home, "ended")); err == nil {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond) // the request is on its way
		cancel()
	}()
	require.ErrorIs(t, e.Carry(ctx), context.Canceled)
	assert.Equal(t, Switched, h.onDisk().Upgrade.Phase)
}

func TestPreUpgradeIsTriedAgainAfterAHold(t *testing.T) {
	h := newHome(t)
	h.stage(staged, `echo "$SUPERVISOR_ATTEMPT $VERSION" >> "$HOME_DIR/calls"; test -e "$HOME_DIR/mended" || exit 30`)
	e := h.engine()
	h.begin(e)
	err := e.Carry(t.Context())
	require.Error(t, err)
	require.NoError(t, e.HoldFor(err))
	e = h.engine()
	h.write(filepath.Join(h.l.Home, "mended"), "")
	require.NoError(t, e.Resume())
	require.NoError(t, e.Recover()) // as `run` does
	require.NoError(t, e.Carry(t.Context()))
	assert.Equal(t, "1 v2\n2 v2\n", h.read(filepath.Join(h.l.Home, "calls")))
	assert.Len(t, h.snaps.calls, 1)
}

// An environment that has room for more is not written into: another program may be given the same.
func TestHookEnvironmentIsItsOwn(t *testing.T) {
	h := newHome(t)
	e := h.engine()
	shared := make([]string, 1, 8)
	shared[0] = "A=1"
	e.Env = func(version.Version) []string { return shared }
	e.j.Upgrade = &Upgrade{Tries: 3}
	first := e.hookEnv(version.Genesis)
	e.j.Upgrade.Tries = 4
	second := e.hookEnv(version.Genesis)
	assert.Equal(t, []string{"A=1", "SUPERVISOR_ATTEMPT=3"}, first)
	assert.Equal(t, []string{"A=1", "SUPERVISOR_ATTEMPT=4"}, second)
}

// An operator's plan is written where a new binary's store loader reads it, under the name that the node knows, but only
// if the node has not written one for that height or a later one.
func TestAnOperatorsPlanForTheStoreLoader(t *testing.T) {
	mine := `{"name":"V2","time":"0001-01-01T00:00:00Z","height":100}`
	for name, c := range map[string]struct {
		there, want string // "" = no file
	}{
		"none":         {"", mine},
		"a lower one":  {`{"name":"v1","height":50}`, mine},
		"the same":     {`{"name":"V2","height":100,"info":"node's"}`, `{"name":"V2","height":100,"info":"node's"}`},
		"a later one":  {`{"name":"v3","height":101}`, `{"name":"v3","height":101}`},
		"garbage":      {`{"name":"v1","hei`, `{"name":"v1","hei`},
		"an empty one": {" ", " "},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.stage(staged, v2)
			if c.there != "" {
				h.write(h.l.Plan, c.there)
			}
			e := h.engine()
			p := plan.Plan{Name: "v2", RawName: "V2", Height: 100, Source: plan.FromOperator}
			require.NoError(t, e.Begin(p, plan.ByHeight, e.Checker.Check(t.Context(), staged), 99))
			require.NoError(t, e.Carry(t.Context()))
			assert.Equal(t, c.want, h.read(h.l.Plan))
			assert.Contains(t, h.read(h.l.InfoPath(staged)), `"name":"v2"`, "Cosmovisor's trace has the version's name")
		})
	}
	for name, p := range map[string]plan.Plan{
		"applied by hand": {Name: "v2", Source: plan.FromOperator, Immediate: true},
		"timed":           {Name: "v2", Source: plan.FromOperator, Time: time.Now()},
		"the chain's":     {Name: "v2", Source: plan.FromChain, Height: 100},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.stage(staged, v2)
			e := h.engine()
			require.NoError(t, e.Begin(p, plan.ByOperator, e.Checker.Check(t.Context(), staged), 99))
			require.NoError(t, e.Carry(t.Context()))
			assert.NoFileExists(t, h.l.Plan)
		})
	}
}
