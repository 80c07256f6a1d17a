package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/console"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/hint"
	"nodevisor/supervisor/home"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/source"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// linkChoice is what `current` should name, and why.
type linkChoice struct {
	Version version.Version
	Why     string
	height  int64 // of the plan that the version was switched to for, where a trace of it decided
}

// errUnclear means that nothing tells for certain which version the data belongs to: an old version on data that a newer one
// has migrated is the damage that nobody can undo.
var errUnclear = errors.New("nothing tells for certain which version it should name")

// fixLink says what it links and why, and does it: at once, because it acts only where the answer is certain; on a terminal
// after a question.
func fixLink(ctx context.Context, s *session.Session, yes bool) error {
	e := upgrade.NewEngine(upgrade.Options{Layout: s.Layout, Config: s.Config.Upgrade, Log: s.Log})
	if have, err := s.Layout.Current(); err == nil && e.Load() == nil {
		s.Say("nothing is to be mended: current names %s", have.Name())
		return printChoice(s, linkChoice{Version: have, Why: "current names it, and the journal agrees"}, false)
	}
	choice, err := chooseLink(s)
	if err != nil {
		return err
	}
	s.Say("link: %s -> %s\nbecause %s", s.Layout.Link(), choice.Version, choice.Why)
	if err := s.Confirm(yes || !console.IsTerminal(s.Stdin) || !console.IsTerminal(s.Stderr), "Link it?"); err != nil {
		return err
	}
	return s.UnderLock(ctx, func(o *session.Offline) error { return link(ctx, o, choice) })
}

// link makes the choice true, unless it isn't the choice any more.
func link(ctx context.Context, o *session.Offline, choice linkChoice) error {
	now, err := chooseLink(o.Session)
	if err != nil {
		return err
	}
	if now.Version != choice.Version {
		return hint.New("link", o.Layout.Link(), "the files changed meanwhile", "supervisor doctor --fix-link")
	}
	if err := home.WaitNoForeign(ctx, o.Layout.Root, o.Layout.DataDir(), 0); err != nil {
		return err
	}
	if r := o.Checker.Check(ctx, choice.Version); !r.Ready() {
		return hint.New("link", o.Layout.Link(), r.Problems[0], "supervisor upgrade add "+hint.Quote(choice.Version.Name())+" BINARY --force")
	}
	if err := o.Layout.SwitchTo(choice.Version); err != nil {
		return err
	}
	o.Log.Info("current was linked", "version", choice.Version, "why", choice.Why)
	o.Say("current names %s", choice.Version.Name())
	if err := releaseLinkHold(o); err != nil {
		return err
	}
	return printChoice(o.Session, choice, true)
}

// releaseLinkHold leaves a hold that the link was the reason of; any other one stays.
func releaseLinkHold(o *session.Offline) error {
	j, err := upgrade.LoadJournal(o.Layout.JournalPath())
	switch {
	case err != nil || j.Hold == nil:
		return nil
	case strings.Contains(j.Hold.Reason, o.Layout.Link()) && o.Broken == nil:
		o.Say("the hold is left: supervisor run goes on")
		return o.Engine.Release()
	}
	o.Say("it is held still (%s): supervisor resume", j.Hold.Reason)
	return nil
}

func printChoice(s *session.Session, c linkChoice, done bool) error {
	if !s.Flags.JSON {
		return nil
	}
	return cli.WriteJSON(s.Stdout, map[string]any{"version": c.Version.Name(), "why": c.Why, "done": done})
}

// chooseLink finds the version that current should name, by the journal; else by the traces that each switch leaves beside
// its version; genesis only where the home never saw an upgrade. It never guesses.
func chooseLink(s *session.Session) (linkChoice, error) {
	l := s.Layout
	if info, err := os.Lstat(l.Link()); err == nil && info.Mode()&fs.ModeSymlink == 0 {
		return linkChoice{}, hint.New("link", l.Link(), "it is there and is no link",
			fmt.Sprintf("mv %s %s.aside, then again", hint.Quote(l.Link()), hint.Quote(l.Link())))
	}
	j, err := upgrade.LoadJournal(l.JournalPath())
	if err != nil {
		return linkChoice{}, unclear(s, err)
	}
	if j.Upgrade != nil {
		return withBinary(s, linkOfPhase(j.Upgrade))
	}
	known := knownHeight(s)
	traced, err := highestTrace(s, known)
	if err != nil {
		return linkChoice{}, unclear(s, err)
	}
	if traced.Version == "" {
		if upgrade.Seen(l) {
			return linkChoice{}, unclear(s, errors.New("this home has seen an upgrade, and no version has a trace of a switch to it"))
		}
		if target, err := os.Readlink(l.Link()); err == nil && linkedVersion(target) != version.Genesis {
			return linkChoice{}, unclear(s, fmt.Errorf("it leads to %s, which is missing", target))
		}
		return withBinary(s, linkChoice{Version: version.Genesis, Why: "this home never saw an upgrade"})
	}
	if err := errors.Join(contradictedByHistory(s, traced.Version), contradictedByFiles(s, traced, known)); err != nil {
		return linkChoice{}, unclear(s, err)
	}
	return withBinary(s, traced)
}

// linkOfPhase is the journal's version for its phase.
func linkOfPhase(u *upgrade.Upgrade) linkChoice {
	v := u.From
	if u.Phase.OnNew() {
		v = u.To
	}
	return linkChoice{Version: v, Why: fmt.Sprintf("the journal has the upgrade %s from %s to %s at the phase %s", u.Plan.Name, u.From.Name(), u.To.Name(), u.Phase)}
}

