//go:build e2e

package systemd

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/build"
	"nodevisor/internal/fakenode/trace"
)

// nobody is the user of nodes that aren't root's: one that every Debian has, with uid and gid 1.
const nobody, nobodyID = "daemon", 1

// nodes counts those that were made: a node's number is in its name and its port, and no two have the same one, for
// nodes of parallel tests may share a host.
var nodes atomic.Int32

// node is one node under the supervisor: its home, its unit, and what is known of both.
type node struct {
	*testing.T
	*host
	name string // of the unit, without .service
	dir  string // the home, as this machine sees it
	home string // and as the host does

	// What supervisor.toml says; a test changes it before it writes the unit.
	Env    map[string]string            // the node's, without FAKENODE_
	EnvOf  map[string]map[string]string // for one version
	Tables map[string]string            // further lines of a table, by its name: "upgrade"
	Stop   string                       // stop_timeout
	User   string                       // of the unit; "" = root
}

// newNode makes the home of a node at version genesis (the program v1), for which v2 is staged. It makes a block every
// 20 ms.
func newNode(t *testing.T, h *host) *node {
	t.Helper()
	number := int(nodes.Add(1))
	name := "n" + strconv.Itoa(number)
	n := &node{
		T: t, host: h, name: name, dir: filepath.Join(work, name), home: shared + "/" + name, User: nobody, Stop: "20s",
		EnvOf: map[string]map[string]string{}, Tables: map[string]string{},
	}
	n.Env = map[string]string{"TRACE": n.home + "/trace", "BLOCK_TIME": "20ms", "TRACE_BLOCKS": "true"}
	n.Tables["upgrade.probation"] = `up = "1s"`
	n.put("config/config.toml", fmt.Sprintf("[rpc]\nladdr = \"tcp://127.0.0.1:%d\"\n", 20000+number))
	require.NoError(t, os.MkdirAll(n.dir+"/data", 0o755))
	n.stage("genesis", "v1")
	n.stage("upgrades/v2", "v2")
	t.Cleanup(func() {
		if t.Failed() {
			out, _, _ := h.try("journalctl", "-o", "short-precise", "--no-pager", "-n", "80", "-u", name+".service")
			text, _ := os.ReadFile(n.dir + "/trace")
			t.Logf("%s\nthe trace but for its blocks:\n%s", out, withoutBlocks(string(text)))
		}
		_, _, _ = h.try("systemctl", "kill", "--kill-who=all", "-s", "KILL", name+".service")
		_, _, _ = h.try("systemctl", "stop", name+".service")
	})
	return n
}

func withoutBlocks(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.Contains(line, `"event":"block"`) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// put writes a file of the home.
func (n *node) put(name, text string) {
	n.Helper()
	path := filepath.Join(n.dir, name)
	require.NoError(n, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(n, os.WriteFile(path, []byte(text), 0o755)) //nolint:gosec // scripts are among them
}

func (n *node) stage(where, version string) {
	n.Helper()
	build.Install(n, filepath.Join(n.dir, "cosmovisor", where, "bin", "simd"), version)
}

// configure writes supervisor.toml and hands the home to its user.
func (n *node) configure() {
	n.Helper()
	tables := map[string]string{
		"node": fmt.Sprintf("name = \"simd\"\nhome = %[1]q\nargs = [\"start\", \"--home\", %[1]q]\nstop_timeout = %[2]q\nbackoff = \"100ms\"\n%[3]s\nenv = %[4]s",
			n.home, n.Stop, n.Tables["node"], environment(n.Env)),
	}
	for version, env := range n.EnvOf {
		tables[fmt.Sprintf("version.%q", version)] = "env = " + environment(env)
	}
	for name, lines := range n.Tables {
		if name != "node" {
			tables[name] = lines
		}
	}
	var b strings.Builder
	for name, lines := range tables {
		if strings.HasPrefix(name, "[") { // of an array: the lines have their own header
			b.WriteString(lines + "\n")
			continue
		}
		fmt.Fprintf(&b, "[%s]\n%s\n", name, lines)
	}
	n.put("supervisor/supervisor.toml", b.String())
	require.NoError(n, os.Chmod(n.dir+"/supervisor/supervisor.toml", 0o644))
	n.own()
}

// own hands the home to the unit's user.
func (n *node) own() {
	n.Helper()
	if n.User == "" {
		return
	}
	require.NoError(n, filepath.WalkDir(n.dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, nobodyID, nobodyID)
	}))
}

func environment(env map[string]string) string {
	var all []string
	for name, value := range env {
		all = append(all, fmt.Sprintf("FAKENODE_%s = %q", name, value))
	}
	return "{ " + strings.Join(all, ", ") + " }"
}

