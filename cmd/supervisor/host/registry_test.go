package host

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/config"
)

// sleeper starts a process that lives until the test ends.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// expandEntry puts a live entry's values into a text.
func expandEntry(text string, e Entry) string {
	return strings.NewReplacer("PID", strconv.Itoa(e.Pid), "START", strconv.FormatUint(e.Start, 10), "BOOT", e.Boot).Replace(text)
}

func testRegistry(t *testing.T) registry {
	return registry{dir: filepath.Join(t.TempDir(), "run", "nodevisor")}
}

// What killed runs left goes when the next one registers; a write of another home that is under way is let be.
func TestRegisterTidies(t *testing.T) {
	r := testRegistry(t)
	require.NoError(t, os.MkdirAll(r.dir, 0o700))
	hour := time.Now().Add(-time.Hour)
	for name, at := range map[string]time.Time{".atomic-1": hour.Add(-time.Minute), ".atomic-2": hour.Add(time.Minute), "x.sock": hour.Add(-time.Minute)} {
		require.NoError(t, os.WriteFile(filepath.Join(r.dir, name), nil, 0o600))
		require.NoError(t, os.Chtimes(filepath.Join(r.dir, name), at, at))
	}
	release, err := r.register(Entry{Home: "/a", Pid: os.Getpid()})
	require.NoError(t, err)
	release()
	var left []string
	entries, err := os.ReadDir(r.dir)
	require.NoError(t, err)
	for _, e := range entries {
		left = append(left, e.Name())
	}
	assert.Equal(t, []string{".atomic-2", "x.sock"}, left)
}

func TestRegisterAndRelease(t *testing.T) {
	r := testRegistry(t)
	assert.Empty(t, r.list(r.dir), "no directory, no runs")
	a, err := r.register(Entry{Home: "/a", Config: "/a/c.toml", Pid: os.Getpid(), Socket: "/a/s"})
	require.NoError(t, err)
	b, err := r.register(Entry{Home: "/b", Pid: sleeper(t).Process.Pid})
	require.NoError(t, err)

	entries := r.list(r.dir)
	require.Len(t, entries, 2)
	byHome := map[string]Entry{entries[0].Home: entries[0], entries[1].Home: entries[1]}
	assert.Equal(t, "/a/c.toml", byHome["/a"].Config)
	assert.Equal(t, "/a/s", byHome["/a"].Socket)
	assert.Equal(t, os.Getpid(), byHome["/a"].Pid)
	assert.Equal(t, uint32(os.Geteuid()), byHome["/a"].UID)
	info, err := os.Stat(r.dir)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o700), info.Mode().Perm())

	a()
	require.Len(t, r.list(r.dir), 1)
	b()
	b()
	assert.Empty(t, r.list(r.dir))
}

func TestTheDeadAreForgotten(t *testing.T) {
	r := testRegistry(t)
	cmd := sleeper(t)
	_, err := r.register(Entry{Home: "/killed", Pid: cmd.Process.Pid})
	require.NoError(t, err)
	require.Len(t, r.list(r.dir), 1)
	require.NoError(t, cmd.Process.Kill())
	// Not waited for yet: a zombie is dead too.
	require.Eventually(t, func() bool { return len(r.list(r.dir)) == 0 }, time.Minute, 10*time.Millisecond)
	files, err := os.ReadDir(r.dir)
	require.NoError(t, err)
	assert.Empty(t, files, "its entry is removed")
	_ = cmd.Wait()
	_, err = r.register(Entry{Home: "/killed", Pid: cmd.Process.Pid})
	require.Error(t, err, "the dead can't register")
}

func TestAPidThatWasReusedIsNotTheRun(t *testing.T) {
	for name, text := range map[string]string{
		"another start": `{"home":"/x","pid":PID,"start":1,"boot":"BOOT"}`,
		"another boot":  `{"home":"/x","pid":PID,"start":START,"boot":"old"}`,
		"no home":       `{"home":"x","pid":PID,"start":START,"boot":"BOOT"}`,
		"no JSON":       `{`,
	} {
		r := testRegistry(t)
		_, err := r.register(Entry{Home: "/x", Pid: os.Getpid()})
		require.NoError(t, err)
		path := filepath.Join(r.dir, homeDigest("/x")+".json")
		good, err := readEntry(path)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, []byte(expandEntry(text, good)), 0o600))
		assert.Empty(t, r.list(r.dir), name)
		assert.NoFileExists(t, path, name)
		require.NoError(t, os.WriteFile(path, []byte(expandEntry(`{"home":"/x","pid":PID,"start":START,"boot":"BOOT"}`, good)), 0o600))
		assert.Len(t, r.list(r.dir), 1, "the right one is found")
	}
}

func TestASuccessorsEntryIsNotReleased(t *testing.T) {
	r := testRegistry(t)
	release, err := r.register(Entry{Home: "/x", Pid: sleeper(t).Process.Pid})
	require.NoError(t, err)
	_, err = r.register(Entry{Home: "/x", Pid: os.Getpid()})
	require.NoError(t, err)
	release()
	require.Len(t, r.list(r.dir), 1)
	assert.Equal(t, os.Getpid(), r.list(r.dir)[0].Pid)
}

