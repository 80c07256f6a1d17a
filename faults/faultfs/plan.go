package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// kind is one way to change a file system.
type kind string

// The kinds of changes that are counted. Opening counts where it makes a file or opens one for writing.
const (
	fsync   kind = "fsync"
	rename  kind = "rename"
	symlink kind = "symlink"
	link    kind = "link"
	unlink  kind = "unlink"
	rmdir   kind = "rmdir"
	mkdir   kind = "mkdir"
	open    kind = "open"
	write   kind = "write"
	setattr kind = "setattr"
)

// errnos are the errors that an ACTION may name; "kill" is none of them.
var errnos = map[string]syscall.Errno{"EIO": syscall.EIO, "ENOSPC": syscall.ENOSPC, "EXDEV": syscall.EXDEV, "EROFS": syscall.EROFS}

// plan says which change fails, and counts.
type plan struct {
	program string // the executable whose changes count

	mu    sync.Mutex
	kinds map[kind]bool // nil = all
	n     int
	kill  bool
	errno syscall.Errno
	after time.Duration // how long it goes on failing
	until time.Time     // when that ends; zero = the nth change has not come
	count int
	hits  int
	first string // kind and path of the first hit
	dead  int    // the process that was killed: nothing of it counts or happens any more
}

// arm replaces the plan.
func (p *plan) arm(kinds, n, action, after string) error {
	count, err := strconv.Atoi(n)
	if err != nil {
		return err
	}
	duration, err := time.ParseDuration(after)
	if err != nil {
		return err
	}
	errno, known := errnos[action]
	if !known && action != "kill" {
		return fmt.Errorf("no such action: %s", action)
	}
	var set map[kind]bool
	if kinds != "any" {
		set = map[kind]bool{}
		for _, k := range strings.Split(kinds, ",") {
			set[kind(k)] = true
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kinds, p.n, p.kill, p.errno, p.after = set, count, !known, errno, duration
	p.until, p.count, p.hits, p.first, p.dead = time.Time{}, 0, 0, "", 0
	return nil
}

func (p *plan) state() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprintf("count %d hits %d %s", p.count, p.hits, p.first)
}

// meet is asked before each change: 0 lets it be made. thread is who makes it; FUSE names the thread, not the process.
func (p *plan) meet(thread uint32, k kind, path string) syscall.Errno {
	p.mu.Lock()
	defer p.mu.Unlock()
	task := "/proc/" + strconv.Itoa(int(thread))
	if exe, err := os.Readlink(task + "/exe"); err != nil || exe != p.program {
		return 0
	}
	process := processOf(task)
	if p.dead != 0 && process == p.dead {
		return syscall.EIO // its other threads may not have noticed yet
	}
	if p.kinds != nil && !p.kinds[k] {
		return 0
	}
	p.count++
	nth := p.n > 0 && p.count == p.n
	if !nth && (p.until.IsZero() || time.Now().After(p.until)) {
		return 0
	}
	if p.hits++; p.first == "" {
		p.first = string(k) + " " + path
	}
	if nth {
		p.until = time.Now().Add(p.after)
	}
	if p.kill {
		p.dead = process
		_ = syscall.Kill(process, syscall.SIGKILL)
		return syscall.EIO
	}
	return p.errno
}

// processOf reads to which process a thread belongs.
func processOf(task string) int {
	status, _ := os.ReadFile(task + "/status")
	for line := range strings.Lines(string(status)) {
		if id, ok := strings.CutPrefix(line, "Tgid:"); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(id))
			return n
		}
	}
	return 0
}
