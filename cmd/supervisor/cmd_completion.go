package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

// completer answers a shell that asks for the next word. It only reads files, so that an answer takes milliseconds also
// beside a busy supervisor, and it is silent: whatever goes wrong, there is nothing to suggest.
type completer func(ctx context.Context, s *session.Session) []cobra.Completion

// addCompletions tells the commands below root what their arguments are. Flags and commands complete by themselves.
func addCompletions(a *cli.App, root *cobra.Command) {
	for path, words := range map[string]completer{
		"upgrade add": waitingPlans, "upgrade cancel": scheduledPlans, "upgrade skip": pendingPlans,
		"upgrade apply": stagedVersions, "upgrade use": versions,
		"snapshot show": snapshotIDs, "snapshot verify": snapshotIDs, "snapshot restore": snapshotIDs,
		"snapshot pin": snapshotIDs, "snapshot unpin": snapshotIDs, "snapshot delete": snapshotIDs,
	} {
		if cmd, rest, err := root.Find(strings.Fields(path)); err == nil && len(rest) == 0 {
			cmd.ValidArgsFunction = complete(a, words)
		}
	}
	for _, cmd := range root.Commands() {
		if cmd.Name() == "man" {
			cmd.ValidArgsFunction = func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
		}
	}
	_ = root.MarkPersistentFlagDirname("home") // the flags are declared: no error
	_ = root.MarkPersistentFlagFilename("config", "toml")
	_ = root.MarkPersistentFlagFilename("cosmovisor-config", "toml")
	_ = root.RegisterFlagCompletionFunc("unit", func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return unitNames("/etc/systemd/system"), cobra.ShellCompDirectiveNoFileComp
	})
}

// complete makes cobra's function of ours. The first argument is what words knows; what follows, and where there are no
// such words, is a file.
func complete(a *cli.App, words completer) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		s, done, err := quiet(cmd.Context(), a)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer done()
		var fit []cobra.Completion
		for _, w := range words(cmd.Context(), s) {
			if strings.HasPrefix(w, typed) {
				fit = append(fit, w)
			}
		}
		if cmd.Name() == "restore" && len(fit) == 0 {
			return nil, cobra.ShellCompDirectiveDefault // a snapshot may also be named by its path
		}
		return fit, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

// quiet loads the configuration for the command line that is being typed, and says nothing.
func quiet(ctx context.Context, a *cli.App) (s *session.Session, done func(), err error) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, nil, err
	}
	silent := *a
	silent.Stderr = null
	if s, err = session.Load(ctx, &silent, true); err != nil {
		null.Close()
		return nil, nil, err
	}
	return s, func() { null.Close() }, nil
}

// word is a suggestion with what the shell shows beside it.
func word(name, about string) cobra.Completion {
	return cobra.CompletionWithDesc(name, about)
}

// pendingPlans are the plans that are to come, and the upgrade in flight.
func pendingPlans(_ context.Context, s *session.Session) []cobra.Completion {
	return planWords(s, func(plan.Plan) bool { return true })
}

// scheduledPlans are those that an operator has scheduled: only they can be cancelled.
func scheduledPlans(_ context.Context, s *session.Session) []cobra.Completion {
	return planWords(s, func(p plan.Plan) bool { return p.Source == plan.FromOperator })
}

// waitingPlans are those whose binary isn't there yet.
func waitingPlans(_ context.Context, s *session.Session) []cobra.Completion {
	return planWords(s, func(p plan.Plan) bool { return !s.Layout.HasBinary(p.To()) })
}

func planWords(s *session.Session, is func(plan.Plan) bool) (words []cobra.Completion) {
	v, err := s.View()
	if err != nil {
		return nil
	}
	plans := v.Tracker.Pending()
	if u := v.Journal.Upgrade; u != nil && !slices.ContainsFunc(plans, func(p plan.Plan) bool { return p.Name == u.Plan.Name }) {
		plans = append(plans, u.Plan)
	}
	for _, p := range plans {
		if !is(p) {
			continue
		}
		about := "no height"
		switch {
		case p.Height > 0:
			about = fmt.Sprintf("at height %d", p.Height)
		case !p.Time.IsZero():
			about = "at " + p.Time.Format(time.RFC3339)
		}
		if s.Layout.HasBinary(p.To()) {
			about += ", staged"
		}
		words = append(words, word(p.Name, about))
	}
	return words
}

// stagedVersions are what can be switched to now: versions with a binary, but for the running one.
func stagedVersions(_ context.Context, s *session.Session) (words []cobra.Completion) {
	current, _ := s.Layout.Current() // without a link every version is another one
	entries, err := os.ReadDir(filepath.Join(s.Layout.Root, "upgrades"))
	if err != nil {
		return nil
	}
	for _, e := range entries {
		name, err := version.Parse(e.Name(), false)
		if err == nil && name != current && s.Layout.HasBinary(name) {
			words = append(words, word(name.Name(), "staged"))
		}
	}
	return words
}

// versions are all of them.
func versions(ctx context.Context, s *session.Session) []cobra.Completion {
	words := stagedVersions(ctx, s)
	if current, err := s.Layout.Current(); s.Layout.HasBinary(version.Genesis) && (err != nil || current != version.Genesis) {
		words = append(words, word(version.Genesis.Name(), "the first version"))
	}
	return words
}

// snapshotIDs are listed newest first.
func snapshotIDs(_ context.Context, s *session.Session) (words []cobra.Completion) {
	store, err := s.Store(nil)
	if err != nil {
		return nil
	}
	all, err := store.List()
	if err != nil {
		return nil
	}
	for _, i := range all {
		about := fmt.Sprintf("%s, %s, %s", i.Label, i.CreatedAt.Format(time.DateOnly), i.State)
		if i.Height != nil {
			about += fmt.Sprintf(", height %d", *i.Height)
		}
		if i.Pinned {
			about += ", pinned"
		}
		words = append(words, word(i.ID, about))
	}
	return words
}

// unitNames lists the services that an operator wrote.
func unitNames(dir string) (words []cobra.Completion) {
	found, _ := filepath.Glob(filepath.Join(dir, "*.service")) // the pattern is well-formed: no error
	for _, path := range found {
		words = append(words, filepath.Base(path))
	}
	return words
}
