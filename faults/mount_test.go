//go:build faults

package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fault is what happens to the nth change of some kinds; the zero value is none.
type fault struct {
	kinds  string        // separated by commas; "any" is each of them
	n      int           // 0 = only counted
	action string        // kill, or an error's name
	lasts  time.Duration // how long the disk stays as it is then; 0 = one change fails
}

func (f fault) String() string {
	return fmt.Sprintf("%s at %s %d for %s", f.action, f.kinds, f.n, f.lasts)
}

// mount is a mounted faultfs. Dir is what programs see, below the directory under it, which the test looks at. A plain
// directory is one that never fails, and counts nothing.
type mount struct {
	dir, below string
	*server
}

// newMount mounts a faultfs that goes at the test's end.
func newMount(t *testing.T) *mount {
	t.Helper()
	root, err := os.MkdirTemp(memory(), "nv") // short: a socket's path has at most 107 bytes
	require.NoError(t, err)
	m := &mount{dir: filepath.Join(root, "m"), below: filepath.Join(root, "b")}
	require.NoError(t, os.Mkdir(m.dir, 0o755))
	require.NoError(t, os.Mkdir(m.below, 0o755))
	t.Cleanup(func() { os.RemoveAll(root) })
	m.server = serve(t, programs.faultfs, programs.supervisor, m.below, m.dir)
	return m
}

// plain is a directory in place of a faultfs.
func plain(t *testing.T) *mount {
	t.Helper()
	dir, err := os.MkdirTemp("", "nv")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &mount{dir: dir, below: dir}
}

// memory is a directory in memory where there is one from which programs may be executed: no power is cut here.
func memory() string {
	flags := int64(0x8) // ST_NOEXEC, statfs(2)
	if st, err := statfs("/dev/shm"); err == nil && st.Flags&flags == 0 {
		return "/dev/shm"
	}
	return ""
}

// arm sets the fault, and counts from now on.
func (m *mount) arm(t *testing.T, f fault) {
	t.Helper()
	if m.server == nil {
		return
	}
	if f.n == 0 {
		f = fault{"any", 0, "kill", 0}
	}
	m.ask(t, fmt.Sprintf("arm %s %d %s %s", f.kinds, f.n, f.action, f.lasts))
}

// met tells how many changes there were, how many of them failed, and what the first of those was.
func (m *mount) met(t *testing.T) (count, hits int, first string) {
	t.Helper()
	if m.server == nil {
		return 0, 0, ""
	}
	words := strings.SplitN(m.ask(t, "state"), " ", 5)
	_, err := fmt.Sscan(words[1]+" "+words[3], &count, &hits)
	require.NoError(t, err)
	return count, hits, words[4]
}
