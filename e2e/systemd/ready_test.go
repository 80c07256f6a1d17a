//go:build e2e

package systemd

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/trace"
)

// The unit with every restriction is active once its node has lived a second, and not before.
func TestReadyOnceTheNodeLives(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab)
	n.install()
	n.systemctl("start", "--no-block")
	n.awaitActive()
	began := n.moment(t, n.name+".service", "InactiveExitTimestamp")
	ready := n.moment(t, n.name+".service", "ActiveEnterTimestamp")
	t.Logf("ready after %s", time.Duration(ready-began))
	assert.GreaterOrEqual(t, ready-began, time.Second.Nanoseconds(), "not before the node lived a second")
	assert.Greater(t, ready, n.await(trace.Start, "v1").Time)
	assert.Less(t, ready-began, (30 * time.Second).Nanoseconds())
	assert.Equal(t, nobody, n.run(t, "ps", "-o", "user=", "-p", n.property("MainPID")))
	n.systemctl("stop")
	assert.Equal(t, "success", n.property("Result"))
	n.oneNode()
}

// With ready = "healthy" a start lasts until the node's height was read: what is ordered after it finds a node that answers.
func TestReadyOnceTheNodeIsHealthy(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab)
	n.Tables["systemd"] = `ready = "healthy"`
	n.Env["START_DELAY"] = "3s"
	n.install()
	n.systemctl("start") // returns once the unit is active
	rpc := n.await(trace.RPC, "v1")
	assert.Greater(t, n.moment(t, n.name+".service", "ActiveEnterTimestamp"), rpc.Time)
}

// While an upgrade runs `systemctl status` says how far it is, and the unit stays active.
func TestStatusShowsThePhases(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab)
	n.Env["UPGRADE"] = "v2@200"
	// Each phase lasts longer than a busy machine takes for a look.
	n.Env["STOP_DELAY"], n.Env["PRE_UPGRADE_DELAY"] = "3s", "3s"
	n.Tables["upgrade.probation"] = `up = "3s"`
	n.Tables["upgrade"] = "delay = \"3s\"\ncustom_pre_upgrade = \"pre.sh\""
	n.put("cosmovisor/pre.sh", "#!/bin/sh\nsleep 3\n")
	n.install()
	n.systemctl("start")
	var texts []string
	wait(t, "the upgrade", func() bool {
		text := n.run(t, "systemctl", "show", "-p", "ActiveState", "-p", "StatusText", n.name+".service")
		if len(texts) == 0 || texts[len(texts)-1] != text {
			texts = append(texts, text)
		}
		assert.Contains(t, text+"\n", "ActiveState=active\n")
		return n.committed()
	})
	seen := strings.Join(texts, "\n")
	for _, text := range []string{
		"running, version genesis, height ", "upgrading to v2: staged reached", "upgrading to v2: stopped reached",
		"upgrading to v2: snapshotted reached", "upgrading to v2: switched reached", "v2 is on probation",
	} {
		assert.Contains(t, seen, text)
	}
	out := n.run(t, "systemctl", "status", "--no-pager", n.name+".service")
	assert.Contains(t, out, "Status: \"", out)
	n.oneNode()
}

// The journal has one record a line, with a priority, and the fields in the text; the node's lines are the node's own.
func TestJournal(t *testing.T) {
	t.Parallel()
	n := newNode(t, lab)
	n.Env["UPGRADE"], n.Env["LOG_HEIGHT"] = "v9@20", "true" // there is no v9: an error
	n.install()
	n.systemctl("start")
	n.awaitState("waiting-for-binary")
	n.systemctl("stop")

	type record struct {
		Message  string `json:"MESSAGE"`
		Priority string `json:"PRIORITY"`
		PID      string `json:"_PID"`
		Unit     string `json:"_SYSTEMD_UNIT"`
	}
	node := n.await(trace.Start, "v1").PID
	var ours, its []record
	for line := range strings.Lines(n.run(t, "journalctl", "-o", "json", "--no-pager", "-u", n.name+".service")) {
		var r record
		require.NoError(t, json.Unmarshal([]byte(line), &r), line)
		switch {
		case r.Unit != n.name+".service": // systemd's own, about the unit
		case r.PID == itoa(node):
			its = append(its, r)
		default:
			ours = append(ours, r)
		}
	}
	find := func(all []record, text string) record {
		i := slices.IndexFunc(all, func(r record) bool { return strings.Contains(r.Message, text) })
		require.GreaterOrEqual(t, i, 0, "%s: %+v", text, all)
		return all[i]
	}
	begun := find(ours, "running app")
	assert.Equal(t, "6", begun.Priority)
	assert.Regexp(t, `^INF running app path=/\S+/genesis/bin/simd args=`, begun.Message, "no time stamp: the journal has it")
	wanted := find(ours, "the height of a plan has come and it is not ready")
	assert.Equal(t, "3", wanted.Priority)
	assert.Contains(t, wanted.Message, " plan=v9 height=20 ")
	for _, r := range ours {
		assert.NotContains(t, r.Message, "\x1b", "no colour")
	}
	assert.Regexp(t, `^\S+ INF .*height=`, find(its, "height=").Message, "as the node wrote it")
	assert.Equal(t, "6", find(its, "height=").Priority)
}
