package version

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
)

// ErrExists means that the version has a binary already, and it is another one.
var ErrExists = errors.New("version exists with different content")

// Placement is what `upgrade add` is asked to put into the tree.
type Placement struct {
	Version Version
	From    string // a binary, or a directory: one with bin/<node> is taken whole, of one with <node> that file alone
	SHA256  string // what the binary's digest must be; "" = anything
	Force   bool   // replace an older binary, which is kept aside
}

// Place copies a binary, or a directory with one, into the version's place. A version that has the same binary already
// is left alone and reported by placed == false; another one is replaced only with Force, and then kept aside. Nothing
// is seen in the version's directory before it is complete and durable.
func Place(ctx context.Context, l Layout, p Placement) (placed bool, err error) {
	src, isDir, err := findBinary(l, p.From)
	if err != nil {
		return false, err
	}
	sum, err := HashFile(ctx, src)
	if err != nil {
		return false, err
	}
	if p.SHA256 != "" && !strings.EqualFold(p.SHA256, sum) {
		return false, hint.New("add", p.From, fmt.Sprintf("its sha256 is %s, not %s", sum, p.SHA256),
			"get the binary again and compare its digest with the one that was published")
	}
	dst := l.Binary(p.Version)
	if _, err := os.Lstat(dst); err == nil {
		have, err := HashFile(ctx, dst)
		switch {
		case err == nil && have == sum && !isDir:
			return false, nil
		case !p.Force:
			return false, &hint.Error{
				Op: "add", Path: p.Version.Name(), Err: fmt.Errorf("%w: file already exists at %s", ErrExists, dst),
				Hint: "add --force to replace it; the old one is kept aside",
			}
		}
	}
	if err := atomicfile.MkdirAll(filepath.Join(l.Root, "upgrades"), 0o755); err != nil {
		return false, err
	}
	if err := Placeable(l, p.Version); err != nil {
		return false, err
	}
	if isDir {
		err = placeTree(ctx, l, p, sum)
	} else {
		err = placeFile(ctx, l, src, dst, sum)
	}
	return err == nil, err
}

// Publish moves a file that was verified, and that lies on the file system of upgrades/, into the version's place by one
// rename. An older binary is kept aside.
func Publish(l Layout, v Version, file string) error {
	if err := Placeable(l, v); err != nil {
		return err
	}
	dst := l.Binary(v)
	if err := atomicfile.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	return overOlder(dst, func() error { return atomicfile.Rename(file, dst) })
}

// Placeable refuses a version whose directory is a link that leaves the tree, or lies on another file system than the others:
// nothing is written there, whoever made it, and a version that can go with a mount is none to switch to.
func Placeable(l Layout, v Version) error {
	root, err := os.OpenRoot(l.Root)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Stat(filepath.Join(string(v), "bin")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return hint.New("add", v.Name(), hint.Cause(err).Error(), "remove the link "+l.Dir(v))
	}
	if v == Genesis {
		return nil
	}
	base, err := mountOf(filepath.Join(l.Root, "upgrades"))
	if err != nil {
		return err
	}
	for _, dir := range []string{l.Dir(v), filepath.Dir(l.Binary(v))} {
		if at, err := mountOf(dir); err == nil && at != base {
			return hint.New("add", v.Name(), "staging must be on the same file system as upgrades/, and "+dir+" is on another",
				"put the directory itself there: no mount, no link")
		}
	}
	return nil
}

// mount tells apart what no rename crosses: file systems, and the mount points of one. Kernels before 5.8 don't number these.
type mount struct {
	major, minor uint32
	id           uint64
}

func mountOf(dir string) (mount, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID, &st); err != nil {
		return mount{}, &fs.PathError{Op: "statx", Path: dir, Err: err}
	}
	return mount{st.Dev_major, st.Dev_minor, st.Mnt_id}, nil
}

// findBinary resolves what the operator named. isDir: the directory with it is a whole version. One without bin/ is where
// somebody keeps files, the home of a person for one: all but the binary is none of the version's.
func findBinary(l Layout, from string) (path string, isDir bool, err error) {
	info, err := os.Stat(from)
	if err != nil {
		return "", false, &hint.Error{Op: "add", Path: from, Err: fmt.Errorf("invalid executable path: %w", hint.Cause(err)), Hint: "check the path"}
	}
	if info.Mode().IsRegular() {
		return from, false, nil
	}
	if info.IsDir() {
		for _, p := range []string{filepath.Join("bin", l.Node), l.Node} {
			if i, err := os.Stat(filepath.Join(from, p)); err == nil && i.Mode().IsRegular() {
				return filepath.Join(from, p), p != l.Node, nil
			}
		}
		return "", false, hint.New("add", from, "it holds neither bin/"+l.Node+" nor "+l.Node, "name the binary itself, or a directory that holds it")
	}
	return "", false, hint.New("add", from, "it is neither a file nor a directory", "name the binary itself")
}

// placeFile copies one binary to dst.
func placeFile(ctx context.Context, l Layout, src, dst, sum string) error {
	info, err := os.Stat(src)
	if err != nil {
		return err
	}
	if err := roomFor(filepath.Join(l.Root, "upgrades"), info.Size()); err != nil { // before anything is made
		return err
	}
	if err := atomicfile.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	return overOlder(dst, func() error { return copyTo(ctx, src, dst, sum) })
}

// overOlder lets put replace the binary at dst. An older one is linked aside first, so that it is never missing.
func overOlder(dst string, put func() error) error {
	kept := ""
	if _, err := os.Lstat(dst); err == nil {
		kept = atomicfile.Aside(dst)
		if err := os.Link(dst, kept); err != nil {
			return fmt.Errorf("cannot keep %s aside: %w", dst, err)
		}
	}
	err := put()
	if err != nil && kept != "" {
		os.Remove(kept) //nolint:errcheck // a second name of what is still in its place
	}
	return err
}

// copyTo copies a file; sum is the digest that was verified, "" = none.
func copyTo(ctx context.Context, src, dst, sum string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	return atomicfile.Write(dst, 0o755, atomicfile.Full, func(w io.Writer) error {
		h := sha256.New()
		if _, err := io.Copy(io.MultiWriter(w, h), contextReader{ctx, in}); err != nil {
			return err
		}
		if have := hex.EncodeToString(h.Sum(nil)); sum != "" && have != sum {
			return fmt.Errorf("%s was changed while it was copied (sha256 was %s, is %s)", src, sum, have)
		}
		return nil
	})
}
