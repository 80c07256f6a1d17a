package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/internal/fakenode/build"
	"nodevisor/internal/proctest"
	"nodevisor/supervisor/home"
	"nodevisor/upgrade/version"
)

// running tells whether a supervisor says that its node runs.
func (p *patient) running() bool {
	_, out, _ := p.invoke("--json", "status")
	return strings.Contains(out, `"state": "running"`)
}

// eventually waits for a fact, bounded for a busy machine.
func eventually(t *testing.T, what string, fact func() bool) {
	t.Helper()
	require.Eventually(t, fact, patience, 20*time.Millisecond, "%s", what)
}

// spawn starts a process that is killed at the test's end.
func spawn(t *testing.T, cmd *exec.Cmd) *os.Process {
	t.Helper()
	require.NoError(t, cmd.Start())
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	return cmd.Process
}

func TestDoctorSaysWhoHoldsTheLock(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	p.dir(p.l.State())
	lock, err := home.AcquireLock(p.l.LockPath())
	require.NoError(t, err)
	d := p.doctor()
	d.says("lock", "unknown", fmt.Sprintf("held by process %d", os.Getpid()), "supervisor status")
	d.says("next start", "FAIL", "refuses", "supervisor status")

	// A process that inherited the lock, as a node does; its supervisor goes.
	node := exec.Command("sleep", "300")
	node.ExtraFiles = []*os.File{lock.File()}
	pid := spawn(t, node).Pid
	require.NoError(t, lock.SetNode(pid))
	require.NoError(t, lock.Close())
	d = p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("lock", "FAIL", fmt.Sprintf("node pid %d of an earlier supervisor still runs", pid), "supervisor --takeover run")
	d.says("next start", "FAIL", "refuses: node pid", "--takeover")

	// Nobody is recorded, and yet somebody has it.
	require.NoError(t, os.WriteFile(p.l.LockPath(), []byte("{}"), 0o600))
	d = p.doctor()
	d.says("lock", "FAIL", "left behind", "--takeover")
}

func TestDoctorFindsAForeignNode(t *testing.T) {
	p := newPatient(t)
	build.Install(t, p.l.Binary(version.Genesis), "v1")
	p.link("genesis")
	pid := spawn(t, exec.Command(p.l.Binary(version.Genesis), "start", "--home", p.home, "--block-time", "0")).Pid
	eventually(t, "the node holds its store", func() bool {
		found, err := home.FindForeign(p.l.Root, p.l.DataDir())
		return err == nil && len(found) == 1
	})
	d := p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("foreign node", "FAIL", "process "+strconv.Itoa(pid), "supervisor --takeover run")
	d.says("next start", "FAIL", "refuses: process "+strconv.Itoa(pid), "--takeover")
}

// Beside a Cosmovisor at work nothing is wrong yet: what comes after its stop is foretold.
func TestDoctorBesideCosmovisor(t *testing.T) {
	p := newPatient(t)
	build.Install(t, p.l.Binary(version.Genesis), "v1")
	p.link("genesis")
	old := filepath.Join(t.TempDir(), "cosmovisor")
	require.NoError(t, os.WriteFile(old, fmt.Appendf(nil, "#!/bin/sh\ntrap 'kill $node; wait; exit' TERM\n%s start --home %s --block-time 0 &\nnode=$!\nwait\n",
		p.l.Binary(version.Genesis), p.home), 0o755))
	boss := exec.Command(old)
	require.NoError(t, boss.Start())
	t.Cleanup(func() { _ = boss.Process.Signal(unix.SIGTERM); _ = boss.Wait() })
	eventually(t, "the node runs", func() bool {
		found, err := home.FindForeign(p.l.Root, p.l.DataDir())
		return err == nil && len(found) == 1
	})
	d := p.doctor()
	assert.Equal(t, cli.ExitOK, d.code)
	d.says("foreign node", "ok", fmt.Sprintf("under Cosmovisor, process %d", boss.Process.Pid), "before the first start")
	d.says("next start", "ok", fmt.Sprintf("once Cosmovisor (process %d) is stopped: starts genesis", boss.Process.Pid), "")
}

// Beside a real run, and after a kill -9 of it, which leaves the node.
func TestDoctorBesideARun(t *testing.T) {
	p := newPatient(t, "SUPERVISOR_NODE_STOP_TIMEOUT=5s", "FAKENODE_BLOCK_TIME=50ms", "GORACE=atexit_sleep_ms=0")
	p.env = append(p.env, "FAKENODE_RPC=unix://"+filepath.Join(t.TempDir(), "rpc.sock"))
	build.Install(t, p.l.Binary(version.Genesis), "v1")
	program, err := exec.LookPath("supervisor") // the test binary under the program's name: see TestMain
	require.NoError(t, err)
	run := exec.Command(program, "run", "start", "--home", p.home)
	run.Env = p.env
	process := spawn(t, run)
	var node int
	eventually(t, "the node runs", func() bool {
		info, err := home.ReadLock(p.l.LockPath())
		if err == nil && info.Node != nil {
			node = info.Node.Pid
		}
		return node > 0 && p.running()
	})
	t.Cleanup(func() {
		_ = unix.Kill(node, unix.SIGKILL)
		eventually(t, "the node is gone", func() bool { return !proctest.Alive(node) }) // it writes to the home until then
	})
	d := p.doctor()
	assert.Equal(t, cli.ExitOK, d.code)
	d.says("supervisor", "ok", "running, ", "")
	d.says("lock", "ok", fmt.Sprintf("held by the running supervisor, process %d, with its node, process %d", process.Pid, node), "")
	d.says("foreign node", "ok", "none", "")
	d.says("next start", "ok", "none is due", "")

	require.NoError(t, process.Kill())
	eventually(t, "the supervisor is gone", func() bool {
		info, err := home.ReadLock(p.l.LockPath())
		_, out, _ := p.invoke("--json", "status") // its threads may outlive its first one, and the socket them
		return err == nil && info.Supervisor == nil && strings.Contains(out, `"state": "stopped"`)
	})
	d = p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("supervisor", "ok", "none is running", "")
	d.says("lock", "FAIL", fmt.Sprintf("node pid %d of an earlier supervisor still runs", node), "--takeover")
}

func TestStagingMustNotCrossFileSystems(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	p.stage("upgrades/v2")
	p.doctor().says("staging", "ok", "on the file system of upgrades/", "")
	p.dir(p.l.Dir("upgrades/v3"))
	far := filepath.Join(p.l.Dir("upgrades/v3"), "bin")
	require.NoError(t, os.Symlink("/proc", far))
	d := p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("staging", "FAIL", far+" is on another", "no mount, no link")
}

func TestTheClockIsComparedWithTheRecord(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	p.record(5, time.Now().Add(time.Hour))
	d := p.doctor()
	assert.Equal(t, cli.ExitFailed, d.code)
	d.says("clock", "FAIL", "behind the time when the last height was read", "timedatectl")
}
