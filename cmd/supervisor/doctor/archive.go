package doctor

import (
	"nodevisor/cmd/supervisor/session"
	"nodevisor/snapshot/manifest"
)

// unfinished reports snapshots that are damaged, and those that can't be completed. That one is only sealed is as it should be
// for a while after a stop: the running supervisor says whether it gets any further.
func (x *examination) unfinished(store *session.Snapshots) {
	all, err := store.List()
	if err != nil {
		x.failErr("archives", err)
		return
	}
	sealed := 0
	for _, i := range all {
		switch i.State {
		case manifest.Sealed:
			sealed++
		case manifest.Damaged:
			x.fail("archives", "have a good one (supervisor snapshot create), then: supervisor snapshot delete "+i.ID, "snapshot %s: %s", i.ID, *i.Error)
		}
	}
	switch {
	case sealed == 0:
	case x.live == nil:
		x.unknown("archives", "nothing is to be done: the next run does it", "%d snapshots are only sealed; they are completed while the node runs", sealed)
	case x.live.Snapshots.Problem != nil:
		x.fail("archives", "mend the cause; it is tried again by itself", "%d snapshots can't be completed: %s", sealed, *x.live.Snapshots.Problem)
	default:
		x.ok("archives", "%d snapshots are being completed", sealed)
	}
}
