// Fakenode is the node that tests and the demo run in place of a real one. It makes blocks on a clock, keeps them in a
// store that looks and fails like LevelDB, answers like CometBFT, halts like x/upgrade, and misbehaves on demand.
//
// It is one program for all versions of a chain. What a binary knows is linked into it:
//
//	go build -ldflags "-X main.version=v2 -X main.handles=v2,v3" ./internal/fakenode
//
// A version handles the upgrade of its own name unless main.handles says otherwise. Everything else is set by the
// flags of its commands, and by the environment: --block-time is FAKENODE_BLOCK_TIME, and so for every flag. The
// environment wins, because a supervisor under test has its own idea of the arguments. An unknown FAKENODE_ variable is
// an error: a misspelt fault would be a test that can't fail. `fakenode --help` lists them all.
//
// What it imitates, and where that was read:
//
//   - At the height of a plan that it doesn't handle, block H is stored, not applied; data/upgrade-info.json is written
//     first, then `UPGRADE "<name>" NEEDED at height: H: <info>` is logged (x/upgrade, PreBlocker, SDK 0.50 and later),
//     then CONSENSUS FAILURE!!!; the process and its RPC stay, and answer H. Started again, it replays block H and exits
//     1 before its RPC is up.
//   - At --halt-height N the last block applied is N-1, and the process stays likewise (SDK 0.53).
//   - A binary that doesn't handle the upgrade that the data saw last exits 1 with "wrong app version", unless the block
//     in hand is the one that brings the next upgrade (x/upgrade's downgrade check). An old binary on migrated data is so
//     never mistaken for a healthy node.
//   - With --postgres its blocks lie in a database, too, one transaction each; at its start it refuses tables that another
//     version migrated, and tables that are not of the same moment as its store.
//   - A height is signed at most once: the signer's state only rises, and where it is ahead of the data the block is
//     made unsigned, as a validator does that catches up.
//
// INT and TERM stop it; HUP, USR1, USR2 and WINCH are recorded and have no effect; QUIT dumps the goroutines.
// Nothing of it is durable beyond a kill unless --sync is given: its own cost stays out of what is measured.
package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"nodevisor/internal/fakenode/trace"
)

// What a build links in. There is no other package-level state.
var (
	version = "v1" // -X main.version
	handles = ""   // -X main.handles: names of upgrades, separated by commas; empty = the version
)

// exitError ends the process with a code. Without a text nothing is printed.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

// fail is the ordinary failure of an SDK application: "Error: …" on stderr, code 1.
func fail(format string, args ...any) error {
	return &exitError{code: 1, text: fmt.Sprintf(format, args...)}
}

func main() {
	os.Exit(run(os.Args[1:]))
}

// run carries one command out and returns the code to exit with.
func run(args []string) int {
	name := "help"
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	err := dispatch(name, args)
	if err == nil {
		return 0
	}
	code := 1
	if e := (*exitError)(nil); errors.As(err, &e) {
		code = e.code
	}
	if err.Error() != "" {
		fmt.Fprintln(os.Stderr, "Error:", err)
	}
	return code
}

// dispatch finds the command. An unknown one fails as cobra's do: supervisors ask old nodes for commands they lack.
func dispatch(name string, args []string) error {
	switch name {
	case "help", "-h", "--help":
		printHelp(os.Stdout)
		return nil
	// Their arguments are positional and their settings come from the environment alone.
	case daemonCommand, orphansCommand, sleepCommand:
		return relative(name, args)
	}
	commands := map[string]func(*settings) error{
		"start": start, "version": printVersion, "status": printStatus,
		"pre-upgrade": preUpgrade, "export": export, "init": initHome,
	}
	command, ok := commands[name]
	if !ok {
		return fail("unknown command %q for \"fakenode\"", name)
	}
	s, err := parse(name, args)
	if err != nil {
		return err
	}
	return command(s)
}

// record adds an event to the trace. A trace that can't be written ends the node: the test would wait in vain.
func (s *settings) record(e trace.Event) {
	s.recordTo(s.trace, e)
}

// recordTo is record for another file.
func (s *settings) recordTo(path string, e trace.Event) {
	e.Time, e.PID, e.PPID, e.Version = time.Now().UnixNano(), os.Getpid(), os.Getppid(), version
	if err := trace.Append(path, e); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

// logf prints one line in the manner of the SDK's console logger, on stdout as the SDK does.
func logf(level, module, format string, args ...any) {
	fmt.Printf("%s %s %s module=%s\n", time.Now().Format("3:04PM"), level, fmt.Sprintf(format, args...), module)
}
