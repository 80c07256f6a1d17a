package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"nodevisor/internal/fakenode/trace"
)

// Commands of the program's own relatives, which no one types.
const (
	daemonCommand  = "relative-daemon"  // starts one sleeper in a session of its own and ends
	orphansCommand = "relative-orphans" // starts so many sleepers and ends
	sleepCommand   = "relative-sleep"   // sleeps for a while
)

// How long relatives live unless told otherwise. None outlives its test for long.
const (
	daemonLife = 2 * time.Minute
	childLife  = 100 * time.Millisecond
)

// catchSignals catches every signal that isn't the kernel's own business.
func catchSignals() <-chan os.Signal {
	all := make(chan os.Signal, 16)
	signal.Notify(all, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	return all
}

// watchSignals records all that come, and passes INT and TERM on as a request to stop, unless they are to be ignored.
func (s *settings) watchSignals(all <-chan os.Signal) <-chan os.Signal {
	stop := make(chan os.Signal, 1)
	go func() {
		for sig := range all {
			s.record(trace.Event{Kind: trace.Signal, Signal: sig.String()})
			if (sig != syscall.SIGINT && sig != syscall.SIGTERM) || s.ignoreTerm {
				continue
			}
			select {
			case stop <- sig:
			default: // a stop is under way already
			}
		}
	}()
	return stop
}

// prepare does what is asked for beside the chain, before the store is opened.
func (s *settings) prepare() error {
	if s.pidFile != "" {
		if err := replaceFile(s.pidFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
			return err
		}
	}
	if s.longLine > 0 {
		fmt.Println(strings.Repeat("x", s.longLine))
	}
	if s.stdinEcho {
		go echoStdin()
	}
	if s.daemon {
		if err := s.startRelatives(daemonCommand, 1, daemonLife); err != nil {
			return err
		}
	}
	if s.children > 0 {
		return s.startRelatives(orphansCommand, s.children, childLife)
	}
	return nil
}

// echoStdin shows what reaches the node's stdin, and that its end does.
func echoStdin() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fmt.Println("stdin:", lines.Text())
	}
	fmt.Println("stdin: EOF")
}

// startRelatives runs a process that starts count sleepers and ends: they are nobody's children, and fall to the
// nearest subreaper. The middle process is waited for, so that the node leaves no zombie of its own making.
func (s *settings) startRelatives(command string, count int, life time.Duration) error {
	if s.relativeLife > 0 {
		life = s.relativeLife
	}
	return self(command, strconv.Itoa(count), life.String()).Run()
}

// self is this program with other arguments, and with every stream but stdin.
func self(args ...string) *exec.Cmd {
	// Not os.Args[0]: a supervisor may have replaced the file at that path, or the working directory may be another.
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd
}

// relative is the life of one of them.
func relative(command string, args []string) error {
	s, err := parse(command, nil)
	if err != nil {
		return err
	}
	if len(args) != 2 {
		return fail("%s is not for people", command)
	}
	count, err1 := strconv.Atoi(args[0])
	life, err2 := time.ParseDuration(args[1])
	if err := errors.Join(err1, err2); err != nil {
		return fail("%v", err)
	}
	if command == sleepCommand {
		// Numbered from 1; 0 is the one that leads a session of its own.
		kind := trace.Child
		if count == 0 {
			kind = trace.Daemon
		}
		stop := s.watchSignals(catchSignals())
		s.record(trace.Event{Kind: kind})
		select {
		case <-time.After(life):
		case <-stop:
		}
		return nil
	}
	// Neither waits for what it started: that makes orphans of them.
	if command == daemonCommand {
		cmd := self(sleepCommand, "0", life.String())
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return cmd.Start()
	}
	for i := range count {
		if err := self(sleepCommand, strconv.Itoa(i+1), life.String()).Start(); err != nil {
			return err
		}
	}
	return nil
}
