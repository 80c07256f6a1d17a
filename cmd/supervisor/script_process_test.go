package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// The commands that start, signal and await processes.

// running is a supervisor that a script left running.
type running struct {
	cmd  *exec.Cmd
	log  string        // where its stderr goes
	tty  *os.File      // its terminal's other side; nil = it has none
	done chan struct{} // closed when it has ended
}

func (r *running) kill() {
	_ = r.cmd.Process.Kill()
	<-r.done
	if r.tty != nil {
		_ = r.tty.Close()
	}
}

// cmdUp starts a supervisor in the background: up NAME ARGS... Its streams go to NAME.out and NAME.err. With -tty as the
// first argument it gets a terminal of its own, as its controlling one; all of its output then goes to NAME.err. With
// -unheard its stderr is a pipe that nobody reads any more.
func cmdUp(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	streams := ""
	if len(args) > 0 && strings.HasPrefix(args[0], "-") {
		streams, args = args[0], args[1:]
	}
	if len(args) < 2 {
		ts.Fatalf("usage: up [-tty|-unheard] NAME ARGS...")
	}
	s, name := storyOf(ts), args[0]
	if old, ok := s.runs[name]; ok {
		select {
		case <-old.done:
		default:
			ts.Fatalf("%s still runs", name)
		}
	}
	// The script's environment, as it is at this moment: env is what knows all of it.
	ts.Check(ts.Exec("sh", "-c", "env -0 >"+filepath.Join(s.work, ".tmp", "environ")))
	environ := strings.Split(strings.TrimRight(ts.ReadFile(filepath.Join(s.work, ".tmp", "environ")), "\x00"), "\x00")
	path := ""
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if p := filepath.Join(dir, "supervisor"); path == "" && unix.Access(p, unix.X_OK) == nil {
			path = p
		}
	}
	r := &running{cmd: exec.Command(path, args[1:]...), log: filepath.Join(s.work, name+".err"), done: make(chan struct{})}
	r.cmd.Env, r.cmd.Dir = environ, ts.MkAbs(".")
	errFile, err := os.Create(r.log)
	ts.Check(err)
	switch streams {
	case "-tty":
		ts.Check(r.startOnTerminal(errFile))
	case "-unheard":
		ts.Check(errors.Join(errFile.Close(), r.startUnheard()))
	default:
		outFile, err := os.Create(filepath.Join(s.work, name+".out"))
		ts.Check(err)
		defer outFile.Close()
		defer errFile.Close()
		r.cmd.Stdout, r.cmd.Stderr = outFile, errFile
		ts.Check(r.cmd.Start())
	}
	s.runs[name] = r
	go func() {
		defer close(r.done)
		_ = r.cmd.Wait()
	}()
}

// startUnheard starts the process with a stderr whose reader is gone: the first line that it logs is an EPIPE.
func (r *running) startUnheard() error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	r.cmd.Stderr = writer
	return errors.Join(reader.Close(), r.cmd.Start(), writer.Close())
}

// startOnTerminal gives the process a pseudo terminal and copies what it shows into out.
func (r *running) startOnTerminal(out *os.File) error {
	master, err := pty.Start(r.cmd) // setsid, and the terminal as the controlling one
	if err != nil {
		return errors.Join(err, out.Close())
	}
	r.tty = master
	go func() {
		defer out.Close()
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			_, _ = out.Write(buf[:n])
			if err != nil {
				return // EIO: the last process of that terminal is gone
			}
		}
	}()
	return nil
}

// cmdType types into a terminal: type NAME 'text' (\x03 is Ctrl-C).
func cmdType(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	r := runOf(ts, args, 2)
	text, err := strconv.Unquote(`"` + args[1] + `"`)
	ts.Check(err)
	_, err = r.tty.WriteString(text)
	ts.Check(err)
}

func runOf(ts *testscript.TestScript, args []string, want int) *running {
	if len(args) < want {
		ts.Fatalf("a run and %d arguments are needed", want-1)
	}
	r, ok := storyOf(ts).runs[args[0]]
	if !ok {
		ts.Fatalf("no run %q", args[0])
	}
	return r
}

// cmdSig sends a signal to a supervisor: sig NAME TERM. With a third word, ended, it may have ended before.
func cmdSig(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	r := runOf(ts, args, 2)
	err := r.cmd.Process.Signal(unix.SignalNum("SIG" + args[1]))
	if len(args) > 2 && args[2] == "ended" && errors.Is(err, os.ErrProcessDone) {
		return
	}
	ts.Check(err)
}

// cmdEnded waits for the end of a supervisor and compares its exit code: ended NAME 79.
func cmdEnded(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	r := runOf(ts, args, 2)
	select {
	case <-r.done:
	case <-time.After(patience):
		ts.Fatalf("%s did not end; its log:\n%s", args[0], readTail(r.log))
	}
	if got := strconv.Itoa(r.cmd.ProcessState.ExitCode()); got != args[1] {
		ts.Fatalf("%s ended with %s (%s), not %s; its log:\n%s", args[0], got, r.cmd.ProcessState, args[1], readTail(r.log))
	}
}

// cmdCode runs a command and compares its exit code: code 3 supervisor status.
func cmdCode(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	if len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND ARGS...")
	}
	code, err := 0, ts.Exec(args[1], args[2:]...)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, not %s", code, args[0])
	}
}

// cmdWaitLog waits for a line in a supervisor's log: waitlog NAME 'regexp'.
func cmdWaitLog(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	r := runOf(ts, args, 2)
	want := regexp.MustCompile("(?m)" + args[1])
	ts.Check(within(func() error {
		if data, err := os.ReadFile(r.log); err != nil || want.Match(data) {
			return err
		}
		return errors.New("no line like " + args[1] + "; the log:\n" + readTail(r.log))
	}))
}

// cmdKillNode signals the node itself, behind the supervisor's back: killnode [KILL].
func cmdKillNode(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	sig := syscall.SIGKILL
	if len(args) > 0 {
		sig = unix.SignalNum("SIG" + args[0])
	}
	pids := storyOf(ts).aliveNodes()
	if len(pids) != 1 {
		ts.Fatalf("%d nodes are alive: %v", len(pids), pids)
	}
	ts.Check(syscall.Kill(pids[0], sig))
}

// cmdNodes waits until so many nodes are alive: nodes 0. More than one is never waited away: it is a double sign.
func cmdNodes(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	s := storyOf(ts)
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	ts.Check(within(func() error {
		if pids := s.aliveNodes(); len(pids) != want {
			return errors.New(strconv.Itoa(len(pids)) + " nodes are alive, not " + args[0])
		}
		return nil
	}))
}

// within repeats a question until its answer is nil, for as long as patience lasts.
func within(ask func() error) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if err := ask(); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

func readTail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-40):], []byte("\n")))
}
