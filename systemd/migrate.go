package systemd

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"nodevisor/internal/hint"
)

// Migrate turns the unit of a node, or of Cosmovisor, into the supervisor's, and says what it changed. Of s it takes Exec's
// first word (the supervisor's path), Environ (added where the unit lacks them), StopTimeout, and, where Hardening is set,
// what hardens. Everything that isn't named by a rule stays as it is.
func (f *File) Migrate(s Service) (changes []Change, err error) {
	note := func(c *Change) {
		if c != nil {
			changes = append(changes, *c)
		}
	}
	start, err := f.execStart(s.Exec[0])
	if err != nil {
		return nil, err
	}
	note(f.set(Setting{"Service", "ExecStart", start, "the supervisor runs the node"}))
	for _, e := range s.Environ {
		f.insert(line{section: "Service", key: "Environment", value: specifiers(quote(e, false))})
		note(&Change{New: "Environment=" + specifiers(quote(e, false)), Why: "the supervisor is told which node is meant"})
	}
	changes = append(changes, f.moveSignal()...)
	for _, r := range [][2]string{
		{"PIDFile", "the supervisor itself is the main process"},
		{"GuessMainPID", "the supervisor itself is the main process"},
		{"RemainAfterExit", "a supervisor that ended is not active"},
		{"ExecStop", "the supervisor stops the node when systemd signals it"},
		{"TimeoutSec", "start and stop have times of their own"},
	} {
		changes = append(changes, f.remove("Service", r[0], r[1])...)
	}
	for _, r := range [][3]string{
		{"Unit", "StartLimitInterval", "StartLimitIntervalSec"},
		{"Service", "StartLimitInterval", "StartLimitIntervalSec"},
		{"Service", "StartLimitBurst", "StartLimitBurst"},
	} {
		changes = append(changes, f.move(r[0], r[1], r[2])...)
	}
	for _, want := range s.settings() {
		if value, ok := f.merged(want); ok {
			want.Value = value
			note(f.set(want))
		}
	}
	if s.Hardening == "" {
		return changes, nil
	}
	had := map[string]bool{}
	for _, l := range f.lines {
		had[l.section+l.key] = true
	}
	for _, want := range s.hardening() {
		if !had[want.Section+want.Key] {
			f.insert(line{section: want.Section, key: want.Key, value: want.Value})
			note(&Change{New: want.Key + "=" + want.Value, Why: "hardening " + string(s.Hardening)})
		}
	}
	return changes, nil
}

// merged is the value that a setting gets, with what the unit says; not ok where the unit's own is kept.
func (f *File) merged(want Setting) (value string, ok bool) {
	have := f.Values(want.Section, want.Key)
	if len(have) == 0 {
		return want.Value, true
	}
	last := have[len(have)-1]
	switch want.Key {
	case "LimitNOFILE", "UMask", "OOMPolicy", "StartLimitIntervalSec", "StartLimitBurst", "RuntimeDirectory", "RuntimeDirectoryMode":
		return "", false
	case "TimeoutStopSec", "TimeoutAbortSec", "RestartSec":
		needed, _ := Timespan(want.Value)
		if d, known := Timespan(last); last == "infinity" || (known && d >= needed) {
			return "", false
		}
	case "RestartPreventExitStatus":
		var codes []string
		for _, code := range strings.Fields(strings.Join(append(have, want.Value), " ")) {
			if !slices.Contains(codes, code) {
				codes = append(codes, code)
			}
		}
		return strings.Join(codes, " "), true
	}
	return want.Value, true
}

// moveSignal makes KillSignal= what the node is stopped with: the supervisor is stopped with SIGTERM.
func (f *File) moveSignal() (changes []Change) {
	have := f.Values("Service", "KillSignal")
	if len(have) == 0 {
		return nil
	}
	changes = f.remove("Service", "KillSignal", "systemd signals the supervisor; the node is signalled by the supervisor")
	signal := strings.TrimPrefix(have[len(have)-1], "SIG")
	if signal == "TERM" {
		return changes
	}
	entry := "SUPERVISOR_NODE_STOP_SIGNAL=SIG" + signal
	f.insert(line{section: "Service", key: "Environment", value: entry})
	return append(changes, Change{New: "Environment=" + entry, Why: "the node gets the signal that it got before"})
}

// move takes a key that systemd had elsewhere, or under another name, to where it is now, in [Unit], with its value.
func (f *File) move(section, key, name string) (changes []Change) {
	have := f.Values(section, key)
	changes = f.remove(section, key, "it is "+name+"= in [Unit]")
	if len(have) == 0 || len(f.Values("Unit", name)) > 0 {
		return changes
	}
	last := have[len(have)-1]
	f.insert(line{section: "Unit", key: name, value: last})
	return append(changes, Change{New: name + "=" + last, Why: "as it was"})
}

// Command refuses a unit whose command line can't be migrated. The error is a *hint.Error.
func (f *File) Command() error {
	_, err := f.execStart("supervisor")
	return err
}

// execStart is the new command line. Its words but the first stay as they are written, with their quotes and variables.
func (f *File) execStart(supervisor string) (string, error) {
	all := f.Values("Service", "ExecStart")
	refuse := func(what, next string) error { return hint.New("migrate", f.Path, what, next) }
	if len(all) != 1 {
		return "", refuse(fmt.Sprintf("it has %d ExecStart= lines, and one is wanted", len(all)), "leave the one that runs the node")
	}
	program, rest := splitFirst(strings.TrimLeft(all[0], "-@:+!|"))
	ours := []string{"supervisor", filepath.Base(supervisor)}
	supervisor = specifiers(quote(supervisor, true))
	switch name := filepath.Base(program); {
	case slices.Contains([]string{"sh", "bash", "dash", "zsh", "env", "sudo", "su", "nice", "systemd-inhibit"}, name):
		return "", refuse("its ExecStart= is "+name+", which runs something else", "write the node's own command there, its variables in Environment= or EnvironmentFile=")
	case strings.Contains(name, "cosmovisor"), slices.Contains(ours, name):
		if first, _ := splitFirst(rest); first != "run" && !strings.HasPrefix(first, "-") {
			rest = strings.TrimSpace("run " + rest) // Cosmovisor before 1.0 had no `run`
		}
		return supervisor + " " + rest, nil
	}
	return strings.TrimSpace(supervisor + " run " + rest), nil
}

// Program is the first word of ExecStart=, without what systemd reads before it; "" where there is none.
func (f *File) Program() string {
	all := f.Values("Service", "ExecStart")
	if len(all) == 0 {
		return ""
	}
	program, _ := splitFirst(strings.TrimLeft(all[0], "-@:+!|"))
	return program
}

// splitFirst splits a command line after its first word, which may be quoted.
func splitFirst(command string) (first, rest string) {
	command = strings.TrimSpace(command)
	if command != "" && (command[0] == '"' || command[0] == '\'') {
		if end := strings.IndexByte(command[1:], command[0]); end >= 0 {
			return command[1 : end+1], strings.TrimSpace(command[end+2:])
		}
	}
	first, rest, _ = strings.Cut(command, " ")
	return first, strings.TrimSpace(rest)
}
