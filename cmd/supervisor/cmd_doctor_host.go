package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodevisor/upgrade/source"
)

// watching has the plan file watched for a moment, the way a run does it: that finds an exhausted inotify and a file
// system that tells of no changes, whatever the reason.
func (x *examination) watching(ctx context.Context) {
	if x.layout.Plan == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	w := source.NewWatcher(ctx, x.cfg.Upgrade.Poll, x.log)
	select {
	case <-w.Watch(x.layout.Plan).C():
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
		x.warn("file events", "", "files are polled every %s: %s", x.cfg.Upgrade.Poll, why)
	}
}

// inotifyLimits renders the kernel's limits for one user (inotify(7)).
func inotifyLimits(dir string) string {
	var parts []string
	for _, name := range []string{"max_user_instances", "max_user_watches"} {
		value := "not known"
		if text, err := readCapped(filepath.Join(dir, name), 64); err == nil {
			value = strings.TrimSpace(text)
		}
		parts = append(parts, name+" "+value)
	}
	return strings.Join(parts, ", ")
}

// staging wants every version on the file system of upgrades/: a binary is staged beside and then renamed into its place,
// and a rename crosses neither file systems nor mount points.
func (x *examination) staging() {
	upgrades := filepath.Join(x.layout.Root, "upgrades")
	base, err := device(upgrades)
	if errors.Is(err, fs.ErrNotExist) {
		x.ok("staging", "there is no upgrades/ yet")
		return
	}
	if err != nil {
		x.failErr("staging", err)
		return
	}
	far := mountsBelow(upgrades, linesOf("/proc/self/mountinfo"))
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

// fileSystem refuses a home on NFS, where the node wouldn't inherit the lock.
func (x *examination) fileSystem() {
	var st unix.Statfs_t
	if err := unix.Statfs(x.stateParent(), &st); err != nil {
		x.failErr("file system", &fs.PathError{Op: "statfs", Path: x.stateParent(), Err: err})
		return
	}
	if int64(st.Type) == unix.NFS_SUPER_MAGIC { //nolint:unconvert // Type's type differs by architecture
		x.fail("file system", "put the home on a local file system, or a bind mount of one over "+x.layout.State(),
			"the home is on NFS, where the node can't inherit the lock that keeps a second one away")
		return
	}
	if int64(st.Flags)&unix.ST_RDONLY != 0 {
		x.fail("file system", "mount -o remount,rw "+x.stateParent(), "the home is mounted read-only")
		return
	}
	x.ok("file system", "local, writable")
}

// clock asks the kernel whether something keeps its clock right (adjtimex(2)); not being told isn't being wrong. A clock
// behind a time that was recorded here is wrong for sure.
func (x *examination) clock() {
	if r, ok, err := source.LoadRecord(x.layout.HeightPath()); err == nil && ok && time.Until(r.At) > time.Minute {
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

// service is what doctor reads of a systemd unit.
type service struct {
	mainPID                 int
	killMode, restart       string
	preventCodes            []string
	stopTimeout             time.Duration
	stopKnown, stopInfinite bool
}

// unit compares the unit's settings with what a stop needs. The unit is --unit's, or that of the running supervisor (or
// Cosmovisor) where it is the unit's main process.
func (x *examination) unit(ctx context.Context) {
	name, pid := x.flags.unit, 0
	if name == "" {
		if x.holders.Supervisor != nil {
			pid = x.holders.Supervisor.Pid
		}
		if pid == 0 {
			x.unknown("unit", "supervisor --unit NAME doctor", "no unit was named, and no supervisor runs whose unit could be looked up")
			return
		}
		if name = unitOf(pid); name == "" {
			x.unknown("unit", "supervisor --unit NAME doctor", "the running supervisor belongs to no unit of systemd's")
			return
		}
	}
	s, err := readService(ctx, name)
	switch {
	case err != nil:
		x.unknown("unit", "", "%s: %v", name, err)
		return
	case pid != 0 && s.mainPID != pid:
		x.unknown("unit", "supervisor --unit NAME doctor", "the running supervisor is not the main process of %s", name)
		return
	}
	x.judgeService(name, s)
}

func (x *examination) judgeService(name string, s service) {
	before := len(x.checks)
	edit := func(line string) string { return fmt.Sprintf("systemctl edit %s, [Service] %s", name, line) }
	need := x.cfg.Node.StopTimeout
	switch {
	case !s.stopKnown:
		x.unknown("unit", "", "%s: TimeoutStopSec can't be read", name)
	case !s.stopInfinite && s.stopTimeout <= need:
		x.fail("unit", edit(fmt.Sprintf("TimeoutStopSec=%ds", int((need+30*time.Second).Seconds()))),
			"%s: TimeoutStopSec is %s, and the node may take %s (stop_timeout): systemd would kill it before", name, s.stopTimeout, need)
	}
	switch s.killMode {
	case "none":
		x.fail("unit", edit("KillMode=mixed"), "%s: with KillMode=none the node survives a stop", name)
	case "process":
		x.warn("unit", edit("KillMode=mixed"), "%s: with KillMode=process the node outlives a supervisor that was killed; the next start is refused then", name)
	case "control-group":
		x.warn("unit", edit("KillMode=mixed"), "%s: KillMode=control-group signals the node behind the supervisor's back", name)
	}
	codes := []string{"78", "79"}
	if s.restart != "" && s.restart != "no" && s.restart != "on-abnormal" && s.restart != "on-abort" && s.restart != "on-watchdog" &&
		slices.ContainsFunc(codes, func(c string) bool { return !slices.Contains(s.preventCodes, c) }) {
		x.warn("unit", edit("RestartPreventExitStatus=78 79"), "%s: Restart=%s starts again and again what is held or configured wrongly", name, s.restart)
	}
	if len(x.checks) == before {
		x.ok("unit", "%s: TimeoutStopSec, KillMode and Restart fit", name)
	}
}

func readService(ctx context.Context, name string) (service, error) {
	ctx, cancel := context.WithTimeout(ctx, unitTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "systemctl", "show", "--no-pager", "-p", "MainPID", "-p", "KillMode", "-p", "Restart",
		"-p", "RestartPreventExitStatus", "-p", "TimeoutStopUSec", "--", name)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return service{}, fmt.Errorf("cannot ask systemd: %w", err)
	}
	return parseService(string(out)), nil
}

func parseService(text string) service {
	var s service
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "MainPID":
			s.mainPID, _ = strconv.Atoi(value) // 0 where it doesn't run
		case "KillMode":
			s.killMode = value
		case "Restart":
			s.restart = value
		case "RestartPreventExitStatus":
			s.preventCodes = strings.Fields(value)
		case "TimeoutStopUSec":
			s.stopInfinite = value == "infinity"
			s.stopTimeout, s.stopKnown = parseTimespan(value)
			s.stopKnown = s.stopKnown || s.stopInfinite
		}
	}
	return s
}

