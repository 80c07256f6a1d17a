package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"nodevisor/internal/proc"
	"nodevisor/internal/progress"
)

const (
	maxLine   = 64 << 10 // bytes of one line of the downloader's output
	maxStderr = 4 << 10  // bytes kept of its standard error: the reason stands first
	waitDelay = 5 * time.Second
)

// failure is what the downloader said, or how it ended if it said nothing.
type failure struct {
	kind Kind
	text string
}

func (f *failure) Error() string { return f.text }

// run carries out one run of the downloader in the stage, as a process group of its own, and returns its last message.
// It never outlives ctx, nor this process.
func run(ctx context.Context, s *stage, program string, args []string, observe progress.Observer) (Message, error) {
	lifeline, hold, err := os.Pipe()
	if err != nil {
		return Message{}, fmt.Errorf("cannot run downloader: %w", err)
	}
	defer hold.Close() // after the wait: as long as it is open, the downloader may live
	out := &lines{observe: observe}
	said := &proc.Head{Limit: maxStderr}
	cmd := exec.CommandContext(ctx, program, append(args, fmt.Sprintf("--lifeline=%d", lifelineFD))...)
	cmd.Dir, cmd.Env = s.path, environment()
	cmd.Stdout, cmd.Stderr = out, said
	cmd.ExtraFiles = []*os.File{lifeline}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: s.owner}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = waitDelay
	err = execute(cmd, lifeline)
	if ctx.Err() != nil {
		return Message{}, context.Cause(ctx)
	}
	last, ok := out.result()
	switch {
	case ok && last.Error != "":
		return Message{}, &failure{kind: last.Kind, text: last.Error}
	case err == nil && ok:
		return last, nil
	case err == nil:
		return Message{}, errors.New("the downloader reported nothing: is another program of that name installed?")
	}
	return Message{}, &failure{kind: Refused, text: strings.TrimSpace(fmt.Sprintf("the downloader failed: %v: %s", err, oneLine(said.Kept)))}
}

// oneLine renders what a program said on one line.
func oneLine(text []byte) string { return strings.Join(strings.Fields(string(text)), " ") }

// execute starts cmd, closes our copy of the child's lifeline, and waits.
func execute(cmd *exec.Cmd, lifeline *os.File) error {
	err := proc.Start(cmd)
	lifeline.Close()
	if err != nil {
		return err
	}
	return proc.Wait(cmd)
}

// environment is all of ours that the downloader sees: how to get out (proxy), and whom to trust (certificates).
func environment() []string {
	env := []string{"GOTRACEBACK=none"} // where it is out of memory, the reason and no stacks
	for _, name := range []string{
		"HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
	} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// lines reads messages from the downloader's output as it comes. It holds one line at most, however much is written.
type lines struct {
	observe progress.Observer
	rest    []byte
	last    Message
	ended   bool // the last message came
	broken  bool // something else than messages came
}

// Write takes a piece of the output; it never fails, so that the downloader is never stopped by it.
func (l *lines) Write(p []byte) (int, error) {
	n := len(p)
	for !l.broken && len(p) > 0 {
		line, after, complete := bytes.Cut(p, []byte("\n"))
		l.rest = append(l.rest, line...)
		if l.broken = len(l.rest) > maxLine; complete && !l.broken {
			l.take()
		}
		p = after
	}
	return n, nil
}

// take reads the line that is complete.
func (l *lines) take() {
	var m Message
	err := json.Unmarshal(l.rest, &m)
	l.rest = l.rest[:0]
	switch {
	case err != nil || l.ended:
		l.broken = true
	case m.Path != "" || m.Error != "":
		l.last, l.ended = m, true
	default:
		l.observe.Observe(progress.Event{Phase: "download", Done: m.Done, Total: m.Total})
	}
}

// result is the last message, if there was one and nothing else than messages came.
func (l *lines) result() (Message, bool) { return l.last, l.ended && !l.broken }