func TestADirectoryOfOthersIsNotUsed(t *testing.T) {
	r := testRegistry(t)
	require.NoError(t, os.MkdirAll(r.dir, 0o700))
	require.NoError(t, os.Chmod(r.dir, 0o777))
	_, err := r.register(Entry{Home: "/x", Pid: os.Getpid()})
	require.ErrorIs(t, err, os.ErrPermission, "anyone could have put entries there")
	assert.Empty(t, r.list(r.dir))

	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Chmod(r.dir, 0o700))
	require.NoError(t, os.Symlink(r.dir, link))
	_, err = registry{dir: link}.register(Entry{Home: "/x", Pid: os.Getpid()})
	require.ErrorIs(t, err, os.ErrPermission)
}

// What a user wrote into a directory of that user's is only believed of processes of that user's.
func TestRootDoesNotBelieveOthersOfItself(t *testing.T) {
	r := testRegistry(t)
	_, err := r.register(Entry{Home: "/x", Pid: os.Getpid()})
	require.NoError(t, err)
	e, err := readEntry(filepath.Join(r.dir, homeDigest("/x")+".json"))
	require.NoError(t, err)
	assert.True(t, e.alive(uint32(os.Geteuid())))
	assert.False(t, e.alive(12345), "the process belongs to somebody else than the entry")
}

func TestStartTimeOfAStrangeName(t *testing.T) {
	dir := t.TempDir()
	sleep, err := exec.LookPath("sleep")
	require.NoError(t, err)
	strange := filepath.Join(dir, "a) R 1 (b")
	require.NoError(t, os.Symlink(sleep, strange))
	cmd := exec.Command(strange, "300")
	cmd.Args[0] = "sleep" // a multi-call binary looks at it
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	mine, err := startTime(os.Getpid())
	require.NoError(t, err)
	its, err := startTime(cmd.Process.Pid)
	require.NoError(t, err)
	assert.GreaterOrEqual(t, its, mine)
	_, err = startTime(1 << 30)
	require.Error(t, err)
}

func TestRegisteredLooksWhereRunsRegister(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	environ := []string{"XDG_RUNTIME_DIR=" + dir}
	r := registry{dir: filepath.Join(dir, "nodevisor-0")} // one of those that root looks at
	if os.Geteuid() != 0 {
		r = newRegistry(environ)
		assert.Equal(t, filepath.Join(dir, "nodevisor"), r.dir)
	}
	_, err := r.register(Entry{Home: dir, Pid: os.Getpid()})
	require.NoError(t, err)
	var homes []string
	for _, e := range Registered(environ) {
		homes = append(homes, e.Home)
	}
	assert.Contains(t, homes, dir)
}

// Where the home's path is too long for a socket, a service listens in the directory that systemd gave it alone, and other
// commands, which have no such directory, find it there.
func TestSocketOfALongHomeInAService(t *testing.T) {
	cfg := config.Default()
	cfg.Node.Home = filepath.Join(t.TempDir(), strings.Repeat("h", 100))
	require.NoError(t, os.Mkdir(cfg.Node.Home, 0o700))
	service := filepath.Join(t.TempDir(), "nodevisor-unit")
	want := filepath.Join(service, homeDigest(cfg.Node.Home)+".sock")
	assert.Equal(t, want, OwnSocket(cfg, []string{"RUNTIME_DIRECTORY=" + service}))

	run := registry{dir: service}
	other := registry{dir: filepath.Join(t.TempDir(), "nodevisor"), more: []string{service}}
	there := func(home string) bool {
		e, ok := other.runOf(home, "")
		return ok && e.Socket == want
	}
	assert.False(t, there(cfg.Node.Home), "nobody is there yet")
	release, err := run.register(Entry{Home: cfg.Node.Home, Pid: os.Getpid(), Socket: want})
	require.NoError(t, err)
	assert.True(t, there(cfg.Node.Home))
	assert.False(t, there(cfg.Node.Home+"2"), "of another home")
	release()
	assert.False(t, there(cfg.Node.Home), "it is gone")
}

// A run listens where it listened from its start: a configuration that was edited since doesn't hide it.
func TestSocketOfARunWhoseConfigurationChanged(t *testing.T) {
	dir := t.TempDir()
	environ := []string{"RUNTIME_DIRECTORY=" + filepath.Join(dir, "run")}
	cfg := config.Default()
	cfg.Node.Home, cfg.Control.Socket = dir, "new.sock"
	old := filepath.Join(dir, "old.sock")
	release, err := Register(environ, dir, "", os.Getpid(), old)
	require.NoError(t, err)
	assert.Equal(t, old, ControlSocket(cfg, environ))
	assert.Equal(t, filepath.Join(dir, "new.sock"), OwnSocket(cfg, environ))
	release()
	assert.Equal(t, filepath.Join(dir, "new.sock"), ControlSocket(cfg, environ))
}

func TestControlSocketIsShortEnough(t *testing.T) {
	cfg := config.Default()
	cfg.Node.Home = "/h"
	assert.Equal(t, "/h/supervisor/control.sock", ControlSocket(cfg, nil))
	cfg.Node.Home = "/" + strings.Repeat("h", 106)
	env := []string{"XDG_RUNTIME_DIR=/run/user/1"}
	assert.Equal(t, filepath.Join(runtimeDir(env), homeDigest(cfg.Node.Home)+".sock"), ControlSocket(cfg, env))
	assert.LessOrEqual(t, len(ControlSocket(cfg, env)), config.MaxSocketPath)
	cfg.Control.Socket = "my.sock"
	assert.Equal(t, cfg.Node.Home+"/my.sock", ControlSocket(cfg, env))
	if os.Geteuid() == 0 {
		assert.Equal(t, "/run/nodevisor", runtimeDir(env))
	} else {
		assert.Equal(t, "/run/user/1/nodevisor", runtimeDir(env))
	}
}
