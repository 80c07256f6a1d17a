package console

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/progress"
)

// terminalScreen is a terminal of a size, and everything that was written to it.
type terminalScreen struct {
	tty  *os.File
	mu   sync.Mutex
	text bytes.Buffer
}

func newTerminal(t *testing.T, cols uint16) *terminalScreen {
	t.Helper()
	master, tty, err := pty.Open()
	require.NoError(t, err)
	require.NoError(t, pty.Setsize(master, &pty.Winsize{Rows: 24, Cols: cols}))
	s := &terminalScreen{tty: tty}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			s.mu.Lock()
			s.text.Write(buf[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		tty.Close()
		<-done // EIO: the last descriptor of the terminal is closed
		master.Close()
	})
	return s
}

// seen waits until the text satisfies what is asked of it.
func (s *terminalScreen) seen(t *testing.T, what string, is func(string) bool) string {
	t.Helper()
	var text string
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		text = s.text.String()
		return is(text)
	}, time.Minute, 5*time.Millisecond, what)
	return text
}

// lastBar is the last thing that was drawn, without the sequences around it.
func lastBar(text string) string {
	parts := strings.Split(strings.ReplaceAll(text, "\x1b[K", ""), "\r")
	for i := len(parts) - 1; i >= 0; i-- {
		if strings.TrimSpace(parts[i]) != "" {
			return parts[i]
		}
	}
	return ""
}

func TestABarOnATerminal(t *testing.T) {
	s := newTerminal(t, 100)
	m := NewMeter(s.tty, []string{"TERM=xterm"}, slog.New(slog.DiscardHandler))
	require.True(t, m.bar)
	m.Observe(progress.Event{Phase: "snapshot", Done: 0, Total: 8 << 30})
	m.began = m.began.Add(-1000 * time.Second) // as if it had begun then: what this takes itself is little beside it
	m.Observe(progress.Event{Phase: "snapshot", Done: 2 << 30, Total: 8 << 30})
	text := s.seen(t, "a bar", func(text string) bool { return strings.Contains(text, "left") })
	assert.Regexp(t, "^snapshot  25 % \x1b\\[36m██████░{18}\x1b\\[0m  2.0 GiB of 8.0 GiB, 2.0 MiB/s, 50m\\d+s left$", lastBar(text))
	assert.NotContains(t, text, "\n", "one line, drawn again and again")
	m.Close()
	s.seen(t, "no bar any more", func(text string) bool { return strings.HasSuffix(text, "\r\x1b[K") })
	m.Close()
}

func TestWhatABarSays(t *testing.T) {
	start := time.Now()
	for _, c := range []struct {
		width int
		total int64
		after time.Duration
		want  string
	}{
		{100, 4096, 500 * time.Millisecond, "verify  50 % ████████████░░░░░░░░░░░░  2.0 KiB of 4.0 KiB"}, // no speed yet
		{100, 4096, 2 * time.Second, "verify  50 % ████████████░░░░░░░░░░░░  2.0 KiB of 4.0 KiB, 1.0 KiB/s, 2s left"},
		{100, 0, 2 * time.Second, "verify  2.0 KiB, 1.0 KiB/s"}, // how much there is isn't known
		{70, 4096, 2 * time.Second, "verify  50 % █████████░░░░░░░░  2.0 KiB of 4.0 KiB, 1.0 KiB/s, 2s left"},
		{55, 4096, 2 * time.Second, "verify  50 %  2.0 KiB of 4.0 KiB, 1.0 KiB/s, 2s left"}, // no room for a bar
		{20, 4096, 2 * time.Second, "verify  50 %  2.0 Ki"},
		{0, 4096, 2 * time.Second, ""},
	} {
		m := &Meter{phase: "verify", began: start, parts: map[int64]int64{c.total: 2048}}
		assert.Equal(t, c.want, m.render(c.width, start.Add(c.after)))
	}
	// Members of a set report side by side, each its own bytes.
	m := &Meter{phase: "snapshot", began: start, parts: map[int64]int64{3072: 3072, 1024: 0}}
	assert.Equal(t, "snapshot  75 % ██████████████████░░░░░░  3.0 KiB of 4.0 KiB", m.render(100, start))
	// More than there was to be: a file grew meanwhile.
	m = &Meter{phase: "snapshot", began: start, parts: map[int64]int64{1024: 2048}}
	assert.Equal(t, "snapshot 100 % ████████████████████████  2.0 KiB of 1.0 KiB, 1.0 KiB/s", m.render(100, start.Add(2*time.Second)))
}

