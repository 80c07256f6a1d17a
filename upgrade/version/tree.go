package version

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
)

// A version is a binary, some libraries and what belongs to them: about a hundred files. Far more is a directory that was
// named by mistake.
const (
	maxTreeFiles = 10_000
	maxTreeBytes = 8 << 30
)

// placeTree copies a directory beside the version's, then puts it there in one step.
func placeTree(ctx context.Context, l Layout, p Placement, sum string) error {
	from, err := filepath.EvalSymlinks(p.From)
	if err != nil {
		return err
	}
	if err := apart(l.Root, from); err != nil {
		return err
	}
	size, err := measure(ctx, from)
	if err != nil {
		return err
	}
	upgrades := filepath.Join(l.Root, "upgrades")
	sweepStages(upgrades)
	if err := roomFor(upgrades, size); err != nil {
		return err
	}
	stage, err := os.MkdirTemp(upgrades, ".stage-*")
	if err != nil {
		return err
	}
	claim, err := claimStage(stage)
	if err != nil {
		return err
	}
	defer claim.Close()
	mine := true // what lies under this name is the new tree, not one that was replaced
	defer func() {
		if mine {
			os.RemoveAll(stage) //nolint:errcheck // nothing depends on it
		}
	}()
	if err := os.Chmod(stage, 0o755); err != nil {
		return err
	}
	if err := copyTree(ctx, from, stage); err != nil {
		return err
	}
	inBin := filepath.Join(stage, "bin", l.Node)
	if err := os.Chmod(inBin, 0o755); err != nil {
		return err
	}
	if have, err := HashFile(ctx, inBin); err != nil || have != sum {
		return errors.Join(err, fmt.Errorf("%s was changed while it was copied", p.From))
	}
	dir := l.Dir(p.Version)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return atomicfile.Rename(stage, dir)
	}
	// The exchange leaves no moment without the version: current may name it.
	if err := unix.Renameat2(unix.AT_FDCWD, stage, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("cannot replace %s: %w", dir, err)
	}
	mine = false
	return atomicfile.Rename(stage, filepath.Join(filepath.Dir(dir), atomicfile.Aside("."+short(filepath.Base(dir)))))
}

// copyTree copies directories, regular files and the links that stay inside; anything else has no place in a version.
func copyTree(ctx context.Context, from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return atomicfile.MkdirAll(dst, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			if filepath.IsAbs(target) || !filepath.IsLocal(filepath.Join(filepath.Dir(rel), target)) {
				return hint.New("add", path, "it is a link that leaves the directory", "put the file itself there")
			}
			return atomicfile.Symlink(target, dst)
		case d.Type().IsRegular():
			return copyTo(ctx, path, dst, "")
		}
		return hint.New("add", path, "it is neither a file, a directory nor a link", "remove it from the directory")
	})
}

// apart refuses a directory that contains the tree, which a copy into the tree would never come to the end of, and one
// that lies in it, whose version may be running. from has no links any more.
func apart(root, from string) error {
	root, err := filepath.EvalSymlinks(root)
	if err != nil {
		return err
	}
	refuse := func(what string) error {
		return hint.New("add", from, what+" the tree of versions "+root, "name the binary itself")
	}
	if rel, err := filepath.Rel(from, root); err == nil && filepath.IsLocal(rel) {
		return refuse("the directory contains")
	}
	if rel, err := filepath.Rel(root, from); err == nil && filepath.IsLocal(rel) {
		return refuse("the directory lies in")
	}
	return nil
}

// measure returns what the files of a directory hold, in bytes, and refuses what can't be a version's directory.
func measure(ctx context.Context, from string) (bytes int64, err error) {
	files := 0
	err = filepath.WalkDir(from, func(_ string, d fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if files++; d.Type().IsRegular() {
			info, err := d.Info()
			if err != nil {
				return err
			}
			bytes += info.Size()
		}
		if files > maxTreeFiles || bytes > maxTreeBytes {
			return hint.New("add", from, fmt.Sprintf("it holds more than a version does (%d files, or %d GiB)", maxTreeFiles, maxTreeBytes>>30),
				"name the binary itself")
		}
		return nil
	})
	return bytes, err
}

// roomFor refuses a copy of so many bytes that would take the last room of the file system below dir: the node that runs
// needs it.
func roomFor(dir string, bytes int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("cannot see the free space of %s: %w", dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; bytes >= free { //nolint:unconvert // Bavail's and Bsize's types differ by architecture
		return &hint.Error{
			Op: "add", Path: dir, Err: fmt.Errorf("%w: %d MB are needed, %d MB are free", unix.ENOSPC, bytes/1e6+1, free/1e6),
			Hint: "make room there, then try again",
		}
	}
	return nil
}

// claimStage marks a directory as one that is being filled, for as long as the descriptor is open.
func claimStage(stage string) (*os.File, error) {
	f, err := os.Open(stage)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot claim %s: %w", stage, err)
	}
	return f, nil
}

// sweepStages removes what additions left that were killed. One that is being filled is claimed.
func sweepStages(upgrades string) {
	stages, _ := filepath.Glob(filepath.Join(upgrades, ".stage-*")) // the pattern is well-formed: no error
	for _, stage := range stages {
		if claim, err := claimStage(stage); err == nil {
			os.RemoveAll(stage) //nolint:errcheck // nothing depends on it
			claim.Close()
		}
	}
}
