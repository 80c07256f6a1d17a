package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/build"
	"nodevisor/internal/fakenode/trace"
)

// asNode makes the test binary itself a fakenode: its value is "version" or "version:handles".
const asNode = "NODEVISOR_TEST_AS_FAKENODE"

// patience bounds every wait. It is far more than anything here takes on a busy machine.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if linked := os.Getenv(asNode); linked != "" {
		version, handles, _ = strings.Cut(linked, ":")
		os.Exit(run(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// home is a node's home, and what its processes record.
type home struct {
	t          *testing.T
	dir, trace string
}

func newHome(t *testing.T) *home {
	t.Helper()
	dir := t.TempDir()
	return &home{t: t, dir: dir, trace: filepath.Join(t.TempDir(), "trace")}
}

// cmd prepares a command of that version; vars are NAME=value without the prefix.
func (h *home) cmd(version string, vars []string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	// A program under the race detector sleeps for a second before it exits, unless told not to.
	cmd.Env = append(cleanEnv(), "GORACE=atexit_sleep_ms=0", asNode+"="+version, "DAEMON_HOME="+h.dir, envPrefix+"TRACE="+h.trace)
	for _, v := range vars {
		cmd.Env = append(cmd.Env, envPrefix+v)
	}
	return cmd
}

// cleanEnv is this process's environment without anything that would steer a node.
func cleanEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, envPrefix) || strings.HasPrefix(e, "DAEMON_")
	})
}

// process is a node that runs.
type process struct {
	*exec.Cmd
	t    *testing.T
	out  string // the file with its stdout and stderr
	done chan struct{}
}

// start runs `start` with a block each 2 ms unless vars say otherwise.
func (h *home) start(version string, vars ...string) *process {
	h.t.Helper()
	return h.launch(h.cmd(version, append([]string{"BLOCK_TIME=2ms"}, vars...), "start"))
}

func (h *home) launch(cmd *exec.Cmd) *process {
	h.t.Helper()
	out, err := os.CreateTemp(h.t.TempDir(), "out")
	require.NoError(h.t, err)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(h.t, cmd.Start())
	require.NoError(h.t, out.Close())
	p := &process{Cmd: cmd, t: h.t, out: out.Name(), done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.done) }()
	h.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	})
	return p
}

// code waits for the end and returns the exit code; -1 is a signal.
func (p *process) code() int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.ProcessState.ExitCode()
	case <-time.After(patience):
		p.t.Fatalf("the node didn't end; its output:\n%s", p.output())
		return 0
	}
}

func (p *process) output() string {
	data, err := os.ReadFile(p.out)
	require.NoError(p.t, err)
	return string(data)
}

func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	require.NoError(p.t, p.Process.Signal(sig))
}

func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// event waits for an event of the process p.
func (h *home) event(p *process, kind trace.Kind) trace.Event {
	h.t.Helper()
	return build.WaitEvent(h.t, h.trace, patience, func(e trace.Event) bool {
		return e.Kind == kind && e.PID == p.Process.Pid
	})
}

func (h *home) events(kind trace.Kind) []trace.Event {
	h.t.Helper()
	events, err := trace.Read(h.trace)
	require.NoError(h.t, err)
	return slices.DeleteFunc(events, func(e trace.Event) bool { return e.Kind != kind })
}

// eventually waits until the condition holds.
func (h *home) eventually(what string, cond func() bool) {
	h.t.Helper()
	require.Eventually(h.t, cond, patience, 2*time.Millisecond, what)
}

// state opens the store at rest.
func (h *home) state() chainState {
	h.t.Helper()
	s, err := openStore(filepath.Join(h.dir, "data", "fake.db"), 100, false)
	require.NoError(h.t, err)
	defer s.close() //nolint:errcheck // read only
	return s.state
}

func (h *home) file(parts ...string) string {
	return filepath.Join(append([]string{h.dir}, parts...)...)
}

