package session

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"path/filepath"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/config"
	"nodevisor/cmd/supervisor/console"
	"nodevisor/cmd/supervisor/host"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/status"
)

// Reach is Load for what a running supervisor does or tells: a mistake in the configuration must not keep an operator from a
// node that runs by an earlier one. It is a warning as long as that supervisor answers; without one it is the error that it
// is, and nothing is done by halves.
func Reach(ctx context.Context, a *cli.App) (*Session, error) {
	s, err := Load(ctx, a, false)
	bad := (*config.Error)(nil)
	if !errors.As(err, &bad) || !s.Join(ctx) {
		return s, err
	}
	s.bad = bad
	s.Log, s.Live = console.NewLogger(s.Config.Log, s.Config.Cosmovisor, s.Stderr, s.App.Environ)
	s.Log = s.Advising(s.Log)
	for _, problem := range bad.Problems {
		s.Log.Warn("the configuration has a mistake; the running supervisor goes on with what it read before", "error", problem)
	}
	return s, nil
}

// Join finds the supervisor that runs what a configuration with mistakes is about, by its registration or by the default
// path of its socket, and learns from it what the mistakes hide: home, name, socket. It tells whether there is one.
func (s *Session) Join(ctx context.Context) bool {
	file := cmp.Or(s.Flags.Config, config.Variables(s.Environ)["SUPERVISOR_CONFIG"])
	if file != "" {
		file, _ = filepath.Abs(file) // "" where it fails: then no run has that file
	}
	if e, ok := host.RunOf(s.Environ, s.Config.Node.Home, file); ok {
		s.Config.Node.Home, s.joined = e.Home, e.Socket
	}
	if !filepath.IsAbs(s.Config.Node.Home) {
		return false
	}
	raw, err := client.New(s.Socket()).Status(ctx)
	if err != nil {
		return false
	}
	var st status.Document
	if json.Unmarshal(raw, &st) == nil && s.Config.Node.Name == "" && st.Binary != nil {
		s.Config.Node.Name = filepath.Base(st.Binary.Path)
	}
	s.locate()
	return true
}

// Socket is where the supervisor of this home listens, or would.
func (s *Session) Socket() string {
	if s.joined != "" {
		return s.joined
	}
	return host.ControlSocket(s.Config, s.Environ)
}
