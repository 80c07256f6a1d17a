package console

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"sync/atomic"

	"golang.org/x/term"

	"nodevisor/cmd/supervisor/config"
)

// Live is the form and the level of a log. A reload changes them, for every logger that was made from it, too.
type Live struct {
	sink   *logSink
	choose func(config.Log, config.Cosmovisor) logForm
	level  slog.LevelVar
	form   atomic.Pointer[logForm]
	root   atomic.Pointer[slog.Handler]
}

func newLive(stderr *os.File, environ []string) *Live {
	env := config.Variables(environ)
	terminal, journal := term.IsTerminal(int(stderr.Fd())), isJournal(stderr, env["JOURNAL_STREAM"])
	l := &Live{choose: func(cfg config.Log, legacy config.Cosmovisor) logForm {
		return chooseForm(cfg, legacy, terminal, journal, env)
	}}
	l.sink = newLogSink(stderr, l.lost)
	return l
}

// Configure makes a configuration hold.
func (l *Live) Configure(cfg config.Log, legacy config.Cosmovisor) {
	form := l.choose(cfg, legacy)
	l.level.Set(form.level)
	form.live = &l.level
	h := form.handler(l.sink)
	l.form.Store(&form)
	l.root.Store(&h)
}

// Quiet silences what is of interest at most: the level info becomes warn.
func (l *Live) Quiet() {
	if l.level.Level() == slog.LevelInfo {
		l.level.Set(slog.LevelWarn)
	}
}

// lost is the record that so many others were dropped.
func (l *Live) lost(n int64) []byte {
	var line bytes.Buffer
	slog.New(l.form.Load().handler(&line)).Warn("log records were lost, because nothing read them", "count", n)
	return line.Bytes()
}

// liveHandler hands each record to the handler that holds by then.
type liveHandler struct {
	live  *Live
	steps []func(slog.Handler) slog.Handler // what was derived since: attributes, groups
	made  atomic.Pointer[derived]
}

// derived is what the steps made of a root.
type derived struct {
	root *slog.Handler
	slog.Handler
}

func (h *liveHandler) now() slog.Handler {
	root := h.live.root.Load()
	if d := h.made.Load(); d != nil && d.root == root {
		return d
	}
	d := &derived{root, *root}
	for _, step := range h.steps {
		d.Handler = step(d.Handler)
	}
	h.made.Store(d)
	return d
}

func (h *liveHandler) derive(step func(slog.Handler) slog.Handler) slog.Handler {
	return &liveHandler{live: h.live, steps: append(h.steps[:len(h.steps):len(h.steps)], step)}
}

// Enabled is part of slog.Handler.
func (h *liveHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.live.level.Level()
}

// Handle is part of slog.Handler.
func (h *liveHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.now().Handle(ctx, r)
}

// WithAttrs is part of slog.Handler.
func (h *liveHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.derive(func(next slog.Handler) slog.Handler { return next.WithAttrs(attrs) })
}

// WithGroup is part of slog.Handler.
func (h *liveHandler) WithGroup(name string) slog.Handler {
	return h.derive(func(next slog.Handler) slog.Handler { return next.WithGroup(name) })
}
