package supervisor

import (
	"errors"
	"fmt"
	"time"

	"nodevisor/supervisor/child"
	"nodevisor/supervisor/restart"
)

// Config is the table [node]: what the node is and how its process is kept.
type Config struct {
	Name         string            `toml:"name"`          // the binary's file name (DAEMON_NAME)
	Home         string            `toml:"home"`          // the node's home directory, absolute (DAEMON_HOME)
	Root         string            `toml:"root"`          // the tree of versions: relative to home, or absolute
	Args         []string          `toml:"args"`          // what the node is started with when `run` gets none
	Env          map[string]string `toml:"env"`           // added to the node's environment
	StopSignal   string            `toml:"stop_signal"`   // by name: SIGTERM
	StopTimeout  time.Duration     `toml:"stop_timeout"`  // then SIGKILL (DAEMON_SHUTDOWN_GRACE)
	Restart      restart.Policy    `toml:"restart"`       // never | on-failure | always
	Backoff      time.Duration     `toml:"backoff"`       // the first wait before a restart; doubles
	BackoffMax   time.Duration     `toml:"backoff_max"`   // the longest wait
	BackoffReset time.Duration     `toml:"backoff_reset"` // a life of this length starts the waits anew
	BackoffLimit int               `toml:"backoff_limit"` // outside an upgrade: give up after so many restarts; 0 = never
	Hold         HoldMode          `toml:"hold"`          // exit | wait
}

// HoldMode says what `run` does while held: end with exit code 79, or stay for the socket, the metrics and the watchdog.
type HoldMode string

// The hold modes.
const (
	HoldExit HoldMode = "exit"
	HoldWait HoldMode = "wait"
)

// DefaultConfig is what holds where neither file, environment nor flag says otherwise.
func DefaultConfig() Config {
	return Config{
		Root: "cosmovisor", StopSignal: "SIGTERM", StopTimeout: time.Minute, Restart: restart.OnFailure,
		Backoff: time.Second, BackoffMax: time.Minute, BackoffReset: 10 * time.Minute, Hold: HoldExit,
	}
}

// restarts is what decides about restarts.
func (c Config) restarts() restart.Config {
	return restart.Config{Policy: c.Restart, Backoff: c.Backoff, Max: c.BackoffMax, Reset: c.BackoffReset, Limit: c.BackoffLimit}
}

// Validate reports every mistake at once.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("[node] "+format, args...)) }
	if _, err := child.ParseSignal(c.StopSignal); err != nil {
		bad("stop_signal: %v", err)
	}
	switch c.Restart {
	case restart.Never, restart.OnFailure, restart.Always:
	default:
		bad("restart: %q is none of never, on-failure, always", c.Restart)
	}
	switch c.Hold {
	case HoldExit, HoldWait:
	default:
		bad("hold: %q is none of exit, wait", c.Hold)
	}
	if c.StopTimeout <= 0 {
		bad("stop_timeout: must be greater than 0")
	}
	if c.Backoff <= 0 || c.BackoffMax < c.Backoff {
		bad("backoff: must be greater than 0 and at most backoff_max")
	}
	if c.BackoffReset <= 0 {
		bad("backoff_reset: must be greater than 0")
	}
	if c.BackoffLimit < 0 {
		bad("backoff_limit: must not be negative")
	}
	return errors.Join(errs...)
}
