//go:build e2e

package systemd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// shared is where every booted host sees the directory work.
const shared = "/srv/test"

// What the tests share. It is made before the first one, and only read afterwards.
var (
	work string // of this run; TestMain removes it
	deb  string // the package under test
	lab  *host  // the host of all tests that need none of their own
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e/systemd:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("a systemd is booted by root: run make e2e-systemd as root")
	}
	if work, err = os.MkdirTemp("", "nodevisor-systemd-"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := os.Chmod(work, 0o755); err != nil { // the nodes' user looks in
		return 1, err
	}
	if err := unpack(); err != nil {
		return 1, err
	}
	lab = newHost("lab", programs())
	defer func() { err = errors.Join(err, lab.cut()) }() // also after half a boot
	if err := lab.up(); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// unpack builds the package, unless the environment names one, and takes its programs out.
func unpack() error {
	if deb = os.Getenv("NODEVISOR_DEB"); deb == "" {
		if os.Getenv("NFPM") == "" {
			return errors.New("make e2e-systemd says where nfpm is")
		}
		cmd := exec.Command("packaging/build.sh", "deb")
		cmd.Dir, cmd.Env = "../..", append(os.Environ(), "OUT="+filepath.Join(work, "dist"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("cannot build the package: %w\n%s", err, out)
		}
		found, _ := filepath.Glob(filepath.Join(work, "dist", "*.deb"))
		if len(found) != 1 {
			return fmt.Errorf("one package was to be built: %v", found)
		}
		deb = found[0]
	}
	out, err := exec.Command("dpkg-deb", "-x", deb, filepath.Join(work, "package")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cannot unpack %s: %w\n%s", deb, err, out)
	}
	return nil
}

// programs are the bind mounts that put the package's programs where the package does: a host that is booted again needs
// no second installation then.
func programs() string {
	from := filepath.Join(work, "package")
	return from + "/usr/bin/supervisor:/usr/bin/supervisor:ro " + from + "/usr/libexec/nodevisor:/usr/libexec/nodevisor:ro"
}
