// Command supervisor runs one blockchain node and carries its upgrades out as transactions. It is the composition root:
// the only place that knows all packages. root.go lists the commands and says by that where each of them is; here are run,
// what cobra makes of the others (completion, man), and Cosmovisor's own names.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/config"
	"nodevisor/cmd/supervisor/host"
	"nodevisor/internal/hint"
	"nodevisor/supervisor"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/home"
	"nodevisor/upgrade/state"
)

// release is what this program calls itself, set by the build: -ldflags "-X main.release=…".
var release = "dev"

func main() {
	os.Exit(execute(context.Background(), newApp(os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr)))
}

// execute runs one command line and returns the process's exit code.
func execute(ctx context.Context, a *cli.App) int {
	cmd, err := newRoot(a).ExecuteContextC(ctx)
	a.Meter.Close()
	if err == nil {
		return cli.ExitOK
	}
	if isFlagError(err) { // of a flag before the command: cobra hands it on as it is
		err = flagError(cmd, err)
	}
	if usage := (*cli.UsageError)(nil); errors.As(err, &usage) {
		guess(a)
	}
	if own := cli.ExitError(0); errors.As(err, &own) {
		return int(own)
	}
	code := exitCode(err)
	if a.Running {
		code = runCode(code)
	}
	report(a, err, code, cmd.CommandPath())
	return code
}

// nextStep is the hint of an error that has none of its own: a person is never left without a next command. path is that
// of the command that failed.
func nextStep(err error, path string) string {
	usage, mistakes := (*cli.UsageError)(nil), (*config.Error)(nil)
	output := (*fs.PathError)(nil)
	switch {
	case errors.As(err, &usage):
		return path + " --help"
	case errors.As(err, &output) && output.Op == "write" && output.Path == os.Stdout.Name():
		return "direct the output to where it can be written"
	case hint.OfSystem(err) != "":
		return hint.OfSystem(err)
	case errors.Is(err, fs.ErrPermission):
		return cli.AsRightUser
	case errors.As(err, &mistakes):
		return "correct it, then: supervisor doctor"
	case errors.Is(err, home.ErrLocked), strings.HasSuffix(path, " doctor"):
		return "supervisor status"
	}
	return "supervisor doctor"
}

// exitCode maps an error to a command's exit code.
func exitCode(err error) int {
	usage, mistakes, remote := (*cli.UsageError)(nil), (*config.Error)(nil), (*client.Failure)(nil)
	interrupted, unit := (*cli.Interrupted)(nil), (*host.UnitError)(nil)
	switch {
	case errors.As(err, &interrupted):
		return 128 + int(interrupted.Signal)
	case errors.As(err, &usage), errors.As(err, &mistakes), errors.As(err, &unit), errors.Is(err, home.ErrNetworkFS):
		return cli.ExitUsage // what no second try mends
	case errors.Is(err, state.ErrUntrusted) && !errors.Is(err, fs.ErrPermission): // for another user it may be well
		return cli.ExitHeld
	case errors.Is(err, home.ErrLocked), errors.Is(err, home.ErrForeign):
		return cli.ExitLocked
	case errors.As(err, &remote) && remote.Code > 0:
		return remote.Code
	}
	return cli.ExitFailed
}

// runCode is the code of `run` for what a command would have ended with.
func runCode(code int) int {
	switch code {
	case cli.ExitUsage:
		return supervisor.ExitConfig
	case cli.ExitHeld:
		return supervisor.ExitHeld
	case cli.ExitLocked:
		return supervisor.ExitLocked
	}
	return code
}

// report prints an error: a JSON document on stdout with --json; else, and where stdout takes nothing, the text and its hint
// on stderr.
func report(a *cli.App, err error, code int, path string) {
	next := hint.Of(err)
	if remote := (*client.Failure)(nil); errors.As(err, &remote) {
		next = remote.Hint
	}
	if next == "" {
		next = nextStep(err, path)
	}
	next = a.Addressed(next)
	if a.Flags.JSON && cli.WriteJSON(a.Stdout, map[string]any{"error": client.Failure{Message: err.Error(), Hint: next, Code: code}}) == nil {
		return
	}
	fmt.Fprintf(a.Stderr, "Error: %v\n", err)
	if next != "" {
		fmt.Fprintf(a.Stderr, "Hint: %s\n", next)
	}
}

func newApp(args, environ []string, stdin, stdout, stderr *os.File) *cli.App {
	return &cli.App{Release: release, Args: args, Environ: environ, Stdin: stdin, Stdout: stdout, Stderr: stderr}
}
