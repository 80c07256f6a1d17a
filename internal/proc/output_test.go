package proc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOutputCapturesBothStreams(t *testing.T) {
	res, err := Output(t.Context(), sh("echo out; echo err >&2"), 100)
	require.NoError(t, err)
	assert.Equal(t, "out\n", string(res.Stdout))
	assert.Equal(t, "err\n", string(res.Stderr))
	assert.False(t, res.Truncated)
	assert.Zero(t, res.Code)
	assert.Positive(t, res.Took)
}

func TestOutputCodesAndSignals(t *testing.T) {
	for _, code := range []int{1, 30, 31, 127, 255} {
		res, err := Output(t.Context(), sh("echo first >&2; echo it broke >&2; exit "+strconv.Itoa(code)), 100)
		var exit *ExitError
		require.ErrorAs(t, err, &exit)
		assert.Equal(t, code, res.Code)
		assert.Equal(t, code, exit.Result.Code)
		assert.Equal(t, "sh: exit code "+strconv.Itoa(code)+": it broke", err.Error())
		assert.Equal(t, "first\nit broke", Tail(err))
	}
	res, err := Output(t.Context(), sh("kill -SEGV $$"), 100)
	var exit *ExitError
	require.ErrorAs(t, err, &exit)
	assert.Equal(t, syscall.SIGSEGV, res.Signal)
	assert.Equal(t, -1, res.Code)
	assert.Contains(t, err.Error(), "segmentation fault")
	assert.Empty(t, Tail(errors.New("another")))
}

func TestOutputCaps(t *testing.T) {
	res, err := Output(t.Context(), sh("head -c 300000 /dev/zero; (head -c 300000 /dev/zero; echo; echo the end) >&2"), 1000)
	require.NoError(t, err, "the program must not be blocked by the cap")
	assert.Len(t, res.Stdout, 1000)
	assert.True(t, res.Truncated)
	assert.Len(t, res.Stderr, stderrTail)
	assert.True(t, strings.HasSuffix(string(res.Stderr), "\nthe end\n"))

	_, err = Output(t.Context(), sh("head -c 5000 /dev/zero | tr '\\0' x >&2; exit 1"), 10)
	require.Error(t, err)
	assert.Less(t, len(err.Error()), 300, "a line without an end fills the message")

	res, err = Output(t.Context(), sh("printf 12345"), 5)
	require.NoError(t, err)
	assert.False(t, res.Truncated, "the cap exactly")
}

func TestOutputLeavesSetStreamsAlone(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	require.NoError(t, err)
	defer f.Close()
	cmd := sh("echo out; echo err >&2")
	cmd.Stdout = f
	res, err := Output(t.Context(), cmd, 100)
	require.NoError(t, err)
	assert.Empty(t, res.Stdout)
	assert.Equal(t, "err\n", string(res.Stderr))
	got, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	assert.Equal(t, "out\n", string(got))
}

// readPid waits for a pid that a script writes.
func readPid(t *testing.T, path string) (pid int) {
	t.Helper()
	waitFor(t, 20*time.Second, "the script has started", func() bool {
		data, _ := os.ReadFile(path)
		n, err := strconv.Atoi(strings.TrimSpace(string(data)))
		pid = n
		return err == nil && strings.HasSuffix(string(data), "\n")
	})
	return pid
}

// At the end of the context all of the group is killed, also what ignores SIGTERM, and Output returns.
func TestOutputKillsTheGroupAtTheEndOfTheContext(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	cause := errors.New("the deadline of the probe")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		readPid(t, pidFile)
		cancel(cause)
	}()
	began := time.Now()
	res, err := Output(ctx, sh(`trap "" TERM; sh -c 'trap "" TERM; echo $$ > `+pidFile+`; sleep 60; sleep 60' & sleep 60; sleep 60`), 100)
	require.ErrorIs(t, err, cause)
	assert.Contains(t, err.Error(), "killed after")
	assert.Equal(t, syscall.SIGKILL, res.Signal)
	assert.Less(t, time.Since(began), 30*time.Second)
	gone(t, readPid(t, pidFile))
}

