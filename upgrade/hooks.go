package upgrade

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"nodevisor/internal/hint"
	"nodevisor/upgrade/version"
)

// The exit codes of `<node> pre-upgrade` (https://docs.cosmos.network/main/build/building-apps/app-upgrade): 0 done,
// 1 there is no such command, 30 failed for good, 31 failed, try again. Any other code counts as done, as in Cosmovisor.
const (
	preUpgradeMissing = 1
	preUpgradeFailed  = 30
	preUpgradeRetry   = 31
)

// retryPause lies between two calls of pre-upgrade that answered 31.
const retryPause = time.Second

// settle is how long a pre-upgrade that says after a while that it doesn't exist waits for our own stop request.
const settle = time.Second

// CheckScript tells, before a node is stopped, why the custom pre-upgrade script couldn't be run; nil where none is configured.
func CheckScript(l version.Layout, c Config) error {
	if c.CustomPreUpgrade == "" {
		return nil
	}
	path := filepath.Join(l.Root, c.CustomPreUpgrade)
	info, err := os.Stat(path)
	switch {
	case err != nil:
		err = hint.Cause(err)
	case !info.Mode().IsRegular():
		err = errors.New("it is not a regular file")
	default:
		return nil
	}
	return &hint.Error{Op: "run the custom pre-upgrade script", Path: path, Err: err, Hint: "put the script there, or take custom_pre_upgrade out of the configuration"}
}

// customPreUpgrade runs the operator's script before the switch: `<script> <name> <height>` in the node's home.
func (e *Engine) customPreUpgrade(ctx context.Context) error {
	if e.Config.CustomPreUpgrade == "" {
		return nil
	}
	u := e.j.Upgrade
	path := filepath.Join(e.Layout.Root, e.Config.CustomPreUpgrade)
	e.Log.Info("looking for COSMOVISOR_CUSTOM_PREUPGRADE file", "file", path)
	fail := func(cause string) error {
		return hint.New("run the custom pre-upgrade script", path, cause, "mend the script, then: supervisor resume")
	}
	if err := CheckScript(e.Layout, e.Config); err != nil {
		e.Log.Error("COSMOVISOR_CUSTOM_PREUPGRADE file missing", "file", path)
		return fail(errors.Unwrap(err).Error())
	}
	info, err := os.Stat(path)
	if err != nil {
		return fail(hint.Cause(err).Error())
	}
	if want := info.Mode().Perm() | 0o100; want != info.Mode().Perm() {
		if err := os.Chmod(path, want); err != nil {
			return fail(hint.Cause(err).Error())
		}
	}
	res, err := runProgram(ctx, program{
		path: path, args: []string{u.Plan.Title(), strconv.FormatInt(u.Plan.Height, 10)},
		env: e.hookEnv(u.From), dir: e.Layout.Home, begin: e.ProgramLock, as: e.RunAs,
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fail(hint.Cause(err).Error())
	case res.failed():
		return fail("it ended with " + res.how() + tail(res.Stderr))
	}
	e.Log.Info("COSMOVISOR_CUSTOM_PREUPGRADE result", "command", path, "result", text(res.Stdout))
	return nil
}

// migrate runs the new binary's own pre-upgrade, as Cosmovisor does: 31 is tried again, up to the configured number.
func (e *Engine) migrate(ctx context.Context) error {
	u := e.j.Upgrade
	bin := e.Layout.Binary(u.To)
	for attempt := 0; ; attempt++ {
		if attempt > e.Config.PreUpgradeMaxRetries {
			return e.preUpgradeError(fmt.Sprintf(
				"pre-upgrade command failed. reached max attempt of retries - %d", e.Config.PreUpgradeMaxRetries))
		}
		if attempt > 0 {
			if err := sleep(ctx, retryPause); err != nil {
				return err
			}
		}
		begun := time.Now()
		res, err := runProgram(ctx, program{path: bin, args: []string{"pre-upgrade"}, env: e.hookEnv(u.To), dir: e.Layout.Root, begin: e.ProgramLock, as: e.RunAs})
		if err == nil && res.Code == preUpgradeMissing && time.Since(begun) > settle {
			// It was there, and may have been stopped by the signal that is on its way to us, too (KillMode=control-group).
			_ = sleep(ctx, settle) //nolint:errcheck // it is asked for below
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return e.preUpgradeError(hint.Cause(err).Error())
		case res.Signal != 0:
			return e.preUpgradeError("pre-upgrade command failed : " + res.how())
		case res.Code == preUpgradeFailed:
			return e.preUpgradeError("pre-upgrade command failed : exit status 30" + tail(res.Stderr))
		case res.Code == preUpgradeRetry:
			e.Log.Error("pre-upgrade command failed. retrying", "attempt", attempt, "stderr", text(res.Stderr))
			continue
		case res.Code == preUpgradeMissing:
			e.Log.Info("pre-upgrade command does not exist. continuing the upgrade.")
		default:
			e.Log.Info("pre-upgrade result", "result", text(res.Stdout))
			e.Log.Info("pre-upgrade successful. continuing the upgrade.")
		}
		break
	}
	if e.Config.RestartAfter {
		e.step(Migrated) // recorded with the attempt that follows at once
		return nil
	}
	return e.advanceFull(Migrated)
}

func (e *Engine) preUpgradeError(cause string) error {
	u := e.j.Upgrade
	return hint.New("migrate to", string(u.To), cause,
		"supervisor resume (tries again), or supervisor upgrade add "+u.To.Name()+" BINARY --force, or supervisor rollback")
}

// hookEnv is what scripts see: the version's environment, and which try this is.
func (e *Engine) hookEnv(v version.Version) []string {
	return append(slices.Clip(e.Env(v)), "SUPERVISOR_ATTEMPT="+strconv.Itoa(max(1, e.j.Upgrade.Tries)))
}

// text renders a program's output for one log attribute.
func text(out []byte) string { return string(bytes.TrimSpace(out)) }

func dirExists(file string) bool {
	info, err := os.Stat(filepath.Dir(file))
	return err == nil && info.IsDir()
}
