// Package cli is the frame that all commands share: what a command line was given and prints to, which mistakes are the
// user's and not ours, and the exit codes. It knows nothing of nodes.
package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"nodevisor/cmd/supervisor/console"
	"nodevisor/internal/hint"
)

// WriteJSON prints one document, indented for people, on one stream.
func WriteJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// App is one command line: what it was given, and what it prints to.
type App struct {
	Args    []string // without the program's name
	Environ []string
	Stdin   *os.File
	Stdout  *os.File
	Stderr  *os.File
	Flags   Flags
	Running bool   // the command is `run`: its exit codes are its own
	Founds  bool   // the command is `init`: what runs elsewhere on this host says nothing of its home
	Release string // what this program calls itself
	// Commands are the names of the commands, by which an advice is known: see Addressed.
	Commands []string
	Meter    *console.Meter // shows how far a long command is; nil = none
}

// Flags stand before the command's own arguments.
type Flags struct {
	Home, Config, Unit, CosmovisorConfig string
	JSON, Takeover                       bool
}

// Print prints data; what can't be written is an error, also of a command that has done its work.
func (a *App) Print(format string, args ...any) error {
	_, err := fmt.Fprintf(a.Stdout, format, args...)
	return err
}

// Say prints what is meant for people, and isn't data.
func (a *App) Say(format string, args ...any) {
	if !a.Flags.JSON {
		fmt.Fprintln(a.Stderr, a.Addressed(fmt.Sprintf(format, args...)))
	}
}

// Confirm asks before what can't be undone, on a terminal; elsewhere --yes is needed.
func (a *App) Confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if !console.IsTerminal(a.Stdin) || !console.IsTerminal(a.Stderr) {
		return &UsageError{Err: hint.New("go on", "", "this can't be undone and nobody can be asked", "add --yes")}
	}
	fmt.Fprintf(a.Stderr, "%s [y/N] ", question)
	var word string
	if _, err := fmt.Fscanln(a.Stdin, &word); err != nil && !errors.Is(err, io.EOF) && err.Error() != "unexpected newline" {
		return err
	}
	if word != "y" && word != "Y" && word != "yes" {
		return &hint.Error{Op: "go on", Err: errors.New("not confirmed; nothing was changed"), Hint: "answer y, or add --yes"}
	}
	return nil
}
