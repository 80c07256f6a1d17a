package doctor

import (
	"context"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/snapshot"
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
