package fetch

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
	"nodevisor/internal/progress"
)

// impostor writes a shell script that takes the downloader's place. $out and $name are set for it; "fetch" and "unpack"
// in $mode say what it is to do.
func impostor(t *testing.T, script string) string {
	t.Helper()
	return impostorIn(t, t.TempDir(), script)
}

func impostorIn(t *testing.T, dir, script string) string {
	t.Helper()
	path := filepath.Join(dir, "impostor")
	text := `#!/bin/sh
for arg; do case $arg in
	--out=*) out=${arg#--out=};;
	--name=*) name=${arg#--name=};;
	--unpack=*) mode=unpack body=${arg#--unpack=};;
	--url=*) mode=fetch;;
esac; done
` + script + "\n"
	require.NoError(t, os.WriteFile(path, []byte(text), 0o755))
	return path
}

// honest is what a script prints that says all went well.
const honest = `echo "{\"path\":\"$out/$name\",\"bytes\":1}"`

// deceived runs Binary with an impostor whose body is "node", and whose digest is right.
func deceived(t *testing.T, script string) (dir string, err error) {
	t.Helper()
	req := request(t, "https://example.com/?checksum=sha256:"+sum256("node"))
	req.Program = impostor(t, script)
	_, _, err = Binary(t.Context(), req)
	return req.Dir, err
}

func TestNothingIsBelieved(t *testing.T) {
	const body = `[ $mode = fetch ] && { printf node >"$out/$name"; ` + honest + `; exit; }; `
	for name, c := range map[string]struct{ script, reason string }{
		"no file":                    {honest, "left 0 files"},
		"another content":            {`printf evil >"$out/$name"; ` + honest, "checksum mismatch"},
		"another name":               {`printf node >"$out/other"; ` + honest, "want one named simd"},
		"two files":                  {`printf node | tee "$out/$name" >"$out/other"; ` + honest, "left 2 files"},
		"a link":                     {`ln -s /bin/sh "$out/$name"; ` + honest, "simd"},
		"a directory":                {`mkdir "$out/$name"; ` + honest, "not a regular file"},
		"a FIFO":                     {`mkfifo "$out/$name"; ` + honest, "not a regular file"},
		"a second name":              {`printf node >mine; ln mine "$out/$name"; ` + honest, "second name"},
		"a way out of the directory": {`rmdir "$out"; ln -s /tmp "$out"; ` + honest, ""},
		"unpacked: no file":          {body + honest, "left 0 files"},
		"unpacked: a link":           {body + `ln -s /bin/sh "$out/$name"; ` + honest, "simd"},
		"unpacked: a FIFO":           {body + `mkfifo "$out/$name"; ` + honest, "not a regular file"},
		"unpacked: a second name":    {body + `ln "$body" "$out/$name"; ` + honest, "second name"},
		"says nothing":               {`printf node >"$out/$name"`, "reported nothing"},
		"says something else":        {`echo downloaded`, "reported nothing"},
		"says two things":            {honest + ";" + honest, "reported nothing"},
		"talks without an end":       {`yes x | head -c 1000000; ` + honest, "reported nothing"},
		"talks in one line":          {`yes x | head -c 1000000 | tr -d '\n'; ` + honest, "reported nothing"},
		"says well, ends badly":      {honest + `; exit 1`, "exit status 1"},
		"dies":                       {`echo why >&2; kill -9 $$`, "killed: why"},
		"fails":                      {`echo '{"error":"no such luck","kind":"refused"}'; exit 1`, "no such luck"},
		"fails with much to say":     {`yes complaint | head -c 100000 >&2; exit 3`, "exit status 3: complaint complaint"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := deceived(t, c.script)
			require.ErrorContains(t, err, c.reason)
			assert.Less(t, len(err.Error()), maxStderr+500)
			nothingLeft(t, dir)
		})
	}
}

func TestFullDiskIsSaid(t *testing.T) {
	dir, err := deceived(t, `echo '{"error":"no space left on device: 9 bytes needed, 1 free","kind":"no-space"}'; exit 1`)
	require.ErrorContains(t, err, "9 bytes needed, 1 free")
	assert.Contains(t, hint.Of(err), "free some space on the file system of "+dir)
}

// TestEnvironment: of ours it sees the way out and the certificates, nothing else; no input; the stage as its directory.
func TestEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"HTTPS_PROXY": "http://127.0.0.1:3128", "NO_PROXY": "localhost", "SSL_CERT_FILE": "/etc/ssl/own.pem",
		"DAEMON_HOME": "/home", "AWS_SECRET_ACCESS_KEY": "secret", "PGPASSWORD": "secret", "LD_PRELOAD_X": "evil.so",
	} {
		t.Setenv(name, value)
	}
	seen := filepath.Join(t.TempDir(), "seen")
	_, err := deceived(t, `{ pwd; cat; tr '\0' '\n' </proc/$$/environ; ls /proc/$$/fd; } >`+seen+` 2>&1`)
	require.Error(t, err)
	data, err := os.ReadFile(seen)
	require.NoError(t, err)
	text := string(data)
	for _, want := range []string{stagePrefix, "HTTPS_PROXY=http://127.0.0.1:3128", "NO_PROXY=localhost", "SSL_CERT_FILE=/etc/ssl/own.pem"} {
		assert.Contains(t, text, want)
	}
	for _, unwanted := range []string{"DAEMON_HOME", "secret", "LD_PRELOAD", "PATH=", "HOME="} {
		assert.NotContains(t, text, unwanted)
	}
}