// knownHeight is the lower bound of the data's height by the record and the signer's state, or UnknownHeight. A signer that has
// signed nothing says nothing.
func knownHeight(s *session.Session) int64 {
	known := plan.UnknownHeight
	if r, ok, err := source.LoadRecord(s.Layout.HeightPath()); err == nil && ok {
		known = r.Height
	}
	if h, ok, err := source.SignerHeight(s.Layout.Home); err == nil && ok && h > 0 {
		known = max(known, h)
	}
	return known
}

// highestTrace finds the version that was switched to for the highest plan. A trace above the known height leaves it open
// whether the height is merely old or the data was taken back: then there is no answer.
func highestTrace(s *session.Session, known int64) (linkChoice, error) {
	var best version.Version
	var highest int64 // of its plan
	twice := false
	entries, err := os.ReadDir(filepath.Join(s.Layout.Root, "upgrades"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return linkChoice{}, err
	}
	for _, e := range entries { // also those whose binary is lost
		v := version.Version("upgrades/" + e.Name())
		p, _, err := plan.ReadFile(s.Layout.InfoPath(v), s.Config.Upgrade.Recase)
		switch {
		case strings.HasPrefix(e.Name(), "."), errors.Is(err, plan.ErrMissing):
			continue
		case err != nil:
			return linkChoice{}, fmt.Errorf("the trace %s can't be read: %w", s.Layout.InfoPath(v), err)
		case version.Of(p.Name) != v:
			return linkChoice{}, fmt.Errorf("the trace %s is of another version, %s", s.Layout.InfoPath(v), p.Name)
		case p.Height < highest:
			continue
		}
		twice = p.Height == highest
		best, highest = v, p.Height
	}
	switch {
	case best == "":
		return linkChoice{}, nil
	case twice:
		return linkChoice{}, fmt.Errorf("two versions were switched to at the height %d", highest)
	case known == plan.UnknownHeight:
		return linkChoice{}, fmt.Errorf("%s was switched to last, for the height %d, and it isn't known whether the data has come that far", best.Name(), highest)
	case highest > known:
		return linkChoice{}, fmt.Errorf("%s was switched to last, for the height %d, and the data is only known to have reached %d", best.Name(), highest, known)
	}
	why := fmt.Sprintf("it was switched to last, for the height %d, and the data has reached %d", highest, known)
	return linkChoice{Version: best, Why: why, height: highest}, nil
}

// contradictedByHistory compares the traces with the history's last word: a rollback, a patch by hand and an `upgrade use` leave no
// trace beside the versions.
func contradictedByHistory(s *session.Session, traced version.Version) error {
	all, err := upgrade.LoadHistory(s.Layout.HistoryDir())
	if err != nil || len(all) == 0 {
		return err
	}
	last := all[0]
	left := last.Upgrade.From
	if last.Result == upgrade.ResultCommitted || last.Result == upgrade.ResultUsed {
		left = last.Upgrade.To
	}
	if left == traced {
		return nil
	}
	return fmt.Errorf("%s was switched to for the highest plan, but the last upgrade in the history (%s, %s) left %s",
		traced.Name(), last.Upgrade.Plan.Name, last.Result, left.Name())
}

// contradictedByFiles looks for signs that a later version than the traced one has run: the broken link itself, which may
// lead to one whose directory was lost with its trace; and a plan that the data has passed.
func contradictedByFiles(s *session.Session, c linkChoice, known int64) error {
	target, err := os.Readlink(s.Layout.Link())
	if err == nil && linkedVersion(target) != c.Version {
		return fmt.Errorf("%s was switched to for the highest plan, but the link leads to %s", c.Version.Name(), target)
	}
	p, _, err := plan.ReadFile(s.Layout.Plan, s.Config.Upgrade.Recase)
	if err == nil && p.Height > c.height && p.Height < known {
		return fmt.Errorf("the plan file has %s at %d, the data has passed it, and no version has a trace of a switch to it", p.Name, p.Height)
	}
	return nil
}

// linkedVersion is the version that a link's text means, also where it is broken or was made in another place.
func linkedVersion(target string) version.Version {
	dir, name := filepath.Split(filepath.Clean(target))
	if filepath.Base(dir) == "upgrades" {
		return version.Version("upgrades/" + name)
	}
	return version.Version(name)
}

// withBinary refuses a version that can't be linked.
func withBinary(s *session.Session, c linkChoice) (linkChoice, error) {
	if s.Layout.HasBinary(c.Version) {
		return c, nil
	}
	if c.Version == version.Genesis {
		return c, hint.New("link", s.Layout.Link(), c.Why+", and there is no binary "+s.Layout.Binary(c.Version), "supervisor init BINARY")
	}
	return c, hint.New("link", s.Layout.Link(), fmt.Sprintf("it should name %s, because %s, but its binary is missing", c.Version.Name(), c.Why),
		"supervisor upgrade add "+hint.Quote(c.Version.Name())+" BINARY")
}

// unclear lists the versions with what is known of each, and leaves the choice to a person.
func unclear(s *session.Session, cause error) error {
	var b strings.Builder
	for _, v := range s.Layout.Versions() {
		b.WriteString("\n  " + v.Name())
		if p, ok := plan.Installed(s.Layout, v, s.Config.Upgrade.Recase); ok {
			fmt.Fprintf(&b, " (switched to for the height %d)", p.Height)
		}
	}
	list := b.String()
	if list == "" {
		list = " none"
	}
	next := "supervisor upgrade use VERSION"
	if errors.Is(cause, state.ErrUntrusted) {
		next += " --force"
	}
	return &hint.Error{
		Op: "link", Path: s.Layout.Link(), Err: fmt.Errorf("%w: %w; the versions are:%s", errUnclear, cause, list),
		Hint: next + ", once you know which version wrote the data last",
	}
}
