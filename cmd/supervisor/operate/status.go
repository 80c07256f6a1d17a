// Package operate holds the commands of every day: to look at a node (status), to stop it, to upgrade it and take an upgrade
// back, to take snapshots of it. What changes something is asked of the running supervisor, or done under the home's lock
// where none runs. One file holds one command.
package operate

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/supervisor/status"
)

// NewStatus makes `supervisor status`.
func NewStatus(a *cli.App) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "status", GroupID: "node", Short: "Running? Which version? What is scheduled? What must I do?", Args: cli.ExactArgs(0, "no arguments"),
		Long: "Asks the running supervisor, or reads the files where none runs. Exit code 3 while held, else 0.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Reach(cmd.Context(), a)
			if err != nil {
				return err
			}
			if watch {
				return watchStatus(cmd.Context(), s)
			}
			st, err := s.Status(cmd.Context())
			if err != nil {
				return err
			}
			if a.Flags.JSON {
				err = cli.WriteJSON(a.Stdout, st)
			} else {
				err = reportStatus(s, a.Stdout, st)
			}
			if err == nil && st.Hold != nil {
				return cli.ExitError(cli.ExitHeld)
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show every change until Ctrl-C; on a terminal a picture that is redrawn")
	return cmd
}

// reportStatus prints the status, each command in it for this home.
func reportStatus(s *session.Session, w io.Writer, st *status.Document) error {
	var b strings.Builder
	if err := printStatus(&b, st, time.Now()); err != nil {
		return err
	}
	_, err := io.WriteString(w, s.Addressed(b.String()))
	return err
}

// printStatus answers five questions on one screen.
func printStatus(w io.Writer, st *status.Document, clock time.Time) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s "+format+"\n", append([]any{name}, args...)...)
	}
	line("state", "%s", st.State)
	if st.Message != "" && st.Message != string(st.State) && st.Hold == nil { // a hold is said below, with its command
		line("", "%s", st.Message)
	}
	if st.PID != nil && st.StartedAt != nil {
		line("node", "pid %d, up %s, %d restarts", *st.PID, clock.Sub(*st.StartedAt).Round(time.Second), st.Restarts)
	}
	if st.Version != nil {
		line("version", "%s", *st.Version)
	}
	if st.Height != nil {
		from := "last known"
		if st.HeightSource != nil {
			from = "by " + *st.HeightSource
		}
		line("height", "%d (%s)", *st.Height, from)
	}
	if e := st.LastExit; e != nil {
		line("last exit", "%s at %s (%s)", exitText(e), e.At.Format(time.RFC3339), e.Version)
	}
	if p := st.Plan; p != nil {
		line("plan", "%s at %s, from %s%s", p.Name, at(*p), p.Source, planDetail(p, clock))
		for _, problem := range p.Problems {
			line("", "not ready: %s", problem)
		}
		if p.Hint != nil && st.Hold == nil { // a hold names its own command
			line("next", "%s", *p.Hint)
		}
	}
	if len(st.Skipped) > 0 {
		line("skipped", "%s", skipped(st.Skipped))
	}
	if u := st.Upgrade; u != nil && st.Plan == nil {
		line("upgrade", "%s, %s, %d attempts", u.Name, u.Phase, u.Attempts)
	}
	if u := st.Upgrade; u != nil && u.Error != nil && (st.Hold == nil || *u.Error != st.Hold.Reason) {
		line("", "last error: %s", *u.Error)
	}
	if h := st.Halt; h != nil {
		when := orDash(h.Height)
		if h.Time != nil {
			when = h.Time.Format(time.RFC3339)
		}
		line("halt", "at %s", when)
	}
	printPast(line, st)
	for _, warning := range st.Warnings {
		line("warning", "%s", warning)
	}
	if st.Hold != nil {
		line("HELD", "%s (since %s)", st.Hold.Reason, st.Hold.Since.Format(time.RFC3339))
		line("next", "%s", st.Hold.Hint)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func printPast(line func(name, format string, args ...any), st *status.Document) {
	if l := st.LastUpgrade; l != nil {
		line("last", "%s -> %s %s at %s, downtime %s ms", l.From, l.To, l.Result, l.At.Format(time.RFC3339), orDash(l.DowntimeMS))
	}
	if l := st.Snapshots.Last; l != nil {
		state := "sealed"
		if l.VerifiedAt != nil {
			state = "verified"
		}
		line("snapshots", "%d, the last one %s at height %s, %s", st.Snapshots.Count, l.ID, orDash(l.Height), state)
	} else {
		line("snapshots", "none")
	}
	if st.Rollback.Possible {
		line("rollback", "possible: supervisor rollback")
	} else if st.Rollback.Reason != nil && (st.Upgrade != nil || st.LastUpgrade != nil) {
		line("rollback", "not possible: %s", *st.Rollback.Reason)
	}
}

// skipped names what is passed over, in one line.
func skipped(list []status.Skip) string {
	var names []string
	for _, k := range list {
		name := k.Name
		if k.Height != nil {
			name += " at " + orDash(k.Height)
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

func exitText(e *status.Exit) string {
	if e.Signal != nil {
		return "signal: " + *e.Signal
	}
	return fmt.Sprintf("exit code %d", *e.Code)
}

func planDetail(p *status.Plan, clock time.Time) string {
	var parts []string
	if p.BlocksLeft != nil {
		parts = append(parts, fmt.Sprintf("%d blocks left", *p.BlocksLeft))
	}
	if p.ETA != nil {
		parts = append(parts, "in "+max(0, p.ETA.Sub(clock).Round(time.Second)).String())
	}
	if !p.Exact {
		parts = append(parts, "the stop comes a little late")
	}
	if p.Ready {
		parts = append(parts, "ready")
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}
