//go:build e2e

package systemd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// patience is how long a fact is waited for. It is long: the machine may be busy, and only a failing test waits so long.
const patience = 90 * time.Second

// host is a booted systemd in namespaces of its own.
type host struct {
	name  string
	binds string
	pid   int // of its systemd, as this machine counts

	reload sync.Mutex // systemd reads all units anew: one request at a time
}

// newHost describes a host that sees the directory work as shared.
func newHost(name, binds string) *host {
	return &host{name: fmt.Sprintf("%s-%d", name, os.Getpid()), binds: work + ":" + shared + " " + binds}
}

// bootFor boots a host for one test.
func bootFor(t *testing.T, binds string) *host {
	t.Helper()
	h := newHost(strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name())), binds)
	t.Cleanup(func() { assert.NoError(t, h.cut()) })
	require.NoError(t, h.up())
	return h
}

func (h *host) up() error {
	if err := script("up", []string{"SD_BIND=" + h.binds}, h.name); err != nil {
		return err
	}
	text, err := os.ReadFile("/run/nodevisor-test/" + h.name + "/pid")
	if err != nil {
		return err
	}
	h.pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	return err
}

// cut pulls the plug: everything on the host ends at once, by SIGKILL. What was written stays.
func (h *host) cut() error { return script("down", []string{"SD_FAST=1"}, h.name) }

func script(name string, env []string, args ...string) error {
	cmd := exec.Command("../../testdata/systemd/"+name+".sh", args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s.sh: %w\n%s", name, err, out)
	}
	return nil
}

// file is where this machine sees a file of the host.
func (h *host) file(path string) string { return fmt.Sprintf("/proc/%d/root%s", h.pid, path) }

// try runs a command on the host, for three minutes at most: a start of a node that never lives would last for ever.
func (h *host) try(args ...string) (stdout, stderr string, code int) {
	cmd := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(h.pid), "-a", "--", "timeout", "-k", "1", "180"}, args...)...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	code = cmd.ProcessState.ExitCode()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		return "", err.Error(), -1
	}
	return strings.TrimSpace(out.String()), errs.String(), code
}

// run is try for what must succeed.
func (h *host) run(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := h.try(args...)
	require.Zero(t, code, "%s\n%s%s", strings.Join(args, " "), out, errs)
	return out
}

// write puts a file onto the host.
func (h *host) write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(h.file(path)), 0o755))
	require.NoError(t, os.WriteFile(h.file(path), []byte(text), mode))
}

// unit installs a unit.
func (h *host) unit(t *testing.T, name, text string) {
	t.Helper()
	h.write(t, "/etc/systemd/system/"+name, text, 0o644)
	h.reload.Lock()
	defer h.reload.Unlock()
	h.run(t, "systemctl", "daemon-reload")
}

// show reads one property of a unit.
func (h *host) show(unit, property string) string {
	out, _, _ := h.try("systemctl", "show", "--timestamp=us", "-P", property, unit)
	return out
}

// moment reads a time stamp of a unit's as nanoseconds since 1970; 0 = it has none.
func (h *host) moment(t *testing.T, unit, property string) int64 {
	t.Helper()
	text := h.show(unit, property) // Sun 2026-01-04 10:00:00.123456 UTC
	if text == "" {
		return 0
	}
	at, err := time.Parse("Mon 2006-01-02 15:04:05.000000 MST", text)
	require.NoError(t, err)
	return at.UnixNano()
}

// inside runs f on a thread in the host's network: what it listens on is the host's for good.
func (h *host) inside(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.pid))
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// wait waits for a fact.
func wait(t *testing.T, what string, fact func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !fact(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.Fail(t, "waited in vain for "+what)
		}
	}
}
