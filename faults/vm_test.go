//go:build faults && vm

package faults

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	fakenode "nodevisor/internal/fakenode/build"
	"nodevisor/internal/proc"
)

var machine = flag.String("vm", "", "the `directory` that vm/build.sh made")

// bootPatience is how long a virtual machine may take for a whole life: its processor is emulated, the machine below busy.
const bootPatience = 5 * time.Minute

// TestSoakVM cuts the power of a virtual machine at random moments of an upgrade, up to three times, for as long as -soak
// says: its kernel, and with it all that it hadn't written yet, is gone at once, and so is what its disk hadn't flushed.
// The next boot goes on.
func TestSoakVM(t *testing.T) {
	fakenode.Binary(t, "v1")
	random := rand.New(rand.NewPCG(*seed, 0))
	whole, cuts, rounds := 10*time.Second, 0, 0 // whole: from a node's start to the end; measured below
	for end := time.Now().Add(*soak); time.Now().Before(end) && !t.Failed(); rounds++ {
		k := kinds[rounds%2] // Debian's kernel needs more modules for the third
		k.size += 96 << 20   // the supervisor lies there, too
		t.Run(fmt.Sprintf("%04d-%s", rounds, k.name), func(t *testing.T) {
			v := newVM(t, k)
			for range 1 + random.IntN(3) {
				v.cutAfter(time.Duration(random.Int64N(int64(whole)*11/10)), random.Uint64()|1)
				cuts++
			}
			took := v.recover()
			whole = (whole + took) / 2
		})
	}
	report(t, "%d upgrades in a virtual machine, its power cut %d times (-seed %d)", rounds, cuts, *seed)
	assert.Positive(t, cuts)
}

// vm is a virtual machine whose disk is a device. It is mounted in the machine while that runs, else here.
type vm struct {
	*home
	d       *device
	console string
}

// script is what the machine runs. It stops the supervisor when there is nothing more to come, as far as can be seen there.
const script = `mkdir -p %[1]s
cp /data/supervisor.toml %[1]s/
export %[2]s
/data/supervisor run start &
pid=$!
trap 'kill $pid' TERM
while kill -0 $pid 2>/dev/null; do
	if grep -q '"result"' %[3]s/supervisor/history/* 2>/dev/null && grep -q '"verified"' %[3]s/supervisor/snapshots/*/manifest.json 2>/dev/null; then
		sleep 2
		kill $pid
		break
	fi
	sleep 0.2
done
wait $pid
`

func newVM(t *testing.T, k kind) *vm {
	t.Helper()
	d := newDevice(t, k)
	s := stories[0]
	s.env = append([]string{"FAKENODE_SYNC=true", "FAKENODE_BLOCK_TIME=200ms"}, s.env...)
	v := &vm{home: newHome(t, &mount{dir: "/data", below: d.dir}, s), d: d}
	v.console = filepath.Join(v.out, "console")
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(v.console)
			t.Logf("lives: %s\nthe console:\n%s", strings.Join(v.lives, "; "), text[:min(len(text), 20000)])
		}
	})
	exports := []string{"NO_COLOR=1"}
	for _, e := range v.command().Env {
		name, value, _ := strings.Cut(e, "=")
		switch name {
		case "PATH":
			value = "/bin"
		case "FAKENODE_TRACE":
			value = "/dev/hvc0" // what the world sees is outside of the machine
		}
		exports = append(exports, fmt.Sprintf("%s='%s'", name, value))
	}
	supervisor, err := os.ReadFile(programs.supervisor)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(d.dir, "supervisor"), supervisor, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(d.dir, "supervisor.toml"), []byte(s.toml), 0o600))
	run := fmt.Sprintf(script, v.out, strings.Join(exports, " "), v.dir)
	require.NoError(t, os.WriteFile(filepath.Join(d.dir, "run"), []byte(run), 0o755))
	return v
}

