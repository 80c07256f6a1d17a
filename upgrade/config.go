package upgrade

import (
	"errors"
	"fmt"
	"time"
)

// Config is the table [upgrade].
type Config struct {
	PlanFile             string        `toml:"plan_file"`               // the node's announcement, relative to home; "" = none
	RestartAfter         bool          `toml:"restart_after"`           // DAEMON_RESTART_AFTER_UPGRADE
	Delay                time.Duration `toml:"delay"`                   // waited between stop and snapshot (DAEMON_RESTART_DELAY)
	Poll                 time.Duration `toml:"poll"`                    // where the file system tells of no change (DAEMON_POLL_INTERVAL)
	AllowDownload        bool          `toml:"allow_download"`          // DAEMON_ALLOW_DOWNLOAD_BINARIES
	OnFailure            FailurePolicy `toml:"on_failure"`              // hold | rollback | retry
	Probe                []string      `toml:"probe"`                   // arguments of a staged binary's trial run; empty = none
	Recase               bool          `toml:"recase"`                  // names are lower-cased (not COSMOVISOR_DISABLE_RECASE)
	PreUpgradeMaxRetries int           `toml:"pre_upgrade_max_retries"` // DAEMON_PREUPGRADE_MAX_RETRIES
	CustomPreUpgrade     string        `toml:"custom_pre_upgrade"`      // a file in root (COSMOVISOR_CUSTOM_PREUPGRADE)
	Probation            Probation     `toml:"probation"`
}

// Probation is the table [upgrade.probation]: when a new version is trusted.
type Probation struct {
	Up              time.Duration `toml:"up"`                // alive this long
	HeightAbovePlan bool          `toml:"height_above_plan"` // and a block above the plan's height was read
	Attempts        int           `toml:"attempts"`          // starts that may end by themselves before on_failure
}

// FailurePolicy says what follows when the attempts of probation are used up.
type FailurePolicy string

// The failure policies.
const (
	OnFailureHold     FailurePolicy = "hold"
	OnFailureRollback FailurePolicy = "rollback"
	OnFailureRetry    FailurePolicy = "retry"
)

// DefaultConfig is what holds where neither file, environment nor flag says otherwise.
func DefaultConfig() Config {
	return Config{
		PlanFile: "data/upgrade-info.json", RestartAfter: true, Poll: 300 * time.Millisecond, OnFailure: OnFailureHold,
		Probe: []string{"version"}, Recase: true,
		Probation: Probation{Up: 30 * time.Second, HeightAbovePlan: true, Attempts: 3},
	}
}

// Validate reports every mistake at once.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("[upgrade] "+format, args...)) }
	switch c.OnFailure {
	case OnFailureHold, OnFailureRollback, OnFailureRetry:
	default:
		bad("on_failure: %q is none of hold, rollback, retry", c.OnFailure)
	}
	if c.Poll <= 0 {
		bad("poll: must be greater than 0")
	}
	if c.Delay < 0 {
		bad("delay: must not be negative")
	}
	if c.Probation.Up < 0 {
		bad("probation.up: must not be negative")
	}
	if c.Probation.Attempts < 1 {
		bad("probation.attempts: must be at least 1")
	}
	return errors.Join(errs...)
}
