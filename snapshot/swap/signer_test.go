package swap

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"nodevisor/internal/hint"
)

func TestParseSigner(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want *hrs // nil: refused
	}{
		"cometbft":         {`{"height":"12","round":1,"step":3,"signature":"x","signbytes":"00"}`, &hrs{12, 1, 3}},
		"height as number": {`{"height":12,"round":0,"step":3}`, &hrs{12, 0, 3}},
		"fresh key":        {"{\n  \"height\": \"0\",\n  \"round\": 0,\n  \"step\": 0\n}\n", &hrs{}},
		"nested twin":      {`{"height":"5","round":0,"step":1,"x":{"height":"9"}}`, &hrs{5, 0, 1}},
		"largest":          {`{"height":"9223372036854775807","round":0,"step":1}`, &hrs{9223372036854775807, 0, 1}},
		"empty":            {``, nil},
		"empty object":     {`{}`, nil},
		"null":             {`null`, nil},
		"array":            {`[{"height":"1","round":0,"step":1}]`, nil},
		"truncated":        {`{"height":"12","round":0,`, nil},
		"cut at the end":   {`{"height":"12","round":0,"step":1`, nil},
		"trailing":         {`{"height":"12","round":0,"step":1}{}`, nil},
		"twice":            {`{"height":"12","round":0,"step":1,"height":"1"}`, nil},
		"negative":         {`{"height":"-1","round":0,"step":1}`, nil},
		"overflow":         {`{"height":"9223372036854775808","round":0,"step":1}`, nil},
		"sign":             {`{"height":"+12","round":0,"step":1}`, nil},
		"leading zero":     {`{"height":"012","round":0,"step":1}`, nil},
		"float":            {`{"height":1.5,"round":0,"step":1}`, nil},
		"exponent":         {`{"height":1e3,"round":0,"step":1}`, nil},
		"null height":      {`{"height":null,"round":0,"step":1}`, nil},
		"no step":          {`{"height":"1","round":0}`, nil},
		"other case":       {`{"Height":"1","round":0,"step":1}`, nil},
		"too large":        {`{"height":"1","round":0,"step":1}` + strings.Repeat(" ", maxSigner), nil},
		"zeros of a crash": {strings.Repeat("\x00", 200), nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseSigner([]byte(c.text))
			if c.want == nil {
				assert.Error(t, err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, *c.want, got)
		})
	}
}

// FuzzParseSigner: the numbers are those that CometBFT would read.
func FuzzParseSigner(f *testing.F) {
	f.Add([]byte(`{"height":"12","round":1,"step":3,"signature":"x","signbytes":"00"}`))
	f.Add([]byte(`{"height":12,"round":0,"step":0}`))
	f.Add([]byte(`{"height":12`))
	f.Add([]byte(`{"height":"+12","round":"0","step":-0,"x":{"height":"9"},"Step":3}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := parseSigner(data)
		if err != nil {
			return
		}
		var members map[string]json.RawMessage // as libs/json decodes a struct: keys as they are spelt
		require.NoError(t, json.Unmarshal(data, &members))
		for key, want := range map[string]int64{"height": got.height, "round": got.round, "step": got.step} {
			require.GreaterOrEqual(t, want, int64(0))
			var n int64
			require.NoError(t, json.Unmarshal([]byte(strings.Trim(string(members[key]), `"`)), &n), "%s: %s", key, members[key])
			require.Equal(t, want, n, key)
		}
		again, err := parseSigner(fmt.Appendf(nil, `{"height":"%d","round":%d,"step":%d}`, got.height, got.round, got.step))
		require.NoError(t, err)
		require.Zero(t, got.compare(again))
	})
}

