package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"nodevisor/internal/fakenode/build"
	"nodevisor/internal/fakenode/trace"
)

// update rewrites the golden documents: go test ./cmd/supervisor -run TestScripts -update.
var update = flag.Bool("update", false, "rewrite testdata/golden")

// patience bounds every wait of a script. A wait ends as soon as its fact is there; the bound is for a busy machine. What
// hangs without one is ended at the limit of all tests (-timeout), with its output.
const patience = time.Minute

// TestMain makes the test binary the supervisor, too: a story's `supervisor` is a process of its own, built from exactly
// the code under test, with the race detector where the tests have it.
func TestMain(m *testing.M) {
	// A story waits for blocks, pauses and other processes most of its time: more of them at once than processors cost
	// nothing. -parallel on the command line, which is read later, wins.
	if err := flag.Set("test.parallel", strconv.Itoa(max(4, runtime.GOMAXPROCS(0)))); err != nil {
		panic(err)
	}
	testscript.Main(m, map[string]func(){"supervisor": main})
}

// TestScripts plays what operators live through: each file of testdata/script is one story, with real processes, real
// nodes, and a home of its own.
func TestScripts(t *testing.T) {
	t.Parallel()
	build.Binary(t, "v1") // the first one compiles the standard library where no cache has it; that is no story's time
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("..", "..", "testdata", "script"), RequireUniqueNames: true,
		Setup: prepareStory,
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"node": cmdNode, "home": cmdHome, "up": cmdUp, "sig": cmdSig, "ended": cmdEnded, "code": cmdCode, "type": cmdType,
			"waitstatus": cmdWaitStatus, "waitevent": cmdWaitEvent, "waitlog": cmdWaitLog, "killnode": cmdKillNode,
			"nodes": cmdNodes, "json": cmdJSON, "golden": cmdGolden, "keep": cmdKeep,
		},
	})
}

// story is what the commands of one script share.
type story struct {
	t    testing.TB
	work string
	runs map[string]*running
}

type storyKey struct{}

func storyOf(ts *testscript.TestScript) *story { return ts.Value(storyKey{}).(*story) }

// defaults make a story fast: blocks every 50 ms, a short probation, short pauses. A script changes what it is about.
var defaults = map[string]string{
	"DAEMON_NAME": "simd", "DAEMON_POLL_INTERVAL": "50ms", "DAEMON_GRPC_ADDRESS": "127.0.0.1:1",
	"SUPERVISOR_NODE_BACKOFF": "50ms", "SUPERVISOR_NODE_BACKOFF_MAX": "200ms", "SUPERVISOR_NODE_STOP_TIMEOUT": "10s",
	"SUPERVISOR_UPGRADE_PROBATION_UP": "300ms", "SUPERVISOR_SNAPSHOT_MIN_FREE": "1%",
	"FAKENODE_BLOCK_TIME": "50ms",
	// A node's line is many; a race detector that sleeps a second at each exit would make minutes of it.
	"GORACE": "atexit_sleep_ms=0", "NO_COLOR": "1",
}

// prepareStory gives a script its environment, and takes away every process that it leaves behind.
func prepareStory(env *testscript.Env) error {
	t, ok := env.T().(testing.TB)
	if !ok {
		return fmt.Errorf("%T is no testing.TB", env.T())
	}
	s := &story{t: t, work: env.WorkDir, runs: map[string]*running{}}
	env.Values[storyKey{}] = s
	for name, value := range defaults {
		env.Setenv(name, value)
	}
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("XDG_RUNTIME_DIR", filepath.Join(env.WorkDir, "run"))
	env.Setenv("DAEMON_HOME", filepath.Join(env.WorkDir, "home"))
	env.Setenv("FAKENODE_RPC", "unix://"+filepath.Join(env.WorkDir, "rpc.sock"))
	env.Setenv("FAKENODE_TRACE", filepath.Join(env.WorkDir, "trace"))
	env.Defer(s.cleanUp)
	return os.Mkdir(filepath.Join(env.WorkDir, "run"), 0o700)
}

// cleanUp ends what the story started: each by its pid, and a node only where its executable lies in the story's
// directory, because a pid of the record may be another's by now.
func (s *story) cleanUp() {
	for _, r := range s.runs {
		r.kill()
	}
	for _, pid := range s.aliveNodes() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// aliveNodes lists the processes of fakenodes in this story, from what they recorded themselves.
func (s *story) aliveNodes() (pids []int) {
	events, err := trace.Read(filepath.Join(s.work, "trace"))
	if err != nil {
		return nil
	}
	seen := map[int]bool{}
	for _, e := range events {
		exe, err := os.Readlink("/proc/" + strconv.Itoa(e.PID) + "/exe")
		if err == nil && !seen[e.PID] && strings.HasPrefix(exe, s.work) {
			seen[e.PID] = true
			pids = append(pids, e.PID)
		}
	}
	return pids
}

// cmdNode makes node binaries: node v2 v3=v2,v3 puts simd-v2, and simd-v3 that handles both upgrades, into $WORK.
func cmdNode(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	s := storyOf(ts)
	for _, arg := range args {
		version, handles, given := strings.Cut(arg, "=")
		var opts []build.Option
		if given {
			opts = append(opts, build.Handles(strings.Split(handles, ",")...))
		}
		// A link, not a copy: a file that was written a moment ago can't be executed while another goroutine forks (go#22315).
		link := filepath.Join(s.work, "simd-"+version)
		if _, err := os.Lstat(link); err == nil {
			continue
		}
		ts.Check(os.Symlink(build.Binary(s.t, version, opts...), link))
	}
}

// cmdHome makes a node's home at $DAEMON_HOME, with genesis installed and current linked: home v1.
func cmdHome(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	if len(args) != 1 {
		ts.Fatalf("usage: home VERSION")
	}
	cmdNode(ts, false, args)
	binary := filepath.Join(storyOf(ts).work, "simd-"+args[0])
	ts.Check(ts.Exec(binary, "init"))
	ts.Check(ts.Exec("supervisor", "init", binary))
}

func noNeg(ts *testscript.TestScript, neg bool) {
	if neg {
		ts.Fatalf("! makes no sense here")
	}
}
