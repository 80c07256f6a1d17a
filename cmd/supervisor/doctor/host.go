package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nodevisor/cmd/supervisor/console"
	"nodevisor/internal/capped"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/source"
)

// watching has the plan file watched for a moment, the way a run does it: that finds an exhausted inotify and a file
// system that tells of no changes, whatever the reason.
func (x *examination) watching(ctx context.Context) {
	if x.Layout.Plan == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	w := source.NewWatcher(ctx, x.Config.Upgrade.Poll, x.Log)
	select {
	case <-w.Watch(x.Layout.Plan).C():
	case <-ctx.Done():
	}
	cancel()
	<-w.Done()
	x.judgeWatching(w.Fallback(), inotifyLimits("/proc/sys/fs/inotify"))
}

func (x *examination) judgeWatching(why, limits string) {
	switch {
	case why == "":
		x.ok("file events", "the kernel tells of changes (%s)", limits)
	case strings.Contains(why, unix.EMFILE.Error()):
		x.fail("file events", "sysctl -w fs.inotify.max_user_instances=1024, and set it in /etc/sysctl.d", "files are polled: %s (%s)", why, limits)
	case strings.Contains(why, unix.ENOSPC.Error()):
		x.fail("file events", "sysctl -w fs.inotify.max_user_watches=524288, and set it in /etc/sysctl.d", "files are polled: %s (%s)", why, limits)
	default:
		x.warn("file events", "", "files are polled every %s: %s", x.Config.Upgrade.Poll, why)
	}
}

// inotifyLimits renders the kernel's limits for one user (inotify(7)).
func inotifyLimits(dir string) string {
	var parts []string
	for _, name := range []string{"max_user_instances", "max_user_watches"} {
		value := "not known"
		if text, err := capped.ReadFile(filepath.Join(dir, name), 64); err == nil {
			value = strings.TrimSpace(text)
		}
		parts = append(parts, name+" "+value)
	}
	return strings.Join(parts, ", ")
}

// staging wants every version on the file system of upgrades/: a binary is staged beside and then renamed into its place,
// and a rename crosses neither file systems nor mount points.
func (x *examination) staging() {
	upgrades := filepath.Join(x.Layout.Root, "upgrades")
	base, err := device(upgrades)
	if errors.Is(err, fs.ErrNotExist) {
		x.ok("staging", "there is no upgrades/ yet")
		return
	}
	if err != nil {
		x.failErr("staging", err)
		return
	}
	far := mountsBelow(upgrades, capped.Lines("/proc/self/mountinfo"))
	entries, err := os.ReadDir(upgrades)
	if err != nil {
		x.failErr("staging", err)
		return
	}
	for _, e := range entries {
		for _, dir := range []string{filepath.Join(upgrades, e.Name()), filepath.Join(upgrades, e.Name(), "bin")} {
			if dev, err := device(dir); err == nil && dev != base && !slices.Contains(far, dir) {
				far = append(far, dir)
			}
		}
	}
	for _, dir := range far {
		x.fail("staging", "put the directory itself there: no mount, no link", "staging must be on the same file system as upgrades/, and %s is on another", dir)
	}
	if len(far) == 0 {
		x.ok("staging", "all versions are on the file system of upgrades/")
	}
}

func device(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return uint64(st.Dev), nil //nolint:unconvert // Dev's type differs by architecture
}

// mountsBelow lists the mount points below dir, out of the lines of /proc/self/mountinfo (proc_pid_mountinfo(5)): the
// fifth field, in which blanks are written in octal. A bind mount of the same file system is one too.
func mountsBelow(dir string, mounts []string) []string {
	if at, err := filepath.EvalSymlinks(dir); err == nil {
		dir = at
	}
	unescaped := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var found []string
	for _, line := range mounts {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if at := unescaped.Replace(f[4]); strings.HasPrefix(at, dir+"/") && !slices.Contains(found, at) {
			found = append(found, at)
		}
	}
	return found
}

// fileSystem refuses a home on NFS, where the node wouldn't inherit the lock, and one on which nothing can be written.
func (x *examination) fileSystem() {
	var st unix.Statfs_t
	if err := unix.Statfs(x.stateParent(), &st); err != nil {
		x.failErr("file system", &fs.PathError{Op: "statfs", Path: x.stateParent(), Err: err})
		return
	}
	if int64(st.Type) == unix.NFS_SUPER_MAGIC { //nolint:unconvert // Type's type differs by architecture
		x.fail("file system", "put the home on a local file system, or a bind mount of one over "+x.Layout.State(),
			"the home is on NFS, where the node can't inherit the lock that keeps a second one away")
		return
	}
	if int64(st.Flags)&unix.ST_RDONLY != 0 {
		x.fail("file system", `mount -o remount,rw "$(findmnt -no TARGET -T `+hint.Quote(x.stateParent())+`)"`, "the home is mounted read-only")
		return
	}
	// btrfs and others count no files: 0 of 0 are free.
	if free := st.Bavail * uint64(st.Bsize); free < stateRoom || st.Files > 0 && st.Ffree == 0 { //nolint:gosec // a block's size is positive
		x.fail("file system", "make room, for example: supervisor snapshot prune",
			"%s and %d files are free for the journal: no upgrade, halt or hold could be recorded", console.Size(int64(free)), st.Ffree) //nolint:gosec // a disk's size
		return
	}
	x.ok("file system", "local, writable")
}