// boot starts the machine; the channel is closed at its end.
func (v *vm) boot() (*exec.Cmd, <-chan struct{}) {
	v.Helper()
	v.d.record(v.T, "life")
	v.d.detach(v.T)
	options := strings.TrimPrefix(v.d.options, "loop")
	cmd := exec.Command("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "512",
		"-nodefaults", "-display", "none", "-no-reboot", "-nic", "none",
		"-kernel", filepath.Join(*machine, "vmlinuz"), "-initrd", filepath.Join(*machine, "initrd.img"),
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check random.trust_cpu=on fs="+v.d.name+" options=rw"+options,
		// Its disk has a cache that is written back, and passes flushes on: what they are for is all that makes it keep a write.
		"-drive", "file="+v.d.file+",format=raw,if=virtio,cache=writeback",
		"-chardev", "file,id=console,append=on,path="+v.console, "-serial", "chardev:console",
		"-chardev", "file,id=trace,append=on,path="+v.trace(), "-device", "virtio-serial-pci", "-device", "virtconsole,chardev=trace")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(v, proc.Start(cmd))
	ended := make(chan struct{})
	go func() {
		_ = proc.Wait(cmd)
		close(ended)
	}()
	v.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if v.Failed() {
			v.Logf("qemu: %s", said.String())
		}
	})
	return cmd, ended
}

// started waits until a node was started in this life, or the machine ends.
func (v *vm) started(ended <-chan struct{}) time.Time {
	v.Helper()
	before := len(v.events())
	for deadline := time.Now().Add(bootPatience); len(v.events()) == before; {
		select {
		case <-ended:
			return time.Now()
		case <-time.After(20 * time.Millisecond):
		}
		require.True(v, time.Now().Before(deadline), "it doesn't boot")
	}
	return time.Now()
}

// cutAfter boots, and cuts the power that long after the node was started.
func (v *vm) cutAfter(d time.Duration, keep uint64) {
	v.Helper()
	cmd, ended := v.boot()
	v.started(ended)
	select {
	case <-ended:
	case <-time.After(d): // the moment is the test: there is no fact to wait for
	}
	_ = syscall.Kill(cmd.Process.Pid, syscall.SIGKILL)
	<-ended
	v.look(keep, fmt.Sprintf("cut %s after the node's start", d.Round(time.Millisecond)))
}

// look takes back what the disk's cache lost, and looks at the disk from here.
func (v *vm) look(keep uint64, how string) {
	v.Helper()
	flushes := v.d.end(v.T)
	_, kept, lost := v.d.cutDetached(v.T, "life", flushes, keep)
	v.lives = append(v.lives, fmt.Sprintf("%s: %d flushes, then %d sectors kept, %d lost", how, flushes, kept, lost))
	// A line that the machine was about to say is left for nobody.
	said, err := os.ReadFile(v.trace())
	require.NoError(v, err)
	require.NoError(v, os.Truncate(v.trace(), int64(bytes.LastIndexByte(said, '\n')+1)))
	v.invariants()
	for _, e := range v.events() {
		v.gone[e.PID] = true
	}
}

// recover boots until the story is over, and tells how long the last life took from its node's start.
func (v *vm) recover() (took time.Duration) {
	v.Helper()
	for try := 0; try < 3; try++ {
		_, ended := v.boot()
		begun := v.started(ended)
		select {
		case <-ended:
		case <-time.After(bootPatience):
			require.Fail(v, "it neither ends nor gets done")
		}
		took = time.Since(begun)
		v.look(1, "to its end")
		console, err := os.ReadFile(v.console)
		require.NoError(v, err)
		said := string(console)
		require.Regexp(v, `^ended 0\s`, said[max(0, strings.LastIndex(said, "ended ")):], "the supervisor ended well")
		if v.finished() {
			v.converged()
			return took
		}
	}
	require.Fail(v, "it doesn't converge")
	return 0
}
