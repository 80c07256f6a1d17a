// Package snapshot keeps the snapshots of a node: it creates them while the node is at rest, verifies them once it
// runs again, restores and prunes them.
//
// A snapshot is a directory <dir>/<id>/ with a manifest and a folder for each source. It is made under the name
// <id>.partial and renamed when everything is on the disk: what has no manifest, or is called .partial, is none. It is
// sealed first, which is enough for a rollback, and verified after the restart.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/BurntSushi/toml"

	"nodevisor/internal/hint"
	"nodevisor/internal/progress"
	"nodevisor/snapshot/datadir"
	"nodevisor/snapshot/manifest"
	"nodevisor/snapshot/postgres"
	"nodevisor/snapshot/swap"
)

// Options are what a store needs.
type Options struct {
	Config  Config
	Home    string // absolute
	Log     *slog.Logger
	Observe progress.Observer
	Protect func() []string // ids that no pruning may touch, the upgrade in flight's; nil: none
}

// Store is the snapshots of one home. Its methods may be called from several goroutines, but for Recover, which comes
// before all others and under the home's lock. One process at a time uses a store.
type Store struct {
	cfg     Config
	home    string // as given; names in the configuration are relative to it
	real    string // its links resolved: the name that manifests carry
	dir     string
	minFree MinFree
	log     *slog.Logger
	observe progress.Observer
	protect func() []string
	slots   []*slot

	mu   sync.Mutex // guards busy, seq, and each read-change-write of a manifest
	busy map[string]bool
	seq  int64 // the highest that was given
}

// A source is one thing that a snapshot holds: a directory (package datadir) or a database (package postgres). Records of
// it travel in the manifest.
type source interface {
	Name() string
	Kind() string
	Where() string
	Present() bool
	Forecast(ctx context.Context, dir string) (manifest.Estimate, error)
	// Freeze copies it, at rest, into job.Dir or, where that is slow, to FrozenAt. The copy is durable.
	Freeze(ctx context.Context, job manifest.Job) (manifest.Source, error)
	// Finish brings a frozen copy into dir and records its digests; the node runs. Done twice it does no harm.
	Finish(ctx context.Context, dir string, rec manifest.Source) (manifest.Source, error)
	FrozenAt(id string) string
	FrozenIDs() ([]string, error)
	Drop(id string) error
	// Retire is told that the snapshot's own directory holds everything: the frozen copy goes, unless it is of use still.
	Retire(id string) error
	restorer
}

// A restorer puts a copy in the place of the live data. Stage, Commit, Swap, Done is the way; each but Stage can be
// done again after a crash. Before Commit, Abort ends it; Undo takes a failed Swap back.
type restorer interface {
	Preview(r manifest.Restore) ([]manifest.Signer, error)
	Extract(ctx context.Context, r manifest.Restore, to string) ([]manifest.Signer, error)
	Stage(ctx context.Context, r manifest.Restore) error
	Pending() (phase string, err error)
	Commit() error
	Swap() (before string, signers []manifest.Signer, err error)
	Undo() error
	Done() error
	Abort() error
}

// A slot is a configured source. The default one may appear later: a new node makes its data at its first start.
type slot struct {
	cfg     SourceConfig
	implied bool

	mu     sync.Mutex
	src    source
	absent bool // when src was resolved
}

// source is resolved anew once it appeared: it may be a link or a mount point by then.
func (s *Store) source(sl *slot) source {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	if sl.absent && sl.src.Present() {
		if err := s.open(sl); err != nil {
			s.log.Warn("cannot resolve a source that appeared", "source", sl.cfg.Name, "error", err)
		}
	}
	return sl.src
}

// signerDefault is CometBFT's name of the signer's state.
const signerDefault = "priv_validator_state.json"

