package fetch

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"nodevisor/internal/atomicfile"
)

// stagePrefix marks staging directories; RemoveStale finds left-overs by it.
const stagePrefix = ".fetch-"

// stage is one staging directory. All work in it goes through an os.Root: where the supervisor is root and the directory
// above belongs to the node's user, that user can't lead it elsewhere with a link.
type stage struct {
	path   string // absolute
	root   *os.Root
	parent *os.Root
	owner  *syscall.Credential // whom the downloader runs as; nil = as we do
}

// newStage makes a directory with a random name under dir, which is made if it is missing.
func newStage(dir string) (s *stage, err error) {
	defer func() {
		if err != nil {
			s.remove()
			s, err = nil, fmt.Errorf("cannot make staging directory in %s: %w", dir, err)
		}
	}()
	s = &stage{}
	if dir, err = filepath.Abs(dir); err != nil {
		return s, err
	}
	if err := atomicfile.MkdirAll(dir, 0o755); err != nil {
		return s, err
	}
	if s.parent, err = os.OpenRoot(dir); err != nil {
		return s, err
	}
	if s.owner, err = ownerOf(s.parent); err != nil {
		return s, err
	}
	name := stagePrefix + rand.Text()
	s.path = filepath.Join(dir, name)
	if err := mkdir(s.parent, name, s.owner); err != nil {
		return s, err
	}
	s.root, err = s.parent.OpenRoot(name)
	return s, err
}

// ownerOf gives the owner of a directory when the process is root and the directory isn't root's.
func ownerOf(dir *os.Root) (*syscall.Credential, error) {
	info, err := dir.Stat(".")
	if err != nil {
		return nil, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if os.Geteuid() != 0 || !ok || st.Uid == 0 {
		return nil, nil
	}
	return &syscall.Credential{Uid: st.Uid, Gid: st.Gid}, nil // no further groups
}

// mkdir makes a directory that only the downloader and we can enter. It must not exist.
func mkdir(in *os.Root, name string, owner *syscall.Credential) error {
	if err := in.Mkdir(name, 0o700); err != nil {
		return err
	}
	if owner == nil {
		return nil
	}
	return in.Lchown(name, int(owner.Uid), int(owner.Gid))
}

// fresh makes the directory name anew, without what an earlier attempt left in it, and returns its absolute path.
func (s *stage) fresh(name string) (string, error) {
	if err := s.root.RemoveAll(name); err != nil {
		return "", err
	}
	return filepath.Join(s.path, name), mkdir(s.root, name, s.owner)
}

// remove deletes the directory with all that is in it; done twice, or on a stage that was never made, it does nothing.
func (s *stage) remove() {
	if s.root != nil {
		s.root.Close()
	}
	if s.parent != nil {
		if s.path != "" {
			_ = s.parent.RemoveAll(filepath.Base(s.path)) // what can't be removed now, RemoveStale tries again
		}
		s.parent.Close()
	}
	*s = stage{}
}

// open opens name, which must be the only entry of its directory, a regular file with one name and at most limit bytes.
// Whoever wrote it isn't trusted: it may be a link, a FIFO, or a second name of a file that stays in somebody's hands.
func (s *stage) open(name string, limit int64) (*os.File, error) {
	dir, base := path.Split(name)
	d, err := s.root.Open(path.Clean(dir))
	if err != nil {
		return nil, err
	}
	entries, err := d.ReadDir(2)
	d.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(entries) != 1 || entries[0].Name() != base {
		return nil, fmt.Errorf("the downloader left %d files, want one named %s", len(entries), base)
	}
	f, err := s.root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := onlyName(f, limit); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", base, err)
	}
	return f, nil
}

// onlyName refuses all but a regular file with one name and at most limit bytes.
func onlyName(f *os.File, limit int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return errors.New("not a regular file")
	case !ok || st.Nlink != 1:
		return errors.New("has a second name")
	case info.Size() > limit:
		return fmt.Errorf("%d bytes, more than the limit of %d", info.Size(), limit)
	}
	return nil
}

// digest hashes all of f.
func digest(f io.Reader, h hash.Hash) (string, error) {
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// take makes dir/name the one file of the stage: of mode perm, durable, hashed. It returns its path and SHA-256.
func (s *stage) take(dir, name string, limit int64, perm fs.FileMode) (file, sum string, err error) {
	f, err := s.open(path.Join(dir, name), limit)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	if sum, err = digest(f, sha256.New()); err != nil {
		return "", "", err
	}
	// The mode is ours, never the archive's: no setuid bit, nothing that others may write. A file that can't be synced is
	// discarded by the caller, with the stage.
	if err := errors.Join(f.Chmod(perm), f.Sync()); err != nil {
		return "", "", err
	}
	if err := s.root.Rename(path.Join(dir, name), name); err != nil {
		return "", "", err
	}
	if err := errors.Join(s.root.RemoveAll(outDir), s.root.RemoveAll(bodyDir), atomicfile.SyncDir(s.path)); err != nil {
		return "", "", err
	}
	return filepath.Join(s.path, name), sum, nil
}

// RemoveStale deletes the staging directories that killed supervisors left in dir. Only the holder of the home lock may
// call it, and no download may be under way. A missing dir is no error.
func RemoveStale(dir string) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot remove old downloads: %w", err)
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), ".")
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), stagePrefix) && e.IsDir() {
			err = errors.Join(err, root.RemoveAll(e.Name()))
		}
	}
	if err != nil {
		return fmt.Errorf("cannot remove old downloads: %w", err)
	}
	return nil
}
