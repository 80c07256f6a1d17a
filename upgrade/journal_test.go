package upgrade

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/atomicfile"
	"nodevisor/internal/hint"
	"nodevisor/upgrade/plan"
	"nodevisor/upgrade/state"
	"nodevisor/upgrade/version"
)

// full is a journal in which every field is set.
func full() Journal {
	at := time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)
	return Journal{
		Schema: state.Schema,
		Upgrade: &Upgrade{
			Plan: plan.Plan{Name: "v2", RawName: "V2", Height: 100, Info: `{"a":"<&>"}`, Source: plan.FromFile},
			From: version.Genesis, To: "upgrades/v2", Phase: OnProbation, Evidence: plan.ByFile, Stood: 99, Overshot: 1, SHA256: strings.Repeat("ab", 32),
			Announced: true, Downloaded: true, Snapshot: "v2-100", Attempts: 2, Tries: 1, Crashes: 1, Error: "the new node ended", Reached: 100,
			Begun: at, Down: at, Up: at.Add(time.Second), Phases: []PhaseTime{{Phase: Staged, MS: 3, At: at}, {Phase: Stopped, MS: 12, At: at}},
		},
		Hold: &Hold{Reason: "no attempt is left", Hint: "supervisor upgrade resume", Since: at},
	}
}

func saved(t *testing.T, j Journal) (path string, data []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "supervisor", "upgrade.json")
	require.NoError(t, j.Save(path, atomicfile.Full))
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return path, data
}

func TestJournalRoundTrip(t *testing.T) {
	for name, j := range map[string]Journal{"full": full(), "empty": {Schema: state.Schema}, "hold alone": {Schema: 1, Hold: full().Hold}} {
		t.Run(name, func(t *testing.T) {
			path, data := saved(t, j)
			back, err := LoadJournal(path)
			require.NoError(t, err)
			back.Check = ""
			assert.Equal(t, j, back)

			require.NoError(t, back.Save(path, atomicfile.Content))
			again, err := os.ReadFile(path)
			require.NoError(t, err)
			assert.Equal(t, string(data), string(again), "saved twice it is the same document")
			info, err := os.Stat(path)
			require.NoError(t, err)
			assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
			assert.True(t, json.Valid(data), "anyone can cat and parse it")
		})
	}
	j, err := LoadJournal(filepath.Join(t.TempDir(), "none"))
	require.NoError(t, err, "a missing journal is an empty one")
	assert.Nil(t, j.Upgrade)
}

func TestJournalTornAnywhereIsRefused(t *testing.T) {
	path, data := saved(t, full())
	for n := range data {
		j, err := decodeJournal(data[:n])
		require.Error(t, err, "cut after %d of %d bytes", n, len(data))
		require.Nil(t, j.Upgrade, "nothing of a torn journal is believed")
	}
	for _, n := range []int{0, 1, len(data) / 2, len(data) - 1} {
		require.NoError(t, os.WriteFile(path, data[:n], 0o600))
		_, err := LoadJournal(path)
		require.ErrorIs(t, err, state.ErrUntrusted)
		require.NotEmpty(t, hint.Of(err))
	}
}

func TestJournalWithAnyBitFlippedIsRefused(t *testing.T) {
	_, data := saved(t, full())
	for i := range data {
		for bit := range 8 {
			flipped := bytes.Clone(data)
			flipped[i] ^= 1 << bit
			_, err := decodeJournal(flipped)
			require.Error(t, err, "bit %d of byte %d (%q became %q)", bit, i, data[i], flipped[i])
		}
	}
}

func TestJournalOfAnotherKindIsRefused(t *testing.T) {
	path, data := saved(t, full())
	reseal := func(edit func(m map[string]any)) []byte {
		var m map[string]any
		require.NoError(t, json.Unmarshal(data, &m))
		edit(m)
		out, err := json.Marshal(m)
		require.NoError(t, err)
		return out
	}
	resealed := func(j Journal) []byte {
		_, data := saved(t, j)
		return data
	}
	unknown := full()
	unknown.Upgrade.Phase = "half-done"
	for name, doc := range map[string][]byte{
		"schema 99":        reseal(func(m map[string]any) { m["schema"] = 99 }),
		"no schema":        reseal(func(m map[string]any) { delete(m, "schema") }),
		"schema 0":         reseal(func(m map[string]any) { m["schema"] = 0 }),
		"changed by hand":  bytes.Replace(data, []byte(`"height": 100`), []byte(`"height": 999`), 1),
		"reformatted":      reseal(func(map[string]any) {}),
		"without check":    reseal(func(m map[string]any) { delete(m, "check") }),
		"unknown phase":    resealed(unknown),
		"unknown field":    reseal(func(m map[string]any) { m["more"] = true }),
		"twice":            append(bytes.Clone(data), data...),
		"something behind": append(bytes.Clone(data), "{}"...),
		"empty":            nil,
		"zeros":            make([]byte, len(data)),
		"null":             []byte("null"),
		"an array":         []byte("[]"),
		"9 MiB":            append(bytes.Clone(data), bytes.Repeat([]byte(" "), 9<<20)...),
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(path, doc, 0o600))
			j, err := LoadJournal(path)
			require.ErrorIs(t, err, state.ErrUntrusted)
			assert.Nil(t, j.Upgrade)
			assert.Contains(t, hint.Of(err), "supervisor")
		})
	}
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(path, 0o755))
	_, err := LoadJournal(path)
	require.ErrorIs(t, err, state.ErrUntrusted, "a directory")
}

