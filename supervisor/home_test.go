package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/build"
	"nodevisor/internal/fakenode/trace"
	"nodevisor/internal/proc"
	"nodevisor/internal/proctest"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade"
	"nodevisor/upgrade/source"
)

// patience is how long a fact is waited for. It is long: the machine may be busy, and only a failing test waits so long.
const patience = 30 * time.Second

// testHome is the home of one node, with fakenodes in Cosmovisor's tree.
type testHome struct {
	*testing.T
	runConfig
	dir   string
	trace string
	log   string
}

// newHome makes a home whose node is at version genesis (the program v1) and knows the given later versions, each staged.
// The node makes a block every 5 ms, and its RPC is a socket in the home.
func newHome(t *testing.T, versions ...string) *testHome {
	t.Helper()
	dir, err := os.MkdirTemp("", "sv-") // short: a socket's path has at most 107 bytes
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &testHome{T: t, dir: dir, trace: filepath.Join(dir, "trace"), log: filepath.Join(dir, "log")}
	h.runConfig = runConfig{Home: dir, Node: DefaultConfig(), Upgrade: upgrade.DefaultConfig(), Args: []string{"start"}}
	h.Node.Name, h.Node.Home = "simd", dir
	h.Node.StopTimeout, h.Node.Backoff = 20*time.Second, 20*time.Millisecond
	h.Upgrade.Probation.Up = 50 * time.Millisecond
	h.Upgrade.Probe = nil
	h.SnapshotOn = []string{"upgrade", "halt"}
	h.Env = append(os.Environ(), proctest.HelperEnv+"=", "DAEMON_HOME="+dir, "FAKENODE_TRACE="+h.trace)
	h.set("BLOCK_TIME", "5ms")
	h.write("config/config.toml", fmt.Sprintf("[rpc]\nladdr = %q\n", "unix://"+filepath.Join(dir, "rpc")))
	h.stage("genesis", "v1")
	for _, v := range versions {
		h.stage("upgrades/"+v, v)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(h.log)
			t.Logf("the log of %s:\n%s", t.Name(), tailOf(log, 6000))
		}
	})
	return h
}

// set gives the node a setting of fakenode's, by the name of its environment variable.
func (h *testHome) set(name, value string) { h.Env = append(h.Env, "FAKENODE_"+name+"="+value) }

// setOf is set for one version alone.
func (h *testHome) setOf(version, name, value string) {
	if h.EnvOf == nil {
		h.EnvOf = map[string][]string{}
	}
	h.EnvOf[version] = append(h.EnvOf[version], "FAKENODE_"+name+"="+value)
}

// stage puts a copy of the fakenode of a version into the tree: a link would be changed, by its count of names, with each
// other test's, also while it is verified. No fork has it open for writing, which would keep it from being executed.
func (h *testHome) stage(where, version string, opts ...build.Option) {
	h.Helper()
	bin := filepath.Join(h.dir, "cosmovisor", where, "bin", "simd")
	require.NoError(h, os.MkdirAll(filepath.Dir(bin), 0o755))
	data, err := os.ReadFile(build.Binary(h, version, opts...))
	require.NoError(h, err)
	syscall.ForkLock.RLock()
	err = os.WriteFile(bin+".new", data, 0o755)
	syscall.ForkLock.RUnlock()
	require.NoError(h, err)
	require.NoError(h, os.Rename(bin+".new", bin))
}

func (h *testHome) write(name, content string) {
	h.Helper()
	path := filepath.Join(h.dir, name)
	require.NoError(h, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(h, os.WriteFile(path, []byte(content), 0o644))
}

// gate keeps the node of version genesis from its first block until open is called: what is done before comes in time.
func (h *testHome) gate() (open func()) {
	h.Helper()
	bin := filepath.Join(h.dir, "cosmovisor/genesis/bin/simd")
	require.NoError(h, os.Link(bin, bin+".node"))
	h.script("while ! [ -e " + h.dir + "/open ]; do sleep 0.02; done\nexec " + bin + ".node \"$@\"\n")
	return func() { h.write("open", "") }
}

// runs waits until the node's process is there, and all of its start is recorded.
func (h *testHome) runs() *status.Document {
	h.Helper()
	return h.awaitStatus("it runs", func(st *status.Document) bool { return st.PID != nil })
}

// saidAt is when the log said a message first; ok is false where it never did.
func (h *testHome) saidAt(message string) (at time.Time, ok bool) {
	h.Helper()
	for line := range strings.Lines(h.lines()) {
		stamp, rest, found := strings.Cut(strings.TrimPrefix(line, "time="), " ")
		if !found || !strings.Contains(rest, message) {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, stamp)
		require.NoError(h, err, line)
		return at, true
	}
	return time.Time{}, false
}

// plan writes a plan into the node's file as another tool might, by a rename.
func (h *testHome) plan(name string, height int64) {
	h.Helper()
	h.write("data/.plan", fmt.Sprintf(`{"name":%q,"time":"0001-01-01T00:00:00Z","height":%d}`, name, height))
	require.NoError(h, os.Rename(filepath.Join(h.dir, "data/.plan"), h.layout().Plan))
}

// events returns what the nodes recorded so far.
func (h *testHome) events() []trace.Event {
	h.Helper()
	all, err := trace.Read(h.trace)
	require.NoError(h, err)
	return all
}

// count is how many events of that kind and version there are; version "" counts all.
func (h *testHome) count(kind trace.Kind, version string) int {
	n := 0
	for _, e := range h.events() {
		if build.Kind(kind, version)(e) {
			n++
		}
	}
	return n
}

// await waits for an event of that kind and version.
func (h *testHome) await(kind trace.Kind, version string) trace.Event {
	h.Helper()
	return build.WaitEvent(h, h.trace, patience, build.Kind(kind, version))
}

// awaitCount waits for the nth event of that kind and version.
func (h *testHome) awaitCount(n int, kind trace.Kind, version string) {
	h.Helper()
	h.wait(fmt.Sprintf("%d times %s of %q", n, kind, version), func() bool { return h.count(kind, version) >= n })
}

// wait waits for a fact that takes some work to look at.
func (h *testHome) wait(what string, fact func() bool) {
	h.Helper()
	for deadline := time.Now().Add(patience); !fact(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.Fail(h, "in vain", "%s after %s", what, patience)
		}
	}
}

