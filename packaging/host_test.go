//go:build packages

package packaging

import (
	"encoding/json"
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

	fakenode "nodevisor/internal/fakenode/build"
)

// host is a booted systemd in namespaces of its own (testdata/systemd).
type host struct {
	t    *testing.T
	name string
}

// boot starts a host that sees dir as /packages.
func boot(t *testing.T, dir string) *host {
	t.Helper()
	require.Zero(t, os.Geteuid(), "a systemd is booted by root: run make packages-check as root")
	h := &host{t, "packages-" + strconv.Itoa(os.Getpid())}
	t.Cleanup(func() {
		out, err := exec.Command("../testdata/systemd/down.sh", h.name).CombinedOutput()
		assert.NoError(t, err, string(out))
	})
	cmd := exec.CommandContext(t.Context(), "../testdata/systemd/up.sh", h.name)
	cmd.Env = append(os.Environ(), "SD_BIND="+dir+":/packages:ro")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return h
}

// try runs a command on the host.
func (h *host) try(args ...string) (string, error) {
	out, err := exec.CommandContext(h.t.Context(), "../testdata/systemd/exec.sh", append([]string{h.name}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (h *host) run(args ...string) string {
	h.t.Helper()
	out, err := h.try(args...)
	require.NoError(h.t, err, "%s\n%s", strings.Join(args, " "), out)
	return out
}

func (h *host) sh(script string) string {
	h.t.Helper()
	return h.run("sh", "-c", script)
}

// node is what the status of an instance says, once its node runs.
func (h *host) node(name string) (pid int) {
	h.t.Helper()
	var last string
	require.Eventually(h.t, func() bool {
		out, err := h.try("sh", "-c", "supervisor --config /etc/nodevisor/"+name+".toml status --json 2>/dev/null")
		last = out
		var st struct {
			State string
			PID   int
		}
		if err != nil || json.Unmarshal([]byte(out), &st) != nil {
			return false
		}
		pid = st.PID
		return st.State == "running" && pid > 0
	}, 2*time.Minute, 100*time.Millisecond, "%s does not run", name)
	require.NotZero(h.t, pid, last)
	return pid
}

// Two nodes on one host, from the package: each with a home of its own. Whatever is done with the package, they go on.
func TestTwoNodesOfOnePackage(t *testing.T) {
	a := packages(t)
	dir := filepath.Join(work, "host")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	run(t, "", "cp", a.deb, filepath.Join(dir, "first.deb"))
	run(t, "", "cp", newer(t, a.deb), filepath.Join(dir, "next.deb"))
	run(t, "", "cp", fakenode.Binary(t, "v1"), filepath.Join(dir, "simd"))
	require.NoError(t, os.Chmod(work, 0o755))
	h := boot(t, dir)

	h.run("dpkg", "--force-unsafe-io", "-i", "/packages/first.deb")
	assert.Empty(t, h.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "nodevisor@*"), "nothing is started")
	for _, name := range []string{"a", "b"} {
		home := "/var/lib/nodevisor/" + name
		h.sh(fmt.Sprintf(`sed 's,/var/lib/nodevisor/simd,%s,g' /etc/nodevisor/example.toml >/etc/nodevisor/%s.toml
			chgrp nodevisor /etc/nodevisor/%s.toml`, home, name, name))
		out := h.run("supervisor", "--config", "/etc/nodevisor/"+name+".toml", "init", "/packages/simd")
		assert.Contains(t, out, "systemctl enable --now nodevisor@"+name, "what comes next")
		assert.Equal(t, "nodevisor:nodevisor", h.run("stat", "-c", "%U:%G", home), "init as root leaves the home to the nodes' user")
		h.run("runuser", "-u", "nodevisor", "--", "/packages/simd", "init", "--home", home)
	}
	out, err := h.try("supervisor", "--config", "/etc/nodevisor/a.toml", "doctor")
	assert.NoError(t, err, out)
	h.run("systemctl", "enable", "--now", "nodevisor@a", "nodevisor@b")
	assert.Equal(t, "active\nactive", h.run("systemctl", "is-active", "nodevisor@a", "nodevisor@b"))
	first, second := h.node("a"), h.node("b")
	assert.NotEqual(t, first, second)
	for _, pid := range []int{first, second} {
		assert.Equal(t, "nodevisor", h.run("stat", "-c", "%U", "/proc/"+strconv.Itoa(pid)))
	}
	out, err = h.try("supervisor", "status")
	assert.Error(t, err)
	assert.Contains(t, out, "several supervisors run on this host")
	assert.Contains(t, out, "--home /var/lib/nodevisor/b")
	out, err = h.try("systemctl", "start", "nodevisor@none")
	assert.NoError(t, err, out)
	assert.Equal(t, "inactive", answer(h.try("systemctl", "is-active", "nodevisor@none")), "without a configuration nothing is started, and nothing failed")

	// A stop of one is none of the other's matter.
	h.run("systemctl", "stop", "nodevisor@b")
	assert.Equal(t, first, h.node("a"))
	h.run("systemctl", "start", "nodevisor@b")
	second = h.node("b")
	out, err = h.try("supervisor", "--config", "/etc/nodevisor/b.toml", "status")
	assert.NoError(t, err, out)

	for _, step := range [][]string{
		{"dpkg", "--force-unsafe-io", "--force-confold", "-i", "/packages/next.deb"},
		{"dpkg", "--force-unsafe-io", "-r", "nodevisor"},
		{"dpkg", "--force-unsafe-io", "-P", "nodevisor"},
	} {
		h.run(step...)
		for _, pid := range []int{first, second} {
			assert.NotEmpty(t, h.run("readlink", "/proc/"+strconv.Itoa(pid)+"/exe"), "the node lives on after %v", step)
		}
		for _, name := range []string{"a", "b"} {
			assert.Equal(t, "active", answer(h.try("systemctl", "is-active", "nodevisor@"+name)), "after %v", step)
		}
	}
	h.sh("test -d /var/lib/nodevisor/a/data && test -f /etc/nodevisor/a.toml && id nodevisor")
	h.run("dpkg", "--force-unsafe-io", "-i", "/packages/first.deb")
	assert.Equal(t, first, h.node("a"), "installed again: the commands reach the node that ran on")
	h.run("systemctl", "stop", "nodevisor@a", "nodevisor@b")
	_, err = h.try("test", "-e", "/proc/"+strconv.Itoa(first))
	assert.Error(t, err, "stopped when its operator says so")
}

// answer is what a command prints, whatever its code.
func answer(out string, _ error) string { return out }
