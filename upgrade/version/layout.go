// Package version is the tree of versions in a node's home, as Cosmovisor lays it out: genesis/bin/<node> and
// upgrades/<name>/bin/<node>, beside the symlink `current` that names the version that runs.
//
// A Layout knows where everything lies, and moves the link. Place puts a binary into the tree, whole or not at all. A Checker
// says whether a version could be switched to. Every name of a version comes through NormaliseName, so that none leaves the tree.
package version

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
)

// Version names one directory of root that holds bin/<name>: "genesis", or "upgrades/<escaped name>".
type Version string

// Genesis is the version that a chain starts with.
const Genesis Version = "genesis"

// Of returns the version of a plan's (normalised) name.
func Of(name string) Version {
	return Version("upgrades/" + url.PathEscape(name))
}

// Parse reads what an operator types: "genesis", "v2", "upgrades/v2".
func Parse(s string, recase bool) (Version, error) {
	if s == string(Genesis) {
		return Genesis, nil
	}
	name, err := NormaliseName(strings.TrimPrefix(s, "upgrades/"), recase)
	if err != nil {
		return "", err
	}
	return Of(name), nil
}

// Name is what people call the version: the plan's name, or "genesis".
func (v Version) Name() string {
	escaped, ok := strings.CutPrefix(string(v), "upgrades/")
	if !ok {
		return string(v)
	}
	if name, err := url.PathUnescape(escaped); err == nil {
		return name
	}
	return escaped
}

// InTree tells whether v names a directory of a version: genesis, or one right below upgrades.
func (v Version) InTree() bool {
	return v == Genesis || filepath.Dir(string(v)) == "upgrades" && !strings.HasPrefix(filepath.Base(string(v)), ".")
}

// Errors of the link `current`.
var (
	ErrNoLink  = errors.New("current is missing")
	ErrBadLink = errors.New("current names no version")
)

// Layout knows where everything of one home lies. It reads and writes Cosmovisor's own tree of versions.
type Layout struct {
	Home string // the node's home, absolute
	Root string // the tree of versions, absolute
	Node string // the binary's file name
	Plan string // the node's plan file, absolute; "" = none
}

// State is the supervisor's own directory in home.
func (l Layout) State() string { return filepath.Join(l.Home, "supervisor") }

// JournalPath is where the upgrade in flight is recorded.
func (l Layout) JournalPath() string { return filepath.Join(l.State(), "upgrade.json") }

// SchedulePath is where operators' plans are kept.
func (l Layout) SchedulePath() string { return filepath.Join(l.State(), "schedule.json") }

// HistoryDir holds one file per finished upgrade.
func (l Layout) HistoryDir() string { return filepath.Join(l.State(), "history") }

// HeightPath is where the last height that was read is kept.
func (l Layout) HeightPath() string { return filepath.Join(l.State(), "height") }

// BatchPath is where Cosmovisor keeps what add-batch-upgrade scheduled; "" where no plan file is configured.
func (l Layout) BatchPath() string {
	if l.Plan == "" {
		return ""
	}
	return l.Plan + ".batch"
}

// LockPath is the home's lock.
func (l Layout) LockPath() string { return filepath.Join(l.State(), "lock") }

// DataDir is the node's data directory.
func (l Layout) DataDir() string { return filepath.Join(l.Home, "data") }

// Link is the symlink that names the running version.
func (l Layout) Link() string { return filepath.Join(l.Root, "current") }

// Dir is the version's directory.
func (l Layout) Dir(v Version) string { return filepath.Join(l.Root, string(v)) }

// Binary is the version's executable.
func (l Layout) Binary(v Version) string { return filepath.Join(l.Dir(v), "bin", l.Node) }

// HasBinary tells whether something lies in the place of the version's executable.
func (l Layout) HasBinary(v Version) bool {
	_, err := os.Stat(l.Binary(v))
	return err == nil
}

// InfoPath is Cosmovisor's trace of a switch: the plan, beside the version's bin.
func (l Layout) InfoPath(v Version) string { return filepath.Join(l.Dir(v), "upgrade-info.json") }

