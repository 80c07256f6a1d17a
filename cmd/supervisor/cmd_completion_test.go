package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/upgrade/version"
)

// completions asks as a shell does, and returns what it would be offered, with the directive's number.
func completions(t *testing.T, p *patient, args ...string) (words []string, directive string) {
	t.Helper()
	code, out, errs := p.invoke(append([]string{"__complete"}, args...)...)
	require.Equal(t, cli.ExitOK, code, errs)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	directive = lines[len(lines)-1]
	for _, line := range lines[:len(lines)-1] {
		if !strings.HasPrefix(line, "_activeHelp_") {
			words = append(words, line)
		}
	}
	// What cobra itself says there no shell shows; of ours there is nothing.
	assert.Regexp(t, `^(Completion ended with directive: [A-Za-z, ]+\n)?$`, errs)
	return words, directive
}

func TestCompletionKnowsTheHome(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	p.dir(p.l.State())
	p.stage(version.Of("v2"), version.Of("v3"))
	for _, args := range [][]string{{"add", "v2", p.l.Binary(version.Of("v2")), "--height", "100"}, {"add", "v4", p.l.Binary(version.Of("v2")), "--height", "200"}} {
		code, _, errs := p.invoke(append([]string{"upgrade"}, args...)...)
		require.Equal(t, cli.ExitOK, code, errs)
	}
	require.NoError(t, os.RemoveAll(p.l.Dir(version.Of("v4"))), "its binary was lost")
	p.write(filepath.Join(p.l.DataDir(), "a"), "block")
	var ids []string
	for _, label := range []string{"before", "after"} {
		code, out, errs := p.invoke("snapshot", "create", "--label", label)
		require.Equal(t, cli.ExitOK, code, errs)
		ids = append([]string{strings.TrimSpace(out)}, ids...)
	}
	code, _, errs := p.invoke("snapshot", "pin", ids[0])
	require.Equal(t, cli.ExitOK, code, errs)

	const none, files, ordered = ":4", ":0", ":36"
	for line, want := range map[string][]string{
		"upgrade cancel ":   {"v2\tat height 100, staged", "v4\tat height 200"},
		"upgrade skip v2":   {"v2\tat height 100, staged"},
		"upgrade add ":      {"v4\tat height 200"},
		"upgrade apply ":    {"v2\tstaged", "v3\tstaged"},
		"upgrade use ":      {"v2\tstaged", "v3\tstaged"},
		"upgrade cancel no": nil,
	} {
		words, directive := completions(t, p, strings.Split(line, " ")...)
		assert.Equal(t, want, words, line)
		assert.Equal(t, ordered, directive, line)
	}
	for _, command := range []string{"show", "verify", "restore", "pin", "unpin", "delete"} {
		words, _ := completions(t, p, "snapshot", command, "")
		require.Len(t, words, 2, command)
		for i, w := range words {
			assert.True(t, strings.HasPrefix(w, ids[i]+"\t"), "%s: %s, newest first", command, w)
		}
		assert.Contains(t, words[0], "after, ")
		assert.Contains(t, words[0], ", verified, pinned")
	}
	p.link("upgrades/v2")
	words, _ := completions(t, p, "upgrade", "use", "")
	assert.Equal(t, []string{"v3\tstaged", "genesis\tthe first version"}, words)

	// Files, where files are meant.
	for _, line := range []string{"upgrade add v5 ", "snapshot restore ./", "init "} {
		words, directive := completions(t, p, strings.Split(line, " ")...)
		assert.Empty(t, words, line)
		assert.Equal(t, files, directive, line)
	}
	_, directive := completions(t, p, "man", "")
	assert.Equal(t, ":16", directive, "a directory")
	// --home on the command line that is being typed is the one that counts.
	words, directive = completions(t, p, "--home", t.TempDir(), "snapshot", "show", "")
	assert.Empty(t, words)
	assert.Contains(t, []string{none, ordered}, directive)
}

// Whatever is wrong, the shell gets nothing, and no message in the middle of its line.
func TestCompletionIsSilent(t *testing.T) {
	p := newPatient(t)
	for _, env := range [][]string{{"DAEMON_HOME=relative", "DAEMON_NAME=x"}, {"DAEMON_HOME=/nonexistent/home", "DAEMON_NAME=x"}} {
		p.env = env
		for _, line := range []string{"upgrade cancel ", "upgrade use ", "snapshot show ", "upgrade apply "} {
			words, _ := completions(t, p, strings.Split(line, " ")...)
			assert.Empty(t, words, "%v: %s", env, line)
		}
	}
}

// A shell waits for the answer at every press of the key: below 100 ms, of which the process itself is a part.
func TestCompletionIsQuick(t *testing.T) {
	p := newPatient(t)
	p.link("genesis")
	for i := range 50 {
		v := version.Of("v" + string(rune('a'+i%26)) + string(rune('a'+i/26)))
		p.stage(v)
	}
	// On a busy machine most tries are slower: one that isn't is enough.
	best := time.Hour
	for deadline := time.Now().Add(patience); best >= 100*time.Millisecond && time.Now().Before(deadline); {
		began := time.Now()
		words, _ := completions(t, p, "upgrade", "use", "")
		require.Len(t, words, 50)
		best = min(best, time.Since(began))
	}
	assert.Less(t, best, 100*time.Millisecond)
}

// Every command that takes arguments says what they are.
func TestEveryArgumentIsCompleted(t *testing.T) {
	byShell := map[string]bool{ // files, or the node's own
		"run": true, "init": true, "add-upgrade": true, "prepare-upgrade": true, "config": true, "version": true, "unit": true,
		"rehearse": true,
	}
	each(newRoot(testApp()), func(cmd *cobra.Command) {
		if !cmd.Runnable() || cmd.HasSubCommands() || byShell[cmd.Name()] || strings.Contains(cmd.CommandPath(), " genesis ") {
			return
		}
		if _, words, _ := strings.Cut(cmd.Use, " "); words != "" && !strings.HasPrefix(words, "-") {
			assert.NotNil(t, cmd.ValidArgsFunction, cmd.CommandPath())
		}
	})
}

// bash takes the script, and offers what the program says.
func TestBashCompletes(t *testing.T) {
	p := newPatient(t)
	code, script, _ := p.invoke("completion", "bash")
	require.Equal(t, cli.ExitOK, code)
	path := filepath.Join(t.TempDir(), "completion")
	require.NoError(t, os.WriteFile(path, []byte(script), 0o644))
	self, err := os.Executable()
	require.NoError(t, err)
	bin := t.TempDir()
	require.NoError(t, os.Symlink(self, filepath.Join(bin, "supervisor"))) // TestMain makes it the program
	cmd := exec.CommandContext(t.Context(), "bash", "-c", `
		_get_comp_words_by_ref() { words=("${COMP_WORDS[@]}"); cword=$COMP_CWORD; cur=${words[cword]}; prev=${words[cword-1]}; }
		__ltrim_colon_completions() { :; }
		compopt() { :; }
		. "$0"
		COMP_WORDS=(supervisor upgrade can) COMP_CWORD=2 COMP_LINE="supervisor upgrade can" COMP_POINT=22 COMP_TYPE=9
		__start_supervisor
		printf '%s\n' "${COMPREPLY[@]}"`, path)
	cmd.Env = append(append([]string{}, p.env...), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	assert.Equal(t, "cancel", strings.TrimSpace(string(out)))
}
