package genesis

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func doc(t *testing.T, text string) *Document {
	t.Helper()
	d, err := Parse([]byte(text))
	require.NoError(t, err)
	return d
}

func TestParseRefusesWhatIsNoSingleDocument(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":               ``,
		"a list":                `[1]`,
		"null":                  `null`,
		"truncated":             `{"a":1`,
		"two objects":           `{} {}`,
		"a key twice":           `{"a":1,"b":{"c":1,"c":2}}`,
		"a key twice, escaped":  `{"ab":1,"\u0061b":2}`,
		"not UTF-8":             "{\"a\":\"\xff\"}",
		"half a surrogate pair": `{"a":"\ud800"}`,
		"the other half":        `{"a":"\udc00x"}`,
		"two first halves":      `{"a":"\ud800\ud800"}`,
		"a comment":             `{"a":1} // x`,
		"a trailing comma":      `{"a":1,}`,
		"leading zeros":         `{"a":01}`,
		"too deep":              `{"a":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`,
		"much too deep":         `{"a":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`,
	} {
		_, err := Parse([]byte(text))
		assert.ErrorContains(t, err, "cannot read genesis document", name)
	}
	assert.NotPanics(t, func() { _, _ = Parse([]byte(`{"a":"\uD83D\uDE00 \\u \"","b":[ ],"c":{ },"d":-0.5e+10 }`)) })
}

func TestCanonicalKeepsTheMeaningAndNothingElse(t *testing.T) {
	a := doc(t, ` { "b" : [ 1 , 1.0, 1E5,100000000000000000000000001 ], "a":{"z":null,"y":true,"x":false},
		"text":"<&>\u2028 \u00e9 \ud83d\ude00 \/ \" \\ \n\t\u0001", "empty":[], "none":{} }`)
	want := "{\"a\":{\"x\":false,\"y\":true,\"z\":null},\"b\":[1,1.0,1E5,100000000000000000000000001],\"empty\":[],\"none\":{}," +
		"\"text\":\"<&>\u2028 é 😀 / \\\" \\\\ \\n\\t\\u0001\"}"
	assert.Equal(t, want, string(a.Canonical()))
	assert.Equal(t, digest([]byte(want)), a.Hash())

	again := doc(t, string(a.Text()))
	assert.Equal(t, a.Hash(), again.Hash(), "the text of the file is the same document")
	assert.Equal(t, a.Text(), again.Text(), "and the same file")
	assert.NotEqual(t, a.Hash(), doc(t, strings.Replace(string(a.Text()), "1.0", "1", 1)).Hash(), "a number is what is written")
	require.True(t, json.Valid(a.Text()))
}

