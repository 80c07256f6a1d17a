package child

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exit is how the node ended.
type Exit struct {
	Code   int            // its exit code; -1 where a signal ended it
	Signal syscall.Signal // the signal that ended it, or 0
	Forced bool           // it ended by the SIGKILL of a stop that took too long
	Swept  bool           // processes that it left behind had to be killed
	At     time.Time      // the main process's end
	Gone   time.Time      // the end of the last process that it left
}

func exitOf(state *os.ProcessState) Exit {
	if state == nil {
		return Exit{Code: -1} // it can't be known: somebody else has waited for it
	}
	e := Exit{Code: state.ExitCode()}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Signal = ws.Signal()
	}
	return e
}

// ExitCode is what a supervisor that ends with the node hands on: the node's code, or 128+n for signal n, as shells do.
func (e Exit) ExitCode() int {
	switch {
	case e.Signal != 0:
		return 128 + int(e.Signal)
	case e.Code < 0:
		return 1
	}
	return e.Code
}

// Success tells whether the node said that all was well.
func (e Exit) Success() bool { return e.Code == 0 && e.Signal == 0 }

// String is for people: "exit code 3", "killed by SIGSEGV", "killed after the stop timeout".
func (e Exit) String() string {
	switch {
	case e.Forced:
		return "killed after the stop timeout"
	case e.Signal != 0:
		if name := unix.SignalName(e.Signal); name != "" {
			return "killed by " + name
		}
		return fmt.Sprintf("killed by signal %d", int(e.Signal))
	case e.Code < 0:
		return "exit code unknown"
	}
	return fmt.Sprintf("exit code %d", e.Code)
}
