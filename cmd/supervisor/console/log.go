// Package console is what a person reads on stderr: the supervisor's own log, and how far a long command is. Both adapt to
// where stderr leads (a terminal, journald, a file), and neither ever makes the supervisor wait for its reader.
package console

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/lmittmann/tint"
	"nodevisor/cmd/supervisor/config"
)

// Time layouts of the text forms. Both have a date: a log that is read weeks later needs it.
const (
	terminalTime = "2006-01-02 15:04:05.000"
	fileTime     = "2006-01-02T15:04:05.000Z07:00"
)

// NewLogger builds the supervisor's own log. Its form follows from where stderr leads: coloured on a terminal; with a
// priority for journald, which keeps the time itself; else plain lines. Every record is one line, and the message
// stands in it as it is, so that it can be looked for. Writing never fails and never blocks for long: see logSink.
//
// legacy is what Cosmovisor's variables say of the log.
func NewLogger(cfg config.Log, legacy config.Cosmovisor, stderr *os.File, environ []string) (*slog.Logger, *Live) {
	live := newLive(stderr, environ)
	live.Configure(cfg, legacy)
	return slog.New(&liveHandler{live: live}), live
}

// logForm is how records are written.
type logForm struct {
	json, priority, color bool
	level                 slog.Level
	live                  *slog.LevelVar // what a reload sets; nil: level, for good
	time                  string         // layout; "" = none
}

// chooseForm decides. What an operator asked for comes before what is detected, and NO_COLOR before every wish for
// colour (https://no-color.org, https://bixense.com/clicolors).
func chooseForm(cfg config.Log, legacy config.Cosmovisor, terminal, journal bool, env map[string]string) logForm {
	f := logForm{json: cfg.Format == "json", level: level(cfg, legacy), time: fileTime}
	if f.json {
		return f
	}
	auto := cfg.Format != "text"
	if terminal && auto {
		f.time, f.color = terminalTime, env["TERM"] != "dumb"
	}
	if force := env["CLICOLOR_FORCE"]; force != "" && force != "0" && auto {
		f.color = true
	}
	if legacy.ColorLogs != nil {
		f.color = *legacy.ColorLogs
	}
	if env["NO_COLOR"] != "" {
		f.color = false
	}
	if legacy.TimeFormat != nil {
		f.time = *legacy.TimeFormat
	}
	if journal && auto {
		f.priority, f.color, f.time = true, false, ""
	}
	return f
}

// level is the level that both configurations ask for: what Cosmovisor's variables silence stays silent.
func level(cfg config.Log, legacy config.Cosmovisor) slog.Level {
	if legacy.DisableLogs {
		return slog.LevelError // errors are never silenced: they name what holds an upgrade up
	}
	return parseLevel(cfg.Level)
}

func parseLevel(name string) slog.Level {
	switch name {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// isJournal tells whether f is the very stream that systemd connected to journald: JOURNAL_STREAM is its device and
// inode (systemd.exec(5)). The variable alone proves nothing, it is inherited by whatever is redirected elsewhere.
func isJournal(f *os.File, stream string) bool {
	var st syscall.Stat_t
	if stream == "" || syscall.Fstat(int(f.Fd()), &st) != nil {
		return false
	}
	return stream == fmt.Sprintf("%d:%d", uint64(st.Dev), st.Ino) //nolint:unconvert // Dev is narrower on some architectures
}

// handler writes records of this form to w, each with one Write.
func (f logForm) handler(w io.Writer) slog.Handler {
	level := slog.Leveler(f.level)
	if f.live != nil {
		level = f.live
	}
	if f.json {
		return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})
	}
	layout := f.time
	if layout == "" {
		layout = fileTime // tint would take its own; replaceText drops the time
	}
	line := &bytes.Buffer{}
	inner := tint.NewTextHandler(line, &tint.Options{
		Level: level, TimeFormat: layout, NoColor: !f.color, ReplaceAttr: replaceText(f.time == ""),
	})
	return &lineHandler{inner: inner, priority: f.priority, out: &lineWriter{line: line, w: w}}
}

// replaceText drops the time where there is to be none, and makes every text printable: a plan's name or a node's error
// may hold newlines and terminal sequences, and must not forge a second record.
func replaceText(dropTime bool) func([]string, slog.Attr) slog.Attr {
	return func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime && dropTime {
			return slog.Attr{}
		}
		a.Key = Printable(a.Key)
		switch a.Value.Kind() {
		case slog.KindString:
			a.Value = slog.StringValue(Printable(a.Value.String()))
		case slog.KindAny:
			switch v := a.Value.Any().(type) {
			case slog.Level, nil:
			case []byte:
				a.Value = slog.StringValue(Printable(string(v)))
			default: // errors too: fmt survives a nil one
				a.Value = slog.StringValue(Printable(fmt.Sprintf("%+v", v)))
			}
		}
		return a
	}
}

// Printable escapes what a line can't hold: control characters, and bytes that are no UTF-8 (at which tint would end
// the value). Where it colours, tint turns a written-out \x1b into the control character itself, so no text may keep that.
func Printable(s string) string {
	s = strings.ReplaceAll(s, `\x1b`, `\u005cx1b`)
	clean := true
	for _, c := range s {
		clean = clean && c != utf8.RuneError && (unicode.IsPrint(c) || c == ' ')
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i, size := 0, 0; i < len(s); i += size {
		var c rune
		c, size = utf8.DecodeRuneInString(s[i:])
		switch {
		case c == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case c == '\n':
			b.WriteString(`\n`)
		case c == utf8.RuneError || !unicode.IsPrint(c):
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}

// lineHandler puts journald's priority before each line of another handler: "<6>" (sd-daemon(3)). The level is known
// here and the line is made there, so one lock spans both.
type lineHandler struct {
	inner    slog.Handler
	priority bool
	out      *lineWriter
}

type lineWriter struct {
	mu   sync.Mutex
	line *bytes.Buffer
	w    io.Writer
}

// Enabled is part of slog.Handler.
func (h *lineHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.inner.Enabled(ctx, level)
}

// Handle is part of slog.Handler.
func (h *lineHandler) Handle(ctx context.Context, r slog.Record) error {
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	h.out.line.Reset()
	if h.priority {
		fmt.Fprintf(h.out.line, "<%d>", syslogPriority(r.Level))
	}
	if err := h.inner.Handle(ctx, r); err != nil {
		return err
	}
	_, err := h.out.w.Write(h.out.line.Bytes())
	return err
}

// WithAttrs is part of slog.Handler.
func (h *lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &lineHandler{inner: h.inner.WithAttrs(attrs), priority: h.priority, out: h.out}
}

// WithGroup is part of slog.Handler.
func (h *lineHandler) WithGroup(name string) slog.Handler {
	return &lineHandler{inner: h.inner.WithGroup(name), priority: h.priority, out: h.out}
}

// syslogPriority is LOG_ERR, LOG_WARNING, LOG_INFO or LOG_DEBUG: syslog(3).
func syslogPriority(level slog.Level) int {
	switch {
	case level >= slog.LevelError:
		return 3
	case level >= slog.LevelWarn:
		return 4
	case level >= slog.LevelInfo:
		return 6
	}
	return 7
}
