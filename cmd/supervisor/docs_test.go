package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/config"
)

var updateDocs = flag.Bool("update-docs", false, "write the generated parts of docs/ anew")

// page compares a page of docs/ with what the code says, or writes it.
func page(t *testing.T, name, want string) {
	t.Helper()
	path := filepath.Join("..", "..", "docs", name)
	if *updateDocs {
		require.NoError(t, os.WriteFile(path, []byte(want), 0o644))
	}
	have, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, want, string(have), "stale: go test ./cmd/supervisor -run TestDocs -update-docs")
}

func TestDocsCommands(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Commands\n\nMade from `--help`; `supervisor man` writes the same as manual pages.\n")
	each(newRoot(testApp()), func(cmd *cobra.Command) {
		if cmd.Hidden || !cmd.IsAvailableCommand() && cmd.HasParent() {
			return
		}
		text := cmd.Long
		if text == "" {
			text = cmd.Short + "."
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n```\n%s```\n", cmd.CommandPath(), strings.TrimSpace(text), cmd.UsageString())
	})
	page(t, "commands.md", b.String())
}

func TestDocsConfiguration(t *testing.T) {
	page(t, "configuration.md", `# Configuration

Nothing is required: with only DAEMON_HOME and DAEMON_NAME set everything has a sound default.

The file is found at `+"`--config FILE`, else `$SUPERVISOR_CONFIG`, else `<home>/supervisor/supervisor.toml`"+` where it exists;
`+"`supervisor init`"+` writes it. What is set is taken in this order: flag, environment, file, default. Unknown keys are errors with their
position, and all mistakes are reported together.

Cosmovisor's variables (`+"`DAEMON_*`, `COSMOVISOR_*`, `UNSAFE_SKIP_BACKUP`"+`) mean what they mean to Cosmovisor and override the file. Every
scalar key is also a variable: `+"`[upgrade.probation] up` is `SUPERVISOR_UPGRADE_PROBATION_UP`; `SUPERVISOR_RESTART` is `[node] restart`"+`.
Cosmovisor's own `+"`config.toml`"+` is read where `+"`--cosmovisor-config`"+` names it; its values lie between the file and the environment.

World-writable homes, trees, binaries and configuration files, and those of strangers, are refused; `+"`[security] allow_writable`"+` lists exceptions.

`+"```toml\n"+config.RenderToml(config.Default())+"```\n")
}

// supervisorLine finds the commands of this program in a page: at the begin of a line of a shell block.
var supervisorLine = regexp.MustCompile("(?m)^supervisor +[^\n]*")

// Every command that the documentation shows is one that this program takes.
func TestDocsShowRealCommands(t *testing.T) {
	pages := []string{"../../README.md"}
	require.NoError(t, filepath.WalkDir("../../docs", func(path string, d os.DirEntry, err error) error {
		if filepath.Ext(path) == ".md" {
			pages = append(pages, path)
		}
		return err
	}))
	seen := 0
	for _, path := range pages {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		blocks := strings.Split(string(text), "```")
		for i := 1; i < len(blocks); i += 2 {
			if !strings.HasPrefix(blocks[i], "sh\n") {
				continue
			}
			for _, line := range supervisorLine.FindAllString(blocks[i], -1) {
				seen++
				require.NoError(t, parses(shellWords(line)[1:]), "%s: %s", filepath.Base(path), line)
			}
		}
	}
	require.Greater(t, seen, 30, "the pages show commands")
}

// shellWord is one word of a shell, or a comment: parts in quotes, and others.
var shellWord = regexp.MustCompile(`#.*|(?:'[^']*'|"[^"]*"|[^\s'"])+`)

// shellWords splits a line as a shell does, as far as the pages need that.
func shellWords(line string) (words []string) {
	for _, word := range shellWord.FindAllString(line, -1) {
		if strings.ContainsRune("#|>&", rune(word[0])) { // a comment, or another command's part
			break
		}
		words = append(words, strings.NewReplacer("'", "", `"`, "").Replace(word))
	}
	return words
}

func TestShellWords(t *testing.T) {
	assert.Equal(t, []string{"restore", "--into", "kwild=host=/run dbname=b", "a#b", "c d"}, shellWords(`restore --into kwild='host=/run dbname=b' a#b "c d" # why 'not`))
	assert.Equal(t, []string{"unit"}, shellWords("unit | tee x"))
}

// The page beside Cosmovisor names what shows each answer: tests and scripts that are there.
func TestDocsNameRealTests(t *testing.T) {
	text, err := os.ReadFile("../../docs/cosmovisor.md")
	require.NoError(t, err)
	have := map[string]bool{}
	require.NoError(t, filepath.WalkDir("../..", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)`).FindAllStringSubmatch(string(source), -1) {
			have[m[1]] = true
		}
		return err
	}))
	tests := regexp.MustCompile("`(Test[^`]*)`").FindAllStringSubmatch(string(text), -1)
	for _, m := range tests {
		require.True(t, have[m[1]], "no such test: %s", m[1])
	}
	require.Greater(t, len(tests), 40)
	for _, list := range regexp.MustCompile("scripts? ((?:`[a-z_]+`(?:, )?)+)").FindAllStringSubmatch(string(text), -1) {
		for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(list[1], -1) {
			require.FileExists(t, filepath.Join("../../testdata/script", m[1]+".txtar"))
		}
	}
}

// The page of fault cases names each test with its file; all cases are there, and none is without a test.
func TestDocsFaultCases(t *testing.T) {
	text, err := os.ReadFile("../../docs/fault-cases.md")
	require.NoError(t, err)
	rows := regexp.MustCompile(`(?m)^\| (\d+) \|.*$`).FindAllStringSubmatch(string(text), -1)
	require.Len(t, rows, 48)
	file, name := regexp.MustCompile("`([a-z_/]+_test\\.go)` ((?:`\\w+`(?:, )?)+)"), regexp.MustCompile("`(\\w+)`")
	for i, row := range rows {
		require.Equal(t, fmt.Sprint(i+1), row[1])
		groups := file.FindAllStringSubmatch(row[0], -1)
		require.NotEmpty(t, groups, "case %d is shown by nothing", i+1)
		for _, g := range groups {
			source, err := os.ReadFile(filepath.Join("../..", g[1]))
			require.NoError(t, err, "case %d", i+1)
			for _, n := range name.FindAllStringSubmatch(g[2], -1) {
				require.Contains(t, string(source), "func "+n[1]+"(", "case %d: no such test in %s", i+1, g[1])
			}
		}
		if _, list, ok := strings.Cut(row[0], "script"); ok {
			for _, n := range regexp.MustCompile("^s? ((?:`\\w+`(?:, )?)+)").FindAllStringSubmatch(list, -1) {
				for _, s := range name.FindAllStringSubmatch(n[1], -1) {
					require.FileExists(t, filepath.Join("../../testdata/script", s[1]+".txtar"))
				}
			}
		}
	}
}

// parses tells whether a command line would be taken: command, flags and number of arguments.
func parses(args []string) error {
	root := newRoot(testApp())
	cmd, rest, err := root.Traverse(args)
	if err != nil {
		return err
	}
	if cmd.DisableFlagParsing {
		return nil
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

func each(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, c := range cmd.Commands() {
		if c.Name() != "completion" && c.Name() != "help" {
			each(c, f)
		}
	}
}

func testApp() *cli.App { return newApp(nil, nil, os.Stdin, os.Stdout, os.Stderr) }