// The largest plan that is accepted can be recorded and read again, also where JSON escapes all of it.
func TestJournalHoldsTheLargestPlan(t *testing.T) {
	j := full()
	j.Upgrade.Plan.Info = strings.Repeat("<", 1<<20)
	path, _ := saved(t, j)
	back, err := LoadJournal(path)
	require.NoError(t, err)
	assert.Len(t, back.Upgrade.Plan.Info, 1<<20)

	j.Upgrade.Plan.Info = strings.Repeat("<", 2<<20)
	require.Error(t, j.Save(path, atomicfile.Full), "what could not be read again is not written")
	_, err = LoadJournal(path)
	require.NoError(t, err, "and the journal from before is still there")
}

// A link that moved behind the journal's back is nobody's choice; one that fits the phase is gone on with.
func TestLoadComparesTheLinkWithThePhase(t *testing.T) {
	const from, to, other = version.Genesis, version.Version("upgrades/v2"), version.Version("upgrades/v3")
	fits := map[Phase][]version.Version{
		Planned: {from}, Staged: {from}, Stopped: {from}, Snapshotted: {from, to}, Switched: {to}, Migrated: {to}, OnProbation: {to},
		Committed: {to}, RollingBack: {from, to}, RolledBack: {from},
	}
	require.Len(t, fits, len(Phases()))
	for phase, good := range fits {
		for _, at := range []version.Version{from, to, other} {
			t.Run(fmt.Sprintf("%s at %s", phase, at.Name()), func(t *testing.T) {
				h := newHome(t)
				h.stage(to, "")
				h.stage(other, "")
				require.NoError(t, h.l.SwitchTo(at))
				j := full()
				j.Hold, j.Upgrade.Phase = nil, phase
				require.NoError(t, j.Save(h.l.JournalPath(), atomicfile.Full))
				err := h.unloaded().Load()
				if slices.Contains(good, at) {
					require.NoError(t, err)
					return
				}
				require.ErrorIs(t, err, state.ErrUntrusted)
				assert.Contains(t, hint.Of(err), "supervisor upgrade use")
				assert.Equal(t, at, h.current(), "the link is left alone")
			})
		}
	}
}

func TestLoadWithoutALink(t *testing.T) {
	h := newHome(t)
	j := full()
	require.NoError(t, j.Save(h.l.JournalPath(), atomicfile.Full))
	require.NoError(t, os.Remove(h.l.Link()))
	err := h.unloaded().Load()
	require.ErrorIs(t, err, state.ErrUntrusted)
	require.ErrorIs(t, err, version.ErrNoLink)
	assert.Contains(t, hint.Of(err), "--fix-link")
}

// FuzzDecodeJournal goes past the check, to the parser itself. What is read names versions within the tree, and is written
// again as what it is.
func FuzzDecodeJournal(f *testing.F) {
	for _, j := range []Journal{full(), {}, {Hold: full().Hold}} {
		data, err := j.encode()
		require.NoError(f, err)
		f.Add(data)
	}
	f.Add([]byte(`{"schema":1,"check":""}`))
	f.Add([]byte(`{"schema":1,"upgrade":{"phase":"staged","to":"../x"},"check":"0000000000000000"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var given struct{ Check string }
		if json.Unmarshal(data, &given) == nil {
			if sum, ok := digest(data, given.Check); ok {
				at := bytes.LastIndex(data, []byte(given.Check))
				data = slices.Concat(data[:at], []byte(sum), data[at+checkDigits:])
			}
		}
		j, err := decodeJournal(data)
		if err != nil {
			return
		}
		require.Equal(t, state.Schema, j.Schema)
		if u := j.Upgrade; u != nil {
			require.True(t, u.Phase.Known())
			for _, v := range []version.Version{u.From, u.To} {
				require.True(t, v == "" || v == version.Genesis || filepath.Dir(layoutOf("/home").Dir(v)) == layoutOf("/home").Dir("upgrades"), "%q", v)
			}
		}
		first, err := j.encode()
		require.NoError(t, err)
		back, err := decodeJournal(first)
		require.NoError(t, err)
		second, err := back.encode()
		require.NoError(t, err)
		require.Equal(t, string(first), string(second))
	})
}
