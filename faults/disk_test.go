//go:build faults

package faults

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/internal/fakenode/trace"
	"nodevisor/internal/proc"
	"nodevisor/upgrade"
	"nodevisor/upgrade/version"
)

// disk is a small file system of its own for the supervisor's state, and what can become of one.
type disk struct {
	name  string
	mount func(t *testing.T, dir string)
	hurt  func(t *testing.T, dir string)
	mend  func(t *testing.T, dir string)
}

var disks = []disk{
	{"full", tmpfs("size=512k"), fill, unfill},
	{"out of inodes", tmpfs("size=16m,nr_inodes=200"), exhaust, unfill},
	{"frozen", loop, freeze("-f"), freeze("-u")},
}

// TestDisks lets the file system of the supervisor's state fail while the old version runs, until after its height has
// come: nothing is stopped for an upgrade that can't be recorded, the status goes on answering, and once the disk is well
// again the upgrade goes on by itself.
func TestDisks(t *testing.T) {
	for _, d := range disks {
		t.Run(d.name, func(t *testing.T) {
			h := newHome(t, plain(t), story{done: upgrade.ResultCommitted, env: []string{"FAKENODE_UPGRADE=v2@200"}})
			h.snapshots = t.TempDir() // on a disk that is well
			h.env = append(h.env, "SUPERVISOR_SNAPSHOT_DIR="+h.snapshots)
			state := h.below.State()
			require.NoError(t, os.MkdirAll(state, 0o750))
			d.mount(t, state)
			require.NoError(t, os.Chmod(state, 0o750))
			cmd := h.command("run", "start")
			require.NoError(t, proc.Start(cmd))
			ended := make(chan struct{})
			go func() { _ = proc.Wait(cmd); close(ended) }()
			await := func(what string, fact func() bool) {
				t.Helper()
				for deadline := time.Now().Add(patience); !fact(); time.Sleep(10 * time.Millisecond) {
					require.True(t, time.Now().Before(deadline), what)
				}
			}
			seen := func(k trace.Kind, version string) func() bool {
				return func() bool {
					for _, e := range h.events() {
						if e.Kind == k && e.Version == version {
							return true
						}
					}
					return false
				}
			}
			hurt := false
			t.Cleanup(func() {
				if hurt {
					d.mend(t, state)
				}
				_ = syscall.Kill(cmd.Process.Pid, syscall.SIGKILL)
				<-ended
			})
			await("it runs", seen(trace.FirstBlock, "v1"))
			node := h.events()[0].PID
			require.NoError(t, syscall.Kill(node, syscall.SIGSTOP), "its height must not come before the disk is hurt")
			await("it answers", func() bool { return h.status() != nil })
			require.False(t, seen(trace.Halted, "v1")())
			d.hurt(t, state)
			hurt = true
			require.NoError(t, syscall.Kill(node, syscall.SIGCONT))
			await("its height comes", seen(trace.Halted, "v1"))
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				st := h.status()
				require.NotNil(t, st, "the status answers")
				require.NotNil(t, st["pid"], "the node is left alone")
				current, err := h.below.Current()
				require.NoError(t, err)
				require.Equal(t, version.Version("genesis"), current)
			}
			d.mend(t, state)
			hurt = false
			await("it goes on by itself", func() bool { return h.over(cmd.Process.Pid) })
			require.NoError(t, syscall.Kill(cmd.Process.Pid, syscall.SIGTERM))
			<-ended
			assert.Zero(t, cmd.ProcessState.ExitCode())
			h.invariants()
			_, err := upgrade.LoadJournal(h.below.JournalPath())
			require.NoError(t, err)
		})
	}
}

// status is what the command prints, nil where it fails. It answers 3 where the supervisor is held.
func (h *home) status() map[string]any {
	cmd := h.command("status", "--json")
	cmd.Stdout = nil
	out, err := proc.Output(h.Context(), cmd, 1<<20)
	var st map[string]any
	if err != nil || json.Unmarshal(out.Stdout, &st) != nil {
		return nil
	}
	return st
}

func tmpfs(options string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, options))
		t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	}
}

// loop mounts an ext4 of its own: tmpfs can't be frozen.
func loop(t *testing.T, dir string) {
	image := filepath.Join(t.TempDir(), "image")
	must(t, "truncate", "-s", "32M", image)
	must(t, "mkfs.ext4", "-q", image)
	must(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { must(t, "umount", "-l", dir) })
	require.NoError(t, os.Remove(filepath.Join(dir, "lost+found")))
}

func must(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	out, err := proc.Output(context.Background(), cmd, 1<<16) // also at the end
	require.NoError(t, err, "%s: %s", name, out.Stderr)
}

func freeze(how string) func(*testing.T, string) {
	return func(t *testing.T, dir string) { require.NoError(t, proc.Run(exec.Command("fsfreeze", how, dir))) }
}

// TestReadOnly: on a disk that can't be written no node is started, because nothing could be recorded of it; that is said,
// and once the disk is well the next start goes the whole way.
func TestReadOnly(t *testing.T) {
	h := newHome(t, plain(t), stories[0])
	state := h.below.State()
	require.NoError(t, os.MkdirAll(state, 0o750))
	tmpfs("size=16m,mode=0750")(t, state)
	require.NoError(t, unix.Mount("", state, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	code, _ := h.live(fault{})
	assert.Contains(t, []int{1, 78}, code)
	assert.Empty(t, h.events(), "no node ran")
	log, err := os.ReadFile(filepath.Join(h.out, "log"))
	require.NoError(t, err)
	assert.Contains(t, string(log), "read-only file system")
	assert.Contains(t, string(log), "Hint: ")
	require.NoError(t, unix.Mount("", state, "", unix.MS_REMOUNT, ""))
	h.recover()
}

// fill takes all room, exhaust all inodes, unfill gives both back.
func fill(t *testing.T, dir string) {
	f, err := os.Create(filepath.Join(dir, "filler-0"))
	require.NoError(t, err)
	defer f.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
}

func exhaust(t *testing.T, dir string) {
	for {
		f, err := os.CreateTemp(dir, "filler-")
		if err != nil {
			require.ErrorIs(t, err, syscall.ENOSPC)
			return
		}
		f.Close()
	}
}

func unfill(t *testing.T, dir string) {
	fillers, err := filepath.Glob(filepath.Join(dir, "filler-*"))
	require.NoError(t, err)
	require.NotEmpty(t, fillers)
	for _, path := range fillers {
		require.NoError(t, os.Remove(path))
	}
}
