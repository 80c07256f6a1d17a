package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/genesis"
	"nodevisor/internal/pgtest"
)

func TestGenesisInitDownloads(t *testing.T) {
	bin := t.TempDir()
	for name, pkg := range map[string]string{"supervisor": ".", "fetch": "../fetch"} {
		out, err := exec.Command("go", "build", "-o", filepath.Join(bin, name), pkg).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	c := newInitCase(t, "v0.10", "host=/nowhere dbname=x")
	web := httptest.NewServer(http.FileServer(http.Dir(c.dir)))
	t.Cleanup(web.Close)
	sum := func(path string) string {
		got, err := genesis.SumFile(path)
		require.NoError(t, err)
		return got
	}
	try := func(documentSum string) (string, error) {
		cmd := exec.Command(filepath.Join(bin, "supervisor"), "genesis", "init", "--root-dir", c.root, "--skip-trial", "--dsn", c.dsn,
			"--genesis", web.URL+"/genesis.json", "--sha256", documentSum,
			"--genesis-state", web.URL+"/"+filepath.Base(c.state), "--state-sha256", sum(c.state))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := try(strings.Repeat("0", 64))
	require.Error(t, err)
	assert.Contains(t, out, "checksum mismatch")
	assert.Contains(t, out, "Hint: download it by hand")
	c.untouched("a wrong digest")
	out, err = try(sum(c.document))
	require.NoError(t, err, out)
	sameFile(t, c.state, filepath.Join(c.root, "genesis-state.sql.gz"))
	entries, err := os.ReadDir(filepath.Dir(c.root))
	require.NoError(t, err)
	assert.Len(t, entries, 1, "nothing of the download is left")
}

// Killed at many moments of its work, and done again: the root is whole, the database right, nothing else is left.
func TestGenesisInitKilled(t *testing.T) {
	server := pgtest.Start(t)
	bin := filepath.Join(t.TempDir(), "supervisor")
	out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, mode := range [][]string{nil, {"--restore-now"}} {
		c := newInitCase(t, "v0.9", server.DSN("chain"+fmt.Sprint(len(mode))))
		command := func() *exec.Cmd {
			args := append([]string{"genesis", "init", "--root-dir", c.root, "--genesis", c.document, "--genesis-state", c.state, "--dsn", c.dsn}, mode...)
			return exec.Command(bin, args...)
		}
		began := time.Now()
		whole := newInitCase(t, "v0.9", server.DSN("measure"+fmt.Sprint(len(mode))))
		_, errs, code := whole.run(mode...)
		require.Zero(t, code, errs)
		took := time.Since(began)

		finished := false
		const moments = 9
		for n := range moments {
			cmd := command()
			var output safeBuffer
			cmd.Stdout, cmd.Stderr = &output, &output
			require.NoError(t, cmd.Start())
			timer := time.AfterFunc(took*time.Duration(n+1)/moments, func() { _ = cmd.Process.Kill() })
			err := cmd.Wait()
			timer.Stop()
			if finished = err == nil || initEnded(t, c.root, mode != nil); finished {
				break // killed behind its last effect, too: a root that is set up is refused
			}
			require.False(t, cmd.ProcessState.Exited(), "killed, not refused: %s", output.String())
		}
		if !finished {
			out, err := command().CombinedOutput()
			require.NoError(t, err, "%s", out)
		}
		sameFile(t, c.state, filepath.Join(c.root, "genesis-state.sql.gz"))
		entries, err := os.ReadDir(c.root)
		require.NoError(t, err)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		assert.Equal(t, []string{"config.toml", "genesis-state.sql.gz", "genesis.json", "supervisor"}, names)
		m, err := genesis.ReadMarker(c.root)
		require.NoError(t, err)
		if mode == nil {
			require.NotNil(t, m)
			assert.Equal(t, genesis.Restoring, m.Phase)
		} else {
			assert.Nil(t, m)
			assert.NotEqual(t, []string{"0"}, server.Query("chain1", "SELECT count(*)::text FROM kwild_voting.resolution_types"))
		}
		assert.Empty(t, server.Query("postgres", `SELECT datname::text FROM pg_database WHERE datname LIKE 'sv\_genesis%'`), "a scratch database was left")
	}
}

// initEnded tells whether the last effect of a `genesis init` is there: whoever kills it then finds nothing left to do.
func initEnded(t *testing.T, root string, restored bool) bool {
	m, err := genesis.ReadMarker(root)
	require.NoError(t, err)
	if !restored {
		return m != nil && m.Phase == genesis.Restoring
	}
	_, err = os.Stat(filepath.Join(root, "config.toml"))
	return m == nil && err == nil
}

// safeBuffer takes the output of a process that is killed.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
