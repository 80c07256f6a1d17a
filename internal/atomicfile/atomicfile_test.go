package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// helperEnv makes the test binary one of the writers below; its value is what to do, the argument where.
const helperEnv = "ATOMICFILE_TEST_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case "":
		os.Exit(m.Run())
	case "forever": // writes ever new contents until it is killed
		for n := 0; ; n++ {
			if err := WriteFile(os.Args[1], content(n), 0o600); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			if n == 0 {
				fmt.Println("writing")
			}
		}
	case "limited": // may write files of 4 KiB at most: a disk that is full amid a write
		signal.Ignore(syscall.SIGXFSZ)
		limit := &unix.Rlimit{Cur: 4096, Max: 4096}
		err := unix.Setrlimit(unix.RLIMIT_FSIZE, limit)
		if err == nil {
			err = WriteFile(os.Args[1], bytes.Repeat([]byte("x"), 100_000), 0o600)
		}
		fmt.Println(err)
		if !errors.Is(err, syscall.EFBIG) {
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// content makes a file that shows whether it is whole: one letter, in a length that tells the letter.
func content(n int) []byte {
	return bytes.Repeat([]byte{byte('a' + n%26)}, 1000+n%26*997)
}

func whole(data []byte) bool {
	if len(data) == 0 {
		return false
	}
	n := int(data[0] - 'a')
	return n >= 0 && n < 26 && bytes.Equal(data, content(n))
}

// names lists a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}

func TestWriteFileMakesAndReplaces(t *testing.T) {
	old := syscall.Umask(0o077)
	t.Cleanup(func() { syscall.Umask(old) })
	path := filepath.Join(t.TempDir(), "file")
	for n, mode := range []fs.FileMode{0o600, 0o644, 0o755, 0o400} {
		require.NoError(t, WriteFile(path, content(n), mode))
		info, err := os.Stat(path)
		require.NoError(t, err)
		assert.Equal(t, mode, info.Mode().Perm(), "the mode is what was asked for, whatever the umask")
		assert.Equal(t, string(content(n)), read(t, path))
	}
	require.NoError(t, Write(path, 0o600, Content, func(w io.Writer) error { _, err := io.WriteString(w, "new"); return err }))
	assert.Equal(t, "new", read(t, path))
	assert.Equal(t, []string{"file"}, names(t, filepath.Dir(path)), "something was left")
}

// Readers beside the writer see a whole content at every moment.
func TestWriteFileUnderReaders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, WriteFile(path, content(0), 0o600))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				data, err := os.ReadFile(path)
				if !assert.NoError(t, err) || !assert.True(t, whole(data), "torn: %.20q, %d bytes", data, len(data)) {
					return
				}
			}
		})
	}
	for n := range 150 {
		require.NoError(t, WriteFile(path, content(n), 0o600))
	}
	close(stop)
	readers.Wait()
}

// Whenever the writer is killed, the file is whole, and the next writer cleans up.
func TestWriteFileKilledAtAnyMoment(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for range 10 {
		cmd := exec.Command(os.Args[0], path)
		cmd.Env = append(os.Environ(), helperEnv+"=forever")
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = io.ReadAtLeast(out, make([]byte, 8), 1) // it is amid its writes
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		require.NoError(t, err)
		require.True(t, whole([]byte(read(t, path))))
	}
	require.NoError(t, RemoveTemps(dir))
	assert.Equal(t, []string{"file"}, names(t, dir))
}

// A write that fails leaves the old content and nothing else, wherever it fails.
func TestWriteFailsWithoutATrace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	require.NoError(t, WriteFile(path, []byte("old"), 0o600))
	cause := errors.New("the source broke")
	err := Write(path, 0o600, Full, func(w io.Writer) error {
		_, _ = w.Write([]byte("half of the new"))
		return cause
	})
	require.ErrorIs(t, err, cause)
	assert.Contains(t, err.Error(), "cannot write "+path)
	assert.Equal(t, "old", read(t, path))
	assert.Equal(t, []string{"file"}, names(t, dir))

	cmd := exec.Command(os.Args[0], path)
	cmd.Env = append(os.Environ(), helperEnv+"=limited")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "file too large")
	assert.Equal(t, "old", read(t, path))
	assert.Equal(t, []string{"file"}, names(t, dir))

	require.ErrorIs(t, WriteFile(filepath.Join(dir, "none", "file"), nil, 0o600), fs.ErrNotExist)
}

func TestWriteOnAFullFileSystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root; the limit on file sizes stands in above")
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64k"); errors.Is(err, syscall.EPERM) {
		t.Skip("this root may not mount; the limit on file sizes stands in above")
	} else {
		require.NoError(t, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	path := filepath.Join(dir, "file")
	require.NoError(t, WriteFile(path, []byte("old"), 0o600))
	require.ErrorIs(t, WriteFile(path, make([]byte, 100_000), 0o600), syscall.ENOSPC)
	assert.Equal(t, "old", read(t, path))
	assert.Equal(t, []string{"file"}, names(t, dir))
	require.NoError(t, WriteFile(path, make([]byte, 20_000), 0o600), "the failed write's room is free again")
}

// special makes what must never be replaced: by name, in dir.
func special(t *testing.T, dir string) []string {
	t.Helper()
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	sub := filepath.Join(dir, "dir")
	require.NoError(t, os.Mkdir(sub, 0o700))
	return []string{socket, fifo, sub}
}

func TestWriteAndSymlinkRefuseWhatTheyDoNotKnow(t *testing.T) {
	dir := t.TempDir()
	paths := special(t, dir)
	before := names(t, dir)
	for _, path := range paths {
		was, err := os.Lstat(path)
		require.NoError(t, err)
		require.ErrorIs(t, WriteFile(path, []byte("new"), 0o600), ErrNotRegular, path)
		require.ErrorIs(t, Symlink("target", path), ErrNotRegular, path)
		is, err := os.Lstat(path)
		require.NoError(t, err)
		assert.True(t, os.SameFile(was, is))
	}
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o600))
	require.ErrorIs(t, Symlink("target", file), ErrNotRegular)
	assert.Equal(t, "precious", read(t, file))
	assert.ElementsMatch(t, append(before, "file"), names(t, dir), "something was left")
}

func TestWriteReplacesALinkAndNotItsTarget(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	require.NoError(t, os.WriteFile(target, []byte("precious"), 0o600))
	require.NoError(t, os.Symlink(target, link))
	require.NoError(t, WriteFile(link, []byte("new"), 0o600))
	assert.Equal(t, "precious", read(t, target))
	info, err := os.Lstat(link)
	require.NoError(t, err)
	assert.True(t, info.Mode().IsRegular())
}

// A link that is swapped under readers never dangles, and never is missing.
func TestCreateMakesAndReplacesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	require.NoError(t, Create(path, []byte("one"), 0o606)) // more than the umask leaves
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, "one", string(data))
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o606), info.Mode())
	require.ErrorIs(t, Create(path, []byte("two"), 0o600), fs.ErrExist)
	require.NoError(t, os.Symlink("elsewhere", filepath.Join(dir, "link")))
	require.ErrorIs(t, Create(filepath.Join(dir, "link"), []byte("two"), 0o600), fs.ErrExist)
	require.ErrorIs(t, Create(filepath.Join(dir, "none", "f"), nil, 0o600), fs.ErrNotExist)
	assert.Equal(t, []string{"f", "link"}, names(t, dir))
}

func TestSymlinkUnderReaders(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "current")
	for _, version := range []string{"genesis", "v2"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, version), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, version, "name"), []byte(version), 0o600))
	}
	require.NoError(t, Symlink("genesis", link))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				data, err := os.ReadFile(filepath.Join(link, "name"))
				if !assert.NoError(t, err) || !assert.Contains(t, []string{"genesis", "v2"}, string(data)) {
					return
				}
			}
		})
	}
	for n := range 200 {
		require.NoError(t, Symlink([]string{"v2", "genesis"}[n%2], link))
	}
	close(stop)
	readers.Wait()
	target, err := os.Readlink(link)
	require.NoError(t, err)
	assert.Equal(t, "genesis", target, "the target is written as it was given")
	assert.Equal(t, []string{"current", "genesis", "v2"}, names(t, dir))
	require.ErrorIs(t, Symlink("x", filepath.Join(dir, "none", "link")), fs.ErrNotExist)
}

