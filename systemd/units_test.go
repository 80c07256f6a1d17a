package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

// actEnv has the test binary, inside of a booted systemd, act on a unit instead of running tests: "ACTION NAME".
const actEnv = "SYSTEMD_TEST_ACT"

func TestMain(m *testing.M) {
	action, name, asked := strings.Cut(os.Getenv(actEnv), " ")
	if !asked {
		os.Exit(m.Run())
	}
	if err := (Units{}).Act(context.Background(), name, action); err != nil {
		fmt.Printf("%v\nHint: %s\n", err, hint.Of(err))
		os.Exit(1)
	}
	fmt.Println("done")
}

// host boots systemd in namespaces of its own and returns what runs a command inside.
func host(t *testing.T, units map[string]string) func(args ...string) (string, error) {
	t.Helper()
	scripts, err := filepath.Abs("../testdata/systemd")
	require.NoError(t, err)
	dir, name := t.TempDir(), fmt.Sprintf("units-%d", os.Getpid())
	var files []string
	for file, text := range units {
		path := filepath.Join(dir, file)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		files = append(files, path)
	}
	program, err := os.Executable()
	require.NoError(t, err)
	environ := append(os.Environ(), "SD_STATE="+filepath.Join(dir, "state"), "SD_UNITS="+strings.Join(files, " "), "SD_BIND="+program+":/run-inside:ro", "SD_SIZE=256m")
	script := func(name string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, filepath.Join(scripts, name), args...)
		cmd.Env, cmd.WaitDelay = environ, time.Second
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	t.Cleanup(func() {
		environ = append(environ, "SD_FAST=1")
		out, err := script("down.sh", name)
		assert.NoError(t, err, out)
	})
	out, err := script("up.sh", name)
	require.NoError(t, err, out)
	return func(args ...string) (string, error) { return script("exec.sh", append([]string{name}, args...)...) }
}

// Other units of a host, over its own bus: done, done already, failed, refused.
func TestUnitsOfAHost(t *testing.T) {
	in := host(t, map[string]string{
		"feeder.service": "[Service]\nExecStart=/bin/sleep infinity\n",
		"slow.service":   "[Service]\nType=notify\nNotifyAccess=all\nExecStart=/bin/sh -c 'sleep 1; systemd-notify --ready; exec sleep infinity'\n",
		"broken.service": "[Service]\nType=oneshot\nExecStart=/bin/false\n",
	})
	act := func(action, unit string, before ...string) (string, error) {
		return in(append(before, "env", actEnv+"="+action+" "+unit, "/run-inside")...)
	}
	pid := func(unit string) string {
		out, err := in("systemctl", "show", "-p", "MainPID", "-p", "ActiveState", unit)
		require.NoError(t, err)
		return out
	}
	for range 2 { // what runs is started without harm
		out, err := act("start", "feeder.service")
		require.NoError(t, err, out)
	}
	first := pid("feeder.service")
	assert.Contains(t, first, "ActiveState=active")
	out, err := act("restart", "feeder.service")
	require.NoError(t, err, out)
	assert.NotEqual(t, first, pid("feeder.service"))
	out, err = act("wait", "feeder.service")
	require.NoError(t, err, out)
	for range 2 {
		out, err = act("stop", "feeder.service")
		require.NoError(t, err, out)
	}
	assert.Contains(t, pid("feeder.service"), "ActiveState=inactive")

	out, err = in("systemctl", "start", "--no-block", "slow.service")
	require.NoError(t, err, out)
	out, err = act("wait", "slow.service")
	require.NoError(t, err, out)
	assert.Contains(t, pid("slow.service"), "ActiveState=active")

	for _, c := range []struct {
		action, unit string
		before       []string
		wants        []string
	}{
		{"start", "broken.service", nil, []string{`cannot start unit broken.service: its job ended with "failed"`, "Hint: systemctl status broken.service"}},
		{"wait", "broken.service", nil, []string{"cannot wait unit broken.service: the unit has failed"}},
		{"wait", "nowhere.service", nil, []string{"the unit is not-found"}},
		{"start", "nowhere.service", nil, []string{"not found", "Hint: systemctl list-unit-files nowhere.service"}},
		{"stop", "slow.service", []string{"setpriv", "--reuid=1", "--regid=1", "--clear-groups"}, []string{"cannot stop unit slow.service: ", "Hint: let the node's user do it with a rule of polkit"}},
	} {
		out, err := act(c.action, c.unit, c.before...)
		assert.Error(t, err, c)
		for _, want := range c.wants {
			assert.Contains(t, out, want)
		}
	}
	assert.Contains(t, pid("slow.service"), "ActiveState=active", "what was refused was not done")

	out, err = in("systemctl", "stop", "dbus.service", "dbus.socket")
	require.NoError(t, err, out)
	out, err = act("start", "feeder.service")
	require.NoError(t, err, "root asks systemd itself: "+out)
	out, err = act("start", "feeder.service", "setpriv", "--reuid=1", "--regid=1", "--clear-groups")
	assert.Error(t, err)
	assert.Contains(t, out, "systemd can't be reached")
	assert.Contains(t, out, "Hint: apt install dbus")
}

// An action is bounded in time.
func TestUnitsInTime(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	u := Units{dial: func(ctx context.Context) (*dbus.Conn, error) {
		<-ctx.Done()
		return nil, errors.New("no answer")
	}}
	err := u.Act(ctx, "x.service", "start")
	assert.ErrorContains(t, err, "cannot start unit x.service: not done within 30s: ")
}
