package setup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"nodevisor/cmd/supervisor/cli"
	"nodevisor/cmd/supervisor/host"
	"nodevisor/cmd/supervisor/session"
	"nodevisor/internal/atomicfile"
	"nodevisor/internal/fetch"
	"nodevisor/internal/hint"
	"nodevisor/supervisor/client"
	"nodevisor/supervisor/home"
	"nodevisor/upgrade"
	"nodevisor/upgrade/plan"
)

// NewUninit makes `supervisor uninit`.
func NewUninit(a *cli.App) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use: "uninit", GroupID: "node", Short: "Go back to Cosmovisor: hand over what is scheduled, and clear up", Args: cli.ExactArgs(0, "no arguments"),
		Long: `Writes the pending plans into Cosmovisor's batch file (data/upgrade-info.json.batch), beside what is there, and removes
what only a supervisor needs: frozen copies beside the data, with the snapshots that consist of them, and left-overs.
The link "current" becomes an absolute one, which every Cosmovisor reads. The tree of versions, the data, all other
snapshots, the history, the configuration and the skip list stay; "supervisor run" works again later, and takes the batch
back.

It refuses while a supervisor or a node runs, and while an upgrade is in flight.`,
		Example: "  systemctl stop simd\n  supervisor uninit --dry-run\n  supervisor uninit",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := session.Load(cmd.Context(), a, false)
			if err != nil {
				return err
			}
			if err := refuseWhileRunning(cmd.Context(), s); err != nil {
				return err
			}
			if dryRun {
				l, err := previewUninit(s)
				if err != nil {
					return err
				}
				return reportUninit(s, l, true)
			}
			return uninit(cmd.Context(), s)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	return cmd
}

// refuseWhileRunning refuses beside a running supervisor or node: Cosmovisor would start a second one.
func refuseWhileRunning(ctx context.Context, s *session.Session) error {
	refuse := func(err error, next string) error {
		return &hint.Error{Op: "go back to Cosmovisor", Err: err, Hint: next}
	}
	_, err := client.New(host.ControlSocket(s.Config, s.Environ)).Status(ctx)
	info, lockErr := home.ReadLock(s.Layout.LockPath())
	switch {
	case lockErr != nil:
		return refuse(lockErr, cli.AsRightUser)
	case info.Supervisor != nil && info.Supervisor.Pid != os.Getpid():
		pid := info.Supervisor.Pid
		return refuse(fmt.Errorf("%w: a supervisor, process %d, is running", home.ErrLocked, pid),
			"stop it first: "+host.StopCommand(pid))
	case info.Node != nil:
		return refuse(fmt.Errorf("%w: node pid %d of an earlier supervisor still runs", home.ErrLocked, info.Node.Pid),
			fmt.Sprintf("stop it first: kill %d", info.Node.Pid))
	case err == nil:
		return refuse(fmt.Errorf("%w: a supervisor is running", home.ErrLocked), "stop it first, then: supervisor uninit")
	case !errors.Is(err, client.ErrNotRunning):
		return err
	}
	found, err := home.FindForeign(s.Layout.Root, s.Layout.DataDir())
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return refuse(&home.ForeignError{Found: found}, "stop it first: "+host.StopCommand(found[0].Pid))
	}
	return nil
}

// previewUninit reads what uninit would do, without the lock: it only reads.
func previewUninit(s *session.Session) (upgrade.Leaving, error) {
	e := upgrade.NewEngine(upgrade.Options{Layout: s.Layout, Config: s.Config.Upgrade, Log: s.Log})
	if err := e.Load(); err != nil {
		return upgrade.Leaving{}, err
	}
	return e.Leave()
}

// uninit does it under the lock. Each step can be done again.
func uninit(ctx context.Context, s *session.Session) error {
	_, err := os.Lstat(s.Layout.State())
	if errors.Is(err, fs.ErrNotExist) {
		return hint.New("go back to Cosmovisor", s.Layout.State(), "this home never was a supervisor's", "nothing is to be done")
	}
	return s.UnderLock(ctx, func(o *session.Offline) error {
		if o.Broken != nil {
			return o.Broken
		}
		if err := home.WaitNoForeign(ctx, s.Layout.Root, s.Layout.DataDir(), 0); err != nil {
			return err
		}
		l, err := o.Engine.Leave()
		if err != nil {
			return err
		}
		if err := o.Engine.Left(l); err != nil {
			return err
		}
		if o.Store != nil {
			if err := o.Store.DropFrozen(ctx); err != nil {
				return err
			}
		}
		return errors.Join(removeLeftOvers(s), linkAbsolutely(s), reportUninit(s, l, false))
	})
}

