// Package build makes fakenode binaries for the tests of other packages, and waits for what they record.
//
// A binary is built once for its sources, its toolchain and what is linked in, whichever test process asks first; the
// others take the finished file. They lie in a directory of the user's own below the temporary directory; what no test
// asked for in a day is removed by the next build, so nothing accumulates.
package build

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nodevisor/internal/fakenode/trace"
)

// module is the first line of the go.mod that the sources are found by.
const module = "module nodevisor\n"

// unused is the age at which a binary that no test asked for is removed.
const unused = 24 * time.Hour

// Option changes what is linked into a binary.
type Option func(*[]string)

// Handles names the upgrades that the binary handles, in place of the one of its own version. Handles() is a binary
// that handles none.
func Handles(names ...string) Option {
	if len(names) == 0 {
		names = []string{"-"}
	}
	return func(flags *[]string) {
		*flags = append(*flags, "-X", "main.handles="+strings.Join(names, ","))
	}
}

// Binary returns the path of a static fakenode of that version, which other tests share: copy it, don't change it.
func Binary(t testing.TB, version string, opts ...Option) string {
	t.Helper()
	flags := []string{"-s", "-w", "-X", "main.version=" + version}
	for _, opt := range opts {
		opt(&flags)
	}
	return BinaryWith(t, strings.Join(flags, " "))
}

// BinaryWith returns the path of a static fakenode that was linked with these flags of `go tool link`.
func BinaryWith(t testing.TB, ldflags string) string {
	t.Helper()
	path, err := binary(ldflags)
	if err != nil {
		t.Fatalf("cannot build fakenode: %v", err)
	}
	return path
}

// Install copies the binary of Binary to path, with the directories above it, as a person who stages it would.
func Install(t testing.TB, path, version string, opts ...Option) {
	t.Helper()
	data, err := os.ReadFile(Binary(t, version, opts...))
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, data, 0o755)
	}
	if err != nil {
		t.Fatalf("cannot install fakenode: %v", err)
	}
}

// WaitEvent returns the first event in the trace at path that match accepts. It fails the test after timeout, with all
// that did happen.
func WaitEvent(t testing.TB, path string, timeout time.Duration, match func(trace.Event) bool) trace.Event {
	t.Helper()
	for deadline := time.Now().Add(timeout); ; time.Sleep(5 * time.Millisecond) {
		events, err := trace.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if match(e) {
				return e
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("no such event within %v; events: %+v", timeout, events)
		}
	}
}

// Kind matches an event by its kind, and by its version unless that is empty.
func Kind(kind trace.Kind, version string) func(trace.Event) bool {
	return func(e trace.Event) bool { return e.Kind == kind && (version == "" || e.Version == version) }
}

// sources are what every build of this process needs: where the module lies, where binaries go, and the digest of
// all that goes into each.
type sources struct{ module, store, digest string }

// find runs once: the sources don't change while tests run, and a test may change its working directory.
var find = sync.OnceValues(func() (sources, error) {
	root, err := moduleRoot()
	if err != nil {
		return sources{}, err
	}
	digest, err := digestOf(filepath.Join(root, "internal", "fakenode"))
	if err != nil {
		return sources{}, err
	}
	store, err := storeDir()
	if err != nil {
		return sources{}, err
	}
	return sources{module: root, store: store, digest: digest}, removeUnused(store)
})

// binary is BinaryWith without a test.
func binary(ldflags string) (string, error) {
	src, err := find()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(src.digest + "\n" + ldflags))
	path := filepath.Join(src.store, "fakenode-"+hex.EncodeToString(sum[:8]))
	// Touched and found in one step: its age is what keeps it.
	now := time.Now()
	if err := os.Chtimes(path, now, now); err == nil {
		return path, nil
	}
	// In the same directory, so that the rename below stays within one file system.
	temp, err := os.MkdirTemp(src.store, "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp) //nolint:errcheck // the next day's build tries again
	built := filepath.Join(temp, "fakenode")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", built, "./internal/fakenode")
	cmd.Dir = src.module
	// Static, and for this machine, whatever the test run itself was told.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS="+runtime.GOOS, "GOARCH="+runtime.GOARCH)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	// Two processes may have built the same: either file is as good.
	return path, os.Rename(built, path)
}

// moduleRoot walks up from the working directory, which `go test` sets to the package's.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for start := dir; ; dir = filepath.Dir(dir) {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(data), module) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod of this module above %s", start)
		}
	}
}

// digestOf covers every Go file below dir but the tests, and the toolchain.
func digestOf(dir string) (string, error) {
	hash := sha256.New()
	fmt.Fprintln(hash, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(hash, "%s %d\n%s", strings.TrimPrefix(path, dir), len(data), data)
		return err
	})
	return hex.EncodeToString(hash.Sum(nil)), err
}

// storeDir makes the directory of this user's binaries. Its name can be foreseen, and what lies in it is executed:
// one that another user made, or may write to, is refused.
func storeDir() (string, error) {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("nodevisor-fakenode-%d", os.Geteuid()))
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return "", fmt.Errorf("%s is not this user's own: remove it", dir)
	}
	return dir, nil
}

// removeUnused keeps the store from growing: every change of the sources leaves the binaries of before.
func removeUnused(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < unused {
			continue // or another process removed it just now
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