// NO_COLOR takes the colour; a dumb terminal, and what is none, get no bar at all.
func TestWhereABarIs(t *testing.T) {
	s := newTerminal(t, 80)
	m := NewMeter(s.tty, []string{"TERM=xterm", "NO_COLOR=1"}, nil)
	assert.True(t, m.bar)
	m.phase, m.began, m.parts = "restore", time.Now(), map[int64]int64{2: 1}
	assert.NotContains(t, m.render(80, time.Now()), "\x1b")
	assert.False(t, NewMeter(s.tty, []string{"TERM=dumb"}, nil).bar)
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	defer file.Close()
	assert.False(t, NewMeter(file, nil, nil).bar)
	var none *Meter
	none.Close()
}

// A short phase leaves nothing on a terminal; what is logged meanwhile stands on a line of its own.
func TestABarMakesWay(t *testing.T) {
	s := newTerminal(t, 100)
	log := slog.New(slog.NewTextHandler(s.tty, nil))
	m := NewMeter(s.tty, nil, log)
	m.Observe(progress.Event{Phase: "verify", Done: 1, Total: 2})
	m.began = m.began.Add(time.Minute) // short, however long this takes here
	m.Observe(progress.Event{Phase: "verify", Done: 2, Total: 2})
	m.Observe(progress.Event{Phase: "snapshot", Done: 1, Total: 2})
	m.began = m.began.Add(-time.Second)
	m.Observe(progress.Event{Phase: "snapshot", Done: 1, Total: 2})
	text := s.seen(t, "a bar", func(text string) bool { return strings.Contains(text, "50 %") })
	assert.NotContains(t, text, "verify")
	slog.New(aside{log.Handler(), m}).With("a", 1).WithGroup("g").Info("a record")
	s.seen(t, "the record", func(text string) bool {
		return strings.Contains(text, "\r\x1b[Ktime=") && strings.HasSuffix(text, "msg=\"a record\" a=1\r\n")
	})
}

// Where no terminal is: a line at each quarter, and every 30 s; nothing for what is over at once.
func TestLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: replaceText(true)}))
		m := &Meter{log: log, parts: map[int64]int64{}}
		for done := int64(0); done <= 100; done++ {
			m.Observe(progress.Event{Phase: "snapshot", Done: done, Total: 100})
		}
		assert.Empty(t, out.String(), "it was over at once")
		for done := int64(0); done <= 100; done += 5 {
			m.Observe(progress.Event{Phase: "verify", Done: done << 20, Total: 100 << 20})
			if done == 30 {
				time.Sleep(50 * time.Second) // stuck for a while
				m.Observe(progress.Event{Phase: "verify", Done: done << 20, Total: 100 << 20})
			}
			time.Sleep(time.Second)
		}
		var percents []string
		for line := range strings.Lines(out.String()) {
			assert.Contains(t, line, "phase=verify")
			_, rest, _ := strings.Cut(line, "percent=")
			p, _, _ := strings.Cut(rest, " ")
			percents = append(percents, p)
		}
		assert.Equal(t, []string{"25", "30", "50", "75", "100"}, percents, out.String())
		assert.Contains(t, out.String(), "msg=progress phase=verify done=\"25.0 MiB\" percent=25 total=\"100.0 MiB\" left=15s")
	})
}

func TestSizesForPeople(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 5 << 30: "5.0 GiB", 1<<63 - 1: "8.0 EiB"} {
		assert.Equal(t, want, Size(n))
	}
}
