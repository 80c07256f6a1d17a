package source

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// awaitFallback waits until polling is on or off.
func awaitFallback(t *testing.T, w *Watcher, on bool) {
	t.Helper()
	require.Eventually(t, func() bool { return (w.Fallback() != "") == on }, patience, time.Millisecond, "fallback %q", w.Fallback())
}

// The kernel refuses an inotify instance, because no more files may be open.
func TestWatchPollsWithoutInotify(t *testing.T) {
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "data", "upgrade-info.json")
	log, out := newLog()
	w := newWatcher(20*time.Millisecond, log)
	w.check = 50 * time.Millisecond

	var old unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	restore := func() { assert.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)) }
	t.Cleanup(restore)
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}))
	start(t, w)
	watch := w.Watch(path)
	await(t, watch)
	awaitFallback(t, w, true)
	assert.Contains(t, w.Fallback(), "too many open files")

	// None of these needs a descriptor.
	require.NoError(t, os.Mkdir(filepath.Dir(path), 0o755))
	require.NoError(t, os.Symlink("target", path))
	require.NoError(t, unix.Mknod(filepath.Dir(path)+"/target", unix.S_IFREG|0o644, 0))
	awaitUntil(t, watch, func() bool { _, err := os.Stat(path); return err == nil })
	require.NoError(t, os.Truncate(path, 7))
	awaitUntil(t, watch, func() bool { info, err := os.Stat(path); return err == nil && info.Size() == 7 })

	restore()
	awaitFallback(t, w, false)
	settled(w, watch)
	write(t, path, "by events again")
	awaitContent(t, watch, "by events again")
	assert.Equal(t, 1, out.count("files are polled"), "one warning")
	assert.Equal(t, 1, out.count("no longer polled"))
}

// namespaceEnv marks the process of a test that has the limits of inotify to itself.
const namespaceEnv = "SOURCE_TEST_NAMESPACE"

// ownLimits runs the test once more in a user namespace of its own, where a limit is nobody else's, and tells whether this is
// that process.
func ownLimits(t *testing.T) bool {
	t.Helper()
	if os.Getenv(namespaceEnv) != "" {
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), namespaceEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return false
}

// limit sets a limit of the namespace (namespaces(7), /proc/sys/user).
func limit(t *testing.T, name string, n int) {
	t.Helper()
	require.NoError(t, os.WriteFile("/proc/sys/user/"+name, fmt.Append(nil, n), 0))
}

// The kernel refuses an inotify instance to a user who has too many (fs.inotify.max_user_instances), then a watch to one who
// has too many of those (max_user_watches), until the limit is raised.
func TestWatchPollsWhatInotifyRefuses(t *testing.T) {
	if !ownLimits(t) {
		return
	}
	base := t.TempDir()
	log, out := newLog()
	w := newWatcher(20*time.Millisecond, log)
	w.check = 50 * time.Millisecond
	follows := func(watch *Watch) {
		t.Helper()
		for i := range 5 {
			write(t, watch.path, fmt.Sprint(i))
			awaitContent(t, watch, fmt.Sprint(i))
		}
	}
	limit(t, "max_inotify_instances", 0)
	require.NoError(t, os.MkdirAll(base+"/full", 0o755))
	require.NoError(t, os.MkdirAll(base+"/fine", 0o755))
	start(t, w)
	fine := w.Watch(base + "/fine/f")
	await(t, fine)
	awaitFallback(t, w, true)
	assert.Contains(t, w.Fallback(), "too many open files")
	follows(fine)
	limit(t, "max_inotify_instances", 100)
	awaitFallback(t, w, false)

	limit(t, "max_inotify_watches", slices.Max(inotifyWatches(t)))
	full := w.Watch(base + "/full/f")
	await(t, full)
	awaitFallback(t, w, true)
	assert.Contains(t, w.Fallback(), "no space left on device")
	follows(full)
	follows(fine)
	limit(t, "max_inotify_watches", 100)
	awaitFallback(t, w, false)
	write(t, full.path, "by events")
	awaitContent(t, full, "by events")
	assert.Equal(t, 2, out.count("files are polled"), "once for each")
}

// On a network file system inotify accepts the watch and stays silent about what other hosts do.
func TestWatchPollsRemoteFileSystems(t *testing.T) {
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "upgrade-info.json")
	w := newTestWatcher(t)
	w.kindOf = func(string) string { return "NFS" }
	w.addDir = func(*fsnotify.Watcher, string) error { return nil }
	start(t, w)
	watch := w.Watch(path)
	await(t, watch)
	awaitFallback(t, w, true)
	assert.Contains(t, w.Fallback(), "file system is NFS")
	write(t, path, "from another host")
	awaitContent(t, watch, "from another host")
	require.NoError(t, os.Remove(path))
	awaitUntil(t, watch, func() bool { _, err := os.Stat(path); return err != nil })
}

