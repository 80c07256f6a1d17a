package plan

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"nodevisor/upgrade/version"
)

const zeroTime = `"0001-01-01T00:00:00Z"`

func TestParsePlanTakesWhatNodesWrite(t *testing.T) {
	for name, c := range map[string]struct {
		doc  string
		want Plan
	}{
		"SDK 0.53":          {`{"name":"V2-Demo","time":` + zeroTime + `,"height":32,"info":"{}"}`, Plan{Name: "v2-demo", RawName: "V2-Demo", Height: 32, Info: "{}"}},
		"jsonpb":            {`{"name":"v2","height":"32"}`, Plan{Name: "v2", Height: 32}},
		"no time":           {`{"name":"v2","height":32}`, Plan{Name: "v2", Height: 32}},
		"null time":         {`{"name":"v2","time":null,"height":32}`, Plan{Name: "v2", Height: 32}},
		"zero time, offset": {`{"name":"v2","time":"0001-01-01T00:00:00+00:00","height":32}`, Plan{Name: "v2", Height: 32}},
		"client state null": {`{"name":"v2","height":32,"upgraded_client_state":null}`, Plan{Name: "v2", Height: 32}},
		"unknown fields":    {`{"name":"v2","height":32,"more":{"a":[1,2]}}`, Plan{Name: "v2", Height: 32}},
		"keys in any case":  {`{"Name":"v2","HEIGHT":32,"Info":"x"}`, Plan{Name: "v2", Height: 32, Info: "x"}},
		"white space":       {" \n\t{\"name\" : \"v2\",\"height\": 32 }\r\n", Plan{Name: "v2", Height: 32}},
		"a name with blank": {`{"name":"My Upgrade","height":32}`, Plan{Name: "my upgrade", RawName: "My Upgrade", Height: 32}},
		"the last height":   {`{"name":"v2","height":9223372036854775807}`, Plan{Name: "v2", Height: 1<<63 - 1}},
		"escaped name":      {`{"name":"\u0076\u0032","height":32}`, Plan{Name: "v2", Height: 32}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Parse([]byte(c.doc), true)
			require.NoError(t, err)
			c.want.Source = FromFile
			assert.Equal(t, c.want, p)
		})
	}
}

func TestParsePlanRefusesWhatTwoToolsCouldReadDifferently(t *testing.T) {
	const rest = `,"time":` + zeroTime + `}`
	for name, doc := range map[string]string{
		"empty": "", "blanks": " \n", "null": "null", "a string": `"v2"`, "an array": `[{"name":"v2","height":1}]`,
		"cut off": `{"name":"v2","height":3`, "cut in a key": `{"na`, "one brace": `{`, "NUL bytes": "\x00\x00\x00\x00",
		"trailing garbage":    `{"name":"v2","height":32}x`,
		"two documents":       `{"name":"v2","height":32}{"name":"v3","height":33}`,
		"duplicate name":      `{"name":"v2","name":"v3","height":32}`,
		"duplicate by case":   `{"name":"v2","height":32,"Height":33}`,
		"no name":             `{"height":32}`,
		"name of a number":    `{"name":2,"height":32}`,
		"name null":           `{"name":null,"height":32}`,
		"no height":           `{"name":"v2"}`,
		"height null":         `{"name":"v2","height":null}`,
		"height 0":            `{"name":"v2","height":0` + rest,
		"height negative":     `{"name":"v2","height":-5` + rest,
		"height -0":           `{"name":"v2","height":-0` + rest,
		"height 1e3":          `{"name":"v2","height":1e3` + rest,
		"height 1.0":          `{"name":"v2","height":1.0` + rest,
		"height overflow":     `{"name":"v2","height":9223372036854775808` + rest,
		"height far over":     `{"name":"v2","height":99999999999999999999999` + rest,
		"string negative":     `{"name":"v2","height":"-5"` + rest,
		"string plus":         `{"name":"v2","height":"+5"` + rest,
		"string hex":          `{"name":"v2","height":"0x20"` + rest,
		"string blank":        `{"name":"v2","height":" 5"` + rest,
		"string empty":        `{"name":"v2","height":""` + rest,
		"string underscore":   `{"name":"v2","height":"1_000"` + rest,
		"height true":         `{"name":"v2","height":true` + rest,
		"height object":       `{"name":"v2","height":{}` + rest,
		"a time":              `{"name":"v2","height":32,"time":"2026-01-01T00:00:00Z"}`,
		"a time that is none": `{"name":"v2","height":32,"time":"soon"}`,
		"client state":        `{"name":"v2","height":32,"upgraded_client_state":{}}`,
		"info of an object":   `{"name":"v2","height":32,"info":{}}`,
		"deeply nested":       `{"name":"v2","height":32,"x":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`,
		"over 1 MiB":          `{"name":"v2","height":32,"info":"` + strings.Repeat("x", 1<<20) + `"}`,
		"a path":              `{"name":"../../evil","height":32}`,
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Parse([]byte(doc), true)
			require.ErrorIs(t, err, ErrInvalid)
			assert.Zero(t, p, "nothing of an invalid plan is handed out")
		})
	}
	almost := `{"name":"v2","height":32,"info":"` + strings.Repeat("x", 1<<20-40) + `"}`
	_, err := Parse([]byte(almost), true)
	require.NoError(t, err, "the cap is 1 MiB, not less")
}

func TestReadPlanFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "upgrade-info.json")
	_, _, err := ReadFile(path, true)
	require.ErrorIs(t, err, ErrMissing)
	_, _, err = ReadFile("", true)
	require.ErrorIs(t, err, ErrMissing)

	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, info, err := ReadFile(path, true)
	require.ErrorIs(t, err, ErrInvalid)
	assert.NotNil(t, info, "an unusable file has an identity all the same: a change of it is seen")

	require.NoError(t, os.Truncate(path, 1<<36)) // 64 GiB: it is not read into memory
	_, _, err = ReadFile(path, true)
	require.ErrorIs(t, err, ErrInvalid)
	require.ErrorContains(t, err, "larger than")

	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(path, 0o755))
	_, _, err = ReadFile(path, true)
	require.ErrorIs(t, err, ErrInvalid, "a directory")

	require.NoError(t, os.Remove(path))
	require.NoError(t, unix.Mkfifo(path, 0o600))
	done := make(chan error, 1)
	go func() { _, _, err := ReadFile(path, true); done <- err }()
	select {
	case err := <-done:
		require.ErrorIs(t, err, ErrInvalid)
	case <-time.After(20 * time.Second):
		require.Fail(t, "a FIFO in the place of the plan file blocks the reader")
	}
}

func TestPlanKeyTitleAndMerge(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	file := Plan{Name: "v2", RawName: "V2", Height: 100, Source: FromFile}
	chain := Plan{Name: "v2", Height: 100, Info: "I", Source: FromChain}
	assert.Equal(t, file.Key(), chain.Key())
	assert.NotEqual(t, file.Key(), Plan{Name: "v2", Height: 101}.Key())
	assert.NotEqual(t, Plan{Name: "v2", Time: at}.Key(), Plan{Name: "v2", Time: at.Add(time.Hour)}.Key())
	assert.Equal(t, Plan{Name: "v2", Time: at}.Key(), Plan{Name: "v2", Time: at.In(time.FixedZone("x", 3600))}.Key())
	assert.Equal(t, "V2", file.Title())
	assert.Equal(t, "v2", chain.Title())
	assert.Equal(t, "100", file.When())
	assert.Equal(t, "2026-03-01T12:00:00Z", Plan{Time: at}.When())

	merged := file.Merge(chain)
	assert.Equal(t, "I", merged.Info, "an empty info equals any")
	assert.Equal(t, FromFile, merged.Source)
	assert.Equal(t, "mine", Plan{Info: "mine"}.Merge(chain).Info)
}

func TestPlanDocumentIsReadBack(t *testing.T) {
	p := Plan{Name: "v2", RawName: "V2", Height: 100, Info: `{"binaries":{}}`, Source: FromOperator}
	doc, err := p.Document(p.Title())
	require.NoError(t, err)
	assert.JSONEq(t, `{"name":"V2","time":"0001-01-01T00:00:00Z","height":100,"info":"{\"binaries\":{}}"}`, string(doc))
	back, err := Parse(doc, true)
	require.NoError(t, err)
	assert.Equal(t, p.Key(), back.Key())
}

// Whatever a node, a chain or an attacker writes: the directory of a plan's version lies in upgrades/, right below it.
func FuzzParsePlan(f *testing.F) {
	for _, doc := range []string{
		`{"name":"V2-Demo","time":` + zeroTime + `,"height":32,"info":"{}"}`, `{"name":"..","height":"1"}`, `{"name":"a/b","height":1}`,
		`{"name":"%2e%2e","height":1}`, `{"name":"v2","name":"v3","height":1}`, `{"name":"v2","height":1e3}`, "{", "", "null",
	} {
		f.Add([]byte(doc), true)
		f.Add([]byte(doc), false)
	}
	f.Fuzz(func(t *testing.T, doc []byte, recase bool) {
		p, err := Parse(doc, recase)
		if err != nil {
			require.ErrorIs(t, err, ErrInvalid)
			return
		}
		require.Positive(t, p.Height)
		requireInside(t, p.Name)
		again, err := p.Document(p.Title())
		require.NoError(t, err)
		back, err := Parse(again, recase)
		if len(again) <= maxBytes {
			require.NoError(t, err)
			require.Equal(t, p.Key(), back.Key())
		}
	})
}

func requireInside(t *testing.T, name string) {
	t.Helper()
	l := version.Layout{Root: "/home/cosmovisor"}
	dir := l.Dir(version.Of(name))
	require.Equal(t, filepath.Join(l.Root, "upgrades"), filepath.Dir(dir))
	require.LessOrEqual(t, len(filepath.Base(dir)), 255)
	require.True(t, filepath.IsLocal(string(version.Of(name))))
}

func TestInstalled(t *testing.T) {
	l := version.Layout{Root: t.TempDir()}
	require.NoError(t, os.MkdirAll(l.Dir("upgrades/v2"), 0o755))
	write := func(text string) { require.NoError(t, os.WriteFile(l.InfoPath("upgrades/v2"), []byte(text), 0o644)) }
	_, ok := Installed(l, "upgrades/v2", true)
	assert.False(t, ok)
	write("")
	_, ok = Installed(l, "upgrades/v2", true)
	assert.False(t, ok, "an empty trace, as a killed Cosmovisor leaves it")
	write(`{"name":"v2","height":100}`)
	p, ok := Installed(l, "upgrades/v2", true)
	assert.True(t, ok)
	assert.Equal(t, int64(100), p.Height)
}
