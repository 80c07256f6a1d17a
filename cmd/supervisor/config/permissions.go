package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"nodevisor/internal/capped"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/version"
)

// GuardedPaths lists what decides which program runs as the node's user, and so must not be writable by others: home,
// the supervisor's own state in it (the journal names the version, the schedule when), root, the directories of the versions,
// their bin and the binaries in it, and the configuration file ("" = none).
func (c Config) GuardedPaths(file string) []string {
	root, l := c.RootDir(), version.Layout{Home: c.Node.Home}
	paths := []string{
		c.Node.Home, l.State(), l.LockPath(), l.JournalPath(), l.SchedulePath(), l.HeightPath(), l.HistoryDir(),
		root, filepath.Join(root, "upgrades"),
	}
	versions := []string{filepath.Join(root, "genesis")}
	if entries, err := os.ReadDir(filepath.Join(root, "upgrades")); err == nil {
		for _, e := range entries {
			versions = append(versions, filepath.Join(root, "upgrades", e.Name()))
		}
	}
	for _, dir := range versions {
		paths = append(paths, dir, filepath.Join(dir, "bin"))
		for _, path := range binaryPaths(root, filepath.Join(dir, "bin", c.Node.Name)) {
			if !slices.Contains(paths, path) {
				paths = append(paths, path)
			}
		}
	}
	if file != "" {
		paths = append(paths, file)
	}
	return paths
}

// binaryPaths lists what decides what a binary of the tree is, besides the tree: the file, and where it is a link that
// leaves the tree, the directories that its target lies in. A sticky directory of root's is none of them: in /tmp nobody
// replaces what is another's (inode(7), S_ISVTX).
func binaryPaths(root, binary string) []string {
	paths := []string{binary}
	target, err := filepath.EvalSymlinks(binary)
	if err != nil {
		return paths
	}
	if top, err := filepath.EvalSymlinks(root); err == nil && strings.HasPrefix(target, top+string(filepath.Separator)) {
		return paths
	}
	for dir := filepath.Dir(target); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return append(paths, dir) // whoever judges it says why it can't be
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != 0 || info.Mode()&fs.ModeSticky == 0 {
			paths = append(paths, dir)
		}
		if dir == filepath.Dir(dir) {
			return paths
		}
	}
}

// TrustBinary refuses a binary of the tree that others may change, by the rules of CheckPermissions: what is staged while
// the node runs is judged like what is there at the start.
func (c Config) TrustBinary(binary string) error {
	problems, _ := CheckPermissions(c.Node.Home, binaryPaths(c.RootDir(), binary), c.Security.AllowWritable)
	if len(problems) > 0 {
		return problems[0]
	}
	return nil
}

// CheckPermissions refuses each of paths that is world-writable or owned by neither the user nor root, and warns of
// those that a group may write. The user is the process's own; root acts for the owner of home. A group is refused
// unless it is the owner's private one, or one of the process's (a pod's fsGroup). Missing paths are none of its
// matter, and those in allow are accepted as they are.
func CheckPermissions(home string, paths, allow []string) (errs []error, warnings []string) {
	who, err := newIdentity(home)
	if err != nil {
		return []error{fmt.Errorf("cannot check permissions: %w", err)}, nil
	}
	for _, path := range paths {
		if isAllowed(home, path, allow) {
			continue
		}
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot check permissions: %w", err))
			continue
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			errs = append(errs, fmt.Errorf("cannot check permissions: %s has no owner", path))
			continue
		}
		problem, fix, warning := who.judge(info.Mode().Perm(), st.Uid, st.Gid)
		if problem != "" {
			errs = append(errs, &hint.Error{
				Op: "trust", Path: path, Err: errors.New(problem),
				Hint: fmt.Sprintf("%s %s    # or add it to [security] allow_writable", fix, hint.Quote(path)),
			})
		}
		if warning != "" {
			warnings = append(warnings, path+" "+warning)
		}
	}
	return errs, warnings
}

func isAllowed(home, path string, allow []string) bool {
	return slices.ContainsFunc(allow, func(a string) bool {
		if !filepath.IsAbs(a) {
			a = filepath.Join(home, a)
		}
		return filepath.Clean(a) == filepath.Clean(path)
	})
}

// identity is whom we trust, and what the user data base says of groups.
type identity struct {
	uid    uint32   // the user
	groups []uint32 // of this process
	passwd []string // lines of /etc/passwd
	group  []string // lines of /etc/group
}

func newIdentity(home string) (identity, error) {
	who := identity{uid: uint32(os.Geteuid()), groups: []uint32{uint32(os.Getegid())}}
	if who.uid == 0 {
		var st syscall.Stat_t
		if err := syscall.Stat(home, &st); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return who, &fs.PathError{Op: "stat", Path: home, Err: err}
		} else if err == nil {
			who.uid = st.Uid
		}
	}
	groups, err := os.Getgroups()
	if err != nil {
		return who, err
	}
	for _, g := range groups {
		who.groups = append(who.groups, uint32(g))
	}
	who.passwd, who.group = capped.Lines("/etc/passwd"), capped.Lines("/etc/group")
	return who, nil
}

// judge says what is wrong with a path's mode and owner, and the command that mends it; or what is to be warned of.
func (who identity) judge(mode fs.FileMode, uid, gid uint32) (problem, fix, warning string) {
	switch {
	case uid != who.uid && uid != 0:
		return fmt.Sprintf("it is owned by user %d, neither by user %d nor by root", uid, who.uid), fmt.Sprintf("chown %d", who.uid), ""
	case mode&0o002 != 0:
		return fmt.Sprintf("it is writable by everyone (mode %04o)", mode), "chmod o-w", ""
	case mode&0o020 == 0:
		return "", "", ""
	case who.isPrivate(uid, gid):
		return "", "", fmt.Sprintf("is writable by group %d, which only its owner is in, or nobody (mode %04o)", gid, mode)
	case slices.Contains(who.groups, gid):
		return "", "", fmt.Sprintf("is writable by group %d, which is one of this process's (mode %04o)", gid, mode)
	}
	return fmt.Sprintf("it is writable by group %d (mode %04o)", gid, mode), "chmod g-w", ""
}

// isPrivate tells whether nobody but uid is in the group gid, be it as the primary group or as a member, as far as the
// local files know: passwd(5), group(5). What they don't list is not private. Debian's staff, which /usr/local/bin belongs
// to, is an empty one as a rule.
func (who identity) isPrivate(uid, gid uint32) bool {
	owner, listed := "", false
	for _, line := range who.passwd {
		f := strings.Split(line, ":")
		if len(f) < 4 || f[3] != strconv.Itoa(int(gid)) {
			continue
		}
		if f[2] != strconv.Itoa(int(uid)) {
			return false
		}
		owner = f[0]
	}
	for _, line := range who.group {
		f := strings.Split(line, ":")
		if len(f) < 4 || f[2] != strconv.Itoa(int(gid)) {
			continue
		}
		listed = true
		for member := range strings.SplitSeq(f[3], ",") {
			if member != "" && member != owner {
				return false
			}
		}
	}
	return listed || owner != ""
}
