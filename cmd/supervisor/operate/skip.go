package operate

import (
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/hint"
	"nodevisor/internal/suggest"
	"nodevisor/supervisor"
	"nodevisor/supervisor/client"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

func newUpgradeCancel(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "cancel NAME", Short: "Take a plan off the schedule or off the skip list; its binary stays",
		Args: cli.ExactArgs(1, "a name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, name, err := loadWithName(cmd.Context(), a, args[0])
			if err != nil {
				return err
			}
			return s.Operate(cmd.Context(), client.OpCancel, client.Request{Name: name}, func(o *session.Offline) (client.Reply, error) {
				if o.Broken != nil {
					return client.Reply{}, o.Broken
				}
				message, err := supervisor.Cancel(o.Engine, name)
				return client.Reply{Message: message}, err
			})
		},
	}
}

func newUpgradeSkip(a *cli.App) *cobra.Command {
	return &cobra.Command{
		Use: "skip NAME", Short: "Pass a plan over for good; the previous version starts", Args: cli.ExactArgs(1, "a name"),
		Long: `Puts the plan on the durable skip list. An upgrade of that name in flight is undone first, with its snapshot, as long
as the new version has made no block of its own. A governance plan halts the old version again at its height, unless the
node is told, too: --unsafe-skip-upgrades HEIGHT among its arguments. "supervisor upgrade cancel NAME" takes it off again.

A plan that is still to be announced may be passed over, too: that nothing knows the name yet is said.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, name, err := loadWithName(cmd.Context(), a, args[0])
			if err != nil {
				return err
			}
			say := sayUnknown(s, name)
			err = s.Operate(cmd.Context(), client.OpSkip, client.Request{Name: name}, func(o *session.Offline) (client.Reply, error) {
				if o.Broken != nil {
					return client.Reply{}, o.Broken
				}
				if u := o.Engine.InFlight(); u != nil && u.Plan.Name == name {
					if err := o.AtRest(cmd.Context()); err != nil {
						return client.Reply{}, err
					}
				}
				return client.Reply{Message: name + " is passed over"}, o.Engine.SkipPlan(cmd.Context(), name, heightOf(o, name), o.KnownHeight())
			})
			if err == nil {
				say()
			}
			return err
		},
	}
}

// sayUnknown returns what says that no file knows a name: with a slip of the pen in it the plan that is meant would be
// carried out all the same.
func sayUnknown(s *session.Session, name string) (say func()) {
	names, err := knownNames(s)
	if err != nil || slices.Contains(names, name) {
		return func() {}
	}
	return func() {
		meant := ""
		if like := suggest.Closest(name, names); like != "" {
			meant = fmt.Sprintf(" (did you mean %q?)", like)
		}
		s.Say("nothing here is called %s yet%s; to take it off again: supervisor upgrade cancel %s", name, meant, hint.Quote(name))
	}
}

// knownNames are those of plans, of staged versions and of what is passed over already.
func knownNames(s *session.Session) ([]string, error) {
	v, err := s.View()
	if err != nil {
		return nil, err
	}
	names := []string{plan.LookAt(s.Layout.Plan, s.Config.Upgrade.Recase).Plan.Name}
	for _, p := range append(v.Tracker.Pending(), v.Schedule.Plans...) {
		names = append(names, p.Name)
	}
	for _, k := range v.Schedule.Skip {
		names = append(names, k.Name)
	}
	for _, staged := range s.Layout.Versions() {
		if staged != version.Genesis {
			names = append(names, staged.Name())
		}
	}
	if u := v.Journal.Upgrade; u != nil {
		names = append(names, u.Plan.Name)
	}
	return names, nil
}

// sayPassedOver lists what is on the skip list, below the plans.
func sayPassedOver(s *session.Session) {
	v, err := s.View()
	if err != nil {
		return // the plans couldn't be listed either
	}
	for _, k := range v.Skipped() {
		at := "at any height"
		if k.Height != nil {
			at = "at " + orDash(k.Height)
		}
		s.Say("%s is passed over %s (%s, since %s)", k.Name, at, k.Why, k.Since.Format(time.RFC3339))
	}
}

// heightOf finds the height of a pending plan by its name; 0 = none is known.
func heightOf(o *session.Offline, name string) int64 {
	for _, p := range o.Tracker().Pending() {
		if p.Name == name {
			return p.Height
		}
	}
	return 0
}