// parseTimespan reads what systemctl prints for a span: "1min 30s", "500ms", "2h" (systemd.time(7)).
func parseTimespan(text string) (total time.Duration, ok bool) {
	const day = 24 * time.Hour
	units := map[string]time.Duration{
		"us": time.Microsecond, "µs": time.Microsecond, "ms": time.Millisecond, "s": time.Second, "min": time.Minute,
		"h": time.Hour, "d": day, "w": 7 * day, "month": 2629800 * time.Second, "y": 31557600 * time.Second,
	}
	for _, word := range strings.Fields(text) {
		digits := strings.TrimRight(word, "abcdefghijklmnopqrstuvwxyzµ")
		n, err := strconv.ParseFloat(digits, 64)
		unit, known := units[word[len(digits):]]
		if err != nil || !known || n < 0 {
			return 0, false
		}
		total += time.Duration(n * float64(unit))
	}
	return total, text != ""
}

// unitOf is the systemd service that a process belongs to, by its control group (cgroups(7)); "" where it is none. A user's
// own manager is a service too, and not meant.
func unitOf(pid int) string {
	return serviceOf(linesOf("/proc/" + strconv.Itoa(pid) + "/cgroup"))
}

func serviceOf(groups []string) string {
	for _, line := range groups {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) < 3 || (parts[0] != "0" && parts[1] != "name=systemd") {
			continue
		}
		if name := filepath.Base(parts[2]); strings.HasSuffix(name, ".service") && !strings.HasPrefix(name, "user@") {
			return name
		}
	}
	return ""
}
