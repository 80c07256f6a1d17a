package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/config"
	"nodevisor/internal/hint"
)

// Whatever fails says what, why and what next, as text and as JSON.
func TestEveryFailureHasAHint(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	p.dir(p.l.State())
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte("text"), 0o644))
	for line, next := range map[string]string{
		"statsu":                           "supervisor status",
		"frobnicate":                       "supervisor --help",
		"upgrade aply v2":                  "supervisor upgrade apply",
		"snapshot frobnicate":              "supervisor snapshot --help",
		"completion bsh":                   "supervisor completion bash",
		"status --jsno":                    "supervisor status --help",
		"halt":                             "supervisor halt --help",
		"halt --now":                       "add --yes",
		"halt --time yesterday":            "supervisor halt --help",
		"halt --time 2001-01-01T00:00:00Z": "supervisor halt --now",
		"init a b":                         "supervisor init --help",
		"init /nowhere":                    "check the path",
		"man a b":                          "supervisor man --help",
		"resume":                           "supervisor status",
		"reload":                           "",
		"rollback --yes":                   "",
		"upgrade add v2":                   "supervisor upgrade add --help",
		"upgrade add v2 /nowhere":          "",
		"upgrade add v2 " + file + " --height -1": "supervisor upgrade add --help",
		"upgrade add v2/x " + file:                "",
		"upgrade apply v2 --yes":                  "supervisor upgrade add v2 BINARY",
		"upgrade cancel v2":                       "supervisor upgrade list",
		"upgrade resume":                          "supervisor status",
		"upgrade use v2":                          "",
		"snapshot show x":                         "supervisor snapshot list",
		"snapshot verify x":                       "supervisor snapshot list",
		"snapshot restore x --yes":                "supervisor snapshot list",
		"snapshot pin x":                          "supervisor snapshot list",
		"snapshot delete x":                       "add --yes",
		"snapshot delete x --yes":                 "supervisor snapshot list",
		"snapshot prune":                          "add --yes",
		"--config /nowhere.toml status":           "",
		"--home relative status":                  "give the whole path, beginning with /",
		"--unit nodevisor-no-such status":         "",
		"add-batch-upgrade":                       "supervisor add-batch-upgrade --help",
		"add-batch-upgrade --upgrade-file x":      "",
	} {
		code, _, errs := p.invoke(strings.Fields(line)...)
		assert.NotZero(t, code, line)
		assert.Regexp(t, `(?s)^.*Error: .+\nHint: .+\n$`, errs, line)
		if next != "" {
			assert.Contains(t, errs, "\nHint: "+next, line)
		}
		if strings.HasPrefix(line, "frob") || strings.Contains(line, "bsh") {
			continue // before the flags are known
		}
		code, out, _ := p.invoke(append([]string{"--json"}, strings.Fields(line)...)...)
		var doc struct {
			Error struct{ Message, Hint string }
		}
		require.NoError(t, json.Unmarshal([]byte(out), &doc), "%s: %s", line, out)
		assert.NotZero(t, code, line)
		assert.NotEmpty(t, doc.Error.Hint, line)
		assert.NotEmpty(t, doc.Error.Message, line)
	}
}

func TestDidYouMean(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	p.dir(p.l.State())
	for line, want := range map[string]string{
		"stauts":                      `unknown command "stauts" for "supervisor" (did you mean "status"?)`,
		"upgrade lst":                 `unknown command "lst" for "supervisor upgrade" (did you mean "list"?)`,
		"snapshot creat":              `unknown command "creat" for "supervisor snapshot" (did you mean "create"?)`,
		"completion zhs":              `unknown command "zhs" for "supervisor completion" (did you mean "zsh"?)`,
		"status --wacth":              `unknown flag: --wacth (did you mean "--watch"?)`,
		"--hmoe /x status":            `unknown flag: --hmoe (did you mean "--home"?)`,
		"upgrade add --heigth 1 v2 x": `unknown flag: --heigth (did you mean "--height"?)`,
	} {
		code, _, errs := p.invoke(strings.Fields(line)...)
		assert.Equal(t, cli.ExitUsage, code, line)
		assert.Contains(t, errs, want)
	}
	_, _, errs := p.invoke("status", "--zzzzzz")
	assert.NotContains(t, errs, "did you mean", "a wrong suggestion is worse than none")
	_, _, errs = p.invoke("status", "-x")
	assert.NotContains(t, errs, "did you mean")

	config := filepath.Join(t.TempDir(), "supervisor.toml")
	require.NoError(t, os.WriteFile(config, []byte("[nod]\n[node]\nhoem = \"/x\"\n[snapshot]\nkepe = 1\n[[snapshot.source]]\nknid = \"dir\"\n"), 0o644))
	_, _, errs = p.invoke("--config", config, "status")
	for _, want := range []string{`did you mean "node"`, `did you mean "home"`, `did you mean "keep"`, `did you mean "kind"`} {
		assert.Contains(t, errs, want)
	}
}

