package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"nodevisor/genesis"
	"nodevisor/genesis/kwil"
	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/supervisor/status"
	"nodevisor/upgrade/version"
)

// Exporter makes templates as [genesis] says. It is what upgrades, halts and stops ask for one.
type Exporter struct {
	*Session
	store *Snapshots
}

// NewExporter is nil where [genesis] kind is "": there is nothing to make.
func NewExporter(s *Session, store *Snapshots) *Exporter {
	if s.Config.Genesis.Kind == "" || store == nil {
		return nil
	}
	return &Exporter{s, store}
}

// TemplateOn tells whether the configuration asks for a template at an event.
func (s *Session) TemplateOn(event string) bool {
	return s.Config.Genesis.Kind != "" && slices.Contains(s.Config.Genesis.On, event)
}

// Export makes the template of a sealed snapshot, beside it. The node is at rest, on the data that the snapshot has. Done
// again it finds the template whole and is done; a damaged one is made anew. height is that of the last block, 0 and below
// where it isn't known.
func (x *Exporter) Export(ctx context.Context, snapshot string, height int64) error {
	dir := genesis.PathOf(x.store.Dir(), snapshot)
	if t, err := genesis.ReadTemplate(dir); err == nil && t.Verify(dir) == nil {
		return nil
	}
	_, err := x.make(ctx, dir, templateJob{snapshot: snapshot, height: height})
	return err
}

// templateJob is one template: whose it is, and what an operator wants otherwise.
type templateJob struct {
	snapshot string // its id; "" = none
	height   int64
	set      []Assignment
	frozen   bool            // of the snapshot itself, not of the node's state at rest
	home     string          // where the snapshot's data was restored to; "" = the node's home
	version  version.Version // whose data it is; "" = the current one's
}

// Assignment is one --set.
type Assignment struct{ Path, Value string }

// make makes the template at dir.
func (x *Exporter) make(ctx context.Context, dir string, job templateJob) (*genesis.Template, error) {
	t := &genesis.Template{Kind: x.Config.Genesis.Kind, Version: x.Config.Genesis.Version}
	if job.snapshot != "" {
		t.Snapshot = &job.snapshot
	}
	if job.height > 0 {
		t.Height = &job.height
	}
	err := genesis.Build(ctx, dir, t, func(ctx context.Context, at string) error {
		if t.Kind == genesis.Kwil {
			return x.makeKwil(ctx, at, t, job)
		}
		return inScratch(at, func(scratch string) error {
			doc, err := x.makeDocument(ctx, scratch, t, job)
			if err != nil {
				return err
			}
			return atomicfile.WriteFile(filepath.Join(at, genesis.DocumentName), doc.Text(), 0o600)
		})
	})
	if err != nil {
		return nil, err
	}
	x.Log.Info("genesis template made", "path", dir, "kind", t.Kind, "chain_id", t.ChainID, "hash", t.Canonical)
	for _, d := range t.Defaults {
		x.Log.Info("not set in the template", "field", d)
	}
	return t, nil
}

// inScratch gives work a directory on the file system of dir, which is gone afterwards.
func inScratch(dir string, work func(scratch string) error) error {
	scratch := filepath.Join(dir, "scratch")
	if err := os.Mkdir(scratch, 0o700); err != nil {
		return err
	}
	return errors.Join(work(scratch), atomicfile.RemoveTree(scratch))
}

func (x *Exporter) makeDocument(ctx context.Context, scratch string, t *genesis.Template, job templateJob) (*genesis.Document, error) {
	g := x.Config.Genesis
	version, err := job.version, error(nil)
	if version == "" {
		version, err = x.Layout.Current()
	}
	if err != nil {
		return nil, err
	}
	_, env := x.Command(version)
	if t.Kind == genesis.Command {
		p := genesis.Program{Path: g.Command[0], Args: g.Command[1:], Env: env, Dir: x.Config.Node.Home}
		doc, err := p.Make(ctx, scratch, g.Timeout,
			"DAEMON_HOME="+x.Config.Node.Home, "SUPERVISOR_GENESIS_SNAPSHOT="+job.snapshot, "SUPERVISOR_GENESIS_HEIGHT="+heightText(job.height))
		if err == nil {
			err = x.apply(doc, job.set)
		}
		if err == nil {
			err = doc.Validate(t.Kind)
		}
		return doc, err
	}
	sdk := genesis.SDK{Home: cmp.Or(job.home, x.Config.Node.Home), Export: g.Export, Migrate: g.Migrate, Timeout: g.Timeout, Log: x.Log}
	sdk.Old = genesis.Program{Path: x.Layout.Binary(version), Env: env, Dir: x.Config.Node.Home}
	if sdk.New = sdk.Old; g.Binary != "" {
		sdk.New.Path = x.Config.UnderHome(g.Binary)
	}
	doc, defaults, err := sdk.Make(ctx, scratch, func(d *genesis.Document) error { return x.apply(d, job.set) })
	t.Defaults = defaults
	return doc, err
}

