package build_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/fakenode/build"
	"nodevisor/internal/fakenode/trace"
)

func TestBinaryIsBuiltOncePerVersion(t *testing.T) {
	v1, v2 := build.Binary(t, "v1"), build.Binary(t, "v2")
	assert.NotEqual(t, v1, v2)
	assert.NotEqual(t, v2, build.Binary(t, "v2", build.Handles("v3")), "what is linked in is part of the name")

	before, err := os.Stat(v1)
	require.NoError(t, err)
	again := build.Binary(t, "v1")
	require.Equal(t, v1, again)
	after, err := os.Stat(again)
	require.NoError(t, err)
	assert.True(t, os.SameFile(before, after), "a second call must not build again")

	out, err := exec.Command(v2, "version").Output()
	require.NoError(t, err)
	assert.Equal(t, "v2\n", string(out))
}

func TestBinarySurvivesAChangeOfDirectory(t *testing.T) {
	path := build.Binary(t, "v1")
	t.Chdir(t.TempDir())
	assert.Equal(t, path, build.Binary(t, "v1"))
}

func TestHandles(t *testing.T) {
	for name, opts := range map[string][]build.Option{"none": {build.Handles()}, "another": {build.Handles("v9")}} {
		home := t.TempDir()
		cmd := exec.Command(build.Binary(t, "v2", opts...), "start")
		cmd.Env = append(os.Environ(), "DAEMON_HOME="+home, "FAKENODE_UPGRADE=v2@1", "FAKENODE_BLOCK_TIME=1ms", "FAKENODE_AT_UPGRADE=exit")
		out, err := cmd.CombinedOutput()
		require.Error(t, err, name)
		assert.Contains(t, string(out), `UPGRADE "v2" NEEDED at height: 1`, name)
	}
}

func TestInstall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "upgrades", "v2", "bin", "fakenode")
	build.Install(t, path, "v2")
	out, err := exec.Command(path, "version").Output()
	require.NoError(t, err)
	assert.Equal(t, "v2", strings.TrimSpace(string(out)))
}

func TestWaitEvent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace")
	go func() {
		time.Sleep(20 * time.Millisecond)
		_ = trace.Append(path, trace.Event{Kind: trace.Start, Version: "v1"})
		_ = trace.Append(path, trace.Event{Kind: trace.Start, Version: "v2"})
	}()
	assert.Equal(t, "v2", build.WaitEvent(t, path, 10*time.Second, build.Kind(trace.Start, "v2")).Version)
}