// install writes the configuration and the unit that `supervisor unit` prints for it. lines are settings of [Service] that
// the test needs otherwise; the limit on files is what the booted host allows.
func (n *node) install(lines ...string) {
	n.Helper()
	n.configure()
	args := []string{"supervisor", "--home", n.home, "unit", "--hardening=strict"}
	if n.User != "" {
		args = append(args, "--user", n.User)
	}
	text := n.run(n.T, args...)
	n.installed(strings.Replace(text, "[Install]", strings.Join(append(lines, "LimitNOFILE=16384"), "\n")+"\n[Install]", 1))
}

// installed puts a unit as it is onto the host.
func (n *node) installed(text string) {
	n.Helper()
	n.unit(n.T, n.name+".service", text)
}

// systemctl does something to the unit that must succeed.
func (n *node) systemctl(verb string, more ...string) {
	n.Helper()
	n.run(n.T, append(append([]string{"systemctl", verb}, more...), n.name+".service")...)
}

// property reads one property of the unit.
func (n *node) property(name string) string { return n.show(n.name+".service", name) }

// status is what the tests read of the status.
type status struct {
	State      string `json:"state"`
	PID        int    `json:"pid"`
	Version    string `json:"version"`
	Message    string `json:"message"`
	Supervisor struct {
		PID int `json:"pid"`
	} `json:"supervisor"`
	Upgrade *struct {
		Phase string `json:"phase"`
	} `json:"upgrade"`
	Hold *struct {
		Reason string `json:"reason"`
		Hint   string `json:"hint"`
	} `json:"hold"`
}

// status asks the supervisor through its socket; the zero value where it doesn't answer.
func (n *node) status() (st status) {
	socket := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(n.dir, "supervisor", "control.sock"))
		},
	}}
	answer, err := socket.Get("http://supervisor/v1/status")
	if err != nil {
		return st
	}
	defer answer.Body.Close()
	_ = json.NewDecoder(answer.Body).Decode(&st)
	return st
}

func (n *node) awaitState(state string) (st status) {
	n.Helper()
	wait(n.T, "the state "+state, func() bool { st = n.status(); return st.State == state })
	return st
}

// awaitActive waits until the unit is active.
func (n *node) awaitActive() {
	n.Helper()
	wait(n.T, "an active unit", func() bool { return n.property("ActiveState") == "active" })
}

// events are what the node recorded.
func (n *node) events() []trace.Event {
	n.Helper()
	all, err := trace.Read(filepath.Join(n.dir, "trace"))
	require.NoError(n, err)
	return all
}

// count counts the events of a kind, of a version or ("") of all.
func (n *node) count(kind trace.Kind, version string) (count int) {
	n.Helper()
	for _, e := range n.events() {
		if build.Kind(kind, version)(e) {
			count++
		}
	}
	return count
}

// await waits for the first event of its kind, awaitNth for another one.
func (n *node) await(kind trace.Kind, version string) trace.Event {
	n.Helper()
	return n.awaitNth(1, kind, version)
}

func (n *node) awaitNth(nth int, kind trace.Kind, version string) (found trace.Event) {
	n.Helper()
	wait(n.T, fmt.Sprintf("event %d %s of %q", nth, kind, version), func() bool {
		seen := 0
		for _, e := range n.events() {
			if build.Kind(kind, version)(e) {
				if seen++; seen == nth {
					found = e
					return true
				}
			}
		}
		return false
	})
	return found
}

// processes counts the host's processes that run a node of this home.
func (n *node) processes() (pids []int) {
	n.Helper()
	dirs, _ := filepath.Glob(n.file("/proc/[0-9]*"))
	for _, dir := range dirs {
		exe, err := os.Readlink(dir + "/exe")
		if err != nil || !strings.Contains(exe, "/"+n.name+"/cosmovisor/") {
			continue
		}
		if args, err := os.ReadFile(dir + "/cmdline"); err == nil && strings.Contains(string(args), "\x00start") {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			pids = append(pids, pid)
		}
	}
	return pids
}

// oneNode checks that no two nodes of the home ran at the same time, that no height was signed twice, and that once v2 had
// begun to migrate no v1 was started. A node that was killed can't record its end: but one that lives makes blocks, and
// whatever it records once another has started gives it away.
func (n *node) oneNode() {
	n.Helper()
	running, migrated, signed := 0, false, int64(0)
	for _, e := range n.events() {
		switch e.Kind {
		case trace.Start:
			running = e.PID
			assert.False(n, migrated && e.Version == "v1", "the old node was started on migrated data")
			continue
		case trace.PreUpgrade:
			migrated = true
			continue
		case trace.Block:
			if e.Signed {
				assert.Greater(n, e.Height, signed, "signed again")
				signed = e.Height
			}
		case trace.Exit:
			assert.True(n, e.Code != 1 || n.Env["AT_UPGRADE"] == "exit", "a node could not open its store: another had it, or it was damaged")
		}
		assert.Equal(n, running, e.PID, "%s of node %d (%s) beside node %d", e.Kind, e.PID, e.Version, running)
	}
	assert.LessOrEqual(n, len(n.processes()), 1)
}
