package fetch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"nodevisor/internal/hint"
)

// Program finds the downloader: beside this executable, in ../libexec/nodevisor of it, or where packages put it. The
// environment and PATH have no say in it: this is a program that a supervisor of root's may run.
// A missing one is a *hint.Error; whoever places binaries by hand needs none.
func Program() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("cannot find downloader: %w", err)
	}
	if target, err := filepath.EvalSymlinks(exe); err == nil {
		exe = target
	}
	return find(candidates(filepath.Dir(exe)))
}

// candidates lists the places of the downloader for an executable in dir. "fetch" beside it comes after the names that are
// ours alone, for there are other programs of that name.
func candidates(dir string) []string {
	return []string{
		filepath.Join(dir, "supervisor-fetch"),
		filepath.Join(dir, "..", "libexec", "nodevisor", "fetch"),
		"/usr/libexec/nodevisor/fetch",
		"/usr/lib/nodevisor/fetch",
		filepath.Join(dir, "fetch"),
	}
}

// find returns the first candidate that exists. One that exists and can't be trusted is an error, not passed over: the
// operator should know.
func find(paths []string) (string, error) {
	for _, path := range paths {
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return "", fmt.Errorf("cannot use downloader: %w", err)
		case info.IsDir():
			continue
		case info.Mode().Perm()&0o002 != 0:
			return "", hint.New("use downloader", path, "writable by everybody", "chmod o-w "+hint.Quote(path))
		case !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0:
			return "", hint.New("use downloader", path, "not an executable file", "reinstall it, or "+byHand)
		}
		return filepath.Clean(path), nil
	}
	return "", hint.New("find downloader", "", "the program supervisor-fetch is not installed",
		"install it beside supervisor, or "+byHand)
}