func TestRename(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a", "from"), filepath.Join(dir, "b", "to")
	require.NoError(t, MkdirAll(from, 0o755))
	require.NoError(t, MkdirAll(filepath.Dir(to), 0o755))
	require.NoError(t, Rename(from, to))
	assert.DirExists(t, to)
	assert.NoDirExists(t, from)
	require.NoError(t, Rename(to, to+"2"))
	require.ErrorIs(t, Rename(from, to), fs.ErrNotExist)
}

func TestMkdirAll(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "b", "c")
	require.NoError(t, MkdirAll(path, 0o700))
	require.NoError(t, MkdirAll(path, 0o700), "a second time")
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o700), info.Mode().Perm())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	require.ErrorIs(t, MkdirAll(filepath.Join(dir, "file"), 0o700), syscall.ENOTDIR)
	require.ErrorIs(t, MkdirAll(filepath.Join(dir, "file", "below"), 0o700), syscall.ENOTDIR)

	var together sync.WaitGroup
	for range 8 {
		together.Go(func() { assert.NoError(t, MkdirAll(filepath.Join(dir, "x", "y", "z"), 0o700)) })
	}
	together.Wait()
}

func TestRemove(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, Remove(path))
	assert.Empty(t, names(t, dir))
	require.NoError(t, Remove(path), "a missing one is no error")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "full", "x"), 0o700))
	require.Error(t, Remove(filepath.Join(dir, "full")))
}

func TestRemoveTempsTakesOnlyOurs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"keep", tempPrefix + "1", tempPrefix + "2", ".hidden"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, tempPrefix+"link")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, tempPrefix+"dir"), 0o700))
	require.NoError(t, RemoveTemps(dir))
	assert.Equal(t, []string{tempPrefix + "dir", ".hidden", "keep"}, names(t, dir))
	assert.FileExists(t, "/etc/passwd")
	require.NoError(t, RemoveTemps(filepath.Join(dir, "none")))
}

// What another program left is synced as it is; the calls themselves are counted where it matters.
func TestSync(t *testing.T) {
	dir := t.TempDir()
	require.ErrorIs(t, Sync(filepath.Join(dir, "none")), fs.ErrNotExist)
	path := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(path, content(1), 0o400))
	require.NoError(t, Sync(path))
	assert.Equal(t, string(content(1)), read(t, path))
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	require.NoError(t, Sync(filepath.Join(dir, "fifo")), "it doesn't wait for a writer")
}

func TestSyncDir(t *testing.T) {
	require.NoError(t, SyncDir(t.TempDir()))
	require.ErrorIs(t, SyncDir(filepath.Join(t.TempDir(), "none")), fs.ErrNotExist)
}

// What root makes in another's directory is that one's, so that an operator's sudo doesn't lock the node out.
func TestRootGivesWhatItMakesToTheDirectorysOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes files for others")
	}
	const uid, gid = 4711, 4712
	dir := t.TempDir()
	require.NoError(t, os.Chown(dir, uid, gid))
	at := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, WriteFile(at("file"), []byte("x"), 0o600))
	require.NoError(t, Symlink("/etc/passwd", at("link")))
	require.NoError(t, MkdirAll(at("a/b"), 0o700))
	require.NoError(t, WriteFile(at("a/b/file"), []byte("x"), 0o600))
	require.NoError(t, Create(at("new"), []byte("x"), 0o600))
	require.NoError(t, os.WriteFile(at("foreign"), nil, 0o600))
	require.NoError(t, Adopt(at("foreign")))
	for _, name := range []string{"file", "link", "a", "a/b", "a/b/file", "new", "foreign"} {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(at(name), &st))
		assert.EqualValues(t, uid, st.Uid, name)
		assert.EqualValues(t, gid, st.Gid, name)
	}
	var st unix.Stat_t
	require.NoError(t, unix.Stat("/etc/passwd", &st))
	assert.Zero(t, st.Uid, "a link's target was given away")
	require.Error(t, Adopt(at("none/none")))
	require.NoError(t, WriteFile(at("file"), []byte(strings.Repeat("y", 10)), 0o600), "again")
}
