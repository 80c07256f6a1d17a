package doctor

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
)

func TestMountsBelow(t *testing.T) {
	mounts := []string{
		"22 1 0:21 / /proc rw - proc proc rw", `30 1 8:1 / /h/up\040grades/v2 rw - ext4 /dev/sda1 rw`,
		"31 1 8:1 /x /h/upgrades2 rw - ext4 /dev/sda1 rw", "32 1 8:1 / /h/up rw", "junk", "",
	}
	assert.Equal(t, []string{"/h/up grades/v2"}, mountsBelow("/h/up grades", mounts))
	assert.Empty(t, mountsBelow("/h/upgrades", mounts), "neither itself nor a longer name")
}

func TestWatchingIsJudgedByWhatItLacks(t *testing.T) {
	for why, want := range map[string][3]string{
		"":                                   {"ok", "the kernel tells of changes (limits)", ""},
		"too many open files":                {"FAIL", "files are polled: too many open files (limits)", "max_user_instances"},
		"/h/data: no space left on device":   {"FAIL", "polled", "max_user_watches"},
		"/h/data: file system is NFS":        {"ok", "warning: files are polled every ", ""},
		"/h/data: permission denied, really": {"ok", "warning: files are polled every ", ""},
	} {
		x := &examination{Session: &session.Session{App: &cli.App{}}}
		x.judgeWatching(why, "limits")
		require.Len(t, x.checks, 1)
		c := x.checks[0]
		assert.Equal(t, want[0] == "ok", *c.OK, why)
		assert.Contains(t, c.Detail, want[1])
		if want[2] == "" {
			assert.Nil(t, c.Fix)
			continue
		}
		require.NotNil(t, c.Fix)
		assert.Contains(t, *c.Fix, want[2])
	}
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "max_user_instances"), []byte("128\n"), 0o600))
	assert.Equal(t, "max_user_instances 128, max_user_watches not known", inotifyLimits(dir))
}
