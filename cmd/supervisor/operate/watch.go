package operate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"nodevisor/cmd/supervisor/config"
	"nodevisor/cmd/supervisor/console"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/supervisor/status"
)

// watchEvery is how often `status --watch` asks.
const watchEvery = time.Second

// Control sequences of ECMA-48 and xterm (console_codes(4)). A picture is drawn over the last one, line by line, in one
// write: nothing is cleared first, so nothing flickers.
const (
	screenOn  = "\x1b[?1049h\x1b[?25l" // the alternate screen, no cursor
	screenOff = "\x1b[?25h\x1b[?1049l"
	drawFrom  = "\x1b[H"
	restEmpty = "\x1b[K" // to the end of the line
	lastEmpty = "\x1b[J" // to the end of the screen
)

// watchStatus shows the status until it is interrupted: on a terminal as a picture, elsewhere a block, or with --json a
// line, for each change. A supervisor that starts or ends meanwhile is no end of the watch.
func watchStatus(ctx context.Context, s *session.Session) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)

	st, err := s.Status(ctx)
	if err != nil {
		return err // what is wrong from the start isn't waited for
	}
	picture := console.IsTerminal(s.Stdout) && !s.Flags.JSON && config.Variables(s.App.Environ)["TERM"] != "dumb"
	if picture {
		if _, err := io.WriteString(s.Stdout, screenOn); err != nil {
			return err
		}
		defer func() {
			fmt.Fprint(s.Stdout, screenOff)
			if st != nil {
				_ = reportStatus(s, s.Stdout, st) // what was seen last stays to be read
			}
		}()
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for last := ""; ; {
		if last, err = show(s, st, err, picture, last); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-resized:
			last = ""
		case <-tick.C:
		}
		if fresh, ferr := s.Status(ctx); ctx.Err() != nil {
			return nil
		} else if err = ferr; ferr == nil {
			st = fresh
		}
	}
}

// show shows what differs from the last time, and returns what it is to be compared with.
func show(s *session.Session, st *status.Document, trouble error, picture bool, last string) (string, error) {
	var text bytes.Buffer
	if err := reportStatus(s, &text, st); err != nil {
		return last, err
	}
	now := essence(st)
	if trouble != nil {
		fmt.Fprintf(&text, "%-10s %s\n", "trouble", trouble)
		now += trouble.Error()
	}
	if picture {
		now = text.String()
	}
	if now == last {
		return last, nil
	}
	var err error
	switch {
	case picture:
		err = draw(s, text.String())
	case s.Flags.JSON:
		err = json.NewEncoder(s.Stdout).Encode(st)
	default:
		_, err = fmt.Fprintf(s.Stdout, "%s\n", &text)
	}
	return now, err
}

// essence is what counts as a change where no picture is drawn: heights and times go on by themselves.
func essence(st *status.Document) string {
	c := *st
	c.Height, c.HeightAge, c.HeightSource, c.Progress, c.Disk, c.Message = nil, nil, nil, nil, status.Disk{}, ""
	c.Rollback.Reason = nil // it names the height
	if p := c.Plan; p != nil {
		plan := *p
		plan.ETA, plan.BlocksLeft = nil, nil
		c.Plan = &plan
	}
	if h := c.Hold; h != nil {
		hold := *h
		hold.Since = time.Time{} // where the journal can't be read it is the moment of the question
		c.Hold = &hold
	}
	text, err := json.Marshal(c)
	if err != nil {
		panic(err) // a document of plain fields can't fail
	}
	return string(text)
}

// draw puts text over the picture, cut to the size of the terminal: a line that wraps would scroll it away.
func draw(s *session.Session, text string) error {
	width, height, err := term.GetSize(int(s.Stdout.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		width, height = 80, 24
	}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	lines = append(lines, "", time.Now().Format(time.TimeOnly)+", Ctrl-C ends")
	var b strings.Builder
	b.WriteString(drawFrom)
	for i, line := range lines[:min(len(lines), height)] {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(cut(console.Printable(line), width) + restEmpty)
	}
	b.WriteString(lastEmpty)
	_, err = io.WriteString(s.Stdout, b.String())
	return err
}

// cut is the first n characters of a line.
func cut(line string, n int) string {
	if r := []rune(line); len(r) > n {
		return string(r[:max(0, n-1)]) + "…"
	}
	return line
}
