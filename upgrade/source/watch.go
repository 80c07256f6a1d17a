package source

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// maxPoll bounds how late a change is seen where polling is all there is.
	maxPoll = 2 * time.Second
	minPoll = 10 * time.Millisecond

	// checkEvery is how often a watch that works is compared with the file system. It finds what inotify can't tell: a
	// directory further up that was renamed, a mount that came over the directory, a network share that was remounted.
	checkEvery = 30 * time.Second
)

// Watcher tells when files should be looked at again, all of them through one inotify instance.
//
// It promises: after a Watch is made, and after every change of its file that comes later, an event follows. Events carry
// nothing and are coalesced, so the reader reads the file itself and can't be misled by an order of events. Where the
// kernel tells of nothing (a limit is reached, a network file system) the Watcher polls, and says so once.
type Watcher struct {
	poll, check time.Duration
	log         *slog.Logger
	wake        chan struct{}
	done        chan struct{}
	reason      atomic.Pointer[string]

	mu    sync.Mutex
	calls []func() // what run must do next; so that Watch never waits for a disk

	// Only run touches what follows.
	events  *fsnotify.Watcher
	trouble string // why events is nil
	watches map[*Watch]struct{}
	dirs    map[string]watchedDir
	polling *time.Ticker

	// The two answers of the operating system that a test can't bring about everywhere.
	addDir func(w *fsnotify.Watcher, dir string) error
	kindOf func(dir string) string
}

// watchedDir is a directory that inotify was asked to watch.
type watchedDir struct {
	id     identity
	events bool   // inotify took it
	reason string // why its files are polled; "" = inotify alone is enough
}

// Watch is one watched file.
type Watch struct {
	path   string
	c      chan struct{}
	points []point
	sig    signature // when it was last looked at
	fresh  bool      // sig was so new that it may hide a second change
}

// NewWatcher starts a Watcher that ends with ctx. poll is the interval of the fallback; it is brought between 10 ms and 2 s.
func NewWatcher(ctx context.Context, poll time.Duration, log *slog.Logger) *Watcher {
	w := newWatcher(poll, log)
	go w.run(ctx)
	return w
}

func newWatcher(poll time.Duration, log *slog.Logger) *Watcher {
	if poll <= 0 {
		poll = maxPoll
	}
	return &Watcher{
		poll: min(max(poll, minPoll), maxPoll), check: checkEvery, log: log,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
		watches: map[*Watch]struct{}{}, dirs: map[string]watchedDir{},
		addDir: func(w *fsnotify.Watcher, dir string) error { return w.Add(dir) },
		kindOf: remoteKind,
	}
}

// Watch begins to watch path, absolute, of a file that may be missing, as may directories above it. The first event comes
// as soon as the watch stands: who reads the file after it misses nothing. It is watched as long as the Watcher lives. Watch
// never blocks.
func (w *Watcher) Watch(path string) *Watch {
	t := &Watch{path: filepath.Clean(path), c: make(chan struct{}, 1)}
	w.do(func() {
		w.watches[t] = struct{}{}
		w.settle()
		t.sig = signatureOf(t.path)
		t.emit()
	})
	return t
}

// C delivers "look again". It holds at most one event, and is never closed.
func (t *Watch) C() <-chan struct{} { return t.c }

func (t *Watch) emit() {
	select {
	case t.c <- struct{}{}:
	default: // the reader has one waiting, and will see this change too
	}
}

// Fallback says why files are being polled, or "" where the kernel tells of every change.
func (w *Watcher) Fallback() string {
	if r := w.reason.Load(); r != nil {
		return *r
	}
	return ""
}

// Done is closed once the Watcher's context has ended and everything it held is released.
func (w *Watcher) Done() <-chan struct{} { return w.done }

func (w *Watcher) do(f func()) {
	w.mu.Lock()
	w.calls = append(w.calls, f)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *Watcher) run(ctx context.Context) {
	defer close(w.done)
	defer w.close()
	w.polling = time.NewTicker(w.poll)
	w.polling.Stop()
	defer w.polling.Stop()
	check := time.NewTicker(w.check)
	defer check.Stop()
	w.open()
	for {
		var events chan fsnotify.Event
		var errs chan error
		if w.events != nil {
			events, errs = w.events.Events, w.events.Errors
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
			w.mu.Lock()
			calls := w.calls
			w.calls = nil
			w.mu.Unlock()
			for _, f := range calls {
				f()
			}
		case ev, ok := <-events:
			if ok {
				w.handle(ev)
			} else {
				w.lost("file events ended")
			}
		case err, ok := <-errs:
			if ok {
				w.recover(err)
			}
		case <-w.polling.C:
			w.lookAtPolled()
		case <-check.C:
			w.verify()
		}
		w.report()
	}
}

// open makes the inotify instance. Without one every file is polled, and verify tries again.
func (w *Watcher) open() {
	events, err := fsnotify.NewWatcher()
	if err != nil {
		w.trouble = err.Error()
		return
	}
	w.events, w.trouble = events, ""
}

func (w *Watcher) close() {
	if w.events != nil {
		w.events.Close()
		w.events = nil
	}
}

func (w *Watcher) lost(why string) {
	w.close()
	w.trouble = why
	clear(w.dirs)
	w.rescan()
}

