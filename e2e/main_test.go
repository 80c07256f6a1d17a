//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// program is one binary under test: where it comes from, and where it is.
type program struct {
	variable string   // the environment variable that names a ready binary
	dir      string   // the module it is built in, relative to this package
	args     []string // of go build
	name     string   // of the file; the base name is what the process is called
	path     string   // absolute, once built
}

// The programs are built once, before the first test, and only read afterwards.
var (
	supervisorBin = &program{variable: "SUPERVISOR_BIN", dir: "..", args: []string{"./cmd/supervisor"}, name: "supervisor"}
	chainV1       = &program{variable: "CHAIN_V1_BIN", dir: "../testdata/chain", args: []string{"./cmd/chaind"}, name: "v1/chaind"}
	chainV2       = &program{variable: "CHAIN_V2_BIN", dir: "../testdata/chain", args: []string{"-tags", "v2", "./cmd/chaind"}, name: "v2/chaind"}
	cosmovisorBin = &program{variable: "COSMOVISOR_BIN", dir: "../testdata/peer", args: []string{"cosmossdk.io/tools/cosmovisor/cmd/cosmovisor"}, name: "cosmovisor"}
)

func TestMain(m *testing.M) {
	for _, p := range []*program{chainV1, chainV2, cosmovisorBin, supervisorBin} {
		if err := p.build(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			os.Exit(1)
		}
	}
	// Whatever outlives its parent becomes a child of this process, and is found at a test's end (see orphans).
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: cannot become a subreaper:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// build builds p into build/e2e, which Git ignores, unless the environment names a binary. The flags are those of the
// modules' READMEs, so that a build by hand and this one share their cache: a first build costs minutes.
func (p *program) build() error {
	if given := os.Getenv(p.variable); given != "" {
		path, err := filepath.Abs(given)
		if err != nil {
			return err
		}
		p.path = path
		_, err = os.Stat(path)
		return err
	}
	out, err := filepath.Abs(filepath.Join("..", "build", "e2e", p.name))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	cmd := exec.Command("go", append([]string{"build", "-ldflags", "-s -w", "-o", out}, p.args...)...)
	cmd.Dir = p.dir
	fmt.Fprintln(os.Stderr, "e2e: building", p.name)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build %s: %w\n%s", p.name, err, output)
	}
	p.path = out
	return nil
}