// heightText is "" for a height that isn't known.
func heightText(height int64) string {
	if height <= 0 {
		return ""
	}
	return strconv.FormatInt(height, 10)
}

// apply sets what the configuration says, and over it what the operator says now.
func (x *Exporter) apply(d *genesis.Document, set []Assignment) error {
	return errors.Join(d.SetAll(x.Config.Genesis.Set), applySet(d, set))
}

func applySet(d *genesis.Document, set []Assignment) error {
	var errs []error
	for _, s := range set {
		errs = append(errs, d.Set(s.Path, s.Value))
	}
	return errors.Join(errs...)
}

// wanted is the value that an operator or the configuration gives the field at path; "" = none.
func (x *Exporter) wanted(path string, set []Assignment) string {
	for i := len(set) - 1; i >= 0; i-- {
		if set[i].Path == path {
			return set[i].Value
		}
	}
	if v, ok := x.Config.Genesis.Set[path]; ok {
		return fmt.Sprint(v)
	}
	return ""
}

// handOn copies the template at from to dir, with other values in its document: that of a halt gets the new network's
// chain id once people agreed on it.
func handOn(ctx context.Context, from, dir string, set []Assignment) (*genesis.Template, error) {
	old, err := genesis.ReadTemplate(from)
	if err != nil {
		return nil, err
	}
	if err := old.Verify(from); err != nil {
		return nil, err
	}
	t := *old
	err = genesis.Build(ctx, dir, &t, func(_ context.Context, at string) error {
		doc, _, err := genesis.ReadFile(filepath.Join(from, genesis.DocumentName))
		if err != nil {
			return err
		}
		if err := applySet(doc, set); err != nil {
			return err
		}
		if err := errors.Join(ValidateDocument(doc, t.Kind, t.Version), namesState(doc, &t)); err != nil {
			return err
		}
		t.Defaults = notSet(t.Defaults, set)
		for _, name := range old.Files() {
			if name != genesis.DocumentName {
				if err := genesis.CopyFile(filepath.Join(from, name), filepath.Join(at, name), old.SHA256[name]); err != nil {
					return err
				}
			}
		}
		return atomicfile.WriteFile(filepath.Join(at, genesis.DocumentName), doc.Text(), 0o600)
	})
	return &t, err
}

// notSet are the defaults that nobody set to something else.
func notSet(defaults []string, set []Assignment) []string {
	return slices.DeleteFunc(slices.Clone(defaults), func(d string) bool {
		return slices.ContainsFunc(set, func(s Assignment) bool { return strings.HasPrefix(d, s.Path+":") || strings.HasPrefix(d, s.Path+" ") })
	})
}

// A template goes with its snapshot: whatever deletes snapshots is followed by a look for templates that are left alone.

// Delete removes a snapshot and its template.
func (s *Snapshots) Delete(id string) error {
	return errors.Join(s.Store.Delete(id), genesis.Sweep(s.Dir()))
}

// Prune deletes the snapshots that retention doesn't keep, and their templates.
func (s *Snapshots) Prune(ctx context.Context, dryRun bool, protect ...string) ([]string, error) {
	gone, err := s.Store.Prune(ctx, dryRun, protect...)
	return gone, errors.Join(err, genesis.Sweep(s.Dir()))
}

// Complete verifies a snapshot and prunes older ones, with their templates.
func (s *Snapshots) Complete(ctx context.Context, id string) error {
	return errors.Join(s.Store.Complete(ctx, id), genesis.Sweep(s.Dir()))
}

// ValidateDocument checks a document by its kind's rules.
func ValidateDocument(d *genesis.Document, kind, version string) error {
	err := d.Validate(kind)
	if kind == genesis.Kwil {
		v, verr := kwil.ParseVersion(version)
		if verr != nil {
			return verr
		}
		err = kwil.Validate(v, d.Canonical())
	}
	if err != nil {
		return &hint.Error{Op: "use the genesis document", Err: err, Hint: "mend it with --set PATH=VALUE, or [genesis] set"}
	}
	return nil
}

// Describe is what a halt says of the template that it made.
func (x *Exporter) Describe(snapshot string) (*status.Template, error) {
	dir := genesis.PathOf(x.store.Dir(), snapshot)
	t, err := genesis.ReadTemplate(dir)
	if err != nil {
		return nil, err
	}
	return &status.Template{Path: dir, ChainID: t.ChainID, Canonical: t.Canonical, SHA256: t.SHA256}, nil
}