// linkAbsolutely makes `current` an absolute link, which every Cosmovisor reads: those up to 1.6 can't run a relative one.
func linkAbsolutely(s *session.Session) error {
	v, err := s.Layout.Current()
	if err != nil {
		return nil // a damaged link is doctor's matter, and nothing that going back could mend
	}
	return atomicfile.Symlink(s.Layout.Dir(v), s.Layout.Link())
}

// removeLeftOvers deletes what interrupted work may have left. Nothing of it is anybody's last copy.
func removeLeftOvers(s *session.Session) error {
	upgrades := filepath.Join(s.Layout.Root, "upgrades")
	err := errors.Join(
		atomicfile.RemoveTemps(s.Layout.State()), atomicfile.RemoveTemps(s.Layout.Root), fetch.RemoveStale(upgrades),
	)
	stages, _ := filepath.Glob(filepath.Join(upgrades, ".stage-*")) // the pattern is well-formed: no error
	for _, dir := range stages {
		err = errors.Join(err, atomicfile.RemoveTree(dir))
	}
	if socket := host.OwnSocket(s.Config, s.Environ); isSocket(socket) {
		err = errors.Join(err, os.Remove(socket))
	}
	return err
}

func isSocket(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&fs.ModeSocket != 0
}

// uninitReport is `uninit --json`.
type uninitReport struct {
	DryRun   bool           `json:"dry_run"`
	Batch    string         `json:"batch"`
	Plans    []handedOver   `json:"plans"`
	Dropped  []handedOver   `json:"dropped"`
	Homeless []string       `json:"homeless"`
	Current  *currentReport `json:"current"`
}

type handedOver struct {
	Name   string `json:"name"`
	Height int64  `json:"height"`
}

// currentReport says where `current` leads; it is made an absolute link.
type currentReport struct {
	Version string `json:"version"`
	Target  string `json:"target"`
}

func handOver(plans []plan.Plan) []handedOver {
	list := []handedOver{}
	for _, p := range plans {
		list = append(list, handedOver{p.Name, p.Height})
	}
	return list
}

// reportUninit says what was done, or would be.
func reportUninit(s *session.Session, l upgrade.Leaving, dryRun bool) error {
	r := uninitReport{DryRun: dryRun, Batch: s.Layout.BatchPath(), Plans: handOver(l.Plans), Dropped: handOver(l.Dropped), Homeless: l.Homeless}
	if r.Homeless == nil {
		r.Homeless = []string{}
	}
	if v, err := s.Layout.Current(); err == nil {
		r.Current = &currentReport{Version: v.Name(), Target: s.Layout.Dir(v)}
	}
	if s.Flags.JSON {
		return cli.WriteJSON(s.Stdout, r)
	}
	var b strings.Builder
	for _, p := range r.Plans {
		fmt.Fprintf(&b, "hand over  %s at %d, in %s\n", p.Name, p.Height, r.Batch)
	}
	for _, p := range r.Dropped {
		fmt.Fprintf(&b, "drop       %s at %d from the batch: it was done, cancelled or skipped since it was imported\n", p.Name, p.Height)
	}
	for _, what := range r.Homeless {
		fmt.Fprintf(&b, "drop       %s: Cosmovisor has no place for it\n", what)
	}
	fmt.Fprintf(&b, "remove     frozen copies beside the data, left-overs, the recorded height, a hold\n")
	fmt.Fprintf(&b, "keep       %s, %s, snapshots, %s\n", s.Layout.Root, s.Layout.DataDir(), s.Layout.HistoryDir())
	if r.Current != nil {
		fmt.Fprintf(&b, "link       current -> %s (an absolute link: Cosmovisor up to 1.6 reads no other)\n", r.Current.Target)
	}
	if len(r.Plans) > 0 {
		fmt.Fprintf(&b, "           Cosmovisor below 1.7 knows no batch; for it: cosmovisor add-upgrade NAME BINARY --force --upgrade-height HEIGHT\n")
	}
	if dryRun {
		b.WriteString("nothing was changed (dry run)\n")
	}
	_, err := s.Stdout.WriteString(b.String())
	return err
}