// TestGroupIsKilled: what the downloader may have started ends with it.
func TestGroupIsKilled(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	req := request(t, "https://example.com/?checksum=sha256:"+sum256("node"))
	req.Program = impostor(t, `sleep 1000 & echo $! $$ >`+pids+`.new; mv `+pids+`.new `+pids+`; wait`)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, _, err := Binary(ctx, req)
		done <- err
	}()
	var sleeper, shell int
	require.Eventually(t, func() bool {
		data, err := os.ReadFile(pids)
		if err != nil {
			return false
		}
		n, _ := fmt.Sscan(string(data), &sleeper, &shell)
		return n == 2
	}, 20*time.Second, 5*time.Millisecond)
	cancel()
	select {
	case err := <-done:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(20 * time.Second):
		require.FailNow(t, "Binary doesn't return")
	}
	assert.Eventually(t, func() bool { return ended(sleeper) && ended(shell) }, 20*time.Second, 5*time.Millisecond)
}

// ended says whether a process is gone, or a zombie that its new parent hasn't waited for yet.
func ended(pid int) bool {
	if syscall.Kill(pid, 0) == syscall.ESRCH {
		return true
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return true
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(state, "Z")
}

// TestRunsAsOwner: a supervisor of root's lets the node's user download, not root.
func TestRunsAsOwner(t *testing.T) {
	const uid, gid = 64321, 64322
	if os.Geteuid() != 0 {
		// Nobody but root can become another user; then the downloader is whom we are.
		req := request(t, serve(t, answer(node))+"?checksum=sha256:"+sum256(node))
		file, _, err := Binary(t.Context(), req)
		require.NoError(t, err)
		assert.Equal(t, uint32(os.Geteuid()), owner(t, file).Uid)
		return
	}
	// t.TempDir lies below directories that only root enters.
	dir, err := os.MkdirTemp("", "fetch-owner-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chown(dir, uid, gid))
	archive := targz(t, "simd", node, "LICENSE", "free")
	req := request(t, serve(t, answer(archive))+"?checksum=sha256:"+sum256(archive))
	req.Dir = dir
	file, sum, err := Binary(t.Context(), req)
	require.NoError(t, err)
	assert.Equal(t, sum256(node), sum)
	for _, path := range []string{file, filepath.Dir(file)} {
		st := owner(t, path)
		assert.Equal(t, [2]uint32{uid, gid}, [2]uint32{st.Uid, st.Gid}, path)
	}

	groups := filepath.Join(dir, "groups")
	req.Program = impostorIn(t, dir, `/usr/bin/id -u >`+groups+`; /usr/bin/id -G >>`+groups)
	_, _, err = Binary(t.Context(), req)
	require.Error(t, err)
	data, err := os.ReadFile(groups)
	require.NoError(t, err)
	assert.Equal(t, "64321\n64322\n", string(data), "and no group of root's is kept")
}

func owner(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	info, err := os.Lstat(path)
	require.NoError(t, err)
	return info.Sys().(*syscall.Stat_t)
}

// TestLines: messages come in pieces of any size, and a run's last one is the last.
func TestLines(t *testing.T) {
	const output = `{"done":1,"total":4}` + "\n" + `{"done":3,"total":4}` + "\n" + `{"path":"/a","bytes":4,"sha256":"x"}` + "\n"
	for size := 1; size <= len(output); size++ {
		var events []progress.Event
		l := &lines{observe: func(e progress.Event) { events = append(events, e) }}
		for rest := output; rest != ""; rest = rest[min(size, len(rest)):] {
			n, err := l.Write([]byte(rest[:min(size, len(rest))]))
			require.NoError(t, err)
			require.Equal(t, min(size, len(rest)), n)
		}
		last, ok := l.result()
		require.True(t, ok)
		require.Equal(t, Message{Path: "/a", Bytes: 4, SHA256: "x"}, last)
		require.Equal(t, []progress.Event{{Phase: "download", Done: 1, Total: 4}, {Phase: "download", Done: 3, Total: 4}}, events)
	}
	for _, output := range []string{
		"", "{}\n", `{"path":"/a"}`, `{"path":"/a"}` + "\n" + `{"done":1}` + "\n", "\n" + `{"path":"/a"}` + "\n", "null and void\n",
	} {
		l := &lines{}
		_, err := l.Write([]byte(output))
		require.NoError(t, err)
		_, ok := l.result()
		assert.False(t, ok, "%q", output)
	}
}
