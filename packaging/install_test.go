//go:build packages

package packaging

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/systemd"
)

// newRoot makes a root to install into: users, and dpkg's empty records.
func newRoot(t *testing.T) string {
	t.Helper()
	require.Zero(t, os.Geteuid(), "a package is installed by root: run make packages-check as root")
	root := t.TempDir()
	for _, dir := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "var/log", "etc"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	write(t, root, "var/lib/dpkg/status", "")
	write(t, root, "var/lib/dpkg/available", "")
	write(t, root, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
	write(t, root, "etc/group", "root:x:0:\n")
	return root
}

func write(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
}

func read(t *testing.T, root, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	require.NoError(t, err)
	return string(text)
}

func dpkg(t *testing.T, root string, args ...string) {
	t.Helper()
	run(t, "", "dpkg", append([]string{
		"--root=" + root, "--force-script-chrootless", "--force-unsafe-io", "--force-confold", "--force-architecture", "--log=/dev/null",
	}, args...)...)
}

// newer repacks the package as its own next version, with another example.toml.
func newer(t *testing.T, deb string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "next")
	run(t, "", "dpkg-deb", "-R", deb, dir)
	control := read(t, dir, "DEBIAN/control")
	version := strings.TrimSpace(run(t, "", "dpkg-deb", "-f", deb, "Version"))
	write(t, dir, "DEBIAN/control", strings.Replace(control, "Version: "+version, "Version: 1:"+version, 1))
	write(t, dir, "etc/nodevisor/example.toml", read(t, dir, "etc/nodevisor/example.toml")+"# of the next version\n")
	next := filepath.Join(t.TempDir(), "next.deb")
	run(t, "", "dpkg-deb", "-Znone", "--build", dir, next)
	return next
}

// What is an operator's is left alone: by an upgrade the configuration, by a removal and a purge everything of the nodes.
func TestInstallUpgradeRemovePurge(t *testing.T) {
	a, root := packages(t), newRoot(t)
	dpkg(t, root, "-i", a.deb)
	assert.Regexp(t, `(?m)^nodevisor:x:\d+:\d+:Nodes under Nodevisor:/var/lib/nodevisor:/usr/sbin/nologin$`, read(t, root, "etc/passwd"))
	assert.Regexp(t, `(?m)^nodevisor:x:\d+:$`, read(t, root, "etc/group"))
	uid, mode := owner(t, root, "var/lib/nodevisor")
	assert.NotZero(t, uid)
	assert.Equal(t, os.FileMode(0o755), mode)
	uid, mode = owner(t, root, "etc/nodevisor")
	assert.Zero(t, uid)
	assert.Equal(t, os.FileMode(0o750), mode, "others don't read configurations")
	assert.NoDirExists(t, filepath.Join(root, "etc/systemd/system"), "nothing is enabled")
	assert.Equal(t, "fetch", strings.TrimSpace(filepath.Base(filepath.Join(root, "usr/libexec/nodevisor/fetch"))))

	// A node, an edited example, and an enabled unit.
	const home = "var/lib/nodevisor/simd/"
	write(t, root, home+"data/priv_validator_state.json", `{"height":"7"}`)
	write(t, root, home+"supervisor/snapshots/x/manifest.json", "{}")
	write(t, root, "etc/nodevisor/simd.toml", "[node]\n")
	write(t, root, "etc/nodevisor/example.toml", "# edited\n")
	wants := filepath.Join(root, "etc/systemd/system/multi-user.target.wants")
	require.NoError(t, os.MkdirAll(wants, 0o755))
	require.NoError(t, os.Symlink("/usr/lib/systemd/system/nodevisor@.service", filepath.Join(wants, "nodevisor@simd.service")))
	mine := []string{"/etc/nodevisor/simd.toml", "/" + home + "data/priv_validator_state.json", "/" + home + "supervisor/snapshots/x/manifest.json"}

	dpkg(t, root, "-i", newer(t, a.deb))
	assert.Equal(t, "# edited\n", read(t, root, "etc/nodevisor/example.toml"))
	assert.Contains(t, read(t, root, "etc/nodevisor/example.toml.dpkg-dist"), "# of the next version")
	require.NoError(t, os.Remove(filepath.Join(root, "etc/nodevisor/example.toml.dpkg-dist")))

	dpkg(t, root, "-r", "nodevisor")
	left := outOf(t, root)
	assert.NotContains(t, left, "/usr/bin/supervisor")
	for _, path := range append([]string{"/etc/nodevisor/example.toml", "/etc/systemd/system/multi-user.target.wants/nodevisor@simd.service"}, mine...) {
		assert.Contains(t, left, path, "after a removal")
	}

	dpkg(t, root, "-P", "nodevisor")
	left = outOf(t, root)
	var ours []string
	for _, path := range left {
		if strings.Contains(path, "nodevisor") {
			ours = append(ours, path)
		}
	}
	assert.Equal(t, mine, ours, "after a purge: what is the operator's, and nothing else")
	assert.Contains(t, read(t, root, "etc/passwd"), "nodevisor:", "files of a user that is gone would become another's")
}

