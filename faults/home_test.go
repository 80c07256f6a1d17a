//go:build faults

package faults

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	fakenode "nodevisor/internal/fakenode/build"
	"nodevisor/internal/fakenode/trace"
	"nodevisor/internal/proc"
	"nodevisor/upgrade"
	"nodevisor/upgrade/version"
)

// patience is how long a life may take. It is long: the machine may be busy, and only a failing test waits so long.
const patience = time.Minute

// held is the code of a `run` that needs a person.
const held = 79

// story is one way for an upgrade to go: what the node and the supervisor are told, and how it ends.
type story struct {
	name string
	env  []string
	toml string
	done upgrade.Result // which result ends it

	script string // the custom pre-upgrade script; its story kills the supervisor alone: what it runs for the upgrade lives on
}

// stories are the two ends of an upgrade. The node announces v2 at height 4 and has a store loader, which needs the
// plan's file.
var stories = []story{
	{name: "upgrade", done: upgrade.ResultCommitted},
	{
		name: "roll-back", done: upgrade.ResultRolledBack,
		// No roll-back by itself without a known height: it is read from the node's lines, where it is never missed.
		env: []string{
			"SUPERVISOR_UPGRADE_ON_FAILURE=rollback", "SUPERVISOR_RESTART=always",
			"SUPERVISOR_HEIGHT_LOG=committed state height=(?P<height>[0-9]+)", "FAKENODE_LOG_HEIGHT=true",
		},
		toml: "[version.v2]\nenv = { FAKENODE_CRASH_AT_START = \"3\" }\n",
	},
}

// slow is an upgrade whose script and pre-upgrade take their time, and outlive the supervisor. The script says so where it is
// begun beside itself; flock(1) knows by a descriptor that also its child in a session of its own has.
var slow = story{
	name: "slow", done: upgrade.ResultCommitted, env: []string{"COSMOVISOR_CUSTOM_PREUPGRADE=slow.sh", "FAKENODE_PRE_UPGRADE_DELAY=150ms"},
	script: `#!/bin/sh
exec 9>>"$HOME/script"
flock -n 9 || echo "try $SUPERVISOR_ATTEMPT" >>"$HOME/overlap"
setsid sleep 0.2 &
wait
`,
}

// home is a node's home in a mount, and what is outside of it: what the node records, and what is logged.
type home struct {
	*testing.T
	story
	m     *mount
	dir   string         // as the programs see it
	below version.Layout // as it lies under the mount: to look at, uncounted and unhurt
	out   string         // the directory of trace and log

	snapshots string // where the store lies

	signed int64 // the highest height that the signer's state was seen at
	logged int64 // where the log of this life begins
	lives  []string
	gone   map[int]bool // nodes of earlier lives
}