// Current reads the link. A relative and an absolute link are accepted (Cosmovisor up to 1.6 writes absolute ones);
// everything but a link to a directory of a version is an error: nothing ever falls back to genesis.
func (l Layout) Current() (Version, error) {
	target, err := os.Readlink(l.Link())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", ErrNoLink
	case err != nil:
		return "", fmt.Errorf("%w: it is no symlink", ErrBadLink)
	}
	rel := target
	if filepath.IsAbs(target) {
		if rel, err = l.within(target); err != nil {
			return "", fmt.Errorf("%w: it leads to %s, outside %s", ErrBadLink, target, l.Root)
		}
	}
	v := Version(filepath.ToSlash(filepath.Clean(rel)))
	if !v.InTree() {
		return "", fmt.Errorf("%w: it leads to %s", ErrBadLink, target)
	}
	if info, err := os.Stat(l.Dir(v)); err != nil || !info.IsDir() {
		return "", fmt.Errorf("%w: %s is dangling", ErrBadLink, target)
	}
	return v, nil
}

// within makes an absolute path relative to root, also where either is reached through other links.
func (l Layout) within(target string) (string, error) {
	for _, root := range []string{l.Root, resolved(l.Root)} {
		for _, t := range []string{filepath.Clean(target), resolved(target)} {
			if rel, err := filepath.Rel(root, t); err == nil && filepath.IsLocal(rel) && rel != "." {
				return rel, nil
			}
		}
	}
	return "", fs.ErrInvalid
}

func resolved(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	return filepath.Clean(path)
}

// SwitchTo makes current name v, in one step and durably. Done twice it is the same.
func (l Layout) SwitchTo(v Version) error {
	if info, err := os.Stat(l.Binary(v)); err != nil || !info.Mode().IsRegular() {
		return hint.New("switch to", string(v), "it has no binary "+l.Binary(v), "supervisor upgrade add "+v.Name()+" BINARY")
	}
	if target, err := os.Readlink(l.Link()); err == nil && target == string(v) {
		return atomicfile.SyncDir(l.Root)
	}
	return atomicfile.Symlink(string(v), l.Link())
}

// SyncBinary makes the binary of a version durable, and the names that lead to it from the root: a person may have copied
// it a moment ago, and cp syncs nothing.
func (l Layout) SyncBinary(v Version) error {
	path, err := filepath.EvalSymlinks(l.Binary(v))
	if err == nil {
		err = atomicfile.Sync(path)
	}
	for at := l.Binary(v); err == nil && at != l.Root; at = filepath.Dir(at) {
		err = atomicfile.SyncDir(filepath.Dir(at))
	}
	if err != nil {
		return fmt.Errorf("cannot sync %s: %w", l.Binary(v), err)
	}
	return nil
}

// Tidy removes what interrupted writes of this package left. Only the holder of the home lock may call it.
func (l Layout) Tidy() error {
	dirs := []string{l.State(), l.HistoryDir(), l.Root}
	for _, e := range entries(filepath.Join(l.Root, "upgrades")) {
		dirs = append(dirs, filepath.Join(l.Root, "upgrades", e.Name()))
	}
	if l.Plan != "" {
		dirs = append(dirs, filepath.Dir(l.Plan))
	}
	var errs []error
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			errs = append(errs, atomicfile.RemoveTemps(dir))
		}
	}
	return errors.Join(errs...)
}

// Versions lists the versions that have a binary, genesis first, then by name.
func (l Layout) Versions() []Version {
	var all []Version
	if info, err := os.Stat(l.Binary(Genesis)); err == nil && info.Mode().IsRegular() {
		all = append(all, Genesis)
	}
	for _, e := range entries(filepath.Join(l.Root, "upgrades")) {
		v := Version("upgrades/" + e.Name())
		if info, err := os.Stat(l.Binary(v)); err == nil && info.Mode().IsRegular() && !strings.HasPrefix(e.Name(), ".") {
			all = append(all, v)
		}
	}
	slices.Sort(all)
	return all
}

// entries lists a directory; one that can't be read has none.
func entries(dir string) []fs.DirEntry {
	found, _ := os.ReadDir(dir) //nolint:errcheck // said above
	return found
}

// Similar names a version that differs from v in case or spelling only slightly, for a warning; "" where none does.
func (l Layout) Similar(v Version) string {
	fold := func(s string) string {
		return strings.NewReplacer("-", "", "_", "", ".", "", " ", "").Replace(strings.ToLower(s))
	}
	for _, have := range l.Versions() {
		if have != v && have != Genesis && fold(have.Name()) == fold(v.Name()) {
			return have.Name()
		}
	}
	return ""
}