func TestRemoteKinds(t *testing.T) {
	for magic, want := range map[uint32]string{
		0x6969: "NFS", 0xff534d42: "CIFS", 0xfe534d42: "SMB", 0x517b: "SMB", 0x65735546: "FUSE", 0x01021997: "9p", // statfs(2)
		0xef53: "", 0x58465342: "", 0x9123683e: "", 0x794c7630: "", 0x01021994: "", // ext4, XFS, btrfs, overlay, tmpfs
	} {
		assert.Equal(t, want, remoteKinds[magic], "%#x", magic)
	}
	assert.Empty(t, remoteKind("/proc"))
	assert.Empty(t, remoteKind("/does/not/exist"))
}

func TestPollIntervalIsBounded(t *testing.T) {
	log, _ := newLog()
	for given, want := range map[time.Duration]time.Duration{
		-1: maxPoll, 0: maxPoll, time.Nanosecond: minPoll, 300 * time.Millisecond: 300 * time.Millisecond, time.Hour: maxPoll,
	} {
		assert.Equal(t, want, newWatcher(given, log).poll, "%v", given)
	}
}

// The kernel's queue overflows while we look away: the event that matters is among the dropped ones.
func TestWatchOverflow(t *testing.T) {
	checkLeaks(t)
	limit, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	require.NoError(t, err)
	events, err := strconv.Atoi(strings.TrimSpace(string(limit)))
	require.NoError(t, err)
	dir := t.TempDir()
	log, out := newLog()
	w := start(t, newWatcher(time.Second, log))
	watch := w.Watch(filepath.Join(dir, "upgrade-info.json"))
	settled(w, watch)

	release, blocked := make(chan struct{}), make(chan struct{})
	w.do(func() { close(blocked); <-release })
	<-blocked
	write(t, dir+"/a", "")
	write(t, dir+"/b", "")
	// The reader of the queue takes up to 4,096 events before it blocks; two names by turns, for the kernel merges what is equal.
	for range (events + 8192) / 2 {
		require.NoError(t, os.Chmod(dir+"/a", 0o600))
		require.NoError(t, os.Chmod(dir+"/b", 0o600))
	}
	write(t, watch.path, "dropped by the kernel")
	close(release)
	awaitContent(t, watch, "dropped by the kernel")
	assert.Equal(t, 1, out.count("queue"), "the overflow is logged")

	settled(w, watch)
	write(t, watch.path, "seen again")
	awaitContent(t, watch, "seen again")
	assert.Empty(t, w.Fallback())
}

func TestWatchRecoversFromErrors(t *testing.T) {
	log, out := newLog()
	w := start(t, newWatcher(time.Second, log))
	watch := w.Watch(filepath.Join(t.TempDir(), "f"))
	settled(w, watch)
	w.do(func() { w.recover(errors.New("short read")) })
	await(t, watch)
	assert.Equal(t, 1, out.count("short read"))
	settled(w, watch)

	// The instance itself ends: the files are polled until the check makes another one.
	w.do(func() { w.events.Close() })
	awaitFallback(t, w, true)
	write(t, watch.path, "polled")
	awaitContent(t, watch, "polled")
	w.do(func() { w.verify() })
	awaitFallback(t, w, false)
	settled(w, watch)
	write(t, watch.path, "event")
	awaitContent(t, watch, "event")
}

func TestWatchEnds(t *testing.T) {
	checkLeaks(t)
	for range 20 {
		w := newTestWatcher(t)
		t.Run("", func(t *testing.T) {
			start(t, w)
			w.Watch(t.TempDir() + "/x/y")
		})
		w.Watch("/tmp/late") // must not block
	}
}

// Whatever happens to the path, and in whatever order: who reads after each event ends with the last content.
func TestWatchMissesNothing(t *testing.T) {
	checkLeaks(t)
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for round := range 15 {
		home := filepath.Join(t.TempDir(), "home")
		require.NoError(t, os.MkdirAll(home+"/other", 0o755))
		w := start(t, newTestWatcher(t))
		watch := w.Watch(filepath.Join(home, "data", "upgrade-info.json"))
		tricks := []func(n int) error{
			func(int) error { return os.MkdirAll(home+"/data", 0o755) },
			func(n int) error { return os.Rename(home+"/data", fmt.Sprintf("%s/old%d", home, n)) },
			func(int) error { return os.RemoveAll(home + "/data") },
			func(int) error { return os.Symlink("other", home+"/data") },
			func(n int) error { return os.WriteFile(watch.path, fmt.Append(nil, n), 0o644) },
			func(int) error { return os.Remove(watch.path) },
			func(int) error { return os.WriteFile(home+"/other/upgrade-info.json", []byte("other"), 0o644) },
		}
		for n := range 60 {
			_ = tricks[rnd.IntN(len(tricks))](n) // many fail, as the one before left nothing to do
		}
		last := fmt.Sprintf("last of round %d", round)
		_ = os.MkdirAll(home+"/data", 0o755)
		write(t, watch.path, last)
		awaitContent(t, watch, last)
		assert.Empty(t, w.Fallback())
	}
}