// FuzzJournal: no name in a journal of a restore leads out of its folder.
func FuzzJournal(f *testing.F) {
	for _, j := range []journal{
		{Schema: schema, Phase: Staging, Stage: "stage", Before: "before"},
		{Schema: schema, Phase: Swapping, Stage: "s", Before: "b", Old: []identity{{"data", 1, 2}}, New: []identity{{"s", 1, 3}}, Signers: []string{"a/b.json"}},
		{Schema: schema, Phase: Swapping, Stage: "s", Before: "b", Inside: true, Old: []identity{{"a", 1, 2}, {"b", 1, 4}}},
	} {
		data, err := json.Marshal(j)
		require.NoError(f, err)
		f.Add(data, j.Inside)
	}
	f.Add([]byte(`{"schema":1,"phase":"staging","stage":"..","before":"a/b"}`), false)
	f.Add([]byte(`{"schema":1,"phase":"swap","inside":true,"stage":"x","before":"x"}`), true)
	place := &Place{Path: filepath.Join(f.TempDir(), "data")}
	require.NoError(f, os.MkdirAll(filepath.Dir(place.journalPath(true)), 0o700))
	require.NoError(f, os.MkdirAll(filepath.Dir(place.journalPath(false)), 0o700))
	f.Fuzz(func(t *testing.T, data []byte, inside bool) {
		require.NoError(t, os.WriteFile(place.journalPath(inside), data, 0o600))
		j, err := place.record(inside).Read()
		if err != nil {
			return
		}
		side := place.sideOf(j)
		require.Equal(t, side, filepath.Dir(place.stageOf(j)))
		require.Contains(t, []string{side, filepath.Dir(place.Path)}, filepath.Dir(place.beforeOf(j)))
		require.NotEqual(t, place.stageOf(j), place.beforeOf(j), "the live tree never replaces what takes its place")
		for _, id := range append(j.Old, j.New...) {
			require.True(t, filepath.IsLocal(id.Name) && !strings.Contains(id.Name, "/"), id.Name)
		}
		for _, rel := range j.Signers {
			require.True(t, filepath.IsLocal(rel), rel)
		}
		require.NoError(t, place.writeJournal(j))
		again, err := place.record(inside).Read()
		require.NoError(t, err)
		require.Equal(t, j, again)
	})
}

func TestWinner(t *testing.T) {
	for name, c := range map[string]struct {
		live, snap string
		allow      bool
		want       string // live, snapshot, none; "" = refused
	}{
		"live is newer":            {state(10, 0, 1), state(9, 9, 9), false, "live"},
		"same":                     {state(10, 1, 2), state(10, 1, 2), false, "live"},
		"newer round":              {state(10, 1, 0), state(10, 0, 3), false, "live"},
		"newer step":               {state(10, 1, 3), state(10, 1, 2), false, "live"},
		"older step":               {state(10, 1, 1), state(10, 1, 2), false, "snapshot"},
		"older height":             {state(9, 9, 9), state(10, 0, 0), false, "snapshot"},
		"the flag changes nothing": {state(10, 0, 1), state(9, 0, 0), true, "live"},
		"only live":                {state(1, 0, 0), "", false, "live"},
		"neither":                  {"", "", false, "none"},
		"only the snapshot's":      {"", state(1, 0, 0), false, ""},
		"allowed":                  {"", state(1, 0, 0), true, "snapshot"},
		"live unreadable":          {"{", state(1, 0, 0), true, ""},
		"snapshot's unreadable":    {state(1, 0, 0), "{", true, ""},
		"live empty":               {" ", state(1, 0, 0), false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			con := contest{old: []string{filepath.Join(dir, "old")}, new: filepath.Join(dir, "new"), allowNew: c.allow}
			if c.live != "" {
				put(t, filepath.Join(con.old[0], "sub", signer), c.live)
			}
			if c.snap != "" {
				put(t, filepath.Join(con.new, "sub", signer), c.snap)
			}
			got, err := con.settle("sub/" + signer)
			if c.want == "" {
				require.Error(t, err)
				assert.NotEmpty(t, hint.Of(err))
				return
			}
			require.NoError(t, err)
			if c.want == "none" {
				assert.Nil(t, got)
				return
			}
			assert.Equal(t, c.want, got.Winner)
			want := map[string]string{"live": c.live, "snapshot": c.snap}[c.want]
			assert.Equal(t, want, get(t, filepath.Join(con.new, "sub", signer)), "byte for byte")
		})
	}
}

// A live state behind a link is read through it; the replacement gets a file.
func TestSignerBehindLink(t *testing.T) {
	dir := t.TempDir()
	p := &Place{Path: filepath.Join(dir, "data"), IsSigner: func(rel string) bool { return rel == signer }}
	put(t, filepath.Join(dir, "secure", "s.json"), state(7, 0, 0))
	require.NoError(t, os.MkdirAll(p.Path, 0o700))
	require.NoError(t, os.Symlink("../secure/s.json", filepath.Join(p.Path, signer)))
	to := filepath.Join(dir, "copy")
	fill(t, to, "new", 3)
	got, err := p.Carry("ID", to, []string{signer}, false)
	require.NoError(t, err)
	require.Len(t, got, 1)
	assert.Equal(t, "live", got[0].Winner)
	assert.Equal(t, state(7, 0, 0), get(t, filepath.Join(to, signer)))
}
