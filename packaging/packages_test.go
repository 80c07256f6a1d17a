//go:build packages

package packaging

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The packages under test are built once, by the script that `make packages` calls.
type artefacts struct {
	dir, deb, rpm, sbom string
}

var work string // of all tests; TestMain removes it

func TestMain(m *testing.M) {
	var err error
	if work, err = os.MkdirTemp("", "nodevisor-packages-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(work)
	os.Exit(code)
}

// source is a copy of the tree, with what git would have said of it: both builds are made of the same, whoever edits files
// meanwhile.
var source = sync.OnceValues(func() (env []string, err error) {
	script := `mkdir "$0/tree"; git ls-files -co --exclude-standard -z | tar --null --ignore-failed-read -cf - -T - | tar -xf - -C "$0/tree"
		echo "VERSION=$(packaging/version.sh)"; echo "DESCRIBED=$(git describe --tags --always --dirty)"
		echo "SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)"`
	cmd := exec.Command("sh", "-ec", script, work)
	cmd.Dir, cmd.Stderr = "..", os.Stderr
	out, err := cmd.Output()
	return strings.Split(strings.TrimSpace(string(out)), "\n"), err
})

var built = sync.OnceValues(func() (a artefacts, err error) {
	env, err := source()
	if err != nil {
		return a, err
	}
	return build(filepath.Join(work, "tree"), filepath.Join(work, "dist"), env)
})

// build runs the script in the tree at root.
func build(root, out string, env []string) (a artefacts, err error) {
	cmd := exec.Command("packaging/build.sh")
	cmd.Dir = root
	cmd.Env = append(append(os.Environ(), "OUT="+out), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return a, fmt.Errorf("%w: %s", err, text)
	}
	a.dir = out
	for pattern, to := range map[string]*string{"*.deb": &a.deb, "*.rpm": &a.rpm, "*.cdx.json": &a.sbom} {
		found, _ := filepath.Glob(filepath.Join(out, pattern))
		if len(found) != 1 {
			return a, fmt.Errorf("%s: %v", pattern, found)
		}
		*to = found[0]
	}
	return a, nil
}

func packages(t *testing.T) artefacts {
	t.Helper()
	require.NotEmpty(t, os.Getenv("NFPM"), "make packages-check says where nfpm is")
	a, err := built()
	require.NoError(t, err)
	return a
}

// run runs a program and returns its output; a failure ends the test.
func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "LC_ALL=C")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	require.NoError(t, cmd.Run(), "%s %s\n%s%s", name, strings.Join(args, " "), &out, &errs)
	return out.String()
}

// A second build, elsewhere, by a user with another umask, time zone and language, gives the same bytes.
func TestTwoBuildsAreTheSame(t *testing.T) {
	first := packages(t)
	tree := filepath.Join(work, "elsewhere", "tree")
	require.NoError(t, os.MkdirAll(tree, 0o700))
	run(t, filepath.Join(work, "tree"), "sh", "-c", `umask 077; tar -cf - . | tar -xf - --no-same-permissions -C "$0"`, tree)
	env, err := source()
	require.NoError(t, err)
	second, err := build(tree, filepath.Join(work, "dist2"), append([]string{"TZ=Asia/Tokyo", "LC_ALL=C.UTF-8", "TMPDIR=" + filepath.Dir(tree)}, env...))
	require.NoError(t, err)
	for _, pair := range [][2]string{{first.deb, second.deb}, {first.rpm, second.rpm}, {first.sbom, second.sbom}} {
		assert.Equal(t, digest(t, pair[0]), digest(t, pair[1]), filepath.Base(pair[0]))
	}
	run(t, first.dir, "sha256sum", "--check", "--strict", "SHA256SUMS")
	sums, err := os.ReadFile(filepath.Join(first.dir, "SHA256SUMS"))
	require.NoError(t, err)
	assert.Equal(t, 3, strings.Count(string(sums), "\n"), "every file that is published")
}

func digest(t *testing.T, path string) string {
	t.Helper()
	return strings.Fields(run(t, "", "sha256sum", path))[0]
}