// handle passes an event on to the watches that it concerns.
func (w *Watcher) handle(ev fsnotify.Event) {
	ev.Name = filepath.Clean(ev.Name) // fsnotify says "//name" of a name in the root directory
	moved := ev.Op&(fsnotify.Create|fsnotify.Remove|fsnotify.Rename) != 0
	if _, ok := w.dirs[ev.Name]; ok && moved {
		// The directory itself went, or another came under its name: fsnotify has let go of it, or will.
		w.forget(ev.Name)
	}
	var hit []*Watch
	for t := range w.watches {
		if slices.ContainsFunc(t.points, func(p point) bool { return ev.Name == p.path() || ev.Name == p.dir }) {
			hit = append(hit, t)
		}
	}
	if len(hit) == 0 {
		return
	}
	if moved {
		w.settle()
	}
	for _, t := range hit {
		t.sig = signatureOf(t.path)
		t.emit()
	}
}

// recover follows an error of inotify. Above all the queue's overflow: which events were dropped is not known.
func (w *Watcher) recover(err error) {
	say := w.log.Warn
	if errors.Is(err, fsnotify.ErrEventOverflow) {
		say = w.log.Debug // a busy directory's doing, and mended by what follows
	}
	say("file events were lost, looking at every watched file", "error", err)
	for dir := range w.dirs {
		w.forget(dir)
	}
	w.rescan()
}

// rescan follows every path anew and has every file read again.
func (w *Watcher) rescan() {
	w.settle()
	for t := range w.watches {
		t.sig = signatureOf(t.path)
		t.emit()
	}
}

// lookAtPolled compares the files that inotify doesn't cover.
func (w *Watcher) lookAtPolled() {
	for t := range w.watches {
		if !slices.ContainsFunc(t.points, func(p point) bool { return w.dirs[p.dir].reason != "" }) {
			continue
		}
		sig := signatureOf(t.path)
		if sig == t.sig && !t.fresh {
			continue
		}
		// The kernel's clock ticks every few milliseconds, and another change in the same tick could leave the same
		// signature: a fresh one is looked at once more.
		age := time.Since(time.Unix(sig.ctime.Unix()))
		t.fresh = sig != t.sig && age >= 0 && age < w.poll
		w.settle() // the way to it may have changed too
		t.sig = sig
		t.emit()
	}
}

// verify repairs what no event told of: it tries again what failed, and compares directories and files with what is known.
func (w *Watcher) verify() {
	if w.events == nil {
		if w.open(); w.events != nil {
			clear(w.dirs)
		}
	}
	for dir, d := range w.dirs {
		if !d.events {
			delete(w.dirs, dir)
		}
	}
	before := map[*Watch][]point{}
	for t := range w.watches {
		before[t] = t.points
	}
	w.settle()
	for t := range w.watches {
		if sig := signatureOf(t.path); sig != t.sig || !slices.Equal(before[t], t.points) {
			t.sig = sig
			t.emit()
		}
	}
}

// settle makes the watched directories those that the paths lead through. A path may change between being followed and
// being watched, so it is followed again until both agree; what changes all the time is polled.
func (w *Watcher) settle() {
	const tries = 8
	for try := range tries {
		want := map[string]identity{}
		for t := range w.watches {
			t.points = pointsOf(t.path)
			for _, p := range t.points {
				want[p.dir] = p.id
			}
		}
		if !w.sync(want, try == tries-1) {
			return
		}
	}
}

// sync adds and removes watches of directories, and tells whether there was anything to do. Removal comes first: two
// names of one directory share one watch in the kernel. A directory that is gone meanwhile is followed again, but at last.
func (w *Watcher) sync(want map[string]identity, last bool) (changed bool) {
	for dir, d := range w.dirs {
		if id, ok := want[dir]; !ok || id != d.id {
			w.forget(dir)
			changed = true
		}
	}
	for dir, id := range want {
		if _, ok := w.dirs[dir]; ok {
			continue
		}
		changed = true
		d, err := w.add(dir)
		if (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)) && !last {
			continue
		}
		d.id = id
		w.dirs[dir] = d
	}
	return changed
}

func (w *Watcher) add(dir string) (watchedDir, error) {
	if w.events == nil {
		return watchedDir{reason: w.trouble}, nil
	}
	if err := w.addDir(w.events, dir); err != nil {
		return watchedDir{reason: dir + ": " + err.Error()}, err
	}
	if kind := w.kindOf(dir); kind != "" {
		return watchedDir{events: true, reason: dir + ": file system is " + kind}, nil
	}
	return watchedDir{events: true}, nil
}

func (w *Watcher) forget(dir string) {
	if d := w.dirs[dir]; d.events && w.events != nil {
		_ = w.events.Remove(dir) // fails where the kernel has removed it already
	}
	delete(w.dirs, dir)
}

// report publishes why files are polled, logs the change of it, and runs the ticker only while it is needed.
func (w *Watcher) report() {
	reason := ""
	for _, d := range w.dirs {
		if d.reason != "" && (reason == "" || d.reason < reason) {
			reason = d.reason
		}
	}
	was := w.Fallback()
	if reason == was {
		return
	}
	w.reason.Store(&reason)
	switch {
	case was == "":
		w.polling.Reset(w.poll)
		w.log.Warn("files are polled: the system does not tell of their changes", "reason", reason, "poll", w.poll)
	case reason == "":
		w.polling.Stop()
		w.log.Info("files are no longer polled")
	}
}
