package session

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"nodevisor/genesis"
	"nodevisor/internal/hint"
	"nodevisor/snapshot/manifest"
	"nodevisor/upgrade"
	"nodevisor/upgrade/version"
)

// ofSnapshot makes the template of a snapshot that has none, whether or not the node runs: a directory is restored beside
// the template and exported from there, by the version that it belongs to; a database is read from its frozen clone.
func (x *Exporter) ofSnapshot(ctx context.Context, dir, id string, set []Assignment) (*genesis.Template, error) {
	m, err := x.store.Get(id)
	if err != nil {
		return nil, err
	}
	job := templateJob{snapshot: id, set: set, frozen: true}
	if m.Height != nil {
		job.height = *m.Height
	}
	if x.Config.Genesis.Kind != genesis.Cosmos {
		return x.make(ctx, dir, job)
	}
	if job.version, err = x.versionOf(m); err != nil {
		return nil, err
	}
	scratch, err := os.MkdirTemp(x.Layout.State(), "genesis-")
	if err != nil {
		return nil, fmt.Errorf("cannot restore the snapshot for its export: %w", err)
	}
	defer os.RemoveAll(scratch)
	if job.home, err = x.restoredHome(ctx, scratch, id); err != nil {
		return nil, err
	}
	return x.make(ctx, dir, job)
}

// versionOf is the version whose data a snapshot holds: another one would migrate it, refuse it, or read it wrongly.
func (x *Exporter) versionOf(m manifest.Manifest) (version.Version, error) {
	all, err := upgrade.LoadHistory(x.Layout.HistoryDir())
	if err != nil {
		return "", err
	}
	j, err := upgrade.LoadJournal(x.Layout.JournalPath())
	if err != nil {
		return "", err
	}
	if j.Upgrade != nil {
		all = append([]upgrade.Finished{{At: time.Now(), Upgrade: *j.Upgrade}}, all...)
	}
	current, err := x.Layout.Current()
	if err != nil {
		return "", err
	}
	v := upgrade.VersionThen(all, current, m.ID, m.CreatedAt)
	if !x.Layout.HasBinary(v) {
		return "", hint.New("export from snapshot", m.ID, "its data is of the version "+v.Name()+", which isn't installed any more",
			"supervisor upgrade add "+v.Name()+" BINARY, or supervisor snapshot restore "+m.ID+" --to DIR and export it by hand")
	}
	if v != current {
		x.Log.Info("exporting with the version that the snapshot belongs to", "snapshot", m.ID, "version", v.Name())
	}
	return v, nil
}

// restoredHome makes a home of the snapshot's data and the node's configuration, without its keys. It is thrown away after the
// export, so nothing of it is synced.
func (x *Exporter) restoredHome(ctx context.Context, scratch, id string) (string, error) {
	to := filepath.Join(scratch, "restored")
	if _, err := x.Snapshots(ctx, SnapshotRequest{Op: "restore", ID: id, To: to}, false); err != nil {
		return "", err
	}
	home := filepath.Join(scratch, "home")
	if err := os.MkdirAll(filepath.Join(home, "config"), 0o700); err != nil {
		return "", err
	}
	for _, name := range []string{"config.toml", "app.toml", "client.toml", "genesis.json"} {
		data, err := os.ReadFile(filepath.Join(x.Config.Node.Home, "config", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(home, "config", name), data, 0o600)
		}
		if err != nil {
			return "", err
		}
	}
	if err := os.Rename(filepath.Join(to, "data"), filepath.Join(home, "data")); err != nil {
		return "", &hint.Error{Op: "export from snapshot", Path: id, Err: err, Hint: "it needs a source called data; restore it by hand, and export there"}
	}
	return home, nil
}
