package postgres

import (
	"context"
	"errors"

	"nodevisor/snapshot/manifest"
)

var errTODO = errors.New("not written yet")

// clone.go, room.go

func (s *Source) Forecast(ctx context.Context, dir string) (manifest.Estimate, error) {
	return manifest.Estimate{}, errTODO
}
func (s *Source) Freeze(ctx context.Context, job manifest.Job) (manifest.Source, error) {
	return manifest.Source{}, errTODO
}
func (s *Source) FrozenAt(id string) string    { return "" }
func (s *Source) FrozenIDs() ([]string, error) { return nil, nil }
func (s *Source) Drop(id string) error         { return nil }
func (s *Source) Retire(id string) error       { return nil }
func (s *Source) VerifyClone(ctx context.Context, rec manifest.Source) ([]manifest.Fault, error) {
	return nil, errTODO
}

// archive.go, restore.go

func (s *Source) Finish(ctx context.Context, dir string, rec manifest.Source) (manifest.Source, error) {
	return rec, errTODO
}
func (s *Source) VerifyDeep(ctx context.Context, at string, rec manifest.Source) ([]manifest.Fault, error) {
	return nil, errTODO
}
func (s *Source) Into(ctx context.Context, r manifest.Restore, dsn string) error { return errTODO }
func (s *Source) Preview(r manifest.Restore) ([]manifest.Signer, error)          { return nil, errTODO }
func (s *Source) Extract(ctx context.Context, r manifest.Restore, to string) ([]manifest.Signer, error) {
	return nil, errTODO
}
func (s *Source) Stage(ctx context.Context, r manifest.Restore) error { return errTODO }
func (s *Source) Pending() (phase string, err error)                  { return "", nil }
func (s *Source) Commit() error                                       { return errTODO }
func (s *Source) Swap() (before string, signers []manifest.Signer, err error) {
	return "", nil, errTODO
}
func (s *Source) Undo() error  { return errTODO }
func (s *Source) Done() error  { return errTODO }
func (s *Source) Abort() error { return nil }
