package systemd

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Hardening is how much of the host a unit shuts the node out of.
type Hardening string

// The grades of hardening.
const (
	Standard Hardening = "standard" // what no node misses
	Strict   Hardening = "strict"   // an exposure of at most 2.0 in `systemd-analyze security`
)

// stopMargin is what a stop may take beyond the node's own time: to sweep what it left, and to write the journal.
const stopMargin = 30 * time.Second

// Service is what a unit is made from.
type Service struct {
	Description string
	User        string        // "" = root
	Exec        []string      // the words of ExecStart=
	Environ     []string      // NAME=VALUE
	StopTimeout time.Duration // the node's time to stop
	Home        string
	Writable    []string // directories besides home that supervisor and node write to; they may be missing
	After       []string // units that are started before, where they are there
	Hardening   Hardening
}

// Setting is one line of a unit.
type Setting struct {
	Section, Key, Value string
	Why                 string // a comment; "" = none
}

// Render gives the text of the unit.
func (s Service) Render() string {
	var b strings.Builder
	section := ""
	for _, l := range s.lines() {
		if l.Section != section {
			if section != "" {
				b.WriteString("\n")
			}
			section = l.Section
			fmt.Fprintf(&b, "[%s]\n", section)
		}
		for line := range strings.SplitSeq(l.Why, "\n") {
			if line != "" {
				fmt.Fprintf(&b, "# %s\n", line)
			}
		}
		fmt.Fprintf(&b, "%s=%s\n", l.Key, l.Value)
	}
	return b.String()
}

func (s Service) lines() []Setting {
	after := strings.Join(append([]string{"network-online.target"}, s.After...), " ")
	all := []Setting{
		{"Unit", "Description", specifiers(s.Description), ""},
		{"Unit", "Wants", "network-online.target", ""},
		{"Unit", "After", after, ""},
	}
	service := s.settings()
	for ; service[0].Section == "Unit"; service = service[1:] {
		all = append(all, service[0])
	}
	if s.User != "" {
		all = append(all, Setting{"Service", "User", s.User, ""})
	}
	for _, e := range s.Environ {
		all = append(all, Setting{"Service", "Environment", specifiers(quote(e, false)), ""})
	}
	words := make([]string, len(s.Exec))
	for i, w := range s.Exec {
		words[i] = specifiers(quote(w, true))
	}
	all = append(all, Setting{"Service", "ExecStart", strings.Join(words, " "), ""})
	all = append(all, service...)
	all = append(all, s.hardening()...)
	return append(all, Setting{"Install", "WantedBy", "multi-user.target", ""})
}

// settings are those that make a service of the supervisor, whatever else the unit says: systemd.service(5),
// systemd.kill(5), systemd.unit(5). Those of [Unit] come first.
func (s Service) settings() []Setting {
	stop := seconds(s.StopTimeout + stopMargin)
	return []Setting{
		{"Unit", "StartLimitIntervalSec", "300", "after five starts in five minutes systemd gives up, and a person looks"},
		{"Unit", "StartLimitBurst", "5", "see StartLimitIntervalSec="},
		{"Service", "Type", "notify", "readiness, status and watchdog are the supervisor's to tell"},
		{"Service", "NotifyAccess", "main", "nobody else speaks for it"},
		{"Service", "KillMode", "mixed", "a stop is the supervisor's to carry out: it stops the node, and waits for it"},
		{"Service", "TimeoutStartSec", "infinity", "a replay or a migration at the start may take an hour"},
		{"Service", "TimeoutStopSec", stop, "the node's stop_timeout and 30 s; during long phases the supervisor asks for more"},
		{"Service", "TimeoutAbortSec", stop, "after the watchdog's SIGABRT the node is still stopped gracefully"},
		{"Service", "WatchdogSec", "60", "a supervisor whose loop hangs is ended, and started again"},
		{"Service", "Restart", "on-failure", "the supervisor restarts the node by itself; this is for the supervisor"},
		{"Service", "RestartSec", "5s", "sooner, and the start limit is used up within a second"},
		{"Service", "RestartPreventExitStatus", "78 79", "a mistake in the configuration (78) and a hold (79) need a person, not a restart"},
		{"Service", "OOMPolicy", "continue", "a node that the kernel killed for its memory is restarted like any other that ended"},
		{"Service", "LimitNOFILE", "65536", "stores keep many files open"},
		{"Service", "UMask", "0027", "what the node writes is for its own user and group"},
		{"Service", "RuntimeDirectory", "nodevisor-%N", "here other commands find this run, also past PrivateTmp="},
		{"Service", "RuntimeDirectoryMode", "0700", "and nobody else does"},
	}
}

