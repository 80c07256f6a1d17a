package session

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"nodevisor/internal/hint"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade/version"
)

// idle lists the versions that were staged and never ran, and that no plan names yet: nothing else would say of one of them
// that it can't run, until its plan has come.
func (s *Session) idle(plans ...status.Plan) (list []version.Version) {
	current, _ := s.Layout.Current() // "" where it is damaged, which others say
	for _, v := range s.Layout.Versions() {
		_, ran := os.Lstat(s.Layout.InfoPath(v)) // written at the switch
		planned := slices.ContainsFunc(plans, func(p status.Plan) bool { return version.Of(p.Name) == v })
		if v != version.Genesis && v != current && errors.Is(ran, fs.ErrNotExist) && !planned && s.Layout.HasBinary(v) {
			list = append(list, v)
		}
	}
	return list
}

// warnOfIdle puts those into the status that certainly can't run.
func (s *Session) warnOfIdle(st *status.Document) {
	var plans []status.Plan
	if st.Plan != nil {
		plans = append(plans, *st.Plan)
	}
	for _, v := range s.idle(plans...) {
		if err := s.Layout.Glance(v); err != nil {
			st.Warnings = append(st.Warnings, fmt.Sprintf("%s is staged, but can't run here: %v; %s", v.Name(), err, StageAgain(v)))
		}
	}
}

// SayIdle lists them below the plans, tried like those.
func (s *Session) SayIdle(ctx context.Context, plans []status.Plan) {
	checker := s.Checker()
	for _, v := range s.idle(plans...) {
		if r := checker.Check(ctx, v); r.Ready() {
			s.Say("%s is staged and ready; no plan names it yet", v.Name())
		} else {
			s.Say("%s is staged, but NOT READY: %s; %s", v.Name(), r.Problems[0], StageAgain(v))
		}
	}
}

// StageAgain is the command that replaces the binary of a version.
func StageAgain(v version.Version) string {
	return "supervisor upgrade add " + hint.Quote(v.Name()) + " BINARY --force"
}
