package source

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// start runs w until the test ends, and waits for its end.
func start(t *testing.T, w *Watcher) *Watcher {
	ctx, cancel := context.WithCancel(testContext(t))
	go w.run(ctx)
	t.Cleanup(func() {
		cancel()
		select {
		case <-w.Done():
		case <-time.After(patience):
			t.Error("the watcher did not end with its context")
		}
	})
	return w
}

func newTestWatcher(t *testing.T) *Watcher {
	log, _ := newLog()
	return newWatcher(20*time.Millisecond, log)
}

func await(t *testing.T, w *Watch) {
	t.Helper()
	select {
	case <-w.C():
	case <-time.After(patience):
		require.FailNow(t, "no event", "of %s", w.path)
	}
}

// awaitUntil takes events until ok, as a reader of the file would: it looks only after an event.
func awaitUntil(t *testing.T, w *Watch, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case <-w.C():
			if ok() {
				return
			}
		case <-deadline:
			require.FailNow(t, "no event after the last change", "of %s", w.path)
		}
	}
}

func awaitContent(t *testing.T, w *Watch, want string) {
	t.Helper()
	awaitUntil(t, w, func() bool {
		got, _ := os.ReadFile(w.path)
		return string(got) == want
	})
}

// settled waits until all that w was asked for is done, and takes the event that is left.
func settled(w *Watcher, watches ...*Watch) {
	done := make(chan struct{})
	w.do(func() { close(done) })
	<-done
	for _, t := range watches {
		select {
		case <-t.C():
		default:
		}
	}
}

func TestWatchBeginsWithAnEvent(t *testing.T) {
	checkLeaks(t)
	w := start(t, newTestWatcher(t))
	for name, path := range map[string]string{
		"file is there":   filepath.Join(t.TempDir(), "there"),
		"file is missing": filepath.Join(t.TempDir(), "missing"),
		"all is missing":  filepath.Join(t.TempDir(), "a/b/c/missing"),
	} {
		t.Run(name, func(t *testing.T) {
			if strings.HasSuffix(path, "there") {
				write(t, path, "x")
			}
			await(t, w.Watch(path))
		})
	}
	assert.Empty(t, w.Fallback())
}

func TestWatchSeesEveryKindOfChange(t *testing.T) {
	checkLeaks(t)
	dir := t.TempDir()
	path, other := filepath.Join(dir, "upgrade-info.json"), filepath.Join(dir, "upgrade-info.json.tmp")
	w := start(t, newTestWatcher(t))
	watch := w.Watch(path)
	settled(w, watch)

	write(t, path, "")
	awaitContent(t, watch, "")

	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(`{"name":`)
	require.NoError(t, err)
	awaitContent(t, watch, `{"name":`)
	_, err = f.WriteString(`"v2"}`)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	awaitContent(t, watch, `{"name":"v2"}`)

	write(t, other, "by rename")
	require.NoError(t, os.Rename(other, path))
	awaitContent(t, watch, "by rename")

	require.NoError(t, os.Chmod(path, 0o755))
	awaitUntil(t, watch, func() bool {
		info, err := os.Stat(path)
		return err == nil && info.Mode().Perm() == 0o755
	})

	require.NoError(t, os.Remove(path))
	awaitUntil(t, watch, func() bool {
		_, err := os.Stat(path)
		return os.IsNotExist(err)
	})

	write(t, path, "again")
	awaitContent(t, watch, "again")
}

func TestWatchIgnoresTheNeighbours(t *testing.T) {
	dir := t.TempDir()
	w := start(t, newTestWatcher(t))
	watch, neighbour := w.Watch(filepath.Join(dir, "upgrade-info.json")), w.Watch(filepath.Join(dir, "priv_validator_state.json"))
	settled(w, watch, neighbour)
	for range 10 {
		write(t, neighbour.path+".tmp", "x")
		require.NoError(t, os.Rename(neighbour.path+".tmp", neighbour.path))
	}
	await(t, neighbour) // the kernel keeps the order: what comes of the neighbour has come
	settled(w)
	select {
	case <-watch.C():
		t.Fatal("an event of another file")
	default:
	}
}

func TestWatchCoalesces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	w := start(t, newTestWatcher(t))
	watch := w.Watch(path)
	for range 100 {
		write(t, path, "x")
	}
	write(t, path, "last")
	awaitContent(t, watch, "last")
	assert.LessOrEqual(t, len(watch.C()), 1)
}