// stateRoom is what journal, schedule and history need to be written anew, in bytes: a few KiB each, and a plan's info may
// be large.
const stateRoom = 1 << 20

// controlGroup tells whether the members of [control] group get as far as the socket, and can read which one it is.
func (x *examination) controlGroup() {
	const name = "control group"
	group := x.Config.Control.Group
	if group == "" {
		return
	}
	gid, err := x.Config.Control.GroupID()
	if err != nil {
		return // a mistake of the configuration, which was said
	}
	closed := func(path, right string, bit fs.FileMode) bool {
		info, err := os.Stat(path)
		if err != nil {
			return false // what isn't there yet is made by the first start
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || info.Mode().Perm()&bit != 0 || (st.Gid == uint32(gid) && info.Mode().Perm()&(bit<<3) != 0) {
			return false
		}
		quoted := hint.Quote(path)
		x.fail(name, fmt.Sprintf("chgrp %s %s && chmod g+%s %s", hint.Quote(group), quoted, right, quoted),
			"members of %s may not pass %s (group %d, mode %04o): they can't read the status", group, path, st.Gid, info.Mode().Perm())
		return true
	}
	found := false
	for dir := filepath.Dir(x.Socket()); dir != "/"; dir = filepath.Dir(dir) {
		found = closed(dir, "x", 0o001) || found
	}
	if x.Origin.File != "" {
		found = closed(x.Origin.File, "r", 0o004) || found
	}
	found = x.keptFromGroup(name, group, gid) || found
	if !found {
		x.ok(name, "members of %s can read the status", group)
	}
}

// keptFromGroup tells whether the socket isn't the group's: only root and members may give it to the group (chown(2)).
// Without a run its unit may still name the group, so that is a warning.
func (x *examination) keptFromGroup(name, group string, gid int) bool {
	if info, err := os.Lstat(x.Socket()); err == nil && x.live != nil {
		st, ok := info.Sys().(*syscall.Stat_t)
		switch {
		case !ok || int(st.Gid) == gid && info.Mode().Perm()&0o060 == 0o060:
			return false
		case st.Uid == 0 || x.live.Supervisor.PID != nil && inGroup(*x.live.Supervisor.PID, gid):
			x.fail(name, "supervisor reload", "the socket is not the group's (group %d, mode %04o): the running supervisor hasn't read it yet", st.Gid, info.Mode().Perm())
		default:
			x.fail(name, "usermod -aG "+hint.Quote(group)+" "+userName(st.Uid)+", then restart run",
				"the socket is not the group's (group %d, mode %04o): run, as user %s, is no member of %s", st.Gid, info.Mode().Perm(), userName(st.Uid), group)
		}
		return true
	}
	info, err := os.Stat(x.Layout.Home)
	if err != nil {
		return false // the configuration's check has said so
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 {
		return false
	}
	u, err := user.LookupId(userID(st.Uid))
	if err != nil {
		return false // a user without a name may have any groups
	}
	groups, err := u.GroupIds()
	if err != nil || slices.Contains(groups, strconv.Itoa(gid)) {
		return false
	}
	x.warn(name, "usermod -aG "+hint.Quote(group)+" "+hint.Quote(u.Username)+", or SupplementaryGroups="+group+" in the unit",
		"user %s is no member of %s: where its unit doesn't name the group, the socket can't be given to it", u.Username, group)
	return true
}

// inGroup tells whether a process is a member of a group (proc_pid_status(5)).
func inGroup(pid, gid int) bool {
	for _, line := range capped.Lines("/proc/" + strconv.Itoa(pid) + "/status") {
		key, ids, _ := strings.Cut(line, ":")
		if (key == "Gid" || key == "Groups") && slices.Contains(strings.Fields(ids), strconv.Itoa(gid)) {
			return true
		}
	}
	return false
}

// userID is a user's or group's number as package user has it.
func userID(id uint32) string { return strconv.FormatUint(uint64(id), 10) }

// userName is a user's name, or the number of one that has none.
func userName(uid uint32) string {
	if u, err := user.LookupId(userID(uid)); err == nil {
		return hint.Quote(u.Username)
	}
	return userID(uid)
}

// clock asks the kernel whether something keeps its clock right (adjtimex(2)); not being told isn't being wrong. A clock
// behind a time that was recorded here is wrong for sure.
func (x *examination) clock() {
	if r, ok, err := source.LoadRecord(x.Layout.HeightPath()); err == nil && ok && time.Until(r.At) > time.Minute {
		x.fail("clock", "set the clock right: timedatectl set-ntp true", "it is %s behind the time when the last height was read",
			time.Until(r.At).Round(time.Second))
		return
	}
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	switch {
	case err != nil:
		x.unknown("clock", "", "the kernel doesn't tell: %v", err)
	case state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0:
		x.unknown("clock", "timedatectl set-ntp true", "the kernel doesn't know it to be synchronised")
	default:
		x.ok("clock", "synchronised")
	}
}