// Open resolves the store's directory and its sources; it makes nothing. A source that isn't there is Check's to report:
// a restore may be what it needs.
func Open(o Options) (*Store, error) {
	s := &Store{cfg: o.Config, home: filepath.Clean(o.Home), log: o.Log, observe: o.Observe, protect: o.Protect, busy: map[string]bool{}}
	s.real = settled(s.home)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.protect == nil {
		s.protect = func() []string { return nil }
	}
	var err error
	if s.minFree, err = ParseMinFree(s.cfg.MinFree); err != nil {
		return nil, fmt.Errorf("cannot open snapshots: min_free: %w", err)
	}
	if s.dir = s.cfg.Dir; s.dir == "" {
		s.dir = filepath.Join("supervisor", "snapshots")
	}
	s.dir = settled(s.abs(s.dir))
	cfgs, err := inOrder(s.cfg.Sources)
	if err != nil {
		return nil, fmt.Errorf("cannot open snapshots: %w", err)
	}
	if len(s.cfg.Sources) == 0 {
		cfgs = []SourceConfig{{Name: "data", Kind: datadir.Kind, Path: "data"}}
	}
	for _, cfg := range cfgs {
		sl := &slot{cfg: cfg, implied: len(s.cfg.Sources) == 0}
		if err := s.open(sl); err != nil {
			return nil, err
		}
		s.slots = append(s.slots, sl)
	}
	return s, s.apart()
}

func (s *Store) open(sl *slot) error {
	if !manifest.IsName(sl.cfg.Name) {
		return fmt.Errorf("cannot open snapshots: source name %q would be no folder of its own", sl.cfg.Name)
	}
	switch sl.cfg.Kind {
	case datadir.Kind:
		return s.openDir(sl)
	case postgres.Kind:
		return s.openDatabase(sl)
	}
	return fmt.Errorf("cannot open snapshots: source %q: kind %q is not known", sl.cfg.Name, sl.cfg.Kind)
}

func (s *Store) openDatabase(sl *slot) error {
	cfg := sl.cfg.database()
	if cfg.PasswordFile != "" {
		cfg.PasswordFile = s.abs(cfg.PasswordFile)
	}
	src, err := postgres.New(postgres.Options{
		Config: cfg, Name: sl.cfg.Name, Home: s.real, State: s.state(), Bin: s.cfg.PgBin,
		Log: s.log, Observe: s.observeBytes, Free: s.usable,
	})
	if err != nil {
		return err
	}
	sl.src, sl.absent = src, false
	return nil
}

func (s *Store) openDir(sl *slot) error {
	signer := sl.cfg.NeverRestoreOlder
	if signer == nil {
		signer = []string{signerDefault}
	}
	src, err := datadir.New(datadir.Options{
		Name: sl.cfg.Name, Path: s.abs(sl.cfg.Path), Method: s.cfg.Method, Exclude: sl.cfg.Exclude,
		Signer: signer, SignerFile: s.signerFile(), Own: []string{s.dir},
		Observe: s.observeBytes,
	})
	if err != nil {
		return err
	}
	sl.src, sl.absent = src, !src.Present()
	return nil
}

func (s *Store) abs(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(s.home, path)
}

// settled follows the links of the part of path that is there.
func settled(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil || path == filepath.Dir(path) {
		return resolved
	}
	return filepath.Join(settled(filepath.Dir(path)), filepath.Base(path))
}

// apart refuses sources that hold the store, the home or each other: a restore would swap away what it stands on.
func (s *Store) apart() error {
	refuse := func(sl *slot, what, path string) error {
		return &hint.Error{
			Op: "use source " + sl.cfg.Name, Path: sl.src.Where(), Err: fmt.Errorf("it and %s %s lie within each other", what, path),
			Hint: "set [snapshot] dir, or the path of the source, to a directory apart",
		}
	}
	for i, sl := range s.slots {
		where := sl.src.Where()
		if sl.src.Kind() != datadir.Kind {
			continue
		}
		switch {
		case inside(where, s.dir), inside(s.dir, where):
			return refuse(sl, "the snapshots in", s.dir)
		case inside(where, s.real):
			return refuse(sl, "the home", s.home)
		}
		for _, other := range s.slots[:i] {
			if w := other.src.Where(); other.src.Kind() == datadir.Kind && (inside(where, w) || inside(w, where)) {
				return refuse(sl, "source "+other.cfg.Name, w)
			}
		}
	}
	return nil
}

