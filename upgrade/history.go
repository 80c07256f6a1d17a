package upgrade

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodevisor/internal/atomicfile"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// Result is how an upgrade ended.
type Result string

// The results. A held one isn't finished: it is the result that a rollback of an operator, or another plan, left behind.
const (
	ResultCommitted  Result = "committed"
	ResultRolledBack Result = "rolled-back"
	ResultHeld       Result = "held"
	ResultSkipped    Result = "skipped"
	ResultCancelled  Result = "cancelled"
	ResultUsed       Result = "used" // an operator set current by hand
)

// Finished is one document of history/: an upgrade and how it ended.
type Finished struct {
	Schema  int       `json:"schema"`
	Result  Result    `json:"result"`
	At      time.Time `json:"at"`
	Upgrade Upgrade   `json:"upgrade"`
}

// Downtime is the time between the old node's end and the new one's start; 0 where it isn't known.
func (u Upgrade) Downtime() time.Duration {
	if u.Down.IsZero() || u.Up.Before(u.Down) {
		return 0
	}
	return u.Up.Sub(u.Down)
}

// saveHistory writes one finished upgrade. The name sorts by a sequence number, so that a clock that jumps changes no
// order; the same upgrade saved twice (a crash between history and journal) is one document.
func saveHistory(dir string, f Finished) error {
	if err := atomicfile.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	f.Schema = state.Schema
	all, err := historyFiles(dir)
	if err != nil {
		return err
	}
	seq := 1
	if len(all) > 0 {
		last := all[len(all)-1]
		seq, _ = strconv.Atoi(last[:6]) //nolint:errcheck // historyFiles gave only names that begin so
		if old, err := readFinished(filepath.Join(dir, last)); err != nil || !sameUpgrade(old, f) {
			seq++
		}
	}
	data, err := state.Encode(f)
	if err != nil {
		return err
	}
	of := strings.TrimPrefix(string(f.Upgrade.To), "upgrades/")
	name := fmt.Sprintf("%06d-%s.json", seq, of[:min(len(of), 127)]) // a name may fill a file's name alone
	return atomicfile.WriteFile(filepath.Join(dir, name), data, 0o600)
}

func sameUpgrade(a, b Finished) bool {
	return a.Result == b.Result && a.Upgrade.Plan.Key() == b.Upgrade.Plan.Key() && a.Upgrade.Begun.Equal(b.Upgrade.Begun)
}

// LoadHistory reads finished upgrades, newest first. A document that can't be read is left out: history informs, it
// decides nothing.
func LoadHistory(dir string) ([]Finished, error) {
	names, err := historyFiles(dir)
	if err != nil {
		return nil, err
	}
	slices.Reverse(names)
	var all []Finished
	for _, n := range names {
		if f, err := readFinished(filepath.Join(dir, n)); err == nil {
			all = append(all, f)
		}
	}
	return all, nil
}

// VersionThen is the version that the data of a snapshot belongs to: of one that was taken at a time, or (by its id) by an
// upgrade itself. all is the history, newest first, with the upgrade in flight before it; current is what is left where
// none of it came later. It goes by the clock of the host.
func VersionThen(all []Finished, current version.Version, snapshot string, at time.Time) version.Version {
	own := func(f Finished) bool { return f.Upgrade.Snapshot == snapshot && f.Upgrade.From != "" }
	if i := slices.IndexFunc(all, own); snapshot != "" && i >= 0 {
		return all[i].Upgrade.From
	}
	for _, f := range all {
		switch u := f.Upgrade; {
		case !at.Before(f.At):
			return current
		case !u.Up.IsZero() && !at.Before(u.Up):
			return u.To // it ran, whatever came of it
		case u.From != "":
			current = u.From
		}
	}
	return current
}

// Seen tells whether this home ever left genesis, by any trace: ours, or Cosmovisor's. Then a missing link is a
// damage, not a first start.
func Seen(l version.Layout) bool {
	staged, _ := os.ReadDir(filepath.Join(l.Root, "upgrades")) //nolint:errcheck // one that can't be read has no trace
	for _, e := range staged {
		if _, err := os.Lstat(l.InfoPath(version.Version("upgrades/" + e.Name()))); err == nil {
			return true
		}
	}
	if names, err := historyFiles(l.HistoryDir()); err != nil || len(names) > 0 {
		return true
	}
	if _, err := os.Lstat(l.JournalPath()); err == nil {
		return true
	}
	if l.Plan == "" {
		return false
	}
	_, err := os.Lstat(l.Plan)
	return err == nil
}

// historyName is what saveHistory gives: a sequence number and the version.
var historyName = regexp.MustCompile(`^\d{6}-.*\.json$`)

func historyFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if historyName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// DamagedHistory names the documents that LoadHistory leaves out, because they can't be read.
func DamagedHistory(dir string) []string {
	names, _ := historyFiles(dir) //nolint:errcheck // who loads the history says why
	return slices.DeleteFunc(names, func(n string) bool {
		_, err := readFinished(filepath.Join(dir, n))
		return err == nil
	})
}

func readFinished(path string) (Finished, error) {
	var f Finished
	data, err := state.Read(path)
	if err != nil {
		return f, err
	}
	return f, json.Unmarshal(data, &f)
}

// WentBack returns the last upgrade where current names an older version than that one led to, by a plan of a lower height or
// none: nothing of ours leaves it so. It is no reason to stop: people change links, and data may have been put back.
func WentBack(l version.Layout, recase bool) (last Upgrade, back bool) {
	all, err := LoadHistory(l.HistoryDir())
	if err != nil || len(all) == 0 || all[0].Result != ResultCommitted {
		return Upgrade{}, false
	}
	last = all[0].Upgrade
	current, err := l.Current()
	if err != nil || current == last.To {
		return last, false
	}
	p, _ := plan.Installed(l, current, recase) // without one it is the first version, or was put there by hand
	return last, p.Height < last.Plan.Height
}