func TestReadFileTakesRegularFilesOnly(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	for _, path := range []string{fifo, dir, filepath.Join(dir, "none")} {
		_, _, err := ReadFile(path)
		require.ErrorContains(t, err, "cannot read genesis document "+path)
	}
	d, data, err := ReadFile(write(t, filepath.Join(dir, "file"), `{"chain_id":"x"}`))
	require.NoError(t, err)
	assert.Equal(t, "x", d.ChainID())
	assert.JSONEq(t, `{"chain_id":"x"}`, string(data))
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestSet(t *testing.T) {
	const text = `{"chain_id":"old","initial_height":"5","n":7,"on":true,"nothing":null,"o":{"a.b":1,"list":[{"power":10},{"power":20}]}}`
	for _, c := range []struct{ path, value, want string }{
		{"chain_id", "new-2", `"new-2"`},
		{"chain_id", `"quoted"`, `"quoted"`},
		{"initial_height", "12", `"12"`}, // a string stays one
		{"n", "100000000000000000000", `100000000000000000000`},
		{"on", "false", `false`},
		{"o.list.1.power", "21", `21`},
		{`o.a\.b`, "3", `3`},
		{"o.new", "5", `5`},
		{"o.word", "five", `"five"`},
		{"o.list", "[]", `[]`},
		{"o", `{"x":1}`, `{"x":1}`},
		{"nothing", `{"x":[1]}`, `{"x":[1]}`},
		{"genesis_time", "2026-01-01T00:00:00Z", `"2026-01-01T00:00:00Z"`},
		{"validators", `[{"pub_key":"a"}]`, `[{"pub_key":"a"}]`},
	} {
		d := doc(t, text)
		require.NoError(t, d.Set(c.path, c.value), c.path)
		v, ok := d.Get(c.path)
		require.True(t, ok, c.path)
		assert.Equal(t, c.want, string(raw(v)), c.path)
		for _, change := range Diff(doc(t, text), d) {
			assert.True(t, strings.HasPrefix(change.Path, c.path), "%s: nothing else, not %s", c.path, change.Path)
		}
	}
	numbered := doc(t, `{"initial_height":5}`)
	require.NoError(t, numbered.Set("chain_id", "17"))
	require.NoError(t, numbered.Set("initial_height", "12"))
	assert.JSONEq(t, `{"chain_id":"17","initial_height":12}`, string(numbered.Canonical()), "a name is never a number")

	for path, value := range map[string]string{
		"chainid": "x", "n": "many", "on": "yes", "o.list.2": "{}", "o.list.2.power": "1", "o.none.x": "1", "chain_id.x": "1",
		"o.list": "{}", "o": "[]", "": "x", "o.": "x", "o.list.x": "1",
	} {
		d := doc(t, text)
		require.ErrorContains(t, d.Set(path, value), "cannot set", "%s=%s", path, value)
		assert.Empty(t, Diff(doc(t, text), d), "a refused one changes nothing: %s", path)
	}
}

func TestSetAll(t *testing.T) {
	d := doc(t, `{"chain_id":"old","initial_height":"5","p":{"q":{"n":1,"s":"x"}}}`)
	require.NoError(t, d.SetAll(map[string]any{
		"chain_id": "new", "initial_height": int64(9), "p.q.n": int64(2), "p": map[string]any{"q": map[string]any{"s": "y"}},
	}))
	assert.JSONEq(t, `{"chain_id":"new","initial_height":"9","p":{"q":{"n":2,"s":"y"}}}`, string(d.Canonical()))
	require.ErrorContains(t, CheckSet(map[string]any{"a": map[string]any{"b": 1.5}}), "a.b: must be")
	require.Error(t, d.SetAll(map[string]any{"none": "x"}))
}

func TestDiff(t *testing.T) {
	a := doc(t, `{"chain_id":"a","gone":1,"same":{"x":[1,2]},"n":1,"v":[1,2,3],
		"validators":[{"pub_key":{"type":"t","value":"A"},"power":"1"},{"pub_key":{"type":"t","value":"B"},"power":"2"}]}`)
	b := doc(t, `{"chain_id":"b","new":{"deep":true},"same":{"x":[1,2]},"n":1.0,"v":[1,4],
		"validators":[{"pub_key":{"type":"t","value":"C"},"power":"3"},{"pub_key":{"type":"t","value":"A"},"power":"1"}]}`)
	var lines []string
	for _, c := range Diff(a, b) {
		lines = append(lines, c.Kind+" "+c.String())
	}
	assert.Equal(t, []string{
		`changed chain_id: "a" → "b"`,
		`removed gone: 1 → (none)`,
		`changed n: 1 → 1.0`,
		`added new: (none) → {"deep":true}`,
		`changed v.1: 2 → 4`,
		`removed v.2: 3 → (none)`,
		`removed validators.B: {"power":"2","pub_key":{"type":"t","value":"B"}} → (none)`,
		`added validators.C: (none) → {"power":"3","pub_key":{"type":"t","value":"C"}}`,
	}, lines, "in the order of the paths, validators by their keys")
	assert.Empty(t, Diff(a, a))
	twice := doc(t, `{"validators":[{"pubkey":"A"},{"pubkey":"A"}]}`)
	assert.Len(t, Diff(twice, doc(t, `{"validators":[{"pubkey":"A"}]}`)), 1, "a key that comes twice is no name")
	long := Diff(doc(t, `{}`), doc(t, `{"x":"`+strings.Repeat("é", 500)+`"}`))
	assert.Less(t, len(long[0].String()), 150)
}

func TestValidateAndDetect(t *testing.T) {
	const cosmos = `{"chain_id":"c-1","genesis_time":"2026-01-01T00:00:00.5Z","initial_height":"7","app_state":{},"consensus":{}}`
	require.NoError(t, doc(t, cosmos).Validate(Cosmos))
	require.NoError(t, doc(t, strings.Replace(cosmos, `"7"`, `7`, 1)).Validate(Cosmos), "the SDK writes a number, CometBFT a string")
	for change, want := range map[[2]string]string{
		{"chain_id", `""`}: "chain_id: must be",
		{"chain_id", `"` + strings.Repeat("x", 51) + `"`}: "chain_id: longer than 50",
		{"genesis_time", `"yesterday"`}:                   "genesis_time:",
		{"genesis_time", `"0001-01-01T00:00:00Z"`}:        "genesis_time:",
		{"initial_height", `"x"`}:                         "initial_height:",
		{"initial_height", `-1`}:                          "initial_height:",
		{"initial_height", `1.5`}:                         "initial_height:",
		{"initial_height", `99999999999999999999`}:        "initial_height:",
		{"app_state", `[]`}:                               "app_state:",
		{"consensus", `null`}:                             "consensus:",
	} {
		d := doc(t, cosmos)
		v, err := parse([]byte(change[1]))
		require.NoError(t, err)
		d.fields[change[0]] = v
		assert.ErrorContains(t, d.Validate(Cosmos), want)
	}
	err := doc(t, `{}`).Validate(Cosmos)
	for _, field := range []string{"chain_id", "genesis_time", "app_state", "consensus"} {
		assert.ErrorContains(t, err, field, "all at once")
	}
	require.NoError(t, doc(t, `{}`).Validate(Command), "another chain's document may have any shape")
	for text, want := range map[string][2]string{
		cosmos:                              {Cosmos, ""},
		`{"consensus_params":{"votes":{}}}`: {Kwil, "v0.9"},
		`{"state_hash":"00"}`:               {Kwil, "v0.10"},
		`{"db_owner":"","leader":{}}`:       {Kwil, "v0.10"},
		`{"x":1}`:                           {"", ""},
	} {
		kind, version := doc(t, text).Detect()
		assert.Equal(t, want, [2]string{kind, version}, text)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"a":[1,{"b":"\ud83d\ude00"}],"c":null}`))
	f.Add([]byte(`{"a":"\ud800"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := Parse(data)
		if err != nil {
			return
		}
		again, err := Parse(d.Text())
		require.NoError(t, err)
		require.Equal(t, d.Canonical(), again.Canonical())
		var std any
		require.NoError(t, json.Unmarshal(d.Canonical(), &std), "what we write is JSON to others")
	})
}