func owner(t *testing.T, root, name string) (uid uint32, mode os.FileMode) {
	t.Helper()
	info, err := os.Stat(filepath.Join(root, name))
	require.NoError(t, err)
	return info.Sys().(*syscall.Stat_t).Uid, info.Mode().Perm()
}

// The rpm installs and removes the same; its scripts, which are the deb's, are not run here.
func TestRpmInstallAndErase(t *testing.T) {
	a, root := packages(t), newRoot(t)
	rpm := func(args ...string) {
		run(t, "", "rpm", append([]string{"--root", root, "--force-debian", "--noscripts"}, args...)...)
	}
	rpm("-i", "--nodeps", "--ignorearch", a.rpm)
	assert.FileExists(t, filepath.Join(root, "usr/libexec/nodevisor/fetch"))
	write(t, root, "etc/nodevisor/example.toml", "# edited\n")
	write(t, root, "etc/nodevisor/simd.toml", "[node]\n")
	rpm("-e", "--nodeps", "nodevisor")
	assert.Equal(t, "# edited\n", read(t, root, "etc/nodevisor/example.toml.rpmsave"))
	assert.Equal(t, "[node]\n", read(t, root, "etc/nodevisor/simd.toml"))
	assert.NoFileExists(t, filepath.Join(root, "usr/bin/supervisor"))
}

// The template is one that systemd takes as it is, and one that an auditor would.
func TestUnitTemplate(t *testing.T) {
	a := packages(t)
	root := t.TempDir()
	run(t, "", "dpkg-deb", "-x", a.deb, root)
	unit := read(t, root, "usr/lib/systemd/system/nodevisor@.service")
	dir := t.TempDir()
	name := filepath.Join(dir, "nodevisor@simd.service")
	// Where it isn't installed, verify would only miss the program and the manual.
	unit = strings.ReplaceAll(unit, "=/usr/bin/", "="+root+"/usr/bin/")
	unit = strings.Replace(unit, "Documentation=man:nodevisor(7) man:supervisor(1)\n", "", 1)
	require.NoError(t, os.WriteFile(name, []byte(unit), 0o644))
	run(t, "", "systemd-analyze", "verify", name)
	run(t, "", "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=20", name)
}

// The template is the twin of what `supervisor unit` prints: the same settings but for those that make it a template. A
// node isn't less safe for having come with a package.
func TestUnitTemplateIsTheTwinOfTheCommands(t *testing.T) {
	text, err := os.ReadFile("systemd/nodevisor@.service")
	require.NoError(t, err)
	printed := systemd.Service{
		User: "nodevisor", Exec: []string{"/usr/bin/supervisor", "run"}, StopTimeout: time.Minute,
		Home: "/var/lib/nodevisor/simd", Hardening: systemd.Strict,
	}.Render()
	own := []string{ // the template's alone
		"Documentation", "ConditionPathExists", "Group", "StateDirectory", "StateDirectoryMode",
	}
	differ := []string{"Description", "ExecStart", "RuntimeDirectory", "ReadWritePaths"}
	have, want := settings(string(text)), settings(printed)
	for _, key := range append(own, differ...) {
		delete(have, key)
		delete(want, key)
	}
	assert.Equal(t, want, have)
}

// settings reads a unit: the values of each key, in their order.
func settings(unit string) map[string][]string {
	all := map[string][]string{}
	for line := range strings.Lines(unit) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && !strings.HasPrefix(key, "#") {
			all[key] = append(all[key], value)
		}
	}
	return all
}
