package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

func TestJudge(t *testing.T) {
	who := identity{
		uid: 1000, groups: []uint32{1000, 2000},
		passwd: []string{"root:x:0:0::/root:/bin/sh", "node:x:1000:1000::/:", "other:x:1001:3000::/:", "third:x:1002:3000::/:", "fourth:x:1003:4000::/:", ""},
		group:  []string{"root:x:0:", "node:x:1000:node", "pod:x:2000:other", "shared:x:3000:", "fourth:x:4000:fourth,other", "staff:x:50:", "junk"},
	}
	const refused, warned, fine = "refused", "warned", "fine"
	for _, c := range []struct {
		mode     fs.FileMode
		uid, gid uint32
		want     string
		why      string
	}{
		{0o755, 1000, 1000, fine, "the user's own"},
		{0o755, 0, 0, fine, "root's"},
		{0o700, 1001, 1000, refused, "another user's"},
		{0o757, 1000, 1000, refused, "world-writable"},
		{0o757, 0, 0, refused, "world-writable, root's"},
		{0o777 | fs.ModeSticky, 1000, 1000, refused, "sticky is no excuse"},
		{0o775, 1000, 1000, warned, "the user's private group"},
		{0o775, 0, 0, warned, "root's private group"},
		{0o775, 1000, 2000, warned, "fsGroup: the process's own"},
		{0o775, 1000, 3000, refused, "a group that is primary to others"},
		{0o775, 1000, 5000, refused, "a group that nobody knows"},
		{0o775, 0, 50, warned, "a group without members: Debian's /usr/local/bin"},
		{0o775, 0, 1000, warned, "root's, writable by the process's own group"},
		{0o775, 0, 4000, refused, "root's, writable by somebody's"},
	} {
		problem, fix, warning := who.judge(c.mode.Perm(), c.uid, c.gid)
		got := fine
		if problem != "" {
			got = refused
			assert.NotEmpty(t, fix)
			assert.Empty(t, warning)
		} else if warning != "" {
			got = warned
		}
		assert.Equal(t, c.want, got, "%s: %s%s", c.why, problem, warning)
	}
	assert.True(t, who.isPrivate(1000, 1000))
	assert.False(t, who.isPrivate(1001, 3000), "another user has it as the primary group")
	assert.False(t, who.isPrivate(1003, 4000), "it has another member")
	assert.False(t, identity{}.isPrivate(1000, 1000), "nothing known is not private")
}

func TestCheckPermissions(t *testing.T) {
	home := newHome(t)
	cfg := Default()
	cfg.Node.Home, cfg.Node.Name = home, "simd"
	bin := filepath.Join(home, "cosmovisor", "upgrades", "v2", "bin")
	require.NoError(t, os.MkdirAll(bin, 0o755))
	file := writeConfig(t, home, "")
	paths := append(cfg.GuardedPaths(file), home+"/missing")
	for _, want := range []string{home, home + "/supervisor", home + "/supervisor/upgrade.json", home + "/cosmovisor", home + "/cosmovisor/genesis/bin", home + "/cosmovisor/upgrades", filepath.Dir(bin), bin, file} {
		assert.Contains(t, paths, want)
	}
	for _, p := range paths {
		if err := os.Chmod(p, 0o755); !errors.Is(err, fs.ErrNotExist) {
			require.NoError(t, err)
		}
	}
	errs, warnings := CheckPermissions(home, paths, nil)
	assert.Empty(t, errs)
	assert.Empty(t, warnings)

	require.NoError(t, os.Chmod(bin, 0o777))
	require.NoError(t, os.Chmod(file, 0o666))
	errs, _ = CheckPermissions(home, paths, nil)
	require.Len(t, errs, 2)
	require.EqualError(t, errs[0], "cannot trust "+bin+": it is writable by everyone (mode 0777)")
	assert.Equal(t, "chmod o-w "+bin+"    # or add it to [security] allow_writable", hint.Of(errs[0]))
	require.ErrorContains(t, errs[1], file)

	errs, _ = CheckPermissions(home, paths, []string{"cosmovisor/upgrades/v2/bin/", file})
	assert.Empty(t, errs, "accepted as they are")
}