// gone waits until a process runs no more.
func gone(t *testing.T, pid int) {
	t.Helper()
	waitFor(t, 20*time.Second, "the process is gone", func() bool {
		Reap()
		st, err := ReadStat(pid)
		return err != nil || st.Ended()
	})
}

func TestOutputKillsWhatTheProgramLeavesInItsGroup(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	began := time.Now()
	res, err := Output(t.Context(), sh(`sh -c 'echo $$ > `+pidFile+`; exec sleep 60' & while ! [ -s `+pidFile+` ]; do sleep 0.01; done; echo done`), 100)
	require.NoError(t, err)
	assert.Equal(t, "done\n", string(res.Stdout))
	assert.Less(t, time.Since(began), 30*time.Second, "it waited for a process that holds the pipe")
	gone(t, readPid(t, pidFile))
}

// A process that left the group and holds the pipe open delays the answer by no more than pipeDelay.
func TestOutputDoesNotWaitForAnEscapedProcess(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	began := time.Now()
	res, err := Output(t.Context(), sh(`setsid sh -c 'echo $$ > `+pidFile+`; exec sleep 60' & while ! [ -s `+pidFile+` ]; do sleep 0.01; done; echo done`), 100)
	pid := readPid(t, pidFile)
	t.Cleanup(func() { endOrphan(t, pid) })
	require.NoError(t, err)
	assert.Equal(t, "done\n", string(res.Stdout))
	assert.Less(t, time.Since(began), 30*time.Second)
	st, err := ReadStat(pid)
	require.NoError(t, err, "only the group is killed")
	assert.False(t, st.Ended())
}

func TestOutputFailures(t *testing.T) {
	res, err := Output(t.Context(), exec.Command(filepath.Join(t.TempDir(), "none")), 10)
	require.ErrorIs(t, err, os.ErrNotExist)
	assert.Equal(t, -1, res.Code)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	mark := filepath.Join(t.TempDir(), "mark")
	_, err = Output(ctx, sh("touch "+mark), 10)
	require.ErrorIs(t, err, context.Canceled)
	assert.NoFileExists(t, mark, "it ran under an ended context")
}

// writerFunc is a writer that a test makes slow, or broken.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A consumer that is slow when the program ends, longer than pipeDelay, still gets every byte.
func TestOutputWaitsForASlowWriter(t *testing.T) {
	var got int
	cmd := sh("head -c 200000 /dev/zero")
	cmd.Stdout = writerFunc(func(p []byte) (int, error) {
		if got += len(p); got == len(p) {
			time.Sleep(3 * pipeDelay / 2) // the rest lies in the pipe, and the program has ended
		}
		return len(p), nil
	})
	_, err := Output(t.Context(), cmd, 0)
	require.NoError(t, err)
	assert.Equal(t, 200000, got)
}

// Output that can't be taken is no success, whatever the program's code is.
func TestOutputSaysWhatAWriterRefused(t *testing.T) {
	full := errors.New("no room")
	for _, script := range []string{"echo small", "head -c 300000 /dev/zero", "echo small; exit 3"} {
		cmd := sh(script)
		cmd.Stdout = writerFunc(func([]byte) (int, error) { return 0, full })
		_, err := Output(t.Context(), cmd, 0)
		require.ErrorIs(t, err, full, script)
	}
}

// Nobody is waited for for good: neither a writer that is stuck, nor who holds the pipe from outside of the group.
func TestOutputIsBoundedByItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	stuck := make(chan struct{})
	t.Cleanup(func() { close(stuck) })
	cmd := sh("echo out")
	cmd.Stdout = writerFunc(func(p []byte) (int, error) { <-stuck; return len(p), nil })
	began := time.Now()
	_, err := Output(ctx, cmd, 0)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Less(t, time.Since(began), 10*time.Second)
}
