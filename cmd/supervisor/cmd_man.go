package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/internal/atomicfile"
)

func newMan(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "man [DIR]", Short: "Write the manual pages of all commands",
		Long: `Writes one page for each command into DIR, which is made where it is missing. Without DIR the page of the supervisor
itself is printed. The pages are made of the commands' own help and hold no date: the same program writes the same bytes.`,
		Example: "  supervisor man | man -l -\n  supervisor man /usr/local/share/man/man1",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return cli.Usagef("man takes one directory")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			root.InitDefaultCompletionCmd()
			if len(args) == 0 {
				_, err := a.Stdout.WriteString(manPage(root))
				return err
			}
			if err := atomicfile.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			n, err := writeManPages(args[0], root)
			if err == nil {
				a.Say("%d pages written to %s", n, args[0])
			}
			return err
		},
	}
}

// writeManPages writes the page of cmd and of every command below it that the help shows.
func writeManPages(dir string, cmd *cobra.Command) (n int, err error) {
	if err := atomicfile.WriteFile(filepath.Join(dir, manName(cmd)+".1"), []byte(manPage(cmd)), 0o644); err != nil {
		return n, err
	}
	n = 1
	for _, sub := range cmd.Commands() {
		if !documented(sub) {
			continue
		}
		more, err := writeManPages(dir, sub)
		n += more
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// documented leaves out what the help leaves out, and the command that only repeats the help.
func documented(cmd *cobra.Command) bool { return cmd.IsAvailableCommand() && cmd.Name() != "help" }

func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manPage renders one page in the macros of man(7). It is a hundred lines here, because the way that cobra has for it
// brings a Markdown and a YAML parser into a program that runs beside a validator's keys.
func manPage(cmd *cobra.Command) string {
	cmd.InitDefaultHelpFlag()
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %q \"1\" \"\" %q \"Nodevisor\"\n", strings.ToUpper(manName(cmd)), "supervisor "+release)
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(manName(cmd)), roff(cmd.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n", roff(cmd.UseLine()))
	about := cmd.Long
	if about == "" {
		about = cmd.Short + "."
	}
	b.WriteString(".SH DESCRIPTION\n" + roffText(about))
	roffCommands(&b, cmd)
	roffFlags(&b, "OPTIONS", cmd.NonInheritedFlags())
	roffFlags(&b, "GLOBAL OPTIONS", cmd.InheritedFlags())
	if cmd.Example != "" {
		b.WriteString(".SH EXAMPLES\n" + roffVerbatim(cmd.Example))
	}
	roffSeeAlso(&b, cmd)
	return b.String()
}

func roffCommands(b *strings.Builder, cmd *cobra.Command) {
	if !cmd.HasAvailableSubCommands() {
		return
	}
	b.WriteString(".SH COMMANDS\n")
	for _, sub := range cmd.Commands() {
		if documented(sub) {
			fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(sub.Use), roff(sub.Short))
		}
	}
}

func roffFlags(b *strings.Builder, title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	b.WriteString(".SH " + title + "\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		value, usage := pflag.UnquoteUsage(f)
		if value != "" {
			name += " " + strings.ToUpper(value)
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "[]" {
			usage += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(name), roff(usage))
	})
}

func roffSeeAlso(b *strings.Builder, cmd *cobra.Command) {
	var names []string
	if cmd.HasParent() {
		names = append(names, manName(cmd.Parent()))
	}
	for _, sub := range cmd.Commands() {
		if documented(sub) {
			names = append(names, manName(sub))
		}
	}
	if len(names) == 0 {
		return
	}
	for i, name := range names {
		names[i] = `\fB` + roff(name) + `\fR(1)`
	}
	b.WriteString(".SH SEE ALSO\n" + strings.Join(names, ",\n") + "\n")
}

// roffText renders the paragraphs of a help text; indented lines stay as they are.
func roffText(text string) string {
	var b strings.Builder
	for i, paragraph := range strings.Split(strings.Trim(text, "\n"), "\n\n") {
		switch {
		case strings.HasPrefix(paragraph, " ") || strings.HasPrefix(paragraph, "\t"):
			b.WriteString(roffVerbatim(paragraph))
			continue
		case i > 0:
			b.WriteString(".PP\n")
		}
		b.WriteString(roff(paragraph) + "\n")
	}
	return b.String()
}

func roffVerbatim(text string) string {
	return ".PP\n.RS 4\n.nf\n" + roff(strings.Trim(text, "\n")) + "\n.fi\n.RE\n"
}

// roff escapes what the formatter would take for its own: backslashes, hyphens (which it may break at, and prints as another
// character), and lines that begin with a control character.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