// A directory that is missing, replaced, renamed or swapped is the same path all the time.
func TestWatchFollowsThePath(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, home string){
		"data is made later": func(t *testing.T, home string) {
			require.NoError(t, os.Mkdir(filepath.Join(home, "data"), 0o755))
		},
		"home and data are made later": func(t *testing.T, home string) {
			require.NoError(t, os.Remove(home))
			require.NoError(t, os.MkdirAll(filepath.Join(home, "data"), 0o755))
		},
		"data is removed and made again": func(t *testing.T, home string) {
			require.NoError(t, os.Mkdir(filepath.Join(home, "data"), 0o755))
			require.NoError(t, os.RemoveAll(filepath.Join(home, "data")))
			require.NoError(t, os.Mkdir(filepath.Join(home, "data"), 0o755))
		},
		"data is renamed, another takes its place": func(t *testing.T, home string) {
			require.NoError(t, os.Mkdir(filepath.Join(home, "data"), 0o755))
			require.NoError(t, os.Mkdir(filepath.Join(home, "data.new"), 0o755))
			require.NoError(t, os.Rename(filepath.Join(home, "data"), filepath.Join(home, "data.old")))
			require.NoError(t, os.Rename(filepath.Join(home, "data.new"), filepath.Join(home, "data")))
		},
		"data becomes a link": func(t *testing.T, home string) {
			require.NoError(t, os.MkdirAll(filepath.Join(home, "disk1"), 0o755))
			require.NoError(t, os.Symlink("disk1", filepath.Join(home, "data")))
		},
		"data is a dangling link, then its target comes": func(t *testing.T, home string) {
			require.NoError(t, os.Symlink("../disk/data", filepath.Join(home, "data")))
			require.NoError(t, os.MkdirAll(filepath.Join(home, "../disk/data"), 0o755))
		},
		"the link is swapped": func(t *testing.T, home string) {
			for _, d := range []string{"disk1", "disk2"} {
				require.NoError(t, os.MkdirAll(filepath.Join(home, d), 0o755))
				require.NoError(t, os.Symlink(d, filepath.Join(home, d+".link")))
				require.NoError(t, os.Rename(filepath.Join(home, d+".link"), filepath.Join(home, "data")))
			}
		},
		"home itself is a link that is swapped": func(t *testing.T, home string) {
			require.NoError(t, os.Rename(home, home+"1"))
			require.NoError(t, os.Symlink(home+"1", home))
			require.NoError(t, os.MkdirAll(home+"2/data", 0o755))
			require.NoError(t, os.Symlink(home+"2", home+".link"))
			require.NoError(t, os.Rename(home+".link", home))
		},
	} {
		for _, slowly := range []bool{false, true} {
			t.Run(name+map[bool]string{false: ", at once", true: ", step by step"}[slowly], func(t *testing.T) {
				checkLeaks(t)
				home := filepath.Join(t.TempDir(), "home")
				require.NoError(t, os.Mkdir(home, 0o755))
				w := start(t, newTestWatcher(t))
				watch := w.Watch(filepath.Join(home, "data", "upgrade-info.json"))
				settled(w, watch)
				change(t, home)
				if slowly { // the new way must be watched, too, and not only be found in passing
					await(t, watch)
					settled(w, watch)
				}
				write(t, watch.path, "found")
				awaitContent(t, watch, "found")
				settled(w, watch)
				write(t, watch.path, "and found again")
				awaitContent(t, watch, "and found again")
				assert.Empty(t, w.Fallback())
			})
		}
	}
}

func TestWatchFollowsALinkedFile(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "elsewhere", "plan.json")
	write(t, target, "1")
	path := filepath.Join(dir, "upgrade-info.json")
	require.NoError(t, os.Symlink("elsewhere/plan.json", path))
	w := start(t, newTestWatcher(t))
	watch := w.Watch(path)
	settled(w, watch)
	write(t, target, "22")
	awaitContent(t, watch, "22")
}

// No event tells that a directory further up was renamed; the slow check does.
func TestWatchChecksTheWayUp(t *testing.T) {
	base := t.TempDir()
	w := newTestWatcher(t)
	w.check = 50 * time.Millisecond
	start(t, w)
	watch := w.Watch(filepath.Join(base, "a/b/data/f"))
	require.NoError(t, os.MkdirAll(filepath.Dir(watch.path), 0o755))
	settled(w, watch)
	require.NoError(t, os.Rename(filepath.Join(base, "a"), filepath.Join(base, "away")))
	await(t, watch)
	write(t, watch.path, "new")
	awaitContent(t, watch, "new")
}

func TestWatchesShareOneInotify(t *testing.T) {
	checkLeaks(t)
	before := inotifyWatches(t)
	base := t.TempDir()
	w := start(t, newTestWatcher(t))
	plan, schedule, state := w.Watch(base+"/data/plan"), w.Watch(base+"/supervisor/schedule"), w.Watch(base+"/data/state")
	write(t, plan.path, "p")
	write(t, schedule.path, "s")
	awaitContent(t, plan, "p")
	awaitContent(t, schedule, "s")
	settled(w, plan, schedule, state)
	assert.Len(t, inotifyWatches(t), len(before)+1, "instances")
	// Not at once: an event that is still in the queue may have a directory taken back and watched anew.
	require.Eventually(t, func() bool { return slices.Max(inotifyWatches(t)) == 2 }, patience, time.Millisecond, "one watch of each directory")
}

// inotifyWatches returns the number of watches of each inotify instance of this process.
func inotifyWatches(t *testing.T) (counts []int) {
	links, err := filepath.Glob("/proc/self/fd/*")
	require.NoError(t, err)
	for _, l := range links {
		if target, _ := os.Readlink(l); target == "anon_inode:inotify" {
			info, err := os.ReadFile(strings.Replace(l, "/fd/", "/fdinfo/", 1))
			require.NoError(t, err)
			counts = append(counts, strings.Count(string(info), "inotify wd:"))
		}
	}
	return counts
}

func TestWatchIsQuick(t *testing.T) {
	path := filepath.Join(t.TempDir(), "upgrade-info.json")
	log, _ := newLog()
	w := start(t, newWatcher(maxPoll, log))
	watch := w.Watch(path)
	settled(w, watch)
	var took []time.Duration
	for range 51 {
		began := time.Now()
		write(t, path, "x")
		await(t, watch)
		took = append(took, time.Since(began))
		settled(w, watch)
	}
	slices.Sort(took)
	t.Logf("write to event: median %v, p90 %v, max %v", took[25], took[45], took[50])
	// Polling would take half of its interval; on an idle machine an event takes far below 1 ms.
	assert.Less(t, took[25], maxPoll/8)
}
