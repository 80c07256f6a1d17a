package main

import (
	"nodevisor/genesis"
	"nodevisor/supervisor/status"
)

// describe is what a halt says of the template that it made.
func (x *exporter) describe(snapshot string) (*status.Template, error) {
	dir := genesis.PathOf(x.store.Dir(), snapshot)
	t, err := genesis.ReadTemplate(dir)
	if err != nil {
		return nil, err
	}
	return &status.Template{Path: dir, ChainID: t.ChainID, Canonical: t.Canonical, SHA256: t.SHA256}, nil
}
