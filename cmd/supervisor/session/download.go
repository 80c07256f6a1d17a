package session

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

// Fetcher is nil where downloads are off: then a missing binary is waited for.
func (s *Session) Fetcher() upgrade.Fetcher {
	if !s.Config.Upgrade.AllowDownload {
		return nil
	}
	return s.Download
}

// Download places the binary that a plan's info names for this machine into the version's directory. It was verified
// against the plan's checksum before it gets there, and is published by one rename.
func (s *Session) Download(ctx context.Context, p plan.Plan, to version.Version) error {
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
	return s.DownloadFrom(ctx, from, to)
}

// DownloadFrom is Download for a URL with a checksum, as go-getter has it.
func (s *Session) DownloadFrom(ctx context.Context, from string, to version.Version) error {
	dir := filepath.Join(s.Layout.Root, "upgrades")
	if err := atomicfile.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := version.Placeable(s.Layout, to); err != nil {
		return err
	}
	file, _, err := fetch.Binary(ctx, fetch.Request{URL: from, Name: s.Layout.Node, Dir: dir, Observe: s.Progress, Log: s.Log})
	if err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Dir(file)) //nolint:errcheck // left-overs are removed by the next download
	return version.Publish(s.Layout, to, file)
}