// Who may write to the file decides what runs, whatever the directories around it are.
func TestABinaryIsJudgedLikeTheTree(t *testing.T) {
	home := newHome(t)
	cfg := Default()
	cfg.Node.Home, cfg.Node.Name = home, "simd"
	genesis, staged := filepath.Join(home, "cosmovisor/genesis/bin/simd"), filepath.Join(home, "cosmovisor/upgrades/v2/bin/simd")
	for _, bin := range []string{genesis, staged} {
		require.NoError(t, os.MkdirAll(filepath.Dir(bin), 0o755))
		require.NoError(t, os.WriteFile(bin, []byte("#!/bin/sh\n"), 0o755))
	}
	judge := func() []error {
		errs, _ := CheckPermissions(home, cfg.GuardedPaths(""), cfg.Security.AllowWritable)
		return errs
	}
	require.Empty(t, judge())
	for _, bin := range []string{genesis, staged} {
		require.NoError(t, os.Chmod(bin, 0o757))
		require.Len(t, judge(), 1)
		require.EqualError(t, judge()[0], "cannot trust "+bin+": it is writable by everyone (mode 0757)")
		require.ErrorContains(t, cfg.TrustBinary(bin), "writable by everyone")
		cfg.Security.AllowWritable = []string{bin}
		assert.Empty(t, judge(), "accepted as it is")
		require.NoError(t, cfg.TrustBinary(bin))
		cfg.Security.AllowWritable = nil
		require.NoError(t, os.Chmod(bin, 0o755))
		if os.Geteuid() == 0 {
			require.NoError(t, os.Chown(bin, 54321, 0))
			require.Len(t, judge(), 1)
			require.ErrorContains(t, judge()[0], "owned by user 54321")
			require.NoError(t, os.Chown(bin, 0, 0))
		}
	}
}

// A link out of the tree is as good as the directories that its target lies in; a sticky one of root's is none of them.
func TestALinkedBinaryIsJudgedByItsTarget(t *testing.T) {
	home, elsewhere := newHome(t), filepath.Join(t.TempDir(), "opt")
	cfg := Default()
	cfg.Node.Home, cfg.Node.Name = home, "simd"
	bin, target := filepath.Join(home, "cosmovisor/genesis/bin/simd"), filepath.Join(elsewhere, "chain", "simd-v1")
	require.NoError(t, os.MkdirAll(filepath.Dir(target), 0o755))
	require.NoError(t, os.WriteFile(target, []byte("#!/bin/sh\n"), 0o755))
	require.NoError(t, os.Symlink(target, bin))
	require.NoError(t, cfg.TrustBinary(bin))

	require.NoError(t, os.Chmod(elsewhere, 0o777))
	require.ErrorContains(t, cfg.TrustBinary(bin), "cannot trust "+elsewhere+": it is writable by everyone")
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chmod(elsewhere, 0o777|fs.ModeSticky))
		require.NoError(t, cfg.TrustBinary(bin), "as /tmp is")
	}
	require.NoError(t, os.Chmod(elsewhere, 0o755))
	require.NoError(t, os.Chmod(target, 0o757))
	require.ErrorContains(t, cfg.TrustBinary(bin), "cannot trust "+bin)
}

func TestALinkedRootIsJudgedByItsTarget(t *testing.T) {
	home, elsewhere := t.TempDir(), t.TempDir()
	require.NoError(t, os.Symlink(elsewhere, filepath.Join(home, "cosmovisor")))
	require.NoError(t, os.Chmod(elsewhere, 0o777))
	errs, _ := CheckPermissions(home, []string{filepath.Join(home, "cosmovisor")}, nil)
	require.Len(t, errs, 1)
	require.ErrorContains(t, errs[0], "mode 0777")
}

// Root acts for the owner of home; only root can make files of another user, so the others check less here.
func TestRootActsForTheOwnerOfHome(t *testing.T) {
	home := newHome(t)
	root := filepath.Join(home, "cosmovisor")
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(home, 12345, 12345))
		require.NoError(t, os.Chown(root, 12345, 12345))
		errs, _ := CheckPermissions(home, []string{home, root, "/etc"}, nil)
		assert.Empty(t, errs)
		require.NoError(t, os.Chown(root, 54321, 12345))
	}
	errs, _ := CheckPermissions(home, []string{home, root, "/etc"}, nil)
	if os.Geteuid() == 0 {
		require.Len(t, errs, 1)
		require.EqualError(t, errs[0], "cannot trust "+root+": it is owned by user 54321, neither by user 12345 nor by root")
	} else {
		assert.Empty(t, errs)
	}
}