func TestNextStep(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{cli.Usagef("x"), "supervisor halt --help"},
		{fmt.Errorf("cannot write: %w", syscall.ENOSPC), "make room, for example: supervisor snapshot prune"},
		{&fs.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}, "direct the output to where it can be written"},
		{fmt.Errorf("cannot write: %w", syscall.EROFS), "mount it writable"},
		{fmt.Errorf("cannot open: %w", fs.ErrPermission), cli.AsRightUser},
		{&config.Error{Problems: []error{errors.New("x")}}, "correct it, then: supervisor doctor"},
		{errors.New("x"), "supervisor doctor"},
	} {
		assert.Equal(t, c.want, nextStep(c.err, "supervisor halt"))
	}
	assert.Equal(t, "supervisor status", nextStep(errors.New("x"), "supervisor doctor"), "not itself again")
	assert.Equal(t, "look", hint.Of(&cli.UsageError{Err: cli.Advise(errors.New("x"), "look")}))
}

// The first run asks nothing, and ends with the two commands that come next: both can be copied, and both work.
func TestInitSaysWhatComesNext(t *testing.T) {
	p := newPatient(t)
	node := filepath.Join(t.TempDir(), "simd")
	require.NoError(t, os.WriteFile(node, []byte("#!/bin/sh\nexit 0\n"), 0o755))
	next := func(errs string) (commands []string) {
		_, after, found := strings.Cut(errs, "Next:\n")
		require.True(t, found, errs)
		for line := range strings.Lines(after) {
			if strings.HasPrefix(line, "  ") && !strings.HasPrefix(line, "   ") {
				commands = append(commands, strings.TrimSpace(line))
			}
		}
		return commands
	}
	p.env[1] = "DAEMON_HOME=" + p.home + "/a home"
	home := "'" + p.home + "/a home'"
	code, out, errs := p.invoke("init")
	require.Equal(t, cli.ExitOK, code, errs)
	assert.Empty(t, out)
	assert.Equal(t, []string{"supervisor --home " + home + " init BINARY", "supervisor --home " + home + " doctor"}, next(errs))

	code, _, errs = p.invoke("init", node)
	require.Equal(t, cli.ExitOK, code, errs)
	assert.Contains(t, errs, "\nReady: simd, version genesis, in "+p.home+"/a home. Next:\n")
	assert.Equal(t, []string{"supervisor --home " + home + " doctor", "supervisor --home " + home + " run start"}, next(errs))
	// Without the variables, as they are copied: what init wrote is enough.
	p.env = []string{"PATH=" + os.Getenv("PATH"), "SUPERVISOR_SNAPSHOT_MIN_FREE=0", "DAEMON_GRPC_ADDRESS=127.0.0.1:1"}
	code, _, errs = p.invoke("--home", p.home+"/a home", "status")
	assert.Equal(t, cli.ExitOK, code, errs)

	// A name that isn't said is probably the binary's: the hint is the whole command.
	code, _, errs = p.invoke("--home", p.home+"/new", "init", node)
	assert.Equal(t, cli.ExitUsage, code)
	assert.Contains(t, errs, "Error: DAEMON_NAME is not set\nHint: DAEMON_NAME=simd supervisor --home "+p.home+"/new init "+node+"\n")
	assert.NoDirExists(t, p.home+"/new")
	// What can't run isn't ready.
	text := filepath.Join(t.TempDir(), "simd")
	require.NoError(t, os.WriteFile(text, []byte("no program\n"), 0o755))
	p.env = append(p.env, "DAEMON_NAME=simd")
	code, _, errs = p.invoke("--home", p.home+"/new", "init", text)
	assert.Equal(t, cli.ExitOK, code)
	assert.NotContains(t, errs, "Ready:")
	assert.Equal(t, []string{"rm " + p.home + "/new/cosmovisor/genesis/bin/simd", "supervisor --home " + p.home + "/new init BINARY"}, next(errs))

	// --config names the file to write, where a unit will look for it.
	p.env = append(p.env, "DAEMON_HOME="+p.home, "DAEMON_NAME=simd")
	config := filepath.Join(t.TempDir(), "simd.toml")
	code, _, errs = p.invoke("--config", config, "init", node)
	require.Equal(t, cli.ExitOK, code, errs)
	assert.Equal(t, []string{"supervisor --config " + config + " doctor", "supervisor --config " + config + " run start"}, next(errs))
	written, err := os.ReadFile(config)
	require.NoError(t, err)
	assert.True(t, bytes.Contains(written, []byte("home = "+`"`+p.home+`"`)), string(written))
	assert.NoFileExists(t, filepath.Join(p.l.State(), "supervisor.toml"))
}