// httpStatus asks for /status and returns latest_block_height.
func httpStatus(t *testing.T, addr string) string {
	t.Helper()
	var got struct {
		Result struct {
			SyncInfo struct {
				Height     string `json:"latest_block_height"`
				CatchingUp bool   `json:"catching_up"`
			} `json:"sync_info"`
			NodeInfo struct{ Network string } `json:"node_info"`
		}
	}
	getJSON(t, "http://"+addr+"/status", &got)
	assert.Equal(t, "fakechain-1", got.Result.NodeInfo.Network)
	return got.Result.SyncInfo.Height
}

func getJSON(t *testing.T, url string, into any) {
	t.Helper()
	client := &http.Client{Timeout: patience}
	defer client.CloseIdleConnections()
	response, err := client.Get(url)
	require.NoError(t, err)
	defer response.Body.Close() //nolint:errcheck // read only
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.NoError(t, json.NewDecoder(response.Body).Decode(into))
}

// runToEnd runs one command and returns its streams and exit code.
func runToEnd(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestUnknownVariableIsAnError(t *testing.T) {
	h := newHome(t)
	_, stderr, code := runToEnd(t, h.cmd("v1", []string{"BLOKC_TIME=1s"}, "start"))
	assert.Equal(t, 2, code)
	assert.Contains(t, stderr, "unknown variable FAKENODE_BLOKC_TIME")
	_, stderr, code = runToEnd(t, h.cmd("v1", []string{"BLOCK_TIME=soon"}, "start"))
	assert.Equal(t, 2, code)
	assert.Contains(t, stderr, `FAKENODE_BLOCK_TIME="soon"`)
}

func TestEnvironmentWinsOverFlags(t *testing.T) {
	h := newHome(t)
	_, _, code := runToEnd(t, h.cmd("v1", []string{"CRASH_AT_START=7"}, "start", "--crash-at-start", "8"))
	assert.Equal(t, 7, code)
	_, _, code = runToEnd(t, h.cmd("v1", nil, "start", "--crash-at-start", "8"))
	assert.Equal(t, 8, code)
	_, _, code = runToEnd(t, h.cmd("v1", []string{"CRASH_AT_START="}, "start", "--crash-at-start=9"))
	assert.Equal(t, 9, code, "an empty variable is none")
	_, stderr, code := runToEnd(t, h.cmd("v1", nil, "start", "--no-such-flag"))
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "no-such-flag")
}

func TestHelpListsEveryVariable(t *testing.T) {
	h := newHome(t)
	stdout, _, code := runToEnd(t, h.cmd("v1", nil, "--help"))
	require.Zero(t, code)
	for _, name := range []string{"FAKENODE_UPGRADE", "FAKENODE_HALT_HEIGHT", "FAKENODE_PRE_UPGRADE_KILL_PARENT", "FAKENODE_RPC_LADDR"} {
		assert.Contains(t, stdout, "  "+name+"\n")
	}
	_, stderr, code := runToEnd(t, h.cmd("v1", nil, "dance"))
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, `unknown command "dance"`)
}

func TestParsePlans(t *testing.T) {
	for text, want := range map[string][]plan{
		"v2@32":                       {{Name: "v2", Height: 32}},
		`V2-Demo@1:{"a":"http://x/"}`: {{Name: "V2-Demo", Height: 1, Info: `{"a":"http://x/"}`}},
		"v2@32;v3@64:more":            {{Name: "v2", Height: 32}, {Name: "v3", Height: 64, Info: "more"}},
	} {
		got, err := parsePlans(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "v2", "v2@", "@32", "v2@0", "v2@-1", "v2@x", "v2@32;"} {
		_, err := parsePlans(text)
		assert.Error(t, err, fmt.Sprintf("%q", text))
	}
}

// freeAddress is a loopback address that nothing listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close() //nolint:errcheck // it held the port for a moment
	return l.Addr().String()
}