// The version orders as it is meant, for dpkg as for rpm.
func TestVersions(t *testing.T) {
	var versions []string
	for described, want := range map[string]string{
		"v1.2.3-0-gabcdef0":            "1.2.3",
		"v1.2.3-rc.1-0-gabcdef0":       "1.2.3~rc.1",
		"v1.2.3-rc-2-7-gabcdef0-dirty": "1.2.3~rc.2+7.gabcdef0.dirty",
		"v1.2.3-5-gabcdef0":            "1.2.3+5.gabcdef0",
		"v1.2.3-0-gabcdef0-dirty":      "1.2.3+dirty",
	} {
		assert.Equal(t, want, strings.TrimSpace(run(t, "", "./version.sh", described)))
	}
	for _, described := range []string{"abcdef0", "v0.1.0-rc.1-0-ga", "v0.1.0-rc.1-3-ga", "v0.1.0-rc.2-0-ga", "v0.1.0-0-ga", "v0.1.0-9-ga", "v0.1.0-10-ga", "v0.1.1-0-ga"} {
		versions = append(versions, strings.TrimSpace(run(t, "", "./version.sh", described)))
	}
	for i, v := range versions[1:] {
		run(t, "", "dpkg", "--compare-versions", versions[i], "lt", v)
		assert.Equal(t, "-1", run(t, "", "rpm", "--eval", fmt.Sprintf("%%{lua: print(rpm.vercmp('%s', '%s'))}", versions[i], v))[:2], "%s < %s", versions[i], v)
	}
}

// wanted is what the packages install beside manuals and documentation, with its mode.
var wanted = map[string]string{
	"/etc/nodevisor/example.toml":                          "-rw-r--r--",
	"/usr/bin/supervisor":                                  "-rwxr-xr-x",
	"/usr/lib/systemd/system/nodevisor@.service":           "-rw-r--r--",
	"/usr/lib/sysusers.d/nodevisor.conf":                   "-rw-r--r--",
	"/usr/lib/tmpfiles.d/nodevisor.conf":                   "-rw-r--r--",
	"/usr/libexec/nodevisor/fetch":                         "-rwxr-xr-x",
	"/usr/share/bash-completion/completions/supervisor":    "-rw-r--r--",
	"/usr/share/fish/vendor_completions.d/supervisor.fish": "-rw-r--r--",
}

// files reads a listing of `tar tv` or `rpm -qlv`: mode, owner and path of each file.
func files(t *testing.T, listing string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for line := range strings.Lines(listing) {
		f := strings.Fields(line)
		if len(f) < 6 || strings.HasPrefix(f[0], "d") {
			continue
		}
		path := strings.TrimPrefix(f[len(f)-1], ".")
		all[path] = f[0]
		assert.NotContains(t, f[0], "s", "%s has special rights", path)
		assert.Contains(t, line, "root", "%s belongs to root", path)
	}
	return all
}

func TestWhatIsInstalled(t *testing.T) {
	a := packages(t)
	deb := files(t, run(t, "", "dpkg-deb", "-c", a.deb))
	rpm := files(t, run(t, "", "rpm", "-qplv", a.rpm))
	for name, have := range map[string]map[string]string{"deb": deb, "rpm": rpm} {
		for path, mode := range wanted {
			assert.Equal(t, mode, have[path], "%s: %s", name, path)
		}
		for path, mode := range have {
			if _, ok := wanted[path]; !ok {
				assert.Regexp(t, `^/usr/share/(doc/nodevisor|man/man[17]|nodevisor/(grafana|prometheus)|zsh/(vendor-completions|site-functions))/`, path, name)
				assert.Equal(t, "-rw-r--r--", mode, path)
			}
		}
		for _, doc := range []string{"changelog.gz", "sbom.cdx.json.gz", "third-party-licenses.gz", "how-to/install.md", "configuration.md"} {
			assert.Contains(t, have, "/usr/share/doc/nodevisor/"+doc, name)
		}
		assert.Contains(t, have, "/usr/share/man/man7/nodevisor.7.gz", name)
	}
	assert.Contains(t, deb, "/usr/share/zsh/vendor-completions/_supervisor")
	assert.Contains(t, deb, "/usr/share/doc/nodevisor/copyright")
	assert.Contains(t, deb, "/usr/share/doc/nodevisor/changelog.Debian.gz")
	assert.Contains(t, rpm, "/usr/share/zsh/site-functions/_supervisor")
	assert.Contains(t, rpm, "/usr/share/doc/nodevisor/LICENSE")
	assert.Equal(t, "/etc/nodevisor/example.toml\n", run(t, "", "rpm", "-qpc", a.rpm), "its only configuration file")
	assert.Equal(t, "/etc/nodevisor/example.toml\n", run(t, "", "dpkg-deb", "-I", a.deb, "conffiles"))
	assert.Equal(t, "root nodevisor.invalid\n", run(t, "", "rpm", "-qp", "--qf", "%{FILEUSERNAME} %{BUILDHOST}\n", a.rpm))
	for _, field := range []string{"Depends", "Pre-Depends", "Conflicts"} {
		assert.Empty(t, strings.TrimSpace(run(t, "", "dpkg-deb", "-f", a.deb, field)), "the programs are static")
	}
}