func (h *testHome) current() string {
	v, err := h.layout().Current()
	if err != nil {
		return err.Error()
	}
	return v.Name()
}

func (h *testHome) history() []upgrade.Finished {
	h.Helper()
	all, err := upgrade.LoadHistory(h.layout().HistoryDir())
	require.NoError(h, err)
	return all
}

func (h *testHome) journal() upgrade.Journal {
	h.Helper()
	j, err := upgrade.LoadJournal(h.layout().JournalPath())
	require.NoError(h, err)
	return j
}

// awaitResult waits until the newest document of the history says so.
func (h *testHome) awaitResult(r upgrade.Result) upgrade.Finished {
	h.Helper()
	var last upgrade.Finished
	h.wait(string(r), func() bool {
		if all := h.history(); len(all) > 0 {
			last = all[0]
		}
		return last.Result == r
	})
	return last
}

// lines is what the supervisor and the node wrote to stderr.
func (h *testHome) lines() string {
	data, _ := os.ReadFile(h.log)
	return string(data)
}

// command is `run` for this home, not yet started; its log is the home's.
func (h *testHome) command() *exec.Cmd {
	h.Helper()
	config, err := json.Marshal(h.runConfig)
	require.NoError(h, err)
	cmd := exec.Command(os.Args[0])
	// Under the race detector a process waits a second at its end unless it is told not to.
	cmd.Env = append(os.Environ(), proctest.HelperEnv+"=run", runEnv+"="+string(config), "GORACE=atexit_sleep_ms=0 halt_on_error=1")
	log, err := os.OpenFile(h.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	require.NoError(h, err)
	h.Cleanup(func() { log.Close() })
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

func (h *testHome) client() *client.Client {
	return client.New(filepath.Join(h.layout().State(), "control.sock"))
}

// status asks the running supervisor; nil where it doesn't answer.
func (h *testHome) status() *status.Document {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	raw, err := h.client().Status(ctx)
	st := &status.Document{}
	if err != nil || json.Unmarshal(raw, st) != nil {
		return nil
	}
	return st
}

// awaitStatus waits until the status is as fact wants it.
func (h *testHome) awaitStatus(what string, fact func(*status.Document) bool) *status.Document {
	h.Helper()
	var st *status.Document
	h.wait(what, func() bool {
		st = h.status()
		return st != nil && fact(st)
	})
	return st
}

func (h *testHome) awaitState(state status.State) *status.Document {
	h.Helper()
	return h.awaitStatus(string(state), func(st *status.Document) bool { return st.State == state })
}

// do has the running supervisor do an operation.
func (h *testHome) do(op string, r client.Request) (client.Reply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return h.client().Do(ctx, op, r)
}

// raw marshals what a request to the store of snapshots says.
func raw(v map[string]any) json.RawMessage {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

// singleNode checks that no two nodes of the home ever ran at the same time: between two starts the first one's end is
// recorded, by itself or by whoever killed it.
func (h *testHome) singleNode() {
	h.Helper()
	var running []int
	for _, e := range h.events() {
		switch e.Kind {
		case trace.Start:
			assert.Empty(h, running, "node %d (%s) was started beside another", e.PID, e.Version)
			running = append(running, e.PID)
		case trace.Exit, killed:
			if len(running) > 0 && running[0] == e.PID {
				running = running[1:]
			}
		}
	}
}

// killed is the event that a test adds to the trace for a node that was killed.
const killed trace.Kind = "killed"

// signerHeight reads the signer's state of the home.
func (h *testHome) signerHeight() int64 {
	h.Helper()
	n, _, err := source.SignerHeight(h.dir)
	require.NoError(h, err)
	return n
}

func tailOf(data []byte, n int) []byte {
	if len(data) > n {
		data = data[len(data)-n:]
	}
	return bytes.TrimSpace(data)
}

// program builds cmd/supervisor, for what only the whole program shows.
func (h *testHome) program() string {
	h.Helper()
	path := filepath.Join(h.dir, "program")
	cmd := exec.Command("go", "build", "-o", path, "nodevisor/cmd/supervisor")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(h, proc.Run(cmd), &out)
	return path
}
