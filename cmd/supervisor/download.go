package main

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/fetch"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/version"
)

// fetcher is nil where downloads are off: then a missing binary is waited for.
func (s *session) fetcher() upgrade.Fetcher {
	if !s.cfg.Upgrade.AllowDownload {
		return nil
	}
	return s.download
}

// download places the binary that a plan's info names for this machine into the version's directory. It was verified
// against the plan's checksum before it gets there, and is published by one rename.
func (s *session) download(ctx context.Context, p plan.Plan, to version.Version) error {
	info := []byte(strings.TrimSpace(p.Info))
	if u, err := url.ParseRequestURI(string(info)); err == nil && u.Host != "" {
		if info, err = fetch.Info(ctx, string(info)); err != nil {
			return err
		}
	}
	from, err := fetch.SelectBinary(info, runtime.GOOS, runtime.GOARCH)
	if err != nil {
		return err
	}
	return s.downloadFrom(ctx, from, to)
}

func (s *session) downloadFrom(ctx context.Context, from string, to version.Version) error {
	dir := filepath.Join(s.layout.Root, "upgrades")
	if err := atomicfile.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file, _, err := fetch.Binary(ctx, fetch.Request{URL: from, Name: s.layout.Node, Dir: dir, Observe: s.progress, Log: s.log})
	if err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Dir(file)) //nolint:errcheck // left-overs are removed by the next download
	if err := atomicfile.MkdirAll(filepath.Dir(s.layout.Binary(to)), 0o755); err != nil {
		return err
	}
	return atomicfile.Rename(file, s.layout.Binary(to))
}
