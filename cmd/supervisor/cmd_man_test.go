package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/cli"
)

func TestManWritesAPageOfEveryCommand(t *testing.T) {
	p := newPatient(t)
	read := func(dir string) map[string]string {
		pages := map[string]string{}
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, e := range entries {
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			require.NoError(t, err)
			pages[e.Name()] = string(data)
		}
		return pages
	}
	first, second := filepath.Join(t.TempDir(), "new", "man1"), t.TempDir()
	code, out, errs := p.invoke("man", first)
	require.Equal(t, cli.ExitOK, code, errs)
	assert.Empty(t, out)
	pages := read(first)
	each(newRoot(testApp()), func(cmd *cobra.Command) {
		page, ok := pages[manName(cmd)+".1"]
		require.True(t, ok, manName(cmd))
		assert.Contains(t, page, roff(cmd.Short), manName(cmd))
		assert.True(t, strings.HasPrefix(page, ".TH \""+strings.ToUpper(manName(cmd))+"\" \"1\" \"\" "), "no date of today: %.80s", page)
	})
	assert.Contains(t, pages, "supervisor-completion-bash.1")
	assert.NotContains(t, pages, "supervisor-help.1")
	assert.Contains(t, errs, "pages written to "+first)

	code, _, errs = p.invoke("man", second)
	require.Equal(t, cli.ExitOK, code, errs)
	assert.Equal(t, pages, read(second), "the same program writes the same bytes")
}

func TestAManualPage(t *testing.T) {
	page := manPage(find(t, "upgrade", "add"))
	for _, want := range []string{
		".SH NAME\nsupervisor\\-upgrade\\-add \\- Stage a version, and schedule it\n",
		".SH SYNOPSIS\n.B supervisor upgrade add NAME BINARY|DIR|URL [flags]\n",
		".TP\n.B \\-\\-height INT\nthe first block that the new version executes\n",
		".SH GLOBAL OPTIONS\n",
		".TP\n.B \\-\\-home STRING\n",
		".SH EXAMPLES\n.PP\n.RS 4\n.nf\n  supervisor upgrade add v2",
		".SH SEE ALSO\n\\fBsupervisor\\-upgrade\\fR(1)\n",
	} {
		assert.Contains(t, page, want)
	}
	assert.Contains(t, manPage(find(t)), ".SH COMMANDS\n")
	for _, line := range strings.Split(page, "\n") {
		if strings.HasPrefix(line, ".") {
			assert.Regexp(t, `^\.(TH|SH|B|TP|PP|RS|RE|nf|fi)\b`, line, "no text is taken for a request")
		}
	}
}

func find(t *testing.T, path ...string) *cobra.Command {
	t.Helper()
	cmd, _, err := newRoot(testApp()).Find(path)
	require.NoError(t, err)
	return cmd
}

func TestRoffEscapesItsOwnCharacters(t *testing.T) {
	assert.Equal(t, "a\\-b \\en\n\\&.SH x\n\\&'y", roff("a-b \\n\n.SH x\n'y"))
	assert.Equal(t, "one\n.PP\ntwo\n.PP\n.RS 4\n.nf\n  code\n.fi\n.RE\n", roffText("one\n\ntwo\n\n  code"))
}

func TestManPrintsTheMainPage(t *testing.T) {
	p := newPatient(t)
	code, out, _ := p.invoke("man")
	assert.Equal(t, cli.ExitOK, code)
	assert.True(t, strings.HasPrefix(out, ".TH \"SUPERVISOR\" "))
	code, _, errs := p.invoke("man", "a", "b")
	assert.Equal(t, cli.ExitUsage, code)
	assert.Contains(t, errs, "one directory")
}

// Shells ask for completions; what they are told comes on stdout, and needs no home.
func TestCompletion(t *testing.T) {
	p := newPatient(t)
	p.env = nil
	for shell, marker := range map[string]string{
		"bash": "__start_supervisor", "zsh": "#compdef supervisor", "fish": "complete -c supervisor", "powershell": "Register-ArgumentCompleter",
	} {
		code, out, errs := p.invoke("completion", shell)
		assert.Equal(t, cli.ExitOK, code, shell)
		assert.Contains(t, out, marker, shell)
		assert.Empty(t, errs, shell)
	}
	code, out, _ := p.invoke("__complete", "upgrade", "a")
	assert.Equal(t, cli.ExitOK, code)
	assert.Contains(t, out, "add\t")
	assert.Contains(t, out, "apply\t")
	code, out, _ = p.invoke("__complete", "doctor", "--fix")
	assert.Equal(t, cli.ExitOK, code)
	assert.Contains(t, out, "--fix-link")
}