func inside(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// inOrder puts each source behind those that it names in after.
func inOrder(all []SourceConfig) ([]SourceConfig, error) {
	var done []SourceConfig
	for len(done) < len(all) {
		before := len(done)
		for _, c := range all {
			named := func(name string) bool {
				return slices.ContainsFunc(done, func(d SourceConfig) bool { return d.Name == name })
			}
			if !named(c.Name) && !slices.ContainsFunc(c.After, func(a string) bool { return !named(a) }) {
				done = append(done, c)
			}
		}
		if len(done) == before {
			return nil, errors.New("the sources wait for each other: after leads in a circle, or to none")
		}
	}
	return done, nil
}

// signerFile is where CometBFT's configuration puts the signer's state, absolute; "" where there is no such
// configuration. A node that can't parse its own doesn't start, so neither can it sign.
func (s *Store) signerFile() string {
	path := filepath.Join(s.home, "config", "config.toml")
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	var c struct {
		File  any `toml:"priv_validator_state_file"` // CometBFT
		Newer struct {
			File any `toml:"state-file"`
		} `toml:"priv-validator"` // Tendermint 0.35
	}
	if _, err := toml.NewDecoder(io.LimitReader(f, 1<<20)).Decode(&c); err != nil {
		s.log.Warn("cannot read where the signer's state is, its usual name is assumed", "path", path, "error", err)
		return ""
	}
	for _, v := range []any{c.File, c.Newer.File} {
		if name, ok := v.(string); ok && name != "" {
			return s.abs(name)
		}
	}
	return ""
}

// Dir is where the snapshots lie. Sources shows name → path, links resolved, for status and doctor.
func (s *Store) Dir() string { return s.dir }

// Sources shows where each source is, links resolved.
func (s *Store) Sources() map[string]string {
	all := map[string]string{}
	for _, sl := range s.slots {
		all[sl.cfg.Name] = s.source(sl).Where()
	}
	return all
}

// Databases are the sources that are databases, for their preflight.
func (s *Store) Databases() []*postgres.Source {
	var all []*postgres.Source
	for _, sl := range s.slots {
		if src, ok := s.source(sl).(*postgres.Source); ok {
			all = append(all, src)
		}
	}
	return all
}

// Check reports each configured source that isn't there. The default one may be missing.
func (s *Store) Check() error {
	_, err := s.present()
	return err
}

// present gives the sources that a snapshot takes.
func (s *Store) present() ([]source, error) {
	var all []source
	var errs []error
	for _, sl := range s.slots {
		src := s.source(sl)
		switch {
		case src.Present():
			all = append(all, src)
		case !sl.implied:
			errs = append(errs, missing(sl.cfg.Name, src))
		}
	}
	return all, errors.Join(errs...)
}

func missing(name string, src source) error {
	return &hint.Error{
		Op: "use source " + name, Path: src.Where(), Err: os.ErrNotExist,
		Hint: "mount its disk, or supervisor snapshot restore ID, or correct path in [[snapshot.source]]",
	}
}

// Missing tells of each configured source, by its name, that isn't there and that no interrupted restore puts back, which
// Recover ends.
func (s *Store) Missing() map[string]error {
	all, comes := map[string]error{}, false
	for _, sl := range s.slots {
		src := s.source(sl)
		phase, err := src.Pending()
		comes = comes || phase == swap.Swapping || err != nil // what can't be read is Recover's to report
		if !sl.implied && !src.Present() {
			all[sl.cfg.Name] = missing(sl.cfg.Name, src)
		}
	}
	if comes {
		return nil
	}
	return all
}

func (s *Store) observeBytes(phase string, done, total int64) {
	s.observe.Observe(progress.Event{Phase: phase, Done: done, Total: total})
}

// acquire keeps others from deleting or completing a snapshot meanwhile.
func (s *Store) acquire(id string) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[id] {
		return nil, &hint.Error{Op: "use snapshot", Path: id, Err: errors.New("it is being worked on"), Hint: "supervisor status"}
	}
	s.busy[id] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.busy, id)
	}, nil
}