// hardening are the settings of systemd.exec(5) for the grade.
func (s Service) hardening() []Setting {
	set := func(key, value, why string) Setting { return Setting{"Service", key, value, why} }
	privateTmp := set("PrivateTmp", "yes", "no for a node whose database has its socket in /tmp")
	if slices.ContainsFunc(append([]string{s.Home}, s.Writable...), func(p string) bool { return Below("/tmp", p) || Below("/var/tmp", p) }) {
		privateTmp = set("PrivateTmp", "no", "what the node writes to lies in there")
	}
	common := []Setting{
		set("NoNewPrivileges", "yes", ""),
		privateTmp,
		set("ProtectKernelTunables", "yes", ""),
		set("ProtectKernelModules", "yes", ""),
		set("ProtectKernelLogs", "yes", ""),
		set("ProtectControlGroups", "yes", ""),
		set("ProtectClock", "yes", ""),
		set("ProtectHostname", "yes", ""),
		set("RestrictRealtime", "yes", ""),
		set("LockPersonality", "yes", ""),
	}
	if s.Hardening != Strict {
		return append(common, set("ProtectSystem", "full", ""))
	}
	paths := []string{quote(s.Home, false)}
	for _, w := range s.Writable {
		paths = append(paths, quote("-"+w, false))
	}
	protectHome := set("ProtectHome", "yes", "")
	for _, dir := range []string{"/home", "/root", "/run/user"} {
		if slices.ContainsFunc(s.paths(), func(p string) bool { return Below(dir, p) }) {
			protectHome = set("ProtectHome", "read-only", "what the service needs lies in "+dir)
		}
	}
	return append(common,
		set("ProtectSystem", "strict", "everything is read-only but:"),
		set("ReadWritePaths", specifiers(strings.Join(paths, " ")), ""),
		protectHome,
		set("PrivateDevices", "yes", "no for a node with a key in a USB device, and a DeviceAllow="),
		set("DevicePolicy", "closed", ""),
		set("PrivateMounts", "yes", ""),
		set("CapabilityBoundingSet", "", "no capability at all"),
		set("AmbientCapabilities", "", ""),
		set("RestrictNamespaces", "yes", ""),
		set("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK", ""),
		set("SystemCallArchitectures", "native", ""),
		set("SystemCallFilter", "@system-service", "what a service needs; owners of files are set where a snapshot is put back"),
		set("SystemCallFilter", "~@privileged", ""),
		set("SystemCallFilter", "@chown", ""),
		set("SystemCallErrorNumber", "EPERM", `Left out, and why: MemoryDenyWriteExecute=, because contracts are compiled to machine code while the node runs (wasm);
ProtectProc= and PrivateUsers=, because a node of another user on this data must be seen before a second one is started;
RestrictSUIDSGID=, because a snapshot of a directory with the setgid bit is put back with it;
RemoveIPC=, because a database that runs as the same user would lose its shared memory.`),
	)
}

// paths are what the service must be able to see: programs are often built below a person's home, and so are nodes' homes.
func (s Service) paths() []string {
	paths := append([]string{s.Home}, s.Writable...)
	for _, word := range s.Exec {
		if filepath.IsAbs(word) {
			paths = append(paths, word)
		}
	}
	return paths
}

// seconds renders whole seconds, rounded up.
func seconds(d time.Duration) string {
	return fmt.Sprintf("%ds", int64((d+time.Second-1)/time.Second))
}

// quote makes one word of s, as systemd.syntax(7) reads it; in a command line a dollar stands for itself.
func quote(s string, command bool) string {
	if command {
		s = strings.ReplaceAll(s, "$", "$$")
	}
	plain := s != "" && !strings.ContainsAny(s, " \t\n\r\"'\\;")
	if plain {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`, "\r", `\r`).Replace(s) + `"`
}

// specifiers keeps what is meant as it is from being taken for a specifier (systemd.unit(5)).
func specifiers(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// Below tells whether path is dir or lies in it.
func Below(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && (rel == "." || filepath.IsLocal(rel))
}

// Timespan reads a span as units and systemctl have it: "1min 30s", "500ms", "90" for seconds (systemd.time(7)). It is not
// ok for "infinity", and for more than the 292 years that a time.Duration holds.
func Timespan(text string) (total time.Duration, ok bool) {
	const day = 24 * time.Hour
	units := map[string]time.Duration{
		"us": time.Microsecond, "µs": time.Microsecond, "usec": time.Microsecond, "ms": time.Millisecond, "msec": time.Millisecond,
		"": time.Second, "s": time.Second, "sec": time.Second, "second": time.Second, "seconds": time.Second,
		"m": time.Minute, "min": time.Minute, "minute": time.Minute, "minutes": time.Minute,
		"h": time.Hour, "hr": time.Hour, "hour": time.Hour, "hours": time.Hour, "d": day, "day": day, "days": day,
		"w": 7 * day, "week": 7 * day, "weeks": 7 * day, "month": 2629800 * time.Second, "y": 31557600 * time.Second,
	}
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimSpace(text) {
		digits := len(text) - len(strings.TrimLeft(text, "0123456789."))
		rest := strings.TrimLeft(text[digits:], " ")
		end := strings.IndexAny(rest, " 0123456789")
		if end < 0 {
			end = len(rest)
		}
		unit, known := units[rest[:end]]
		n, err := strconv.ParseFloat(text[:digits], 64)
		if err != nil || !known || n*float64(unit) >= float64(math.MaxInt64-total) {
			return 0, false
		}
		total, ok = total+time.Duration(n*float64(unit)), true
		text = rest[end:]
	}
	return total, ok
}
