//go:build e2e

package systemd

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
)

// feeder installs a unit that belongs to the node: it writes down when it starts and when it was stopped.
func (n *node) feeder() (name string, lives func() (started, stopped []int64)) {
	n.Helper()
	name = n.name + "-feeder.service"
	log := func(what string) string { return filepath.Join(n.dir, "supervisor", "feeder-"+what) }
	inside := func(what string) string { return n.home + "/supervisor/feeder-" + what }
	require.NoError(n, os.MkdirAll(filepath.Dir(log("")), 0o755))
	n.unit(n.T, name, `[Service]
ExecStart=/bin/sh -c 'date +%%s%%N >>`+inside("started")+`; exec sleep infinity'
ExecStopPost=/bin/sh -c 'date +%%s%%N >>`+inside("stopped")+`'
`)
	n.run(n.T, "systemctl", "start", name)
	n.Cleanup(func() { n.try("systemctl", "stop", name) })
	read := func(what string) (all []int64) {
		text, _ := os.ReadFile(log(what))
		for line := range strings.FieldsSeq(string(text)) {
			at, err := strconv.ParseInt(line, 10, 64)
			require.NoError(n, err)
			all = append(all, at)
		}
		return all
	}
	wait(n.T, "the feeder", func() bool { return len(read("started")) == 1 })
	n.Tables["[unit]"] = "[[unit]]\nname = \"" + name + "\"\nat = \"before-stop\"\naction = \"stop\"\n" +
		"[[unit]]\nname = \"" + name + "\"\nat = \"after-healthy\"\naction = \"start\""
	return name, func() (started, stopped []int64) { return read("started"), read("stopped") }
}

// A price feeder is down from before the node's stop until the new version answers, whether the node waits at the upgrade's
// height or has ended there.
func TestFeederIsDownDuringAnUpgrade(t *testing.T) {
	t.Parallel()
	for _, ending := range []string{"stay", "exit"} {
		t.Run(ending, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, lab)
			n.User = "" // root may
			n.Env["UPGRADE"], n.Env["AT_UPGRADE"], n.Env["PRE_UPGRADE_DELAY"] = "v2@60", ending, "500ms"
			name, lives := n.feeder()
			n.install()
			n.systemctl("start", "--no-block")
			n.converged()
			var started, stopped []int64
			wait(t, "the feeder", func() bool { started, stopped = lives(); return len(started) > 1 })
			require.Len(t, started, 2)
			require.Len(t, stopped, 1)
			assert.Equal(t, "active", n.show(name, "ActiveState"))
			if ending == "stay" {
				assert.Less(t, stopped[0], n.await(trace.Signal, "v1").Time, "before the node hears of its stop")
			}
			assert.Less(t, stopped[0], n.await(trace.PreUpgrade, "v2").Time, "before the data is migrated")
			assert.Greater(t, started[1], n.await(trace.RPC, "v2").Time, "only for a node that answers")
			n.systemctl("stop")
		})
	}
}

// A user without the right is refused: that is said, with what mends it, and the upgrade goes on.
func TestFeederWithoutTheRight(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab)
	n.Env["UPGRADE"] = "v2@60"
	name, lives := n.feeder()
	n.install()
	n.systemctl("start", "--no-block")
	n.converged()
	_, stopped := lives()
	assert.Empty(t, stopped)
	text := n.journal()
	assert.Contains(t, text, "another unit was not acted upon; going on without unit="+name+" action=stop")
	assert.Contains(t, text, "let the node's user do it with a rule of polkit for org.freedesktop.systemd1.manage-units")
	n.systemctl("stop")
}