// Every command of the program that is packaged has its page, and nothing else has one.
func TestManualsAreOfThisProgram(t *testing.T) {
	a := packages(t)
	root, fresh := t.TempDir(), t.TempDir()
	run(t, "", "dpkg-deb", "-x", a.deb, root)
	run(t, "", filepath.Join(root, "usr/bin/supervisor"), "man", fresh)
	pages, err := filepath.Glob(filepath.Join(root, "usr/share/man/man1/*.gz"))
	require.NoError(t, err)
	made, err := filepath.Glob(filepath.Join(fresh, "*.1"))
	require.NoError(t, err)
	require.Len(t, pages, len(made))
	for _, page := range made {
		want, err := os.ReadFile(page)
		require.NoError(t, err)
		assert.Equal(t, string(want), run(t, "", "gzip", "-dc", filepath.Join(root, "usr/share/man/man1", filepath.Base(page)+".gz")))
	}
	// gzip -n: neither a name nor a time in the header (RFC 1952, section 2.3.1).
	head, err := os.ReadFile(pages[0])
	require.NoError(t, err)
	assert.Equal(t, []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0}, head[:8])
}

// No maintainer script touches a node: the one thing that it asks of systemd is to read its units again.
func TestScriptsTouchNoNode(t *testing.T) {
	a := packages(t)
	scripts := run(t, "", "rpm", "-qp", "--scripts", a.rpm) + run(t, "", "rpm", "-qp", "--triggers", a.rpm)
	control := t.TempDir()
	run(t, "", "dpkg-deb", "-e", a.deb, control)
	names, err := os.ReadDir(control)
	require.NoError(t, err)
	for _, e := range names {
		require.Contains(t, []string{"conffiles", "control", "md5sums", "postinst", "postrm"}, e.Name())
		if strings.HasPrefix(e.Name(), "post") {
			text, err := os.ReadFile(filepath.Join(control, e.Name()))
			require.NoError(t, err)
			scripts += string(text)
			run(t, "", "sh", "-n", filepath.Join(control, e.Name()))
		}
	}
	for _, call := range regexp.MustCompile(`(?m)^([^#\n]*[\s;&|(])?(systemctl|invoke-rc\.d|service|deb-systemd-\S+|kill\S*)\s.*`).FindAllString(scripts, -1) {
		assert.Equal(t, "systemctl daemon-reload || true", strings.TrimSpace(call))
	}
	assert.Equal(t, 4, strings.Count(scripts, "systemctl daemon-reload"), "after an installation and after a removal, of each")
}

// outOf lists what is below a directory, directories and dpkg's own records left out.
func outOf(t *testing.T, root string) (left []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(path, root)
		switch {
		case err != nil && errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case rel == "/var/lib/dpkg" || rel == "/var/log" || rel == "/var/lib/rpm":
			return filepath.SkipDir
		case !d.IsDir():
			left = append(left, rel)
		}
		return nil
	}))
	slices.Sort(left)
	return left
}
