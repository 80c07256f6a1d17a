package doctor

import (
	"context"
	"errors"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/genesis"
	"nodevisor/internal/hint"
	"nodevisor/snapshot"
	"nodevisor/snapshot/postgres/kwildb"
)

// databases has each database that is a source of snapshots look after itself, and tells whether all of them answer.
func (x *examination) databases(ctx context.Context, store *snapshot.Store) (answer bool) {
	answer = true
	for _, src := range store.Databases() {
		if x.distrust && x.Config.Snapshot.PgBin != "" { // the programs there would be run as root
			x.unknown(src.Name(), cli.AsRightUser, "%s: not looked at: pg_bin is the node's user's to say", src.Where())
			answer = false
			continue
		}
		for _, c := range src.Check(ctx, store.Dir()) {
			one := check{Name: src.Name() + " " + c.Name, OK: c.OK, Detail: c.Detail}
			failed := c.OK != nil && !*c.OK
			if failed && c.Name == "server" {
				answer = false
				if x.other || x.distrust { // who we are may be what the server dislikes
					one.OK, c.Fix = nil, cli.AsRightUser
				}
			}
			x.checks = append(x.checks, one)
			x.advise(c.Fix)
		}
	}
	return answer
}

// template looks whether a template of Kwil's could be made. Those of other kinds are a program's, which isn't run here.
func (x *examination) template(ctx context.Context, store *session.Snapshots) {
	if x.Config.Genesis.Kind != genesis.Kwil {
		return
	}
	height, err := session.NewExporter(x.Session, store).CheckKwil(ctx)
	switch {
	case errors.Is(err, kwildb.ErrNoChain): // before the first block that is as it should be
		x.unknown("template", hint.Of(err), "%v", err)
	case err != nil:
		x.failErr("template", err)
	default:
		x.ok("template", "the state of Kwil %s can be read, at height %d", x.Config.Genesis.Version, height)
	}
}
