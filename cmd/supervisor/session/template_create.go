package session

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/genesis"
	"nodevisor/internal/hint"
	"nodevisor/supervisor/home"
)

// CreateTemplate hands the snapshot's template on, or makes one.
func (s *Session) CreateTemplate(ctx context.Context, id, out string, set []Assignment) (dir string, t *genesis.Template, err error) {
	if out != "" {
		if out, err = filepath.Abs(out); err != nil {
			return "", nil, err
		}
	}
	if id != "" {
		store, err := s.Store(nil)
		if err != nil {
			return "", nil, err
		}
		if _, err := store.Get(id); err != nil {
			return "", nil, err
		}
		beside := genesis.PathOf(store.Dir(), id)
		dir = cmp.Or(out, beside)
		switch t, err = genesis.ReadTemplate(beside); {
		case err == nil && dir == beside && len(set) == 0:
			return dir, t, t.Verify(dir)
		case err == nil:
			t, err = handOn(ctx, beside, dir, set)
			return dir, t, err
		case !errors.Is(err, os.ErrNotExist):
			return "", nil, err
		}
		x := NewExporter(s, store)
		if x == nil {
			return "", nil, noKind()
		}
		t, err = x.ofSnapshot(ctx, dir, id, set)
		return dir, t, err
	}
	dir = cmp.Or(out, filepath.Join(s.Layout.State(), "genesis"))
	t, err = s.createAtRest(ctx, dir, set)
	return dir, t, err
}

func noKind() error {
	return &cli.UsageError{Err: hint.New("make a template", "", "[genesis] kind is not set",
		`set [genesis] kind = "kwil", "cosmos" or "command" in the configuration`)}
}

// createAtRest makes a template of the node's state, which must be at rest and stay so.
func (s *Session) createAtRest(ctx context.Context, dir string, set []Assignment) (t *genesis.Template, err error) {
	if s.Config.Genesis.Kind == "" {
		return nil, noKind()
	}
	height, err := s.SnapshotHeight(ctx)
	if err != nil {
		return nil, err
	}
	err = s.UnderLock(ctx, func(o *Offline) error {
		if err := o.AtRest(ctx); err != nil {
			return err
		}
		t, err = NewExporter(s, o.Store).make(ctx, dir, templateJob{height: height, set: set})
		return err
	})
	if errors.Is(err, home.ErrLocked) || errors.Is(err, home.ErrForeign) {
		err = &hint.Error{
			Op: "make a template of the node's state", Err: err,
			Hint: "supervisor halt --now, then supervisor genesis create; or of a snapshot: --snapshot ID",
		}
	}
	return t, err
}
