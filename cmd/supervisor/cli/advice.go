package cli

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"nodevisor/internal/hint"
)

// The packages advise with commands that name no home: they don't know how they were called. Whatever is printed passes
// here, and every command in it becomes one that means the same home as this command line.

// Addressed puts the flags that said which home is meant into each command of ours in a text. A command that has flags of
// its own there stays as it is, so that it can be done twice.
func (a *App) Addressed(text string) string {
	const self = "supervisor "
	flags := a.Address()
	if flags == "" {
		return text
	}
	var b strings.Builder
	for {
		before, after, found := strings.Cut(text, self)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		b.WriteString(self)
		if a.isCommand(after) && (before == "" || strings.ContainsAny(before[len(before)-1:], " \t\n:;(\"'`")) {
			b.WriteString(flags)
		}
		text = after
	}
}

// Address is the flags of this command line that say which home is meant, each followed by a space.
func (a *App) Address() string {
	var b strings.Builder
	for _, f := range []struct{ flag, value string }{
		{"--home", a.Flags.Home}, {"--config", a.Flags.Config}, {"--unit", a.Flags.Unit}, {"--cosmovisor-config", a.Flags.CosmovisorConfig},
	} {
		if f.value != "" {
			b.WriteString(f.flag + " " + hint.Quote(f.value) + " ")
		}
	}
	return b.String()
}

// isCommand tells a command line from a sentence about the supervisor, by its first word.
func (a *App) isCommand(text string) bool {
	word := text[:len(text)-len(strings.TrimLeft(text, "abcdefghijklmnopqrstuvwxyz-"))]
	return word == "--takeover" || slices.Contains(a.Commands, word)
}

// Advising is a log whose hints name the home, too.
func (a *App) Advising(log *slog.Logger) *slog.Logger {
	if a.Address() == "" {
		return log
	}
	return slog.New(advisor{log.Handler(), a})
}

type advisor struct {
	slog.Handler
	app *App
}

// Handle is part of slog.Handler.
func (h advisor) Handle(ctx context.Context, r slog.Record) error {
	advised := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	r.Attrs(func(attr slog.Attr) bool {
		if attr.Key == "hint" {
			attr.Value = slog.StringValue(h.app.Addressed(attr.Value.String()))
		}
		advised.AddAttrs(attr)
		return true
	})
	return h.Handler.Handle(ctx, advised)
}

// WithAttrs is part of slog.Handler.
func (h advisor) WithAttrs(attrs []slog.Attr) slog.Handler {
	return advisor{h.Handler.WithAttrs(attrs), h.app}
}

// WithGroup is part of slog.Handler.
func (h advisor) WithGroup(name string) slog.Handler {
	return advisor{h.Handler.WithGroup(name), h.app}
}
