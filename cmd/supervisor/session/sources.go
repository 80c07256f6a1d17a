package session

import (
	"errors"
	"fmt"
	"path/filepath"

	"nodevisor/cmd/supervisor/config"
)

// CheckSources refuses, as the mistake of the configuration that it is, each configured source of store that isn't there: an
// upgrade would come to its height, and couldn't be undone. It is for what makes the configuration effective, a start and a
// reload; other commands work without: a restore may be what puts the source back.
func (s *Session) CheckSources(store *Snapshots) error {
	missing := store.Missing()
	var problems []error
	for i, source := range s.Config.Snapshot.Sources {
		if err := missing[source.Name]; err != nil {
			at := s.Origin.Keys[fmt.Sprintf("snapshot.source[%d].path", i)]
			problems = append(problems, &config.Problem{At: at, Err: err})
		}
	}
	if len(problems) == 0 {
		return nil
	}
	return &config.Error{Problems: problems}
}

// withSources adds the sources that are missing to the mistakes of a configuration: they are reported together.
func (s *Session) withSources(err error) error {
	bad, more := (*config.Error)(nil), (*config.Error)(nil)
	if !errors.As(err, &bad) || !filepath.IsAbs(s.Config.Node.Home) {
		return err
	}
	store, serr := s.Store(nil)
	if serr != nil {
		return err // as a rule one of the mistakes is why
	}
	if errors.As(s.CheckSources(store), &more) {
		return &config.Error{Problems: append(bad.Problems, more.Problems...)}
	}
	return err
}