// newHome makes a fresh home in the mount; it goes at the test's end.
func newHome(t *testing.T, m *mount, s story) *home {
	t.Helper()
	out, err := os.MkdirTemp("", "faults-home-")
	require.NoError(t, err)
	name := filepath.Base(out)[len("faults-home-"):]
	h := &home{T: t, story: s, m: m, dir: filepath.Join(m.dir, name), out: out, gone: map[int]bool{}}
	under := filepath.Join(m.below, name)
	h.below = version.Layout{Home: under, Root: filepath.Join(under, "cosmovisor"), Node: "simd", Plan: filepath.Join(under, "data", "upgrade-info.json")}
	h.snapshots = filepath.Join(h.below.State(), "snapshots")
	for version, program := range map[version.Version]string{"genesis": "v1", "upgrades/v2": "v2"} {
		at := h.below.Binary(version)
		shared := filepath.Join(m.below, program)
		if _, err := os.Stat(shared); err != nil {
			fakenode.Install(t, shared, program)
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o755))
		require.NoError(t, os.Link(shared, at))
	}
	require.NoError(t, os.MkdirAll(filepath.Join(under, "config"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(under, "config", "config.toml"), []byte("[rpc]\nladdr = \"unix://"+filepath.Join(out, "rpc")+"\"\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(out, "supervisor.toml"), []byte(s.toml), 0o600))
	if s.script != "" {
		require.NoError(t, os.WriteFile(filepath.Join(h.below.Root, "slow.sh"), []byte(s.script), 0o755))
	}
	t.Cleanup(func() {
		h.clearUp()
		os.RemoveAll(under)
		os.RemoveAll(out)
	})
	return h
}

// clearUp ends what still runs, and shows a failed test's log.
func (h *home) clearUp() {
	h.endLeftOvers()
	if h.Failed() {
		log, _ := os.ReadFile(filepath.Join(h.out, "log"))
		h.Logf("lives: %s\nthe log:\n%s", strings.Join(h.lives, "; "), log[:min(len(log), 12000)])
	}
}

// command is the built program with the home's configuration.
func (h *home) command(args ...string) *exec.Cmd {
	h.Helper()
	cmd := exec.Command(programs.supervisor, args...)
	log, err := os.OpenFile(filepath.Join(h.out, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	require.NoError(h, err)
	h.Cleanup(func() { log.Close() })
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + h.out, "XDG_RUNTIME_DIR=" + h.out, "SUPERVISOR_CONFIG=" + filepath.Join(h.out, "supervisor.toml"),
		"DAEMON_HOME=" + h.dir, "DAEMON_NAME=simd", "DAEMON_POLL_INTERVAL=20ms", "DAEMON_GRPC_ADDRESS=127.0.0.1:1",
		"SUPERVISOR_NODE_BACKOFF=10ms", "SUPERVISOR_NODE_BACKOFF_MAX=20ms", "SUPERVISOR_NODE_STOP_TIMEOUT=20s",
		"SUPERVISOR_UPGRADE_PROBATION_UP=30ms", "SUPERVISOR_SNAPSHOT_MIN_FREE=1%",
		"FAKENODE_TRACE=" + h.trace(), "FAKENODE_BLOCK_TIME=10ms", "FAKENODE_UPGRADE=v2@4", "FAKENODE_STORE_LOADER=true",
		"FAKENODE_TABLE_EVERY=2", "FAKENODE_TRACE_BLOCKS=true",
	}, h.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

func (h *home) trace() string { return filepath.Join(h.out, "trace") }

// events are what the nodes recorded.
func (h *home) events() []trace.Event {
	h.Helper()
	all, err := trace.Read(h.trace())
	require.NoError(h, err)
	return all
}

// live lets the program run until the story is over, when it is told to stop, or until it ends; and returns its exit code,
// -1 if it was killed, and how often the fault was met.
func (h *home) live(f fault) (code, hits int) {
	h.Helper()
	h.m.arm(h.T, f)
	cmd, ended := h.begin()
	asked, deadline := false, time.Now().Add(patience)
	for over := false; !over; {
		select {
		case <-ended:
			over = true
		case <-time.After(5 * time.Millisecond):
			if !asked && h.over(cmd.Process.Pid) {
				asked = true
				_ = syscall.Kill(cmd.Process.Pid, syscall.SIGTERM)
			}
			if time.Now().After(deadline) {
				_ = syscall.Kill(cmd.Process.Pid, syscall.SIGQUIT)
				<-ended
				require.Fail(h, "it neither ends nor gets done", f.String())
			}
		}
	}
	count, hits, first := h.m.met(h.T)
	h.m.arm(h.T, fault{})
	return h.ended(cmd, fmt.Sprintf("%s: %d of %d changes met, first %q", f, hits, count, first)), hits
}

// begin starts the program; the channel is closed at its end.
func (h *home) begin() (*exec.Cmd, <-chan struct{}) {
	h.Helper()
	cmd := h.command("run", "start")
	h.logged = h.logEnd()
	require.NoError(h, proc.Start(cmd))
	ended := make(chan struct{})
	go func() {
		_ = proc.Wait(cmd)
		close(ended)
	}()
	return cmd, ended
}

// ended takes away what an ended program left running, and looks at what it left on the disk.
func (h *home) ended(cmd *exec.Cmd, how string) (code int) {
	h.Helper()
	code = cmd.ProcessState.ExitCode()
	h.lives = append(h.lives, fmt.Sprintf("%s; code %d", how, code))
	h.endLeftOvers()
	h.invariants()
	for _, e := range h.events() {
		h.gone[e.PID] = true
	}
	return code
}

// over tells whether there is nothing more to come: the result is in the history, its snapshot is verified, and under this
// supervisor the version that won makes blocks, or (an old version) ended again at the plan's height, with its file written:
// one that an earlier kill cut off in the middle stays torn until then.
func (h *home) over(supervisor int) bool {
	winner := fakenode.Kind(trace.FirstBlock, "v2")
	if h.done != upgrade.ResultCommitted {
		winner = fakenode.Kind(trace.Exit, "v1")
	}
	if !h.finished() || h.done == upgrade.ResultCommitted && !h.verified() && !h.putOff() {
		return false
	}
	last := slices.IndexFunc(h.events(), func(e trace.Event) bool { return e.Version == "v2" })
	return slices.ContainsFunc(h.events()[max(0, last):], func(e trace.Event) bool { return e.PPID == supervisor && winner(e) })
}

// finished tells whether the history has the story's result, and the journal has let go of it.
func (h *home) finished() bool {
	all, err := upgrade.LoadHistory(h.below.HistoryDir())
	j, jerr := upgrade.LoadJournal(h.below.JournalPath())
	return err == nil && jerr == nil && len(all) > 0 && all[0].Result == h.done && j.Upgrade == nil
}

func (h *home) manifests() []string {
	found, _ := filepath.Glob(filepath.Join(h.snapshots, "*", "manifest.json"))
	return found
}

func (h *home) verified() bool {
	for _, path := range h.manifests() {
		if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), `"verified"`) {
			return true
		}
	}
	return false
}

// putOff tells whether the snapshot couldn't be verified and is tried again after minutes: the next life does it at once.
func (h *home) putOff() bool {
	log, _ := os.ReadFile(filepath.Join(h.out, "log"))
	return strings.Contains(string(log[h.logged:]), "cannot complete the snapshots; trying again")
}

func (h *home) logEnd() int64 {
	info, err := os.Stat(filepath.Join(h.out, "log"))
	require.NoError(h, err)
	return info.Size()
}

// endLeftOvers does what a service manager does after its main process is gone (KillMode=mixed): it kills what is left of
// the service, and waits until the home's lock is free. A child that is about to become the node may take a moment. In a story
// with a script it is more careless, as KillMode=process is: migrations go on.
func (h *home) endLeftOvers() {
	h.Helper()
	lock, err := os.OpenFile(filepath.Join(h.dir, "supervisor", "lock"), os.O_RDWR, 0)
	if err == nil {
		defer lock.Close()
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		left := 0
		require.NoError(h, proc.EachOrphan(func(pid int) {
			exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			migrates := h.script != "" && strings.HasSuffix(string(line), "\x00pre-upgrade\x00")
			if strings.HasPrefix(exe, h.dir+"/") && !migrates {
				left++
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}))
		if left == 0 && (lock == nil || unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil) {
			return
		}
		require.True(h, time.Now().Before(deadline), "something holds the lock")
	}
}

func statfs(path string) (st unix.Statfs_t, err error) {
	err = unix.Statfs(path, &st)
	return st, err
}
