package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"nodevisor/internal/progress"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
)

// meter shows a person how far a long command is: a bar on a terminal, elsewhere a log line now and then. What is over
// soon is not shown at all. It only ever writes to stderr, and takes its bar away before anything else stands there.
type meter struct {
	mu    sync.Mutex
	out   *os.File
	log   *slog.Logger
	bar   bool // out can redraw a line
	color bool

	phase  string
	began  time.Time       // of the phase
	parts  map[int64]int64 // bytes done by total: members of a set run side by side, and each reports its own
	first  int64           // what was done at the phase's first event: it says nothing of the speed
	drawn  time.Time       // when the bar was drawn, or a line logged
	shows  bool            // the bar stands there now
	logged int             // the last quarter of which a line was logged
}

// When something is shown.
const (
	barPatience  = 200 * time.Millisecond // a shorter phase has no bar: it would only flicker
	barInterval  = 100 * time.Millisecond // between two drawings
	linePatience = 2 * time.Second        // a shorter phase has no log lines
	lineInterval = 30 * time.Second       // between two lines where no quarter was reached
	pollInterval = 500 * time.Millisecond // between two questions to a running supervisor
)

// newMeter makes the meter of one command. A dumb terminal gets lines; NO_COLOR takes the colour, not the bar.
func newMeter(out *os.File, environ []string, log *slog.Logger) *meter {
	env := environMap(environ)
	return &meter{
		out: out, log: log, parts: map[int64]int64{},
		bar: isTerminal(out) && env["TERM"] != "dumb", color: env["NO_COLOR"] == "",
	}
}

// Observe is a progress.Observer: it may be called from any goroutine, and returns at once.
func (m *meter) Observe(e progress.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	clock := time.Now()
	if e.Phase != m.phase {
		m.clear()
		m.phase, m.began, m.first, m.logged = e.Phase, clock, e.Done, 0
		m.drawn = clock
		clear(m.parts)
	}
	m.parts[e.Total] = e.Done
	if m.bar {
		m.draw(clock)
	} else {
		m.line(clock)
	}
}

// Close takes the bar away. A nil meter is closed.
func (m *meter) Close() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clear()
}

// sum is how far the phase is; total 0 = not known.
func (m *meter) sum() (done, total int64) {
	for t, d := range m.parts {
		done, total = done+d, total+t
	}
	if _, unknown := m.parts[0]; unknown {
		total = 0
	}
	return done, total
}

func (m *meter) draw(clock time.Time) {
	if clock.Sub(m.began) < barPatience || m.shows && clock.Sub(m.drawn) < barInterval {
		return
	}
	width, _, err := term.GetSize(int(m.out.Fd()))
	if err != nil || width <= 0 {
		width = 80
	}
	// The cursor goes back to the line's begin: whatever else is written there replaces the bar.
	fmt.Fprintf(m.out, "\r%s\x1b[K\r", m.render(width-1, clock))
	m.drawn, m.shows = clock, true
}

// clear takes the bar off its line.
func (m *meter) clear() {
	if m.shows {
		fmt.Fprint(m.out, "\r\x1b[K")
		m.shows = false
	}
}

// barCells is the width of the bar itself.
const barCells = 24

// render is the line in at most width columns: "snapshot  43 % ██████░░░░  5.3 GiB of 12.4 GiB, 210.0 MiB/s, 34s left".
func (m *meter) render(width int, clock time.Time) string {
	done, total := m.sum()
	rate, left := m.pace(clock, done, total)
	text := size(done)
	if total > 0 {
		text += " of " + size(total)
	}
	if rate > 0 {
		text += ", " + size(rate) + "/s"
	}
	if left > 0 {
		text += ", " + left.String() + " left"
	}
	head := m.phase
	cells := 0
	if total > 0 {
		head += fmt.Sprintf(" %3d %%", percent(done, total))
		cells = min(barCells, width-len(head)-len(text)-3)
	}
	if cells < 5 {
		return clip(head+"  "+text, width)
	}
	full := int(math.Round(float64(cells) * min(1, float64(done)/float64(total))))
	bar := strings.Repeat("█", full) + strings.Repeat("░", cells-full)
	if m.color {
		bar = "\x1b[36m" + bar + "\x1b[0m"
	}
	return head + " " + bar + "  " + text
}

// pace is the mean speed of the phase in bytes a second, and how long it lasts at that speed; 0 = can't be told yet.
func (m *meter) pace(clock time.Time, done, total int64) (rate int64, left time.Duration) {
	took := clock.Sub(m.began).Seconds()
	if took < 1 || done <= m.first {
		return 0, 0
	}
	speed := float64(done-m.first) / took
	if total > done {
		left = time.Duration(min(float64(total-done)/speed, 1e6) * float64(time.Second)).Round(time.Second)
	}
	return int64(speed), left
}

func percent(done, total int64) int { return int(min(100, float64(done)*100/float64(total))) }

// clip keeps a line from wrapping, which a redraw couldn't take away again. Its text is ASCII.
func clip(s string, width int) string { return s[:min(len(s), max(0, width))] }

// line logs at each quarter, and every 30 s between them.
func (m *meter) line(clock time.Time) {
	if clock.Sub(m.began) < linePatience {
		return
	}
	done, total := m.sum()
	quarter := 0
	if total > 0 {
		quarter = percent(done, total) / 25
	}
	if quarter <= m.logged && clock.Sub(m.drawn) < lineInterval {
		return
	}
	m.drawn, m.logged = clock, quarter
	attrs := []any{"phase", m.phase, "done", size(done)}
	if total > 0 {
		attrs = append(attrs, "percent", percent(done, total), "total", size(total))
	}
	if _, left := m.pace(clock, done, total); left > 0 {
		attrs = append(attrs, "left", left)
	}
	m.log.Info("progress", attrs...)
}

// follow shows what a running supervisor is at, until stop is called. A question that isn't answered is asked again.
func (m *meter) follow(ctx context.Context, c *client.Client) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pollInterval):
			}
			raw, err := c.Status(ctx)
			var st struct{ Progress *status.Progress }
			if err == nil && json.Unmarshal(raw, &st) == nil && st.Progress != nil {
				m.Observe(progress.Event{Phase: st.Progress.Phase, Done: st.Progress.Done, Total: st.Progress.Total})
			}
		}
	}()
	return func() {
		cancel()
		<-over
	}
}

// aside is a handler that takes the bar away before a record is written where it stands.
type aside struct {
	slog.Handler
	meter *meter
}

// Handle is part of slog.Handler.
func (h aside) Handle(ctx context.Context, r slog.Record) error {
	if h.meter.bar { // else it is the meter itself that logs
		h.meter.Close()
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs is part of slog.Handler.
func (h aside) WithAttrs(attrs []slog.Attr) slog.Handler {
	return aside{h.Handler.WithAttrs(attrs), h.meter}
}

// WithGroup is part of slog.Handler.
func (h aside) WithGroup(name string) slog.Handler { return aside{h.Handler.WithGroup(name), h.meter} }

// ask has the running supervisor do an operation, and shows how far it is.
func (s *session) ask(ctx context.Context, op string, r client.Request) (client.Reply, error) {
	c := client.New(s.cfg.ControlSocket(s.environ))
	if s.meter != nil {
		defer s.meter.follow(ctx, c)()
	}
	return c.Do(ctx, op, r)
}
