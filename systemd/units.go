package systemd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"nodevisor/internal/hint"
)

const (
	// UnitDeadline is how long one action on a unit may take, its waiting for the unit included.
	UnitDeadline = 30 * time.Second
	// unitLook is how often a unit's state is asked for while it is waited for.
	unitLook = 100 * time.Millisecond
)

// Units acts on other units of the host. Its zero value is usable; it connects anew for each action, for between two of
// them a bus may be restarted.
type Units struct {
	dial func(context.Context) (*dbus.Conn, error) // nil: the system bus, or, for root, systemd itself
}

// Act starts, stops or restarts a unit and waits until that is done, or ("wait") waits until the unit is active. To start
// what runs and to stop what doesn't is no error. It takes at most UnitDeadline. The error is a *hint.Error.
func (u Units) Act(ctx context.Context, name, action string) error {
	ctx, cancel := context.WithTimeout(ctx, UnitDeadline)
	defer cancel()
	err := u.act(ctx, name, action)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("not done within %s: %w", UnitDeadline, err)
	}
	return &hint.Error{Op: action + " unit", Path: name, Err: err, Hint: remedy(err, name)}
}

// errNoBus means that nobody could be asked.
var errNoBus = errors.New("systemd can't be reached")

func (u Units) act(ctx context.Context, name, action string) error {
	dial := u.dial
	if dial == nil {
		dial = dbus.NewWithContext
	}
	conn, err := dial(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoBus, err)
	}
	defer conn.Close()
	if action == "wait" {
		return await(ctx, conn, name)
	}
	if err := conn.Subscribe(); err != nil { // without it systemd tells nobody that a job has ended
		return fmt.Errorf("%w: %w", errNoBus, err)
	}
	result := make(chan string, 1)
	// "replace" is what systemctl does: a job that contradicts this one gives way.
	switch action {
	case "start":
		_, err = conn.StartUnitContext(ctx, name, "replace", result)
	case "stop":
		_, err = conn.StopUnitContext(ctx, name, "replace", result)
	case "restart":
		_, err = conn.RestartUnitContext(ctx, name, "replace", result)
	default:
		return fmt.Errorf("%q is none of start, stop, restart, wait", action)
	}
	if err != nil {
		return err
	}
	select {
	case r := <-result:
		if r != "done" {
			return fmt.Errorf("its job ended with %q", r)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// await waits until a unit is active.
func await(ctx context.Context, conn *dbus.Conn, name string) error {
	look := time.NewTicker(unitLook)
	defer look.Stop()
	for {
		all, err := conn.GetUnitPropertiesContext(ctx, name)
		if err != nil {
			return err
		}
		switch state, load := all["ActiveState"], all["LoadState"]; {
		case load == "not-found" || load == "masked":
			return fmt.Errorf("the unit is %s", load)
		case state == "active":
			return nil
		case state == "failed":
			return errors.New("the unit has failed")
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// remedy is what an operator can do about an error of Act.
func remedy(err error, name string) string {
	refused := godbus.Error{}
	if errors.Is(err, errNoBus) {
		return "apt install dbus, and systemctl start dbus; in a container there is no systemd to ask: remove the [[unit]]"
	}
	if errors.As(err, &refused) {
		switch refused.Name {
		case "org.freedesktop.DBus.Error.AccessDenied", "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired":
			return "let the node's user do it with a rule of polkit for org.freedesktop.systemd1.manage-units (docs/systemd.md)"
		case "org.freedesktop.systemd1.NoSuchUnit":
			return "systemctl list-unit-files " + name
		}
	}
	return "systemctl status " + name
}
